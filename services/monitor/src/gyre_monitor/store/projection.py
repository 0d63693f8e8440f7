"""All events of the loops folded into SQL: each batch is one transaction, which moves the offsets, too (ADR 0001)."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gyre_core.features import Layout
from gyre_core.keyring import Keyring
from gyre_core.spec import LoopSpec
from gyre_runtime.checkpoints import Checkpoint, Place, checkpoints_after
from gyre_runtime.events import Event
from sqlalchemy import Connection, exists, func, select, update

from gyre_monitor.store import flow
from gyre_monitor.store.behaviour import BehaviourBatch, BehaviourTables
from gyre_monitor.store.database import Database, insert_new, upsert
from gyre_monitor.store.schema import LOOPS, OFFSETS, STAGES, TRIGGERS, use_key

BEHAVIOUR = ("behavior.impressions", "behavior.interactions")
APPLIED = "features.applied"
CONTROL = ("training.triggers", "models.candidates", "models.rollout-events")
ALERT = "alerts"
_MAX_TIPPING = 16
_KEY_ID = "key id"
_LOG = logging.getLogger(__name__)


@dataclass(slots=True)
class Changes:
    """What a batch changed.

    Attributes:
        arms: (loop, version, arm) whose totals are others now.
        triggers: ids of the triggers that were decided, to be sent.
    """

    arms: set[tuple[str, str, str]] = field(default_factory=set)
    triggers: list[str] = field(default_factory=list)


class Projection:
    """Folds events into the database.

    Args:
        database: where.
        loops: specs by name; events of other loops are not expected.
        keyring: what user ids are hashed under.
        timeout_s: after which a run that nothing is heard of holds back no trigger.
        wall: the clock, unix seconds.
        forgotten: whether an event is of a user who was forgotten after it: it counts for nothing.
    """

    def __init__(
        self,
        database: Database,
        loops: Mapping[str, LoopSpec],
        *,
        keyring: Keyring,
        timeout_s: float,
        wall: Callable[[], float] = time.time,
        forgotten: Callable[[Event], bool] = lambda _event: False,
    ) -> None:
        self._database, self._loops, self._timeout_s, self._wall = database, dict(loops), timeout_s, wall
        self._forgotten, self._keyring = forgotten, keyring
        self._newest = {name: Layout.compile(spec).hash for name, spec in loops.items()}
        self.decides: set[str] = set()
        """The loops whose triggers may be decided: not before it is known which runs and rollouts are under way."""

    async def prepare(self) -> None:
        """Give each loop its row; what was hashed under another key goes."""
        if deleted := await self._database.write(use_key, self._keyring.digest("", domain=_KEY_ID).hex()):
            await self._database.forget_deleted()
            _LOG.warning("rows under another privacy key were dropped", extra={"rows": deleted})
        await self._database.write(self._prepare)

    def _prepare(self, connection: Connection) -> None:
        now = self._wall()
        rows = [
            {"loop": name, "tipping": "[]", "schedule_from": now if spec.clock == "wall" else None}
            for name, spec in self._loops.items()
        ]
        insert_new(connection, LOOPS, rows)

    async def checkpoints(self, places: Sequence[Place]) -> dict[Place, list[Checkpoint]]:
        """Up to where the database holds topic partitions.

        Raises:
            Unavailable: the database did not answer.
        """
        found = await self._database.read(_checkpoints)
        return {(name, number): [found.get((name, number), Checkpoint())] for name, number in places}

    async def begin(self, ends: Mapping[Place, int]) -> None:
        """Note from where interactions count for the volume trigger in partitions that are new to the database.

        A new database of a loop that had triggers reads the past again, which those triggers answered: it counts from
        the present ends on. To be called when the triggers of the past are read, before the first interaction.
        """
        await self._database.write(self._begin, ends)

    def _begin(self, connection: Connection, ends: Mapping[Place, int]) -> None:
        rows = []
        for (topic, partition), end in ends.items():
            had_triggers = connection.scalar(select(exists().where(TRIGGERS.c.loop == topic.partition(".")[0])))
            count_from = end if had_triggers else 0
            rows.append({"topic": topic, "partition": partition, "next_offset": 0, "count_from": count_from})
        insert_new(connection, OFFSETS, rows)

    async def apply(self, events: Sequence[Event], ends: Mapping[Place, Checkpoint] | None = None) -> Changes:
        """Fold a batch of events of any topics and loops; what was folded before changes nothing.

        Args:
            events: of each partition in the order of their offsets.
            ends: each partition's checkpoint after the batch; by default after its last event.

        Raises:
            Unavailable: the database did not take it; nothing of the batch is stored.
        """
        return await self._database.write(self._apply, events, checkpoints_after(events) if ends is None else ends)

    async def decide(self) -> list[str]:
        """Decide for every loop whether a trigger is due by now; return the ids of those decided."""
        return await self._database.write(self._decide_all)

    def _decide_all(self, connection: Connection) -> list[str]:
        return [each for name in self._loops if (each := self._decide(connection, name))]

    def _decide(self, connection: Connection, loop: str) -> str | None:
        if loop not in self.decides:
            return None
        spec, newest = self._loops[loop], self._newest[loop]
        return flow.decide(connection, spec, newest=newest, now=self._wall(), timeout_s=self._timeout_s)

    def _apply(self, connection: Connection, events: Sequence[Event], ends: Mapping[Place, Checkpoint]) -> Changes:
        stored, count_from = _offsets(connection)
        fresh = [event for event in events if event.offset >= stored.get((event.topic, event.partition), 0)]
        changes = Changes()
        by_loop: dict[str, dict[str, list[Event]]] = {}
        for event in fresh:
            loop, _, suffix = event.topic.partition(".")
            by_loop.setdefault(loop, {}).setdefault(suffix, []).append(event)
        for loop, by_topic in by_loop.items():
            self._apply_loop(connection, self._loops[loop], by_topic, count_from, changes)
        _move(connection, {place: end for place, end in ends.items() if end.offset > stored.get(place, 0)})
        return changes

    def _apply_loop(
        self,
        connection: Connection,
        spec: LoopSpec,
        by_topic: Mapping[str, list[Event]],
        count_from: Mapping[Place, int],
        changes: Changes,
    ) -> None:
        for suffix, note in flow.NOTES.items():
            for event in by_topic.get(suffix, ()):
                note(connection, spec, event)
        seen = [each for suffix in BEHAVIOUR for each in by_topic.get(suffix, ()) if not self._forgotten(each)]
        if seen:
            change = BehaviourTables(connection, spec, self._keyring, now=self._wall()).record(seen, count_from)
            self._note_behaviour(connection, spec.loop, seen, change)
            changes.arms |= {(spec.loop, version, arm) for version, arm, _ in change.totals}
        applied = by_topic.get(APPLIED, ())
        if applied:
            count = sum(event.message.events for event in applied)
            self._stage(connection, spec.loop, "features", count=count, subject=applied[-1].message.layout)
        trigger = self._decide(connection, spec.loop)
        if trigger:
            changes.triggers.append(trigger)

    def _note_behaviour(self, connection: Connection, loop: str, seen: Sequence[Event], change: BehaviourBatch) -> None:
        self._stage(connection, loop, "events", count=len(seen), subject="")
        if change.answers:
            self._stage(connection, loop, "serving", count=change.answers, subject=change.version)
        if change.outcomes:
            self._stage(connection, loop, "outcomes", count=change.outcomes, subject=change.outcome_version)
        if change.clock is None:
            return
        row = connection.execute(select(LOOPS).where(LOOPS.c.loop == loop).with_for_update()).one()
        clock = max(row.clock or change.clock, change.clock)
        values: dict[str, Any] = {
            "clock": clock,
            "schedule_from": func.coalesce(LOOPS.c.schedule_from, clock),
            "interactions_since_trigger": LOOPS.c.interactions_since_trigger + change.counted,
        }
        if change.tipping:
            values["tipping"] = json.dumps([*json.loads(row.tipping), *change.tipping][-_MAX_TIPPING:])
        connection.execute(update(LOOPS).where(LOOPS.c.loop == loop).values(values))

    def _stage(self, connection: Connection, loop: str, stage: str, *, count: int, subject: str) -> None:
        row = {"loop": loop, "stage": stage, "events": count, "update_time": self._wall(), "subject": subject}
        upsert(connection, STAGES, [row], sums=("events",))


def _offsets(connection: Connection) -> tuple[dict[Place, int], dict[Place, int]]:
    """What is stored of each partition, and from where its interactions count."""
    rows = connection.execute(select(OFFSETS)).all()
    stored = {(row.topic, row.partition): row.next_offset for row in rows}
    return stored, {(row.topic, row.partition): row.count_from for row in rows}


def _checkpoints(connection: Connection) -> dict[Place, Checkpoint]:
    rows = connection.execute(select(OFFSETS)).all()
    return {(row.topic, row.partition): Checkpoint.decoded(row.checkpoint or str(row.next_offset)) for row in rows}


def _move(connection: Connection, ends: Mapping[Place, Checkpoint]) -> None:
    rows = [
        {"topic": topic, "partition": partition, "next_offset": end.offset, "checkpoint": end.encoded()}
        for (topic, partition), end in ends.items()
    ]
    upsert(connection, OFFSETS, rows)
