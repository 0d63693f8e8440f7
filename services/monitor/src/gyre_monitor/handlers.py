"""What the monitor does: fold events, send the triggers that are due, follow runs, show figures, keep tables small."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from gyre.events.v1.privacy_pb2 import UserForgotten
from gyre_runtime import GyreError, Unavailable, instrument
from gyre_runtime.checkpoints import Batch
from gyre_runtime.events import Event
from gyre_runtime.series import VersionSeries
from gyre_runtime.tracing import trace_id_of

from gyre_monitor.domain.outcomes import ArmTotals
from gyre_monitor.ports import TrainingRuns, TriggerPublisher, TriggerToSend
from gyre_monitor.store import flow, reports
from gyre_monitor.store.database import Database
from gyre_monitor.store.erasure import UserErasure, erase_spans, erase_user
from gyre_monitor.store.model_retention import ModelRetention
from gyre_monitor.store.projection import Projection
from gyre_monitor.store.retention import Retention

_LOG = logging.getLogger(__name__)
_SHOW_S = 1.0
_DECIDE_S = 1.0
_ASK_S = 2.0
_PRUNE_S = 10.0
_RETRY_S = 1.0
_SHOWN_AT_START = 20
_LATE_SPANS_S = 30.0
"""Longer than services hold spans back before they export them."""
T = TypeVar("T")
_QUANTILES = {"0.5": 0.5, "0.99": 0.99}


class Outbox:
    """Sends decided triggers: written in the transaction that decided, sent afterwards, again after a crash."""

    def __init__(self, database: Database, triggers: TriggerPublisher) -> None:
        self._database, self._triggers = database, triggers
        self._wanted = asyncio.Event()
        self._wanted.set()

    def wake(self) -> None:
        """Say that there is something to send."""
        self._wanted.set()

    async def run(self) -> None:
        """Send until cancelled."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            try:
                await self.send_all()
            except Unavailable as error:
                _LOG.warning("a trigger is not sent yet", extra={"problem": str(error)})
                self._wanted.set()
                await asyncio.sleep(_RETRY_S)

    async def send_all(self) -> None:
        """Send what is decided and perhaps not sent.

        Raises:
            Unavailable: Kafka or the database did not answer; what is left is sent by the next call.
        """
        for row in await self._database.read(flow.unsent):
            trigger = _to_send(row)
            await self._triggers.send(trigger)
            await self._database.write(flow.mark_sent, trigger.loop, trigger.trigger_id)
            _LOG.info("trigger sent", extra={"loop": trigger.loop, "trigger_id": trigger.trigger_id})


def _to_send(row: Mapping[str, Any]) -> TriggerToSend:
    names = ("loop", "trigger_id", "reason", "value", "threshold", "trigger_time")
    return TriggerToSend(**{name: row[name] for name in names}, links=tuple(json.loads(row["links"])))


class Figures:
    """Shows totals by version and arm as metrics."""

    def __init__(self, database: Database, loops: Sequence[str]) -> None:
        self._database, self._loops = database, loops
        self._changed: dict[str, set[str]] = defaultdict(set)
        self._series = {loop: VersionSeries(loop) for loop in loops}

    def note(self, loop: str, version: str) -> None:
        """Say that the totals of a version changed."""
        self._changed[loop].add(version)

    async def run(self) -> None:
        """Show what changed, once a second, until cancelled; at first what answered last before the start.

        What the database does not answer is asked again.
        """
        unread = set(self._loops)
        while True:
            try:
                for loop in sorted(unread):
                    self._changed[loop] |= await self._database.read(
                        reports.newest_versions, loop, limit=_SHOWN_AT_START
                    )
                    unread.discard(loop)
                await self.show()
            except Unavailable as error:
                _LOG.warning("figures are shown later", extra={"problem": str(error)})
            await asyncio.sleep(_SHOW_S)

    async def show(self) -> None:
        """Show what changed.

        Raises:
            Unavailable: the database did not answer; what is left is shown by the next call.
        """
        for loop in list(self._changed):
            versions = self._changed.pop(loop)
            self._series[loop].note_used(sorted(versions))
            try:
                totals = await self._database.read(reports.totals_of, loop, versions)
            except Unavailable:
                self._changed[loop] |= versions
                raise
            for (arm, version), each in totals.items():
                _show(each, loop=loop, version=version, arm=arm)


def _show(totals: ArmTotals, **labels: str) -> None:
    instrument("gyre_monitor_ctr").set(totals.ctr, **labels)
    instrument("gyre_monitor_conversion").set(totals.conversion, **labels)
    instrument("gyre_monitor_degraded").set(totals.degraded_share, **labels)
    for name, q in _QUANTILES.items():
        instrument("gyre_monitor_latency_seconds").set(totals.latency_s(q), **labels, quantile=name)


