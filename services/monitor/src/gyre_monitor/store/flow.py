"""The flow of models in SQL: triggers, candidates, rollouts, alerts; and the decision that a run is due."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from gyre.events.v1 import models_pb2 as models
from gyre.events.v1 import monitor_pb2 as monitor
from gyre_core.spec import LoopSpec
from gyre_runtime.events import Event
from sqlalchemy import Connection, and_, exists, func, not_, or_, select, update

from gyre_monitor.domain.triggers import Standing, due
from gyre_monitor.ports import RunOfTrigger
from gyre_monitor.store.database import insert_new, upsert
from gyre_monitor.store.schema import ALERTS, CANDIDATES, LOOPS, ROLLOUTS, TRIGGERS

Row = dict[str, Any]
OVER = frozenset(
    {
        models.ROLLOUT_EVENT_KIND_PROMOTED,
        models.ROLLOUT_EVENT_KIND_ROLLED_BACK,
        models.ROLLOUT_EVENT_KIND_REFUSED,
        models.ROLLOUT_EVENT_KIND_UNLOADED,
        models.ROLLOUT_EVENT_KIND_DROPPED,
        models.ROLLOUT_EVENT_KIND_FELL_BACK,
    }
)
"""What a rollout that is no longer under way last said."""
_WITHOUT_STEP = frozenset({models.ROLLOUT_EVENT_KIND_UNLOADED, models.ROLLOUT_EVENT_KIND_DROPPED})


def note_trigger(connection: Connection, spec: LoopSpec, event: Event) -> None:
    """Store a trigger that stands in the topic; one that is not known yet starts the count anew."""
    message: models.TrainingTrigger = event.message
    loop = spec.loop
    key = and_(TRIGGERS.c.loop == loop, TRIGGERS.c.trigger_id == message.trigger_id)
    if connection.scalar(select(TRIGGERS.c.loop).where(key)):
        connection.execute(update(TRIGGERS).where(key).values(sent=True))
        return
    row = _trigger(loop, message.trigger_id, reason=message.reason, at=event.time)
    row |= {"value": message.value, "threshold": message.threshold, "sent": True}
    connection.execute(TRIGGERS.insert(), row)
    _begin_again(connection, spec, event.time)


def _trigger(loop: str, trigger_id: str, *, reason: int, at: float) -> Row:
    row = {"loop": loop, "trigger_id": trigger_id, "reason": reason, "trigger_time": at, "links": "[]"}
    return {**row, "run_id": "", "run_state": "", "closed": False}


def _begin_again(connection: Connection, spec: LoopSpec, at: float) -> None:
    """Count from zero, and let the schedule begin now on the loop's clock."""
    own_time = at if spec.clock == "wall" else func.coalesce(LOOPS.c.clock, LOOPS.c.schedule_from)
    changes = {"interactions_since_trigger": 0, "tipping": "[]", "schedule_from": own_time}
    connection.execute(update(LOOPS).where(LOOPS.c.loop == spec.loop).values(changes))


def note_candidate(connection: Connection, spec: LoopSpec, event: Event) -> None:
    """Store a candidate."""
    message: models.CandidateRegistered = event.message
    row = {
        "loop": spec.loop,
        "version": message.version,
        "run_id": message.run_id,
        "trigger_id": message.trigger_id,
        "snapshots": json.dumps(dict(message.snapshots)),
        "candidate_time": event.time,
        "layout": message.layout,
    }
    insert_new(connection, CANDIDATES, [row])


def note_rollout(connection: Connection, spec: LoopSpec, event: Event) -> None:
    """Fold one event of a rollout into its row; the candidate that STARTED carries is stored, too."""
    message: models.RolloutEvent = event.message
    at = message.change_time.ToNanoseconds() / 1e9 if message.HasField("change_time") else event.time
    if message.HasField("candidate") and message.candidate.version:
        note_candidate(connection, spec, event._replace(message=message.candidate))
    key = and_(ROLLOUTS.c.loop == spec.loop, ROLLOUTS.c.rollout_id == message.rollout_id)
    stored = connection.execute(select(ROLLOUTS).where(key)).mappings().one_or_none()
    row = _started(spec.loop, message, at) if stored is None else dict(stored)
    upsert(connection, ROLLOUTS, [_folded(row, message, at)])


def _started(loop: str, message: models.RolloutEvent, at: float) -> Row:
    row: Row = {"loop": loop, "rollout_id": message.rollout_id, "version": message.version, "kind": message.kind}
    row |= {"share": 0.0, "first_epoch": message.epoch, "last_epoch": message.epoch, "start_time": at}
    return {**row, "change_time": at, "full_time": None, "events": 0}


def _folded(row: Row, message: models.RolloutEvent, at: float) -> Row:
    folded = {**row, "events": row["events"] + 1}
    # Unloading or dropping an old version is no step of the rollout that made it old.
    if message.kind in _WITHOUT_STEP or message.epoch < row["last_epoch"]:
        return folded
    folded |= {"kind": message.kind, "share": message.share, "last_epoch": message.epoch, "change_time": at}
    if row["full_time"] is None and (message.share >= 1 or message.kind == models.ROLLOUT_EVENT_KIND_PROMOTED):
        folded["full_time"] = at
    return folded


