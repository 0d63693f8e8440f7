"""Bounds the tables of the flow of models: counts, rollouts, candidates and triggers older than the newest rollouts go.

What an answer that is still known names stays, and so do the live and the last good model, however long ago they were
promoted: no lineage ends in nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from gyre.events.v1 import models_pb2 as models
from gyre_core.spec import LoopSpec
from sqlalchemy import ColumnElement, Connection, Table, and_, delete, exists, func, select

from gyre_monitor.store.schema import ARMS, CANDIDATES, IMPRESSIONS, LATENCIES, ROLLOUTS, TRIGGERS

_TRIGGERS_OF_A_ROLLOUT = 10
_SERVING = 2
"""Live and last good: the versions promoted last that have not fallen back since."""
_SLACK = 1.1
"""By how much more than its number of rollouts a loop may have before it is looked at."""


@dataclass(frozen=True, slots=True)
class ModelRetention:
    """How many of its newest rollouts are remembered of each loop, by name."""

    rollouts: Mapping[str, int]

    @classmethod
    def of(cls, loops: Mapping[str, LoopSpec]) -> ModelRetention:
        """What the loops' files say."""
        return cls({name: spec.retention.rollouts for name, spec in loops.items()})

    def plan(self, connection: Connection) -> dict[tuple[str, str], int]:
        """How many rows of each loop and table would go: they are deleted and come back."""
        savepoint = connection.begin_nested()
        try:
            return self._deleted(connection, self.rollouts)
        finally:
            savepoint.rollback()

    def prune(self, connection: Connection, *, always: bool = False) -> dict[tuple[str, str], int]:
        """Delete them, or only where there are markedly more than a loop may have; how many of each loop and table."""
        due = [loop for loop, number in self.rollouts.items() if always or _is_due(connection, loop, number)]
        return self._deleted(connection, due)

    def _deleted(self, connection: Connection, loops: Iterable[str]) -> dict[tuple[str, str], int]:
        return {
            (loop, table.name): connection.execute(delete(table).where(condition)).rowcount
            for loop in loops
            for table, condition in _outdated(connection, loop, self.rollouts[loop])
        }


def _is_due(connection: Connection, loop: str, number: int) -> bool:
    limits = ((ROLLOUTS, number + _SERVING), (TRIGGERS, number * _TRIGGERS_OF_A_ROLLOUT))
    counts = (
        (connection.scalar(select(func.count()).select_from(table).where(table.c.loop == loop)) or 0, limit)
        for table, limit in limits
    )
    return any(count > limit * _SLACK for count, limit in counts)


def _serving(connection: Connection, loop: str) -> list[str]:
    """The versions that serve, or would if the live one could not: a later fall-back or rollback is another kind."""
    rollout = ROLLOUTS.c
    promoted = select(rollout.version).where(rollout.loop == loop, rollout.kind == models.ROLLOUT_EVENT_KIND_PROMOTED)
    return list(connection.scalars(promoted.order_by(rollout.change_time.desc()).limit(_SERVING)))


def _outdated(connection: Connection, loop: str, number: int) -> Iterator[tuple[Table, ColumnElement[bool]]]:
    """The tables with the rows that go, in the order in which they may: what others name goes after those."""
    # By time: epochs begin anew with a new log of rollouts.
    newest = (
        select(ROLLOUTS.c.start_time)
        .where(ROLLOUTS.c.loop == loop)
        .order_by(ROLLOUTS.c.start_time.desc())
        .limit(number)
    )
    kept = connection.scalars(newest).all()
    answered = select(IMPRESSIONS.c.version).where(IMPRESSIONS.c.loop == loop)
    if len(kept) == number:
        first_time = kept[-1]
        old = and_(ARMS.c.loop == loop, ARMS.c.change_time < first_time)
        same = and_(*(ARMS.c[name] == LATENCIES.c[name] for name in ("loop", "version", "arm", "epoch")))
        yield LATENCIES, and_(LATENCIES.c.loop == loop, exists().where(same, old))
        yield ARMS, old
        counted = select(ARMS.c.version).where(ARMS.c.loop == loop, ARMS.c.change_time >= first_time)
        rollout = ROLLOUTS.c
        serving = _serving(connection, loop)
        yield (
            ROLLOUTS,
            and_(
                rollout.loop == loop,
                rollout.start_time < first_time,
                rollout.version.not_in(answered),
                rollout.version.not_in(counted),
                rollout.version.not_in(serving),
            ),
        )
        rolled_out = select(rollout.version).where(rollout.loop == loop)
        candidate = CANDIDATES.c
        yield (
            CANDIDATES,
            and_(
                candidate.loop == loop,
                candidate.candidate_time < first_time,
                candidate.version.not_in(rolled_out),
                candidate.version.not_in(answered),
            ),
        )
    trigger = TRIGGERS.c
    own = trigger.loop == loop
    last = select(trigger.trigger_time).where(own).order_by(trigger.trigger_time.desc())
    bound = connection.scalar(last.offset(number * _TRIGGERS_OF_A_ROLLOUT).limit(1))
    if bound is not None:
        known = select(CANDIDATES.c.trigger_id).where(CANDIDATES.c.loop == loop)
        yield TRIGGERS, and_(own, trigger.trigger_time <= bound, trigger.sent, trigger.trigger_id.not_in(known))