class Monitor:
    """Folds events and decides about triggers.

    Args:
        database: the state.
        projection: folds events into it.
        outbox: sends what is decided.
        figures: shows what changed.
        runs: knows how far training runs are.
        timeout_s: after which a run that nothing is heard of holds back no trigger.
    """

    def __init__(  # noqa: PLR0913 - the parts that bootstrap wires
        self,
        database: Database,
        projection: Projection,
        *,
        outbox: Outbox,
        figures: Figures,
        runs: TrainingRuns,
        timeout_s: float,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._database, self._projection, self._outbox, self._figures = database, projection, outbox, figures
        self._runs, self._timeout_s, self._wall = runs, timeout_s, wall

    async def apply(self, batch: Batch) -> None:
        """Fold a batch of events.

        Raises:
            Unavailable: the database did not take it; nothing of the batch is stored.
        """
        changes = await self._projection.apply(batch.events, batch.ends)
        for loop, version, _ in changes.arms:
            self._figures.note(loop, version)
        if changes.triggers:
            self._outbox.wake()

    async def watch(self) -> None:
        """Decide as time goes by, and ask the trainer about runs that hold triggers back, until cancelled."""
        asked = 0.0
        while True:
            try:
                if await self._projection.decide():
                    self._outbox.wake()
                if time.monotonic() - asked >= _ASK_S:
                    asked = time.monotonic()
                    await self.follow_runs()
            except Unavailable as error:
                _LOG.warning("deciding later", extra={"problem": str(error)})
            await asyncio.sleep(_DECIDE_S)

    async def follow_runs(self) -> None:
        """Ask the trainer about the runs whose candidates are waited for: one that failed holds back nothing more."""
        waiting = await self._database.read(flow.open_triggers, now=self._wall(), timeout_s=self._timeout_s)
        for loop, trigger_ids in waiting.items():
            try:
                runs = await self._runs.of_loop(loop)
            except GyreError as error:
                _LOG.info("the trainer does not answer", extra={"loop": loop, "problem": str(error)})
                continue
            for run in runs:
                if run.trigger_id in trigger_ids:
                    await self._database.write(flow.note_run, loop, run)


class ErasureHandler:
    """Takes tombstones in, and erases the users that they name.

    Args:
        database: of the monitor.
        users: the hashes that a tombstone's user may stand under, by loop.
        expired_s: how old a tombstone of a loop is once Kafka has surely deleted it, seconds.
    """

    def __init__(
        self,
        database: Database,
        users: Callable[[str, UserForgotten], Sequence[bytes]],
        expired_s: Callable[[str], float],
    ) -> None:
        self._database, self._users, self._expired_s = database, users, expired_s
        self._waiting: asyncio.Queue[tuple[str, UserForgotten, int]] = asyncio.Queue()
        self._ids: deque[str] = deque()

    def note(self, loop: str, message: UserForgotten, offset: int) -> None:
        """Take a tombstone in."""
        self._waiting.put_nowait((loop, message, offset))

    def note_event(self, event: Event) -> None:
        """Take in an event of a forgotten user: the spans of its request and trace go, too; from any thread."""
        self._ids.append(event.message.request_id)
        if event.traceparent is not None:
            self._ids.append(trace_id_of(event.traceparent))

    async def run(self) -> None:
        """Erase until cancelled; what the database does not take is tried again."""
        # A process that was killed between a deletion and this has left the rows in the log.
        await _retried(self._database.forget_deleted)
        while True:
            loop, message, offset = await self._waiting.get()
            expired_ns = time.time_ns() - round(self._expired_s(loop) * 1e9)
            forgotten_ns = message.forgotten_time.ToNanoseconds()
            forgotten = UserErasure(loop, self._users(loop, message), forgotten_ns, offset, expired_ns)
            deleted, ids = await _retried(partial(self._database.write, partial(erase_user, forgotten=forgotten)))
            self._ids.extend(ids)
            if deleted:
                await _retried(self._database.forget_deleted)
                _LOG.info("a user was erased", extra={"loop": loop, "rows": deleted})

    async def erase_late_spans(self) -> None:
        """Delete the spans that are exported after their request's user was erased, until cancelled."""
        ids: set[str] = set()
        while True:
            await asyncio.sleep(_LATE_SPANS_S)
            # Each request and trace twice, for its spans may come after the first time.
            before, ids = ids, {self._ids.popleft() for _ in range(len(self._ids))}
            deleted = await _retried(partial(self._database.write, partial(erase_spans, ids=before | ids)))
            if deleted:
                await _retried(self._database.forget_deleted)


async def _retried(work: Callable[[], Awaitable[T]]) -> T:
    """Do some work of an erasure, again and again while the database does not take it."""
    while True:
        try:
            return await work()
        except Unavailable as error:
            _LOG.warning("an erasure waits", extra={"problem": str(error)})
            await asyncio.sleep(_RETRY_S)


async def keep_small(database: Database, retention: Retention, models: ModelRetention) -> None:
    """Prune the tables until cancelled."""
    while True:
        try:
            more = True
            while more:
                more = await database.write(retention.prune)
            await database.write(models.prune)
        except Unavailable as error:
            _LOG.warning("pruning later", extra={"problem": str(error)})
        await asyncio.sleep(_PRUNE_S)