def note_alert(connection: Connection, spec: LoopSpec, event: Event) -> None:
    """Store an alert as it stands now."""
    message: monitor.Alert = event.message
    row = {
        "loop": spec.loop,
        "alert_id": message.alert_id,
        "name": message.name,
        "severity": message.severity,
        "message": message.message,
        "start_time": message.start_time.ToNanoseconds() / 1e9 if message.HasField("start_time") else event.time,
        "end_time": message.end_time.ToNanoseconds() / 1e9 if message.HasField("end_time") else None,
    }
    upsert(connection, ALERTS, [row])


NOTES: Mapping[str, Callable[[Connection, LoopSpec, Event], None]] = {
    "training.triggers": note_trigger,
    "models.candidates": note_candidate,
    "models.rollout-events": note_rollout,
    "alerts": note_alert,
}
"""What stores an event, by the topic's name within the loop."""


def decide(connection: Connection, spec: LoopSpec, *, newest: str, now: float, timeout_s: float) -> str | None:
    """Write a trigger down if a run is due and none is under way, to be sent afterwards; return its id.

    Args:
        connection: within the transaction that counted what tips it.
        spec: of the loop.
        newest: hash of the spec's feature layout.
        now: wall clock, unix seconds.
        timeout_s: after which a run or a candidate that nothing more is heard of holds back no trigger.
    """
    if spec.training.triggers.volume is None and spec.training.triggers.schedule is None:
        return None
    row = connection.execute(select(LOOPS).where(LOOPS.c.loop == spec.loop).with_for_update()).one()
    clock = now if spec.clock == "wall" else row.clock
    elapsed_s = None if clock is None or row.schedule_from is None else clock - row.schedule_from
    found = due(spec.training.triggers, Standing(row.interactions_since_trigger, elapsed_s))
    if found is None or is_under_way(connection, spec.loop, newest=newest, now=now, timeout_s=timeout_s):
        return None
    trigger_id = f"{found.reason.name.lower()}-{uuid.uuid4().hex}"
    trigger = _trigger(spec.loop, trigger_id, reason=found.reason, at=now)
    trigger |= {"value": found.value, "threshold": found.threshold, "links": row.tipping, "sent": False}
    connection.execute(TRIGGERS.insert(), trigger)
    _begin_again(connection, spec, now)
    return trigger_id


def is_under_way(connection: Connection, loop: str, *, newest: str, now: float, timeout_s: float) -> bool:
    """Whether a run of the loop, or a candidate of its newest layout, is under way, as far as the topics tell.

    A trigger waits for its candidate, a candidate for its rollout, a rollout for its end. The first two do not wait for
    ever: a run may be refused where nobody tells it. A candidate of an older layout holds nothing back: gyre.yaml asks
    for a model that reads the newest one, and the deployer lets that wait for its turn.

    Args:
        connection: to the database.
        loop: its name.
        newest: hash of the layout of the loop's gyre.yaml.
        now: wall clock, unix seconds.
        timeout_s: after which a run or a candidate that nothing more is heard of counts as over.
    """
    trigger, candidate, rollout = TRIGGERS.c, CANDIDATES.c, ROLLOUTS.c
    answered = exists().where(candidate.loop == trigger.loop, candidate.trigger_id == trigger.trigger_id)
    rolled_out = exists().where(rollout.loop == candidate.loop, rollout.version == candidate.version)
    recent = now - timeout_s
    run = exists().where(trigger.loop == loop, trigger.trigger_time > recent, not_(trigger.closed), not_(answered))
    older = and_(candidate.layout != "", candidate.layout != newest)
    waiting = exists().where(candidate.loop == loop, candidate.candidate_time > recent, not_(rolled_out), not_(older))
    of_older = exists().where(candidate.loop == rollout.loop, candidate.version == rollout.version, older)
    rolling = exists().where(rollout.loop == loop, rollout.kind.not_in(OVER), not_(of_older))
    return bool(connection.scalar(select(or_(run, waiting, rolling))))


def unsent(connection: Connection) -> list[Row]:
    """The triggers that are decided and perhaps not sent, oldest first."""
    found = connection.execute(select(TRIGGERS).where(not_(TRIGGERS.c.sent)).order_by(TRIGGERS.c.trigger_time))
    return [dict(row) for row in found.mappings()]


def mark_sent(connection: Connection, loop: str, trigger_id: str) -> None:
    """Note that Kafka has a trigger."""
    key = and_(TRIGGERS.c.loop == loop, TRIGGERS.c.trigger_id == trigger_id)
    connection.execute(update(TRIGGERS).where(key).values(sent=True))


def open_triggers(connection: Connection, *, now: float, timeout_s: float) -> dict[str, set[str]]:
    """The ids of the triggers of each loop that wait for a candidate."""
    trigger, candidate = TRIGGERS.c, CANDIDATES.c
    answered = exists().where(candidate.loop == trigger.loop, candidate.trigger_id == trigger.trigger_id)
    wanted = (trigger.sent, trigger.trigger_time > now - timeout_s, not_(trigger.closed), not_(answered))
    found: dict[str, set[str]] = {}
    for loop, trigger_id in connection.execute(select(trigger.loop, trigger.trigger_id).where(*wanted)):
        found.setdefault(loop, set()).add(trigger_id)
    return found


def note_run(connection: Connection, loop: str, run: RunOfTrigger) -> None:
    """Store what the trainer says of the run of a trigger."""
    key = and_(TRIGGERS.c.loop == loop, TRIGGERS.c.trigger_id == run.trigger_id)
    values = {"run_id": run.run_id, "run_state": run.state, "closed": run.failed}
    connection.execute(update(TRIGGERS).where(key).values(values))
