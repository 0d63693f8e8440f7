"""What the monitor tells of a loop, read from the database: status, experiment, alerts, lineage."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from gyre.events.v1 import models_pb2 as models
from sqlalchemy import ColumnElement, Connection, and_, case, func, select

from gyre_monitor.domain.incidents import AlertRecord
from gyre_monitor.domain.outcomes import ArmTotals, LoggedAnswer, attributed
from gyre_monitor.domain.stages import Stage, flowing, rollout, training
from gyre_monitor.store.behaviour import read_actions
from gyre_monitor.store.flow import OVER
from gyre_monitor.store.schema import (
    ALERTS,
    ARMS,
    CANDIDATES,
    IMPRESSIONS,
    INTERACTIONS,
    LATENCIES,
    LOOPS,
    ROLLOUTS,
    STAGES,
    TRIGGERS,
)

_MAX_ALERTS = 1000
_MAX_ACTIONS = 10_000
_KIND_PREFIX = "ROLLOUT_EVENT_KIND_"
ArmKey = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Status:
    """Where a loop stands; `loop_time_s` is 0 before a trigger has led to a model with all traffic."""

    stages: tuple[Stage, ...]
    interactions_since_trigger: int
    loop_time_s: float


@dataclass(frozen=True, slots=True)
class Chain:
    """The causal ids of an answer; what is not known is empty."""

    request_id: str
    model_version: str = ""
    rollout_id: str = ""
    run_id: str = ""
    trigger_id: str = ""
    snapshots: dict[str, int] = field(default_factory=dict)
    interaction_ids: tuple[str, ...] = ()


def status(connection: Connection, loop: str, *, now: float) -> Status:
    """Where a loop stands now."""
    stored = {row.stage: row for row in connection.execute(select(STAGES).where(STAGES.c.loop == loop))}
    made = {"training": _training(connection, loop), "rollout": _rollout(connection, loop)}
    for name in ("events", "features", "serving", "outcomes"):
        row = stored.get(name)
        if row is None:
            made[name] = Stage(name)
            continue
        state = flowing(name, now=now, update_time=row.update_time)
        made[name] = Stage(name, state, row.subject, row.update_time, row.events)
    since = connection.scalar(select(LOOPS.c.interactions_since_trigger).where(LOOPS.c.loop == loop)) or 0
    order = ("events", "features", "training", "rollout", "serving", "outcomes")
    return Status(tuple(made[name] for name in order), since, _loop_time_s(connection, loop))


def _training(connection: Connection, loop: str) -> Stage:
    trigger, candidate = TRIGGERS.c, CANDIDATES.c
    counts = [
        connection.scalar(select(func.count()).select_from(table).where(table.c.loop == loop)) or 0
        for table in (TRIGGERS, CANDIDATES)
    ]
    newest = connection.execute(
        select(TRIGGERS, candidate.version, candidate.candidate_time)
        .outerjoin(CANDIDATES, and_(candidate.loop == trigger.loop, candidate.trigger_id == trigger.trigger_id))
        .where(trigger.loop == loop)
        .order_by(trigger.trigger_time.desc())
        .limit(1)
    ).one_or_none()
    if newest is None:
        return Stage("training", count=sum(counts))
    state = training(version=newest.version or "", closed=newest.closed, run_state=newest.run_state)
    subject = newest.version or newest.run_id or newest.trigger_id
    return Stage("training", state, subject, newest.candidate_time or newest.trigger_time, sum(counts))


def _rollout(connection: Connection, loop: str) -> Stage:
    own = ROLLOUTS.c.loop == loop
    newest = connection.execute(select(ROLLOUTS).where(own).order_by(ROLLOUTS.c.change_time.desc()).limit(1)).first()
    if newest is None:
        return Stage("rollout")
    kind = models.RolloutEventKind.Name(newest.kind).removeprefix(_KIND_PREFIX).lower()
    count = connection.scalar(select(func.sum(ROLLOUTS.c.events)).where(own)) or 0
    return Stage("rollout", rollout(kind, newest.share), newest.rollout_id, newest.change_time, int(count))


def _loop_time_s(connection: Connection, loop: str) -> float:
    """From the newest trigger that has led there to all traffic on its version, wall time in seconds."""
    trigger, candidate, rolled = TRIGGERS.c, CANDIDATES.c, ROLLOUTS.c
    row = connection.execute(
        select(trigger.trigger_time, rolled.full_time)
        .join(CANDIDATES, and_(candidate.loop == trigger.loop, candidate.trigger_id == trigger.trigger_id))
        .join(ROLLOUTS, and_(rolled.loop == candidate.loop, rolled.version == candidate.version))
        .where(trigger.loop == loop, rolled.full_time.is_not(None))
        .order_by(rolled.full_time.desc())
        .limit(1)
    ).first()
    return max(row.full_time - row.trigger_time, 0.0) if row else 0.0


def experiment(connection: Connection, loop: str, rollout_id: str) -> dict[ArmKey, ArmTotals] | None:
    """Totals by (arm, version): of everything, or of the answers given while a rollout was under way.

    Returns None for a rollout that is not known.
    """
    if not rollout_id:
        return _totals(connection, ARMS.c.loop == loop)
    own = and_(ROLLOUTS.c.loop == loop, ROLLOUTS.c.rollout_id == rollout_id)
    row = connection.execute(select(ROLLOUTS).where(own)).one_or_none()
    if row is None:
        return None
    # Under another log of rollouts the same epochs stand for something else.
    conditions = [ARMS.c.loop == loop, ARMS.c.epoch >= row.first_epoch, ARMS.c.change_time >= row.start_time]
    if row.kind in OVER:
        conditions.append(ARMS.c.epoch < row.last_epoch)
    return _totals(connection, *conditions)


def totals_of(connection: Connection, loop: str, versions: Collection[str]) -> dict[ArmKey, ArmTotals]:
    """Totals by (arm, version) of some versions of a loop."""
    return _totals(connection, ARMS.c.loop == loop, ARMS.c.version.in_(versions))


def newest_versions(connection: Connection, loop: str, *, limit: int) -> set[str]:
    """The versions that answered last."""
    newest = func.max(ARMS.c.change_time)
    query = select(ARMS.c.version).where(ARMS.c.loop == loop).group_by(ARMS.c.version).order_by(newest.desc())
    return set(connection.scalars(query.limit(limit)))


def _totals(connection: Connection, *conditions: ColumnElement[bool]) -> dict[ArmKey, ArmTotals]:
    totals: dict[ArmKey, ArmTotals] = {}
    for row in connection.execute(select(ARMS).where(*conditions)):
        totals.setdefault((row.arm, row.version), ArmTotals()).add(
            impressions=row.impressions, clicked=row.clicked, converted=row.converted, degraded=row.degraded
        )
    joined = and_(*(ARMS.c[name] == LATENCIES.c[name] for name in ("loop", "version", "arm", "epoch")))
    for row in connection.execute(select(LATENCIES).select_from(ARMS.join(LATENCIES, joined)).where(*conditions)):
        totals[row.arm, row.version].add_latency(row.bucket, row.answers)
    return totals


def alerts(connection: Connection, loop: str, *, only_firing: bool = False) -> list[AlertRecord]:
    """Alerts, newest first, at most 1,000."""
    table = ALERTS.c
    query = select(table.alert_id, table.name, table.severity, table.message, table.start_time, table.end_time)
    query = query.where(table.loop == loop).order_by(table.start_time.desc(), table.alert_id).limit(_MAX_ALERTS)
    if only_firing:
        query = query.where(table.end_time.is_(None))
    return [AlertRecord(*row) for row in connection.execute(query)]


def chain(connection: Connection, loop: str, request_id: str, *, window_s: float) -> Chain | None:
    """The causal ids of an answer, or None for a request that is not known."""
    own = and_(IMPRESSIONS.c.loop == loop, IMPRESSIONS.c.request_id == request_id)
    # Two users may have one request id: the newest is what a person who asks has in mind.
    newest = select(IMPRESSIONS).where(own).order_by(IMPRESSIONS.c.id.desc()).limit(1)
    answer = connection.execute(newest).one_or_none()
    if answer is None:
        return None
    actions = _interactions(connection, loop, answer, window_s=window_s)
    if not answer.version:
        return Chain(request_id, interaction_ids=actions)
    rolled_out = _rollout_of(connection, loop, answer)
    candidate = connection.execute(
        select(CANDIDATES).where(CANDIDATES.c.loop == loop, CANDIDATES.c.version == answer.version)
    ).one_or_none()
    if candidate is None:
        return Chain(request_id, answer.version, rolled_out, interaction_ids=actions)
    return Chain(
        request_id,
        answer.version,
        rolled_out,
        candidate.run_id,
        candidate.trigger_id,
        snapshots=json.loads(candidate.snapshots),
        interaction_ids=actions,
    )


def _rollout_of(connection: Connection, loop: str, answer: Any) -> str:
    """The rollout that brought an answer's version: its newest one that had begun by the answer's epoch."""
    own = and_(ROLLOUTS.c.loop == loop, ROLLOUTS.c.version == answer.version)
    begun = case((ROLLOUTS.c.first_epoch <= answer.epoch, 1), else_=0)
    found = select(ROLLOUTS.c.rollout_id).where(own).order_by(begun.desc(), ROLLOUTS.c.first_epoch.desc()).limit(1)
    return connection.scalar(found) or ""


def _interactions(connection: Connection, loop: str, row: Any, *, window_s: float) -> tuple[str, ...]:
    table = INTERACTIONS.c
    answer = LoggedAnswer(row.request_id, row.user_key, row.event_time, json.loads(row.shown_items))
    possible = read_actions(connection, table.loop == loop, table.request_id == row.request_id) + read_actions(
        connection,
        table.loop == loop,
        table.user_key == row.user_key,
        table.event_time.between(row.event_time, row.event_time + window_s),
        table.request_id == "",
    )
    found = attributed([answer], possible, window_s=window_s).get(answer.key, [])
    ordered = sorted(found, key=lambda action: (action.event_time, action.event_id))
    return tuple(dict.fromkeys(action.event_id for action in ordered[:_MAX_ACTIONS]))
