"""Follows what was erased of whom: runs that read it are marked, and what they wrote of events' ids is deleted."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from datetime import UTC, datetime

from gyre.events.v1 import privacy_pb2 as privacy
from gyre_core.topics import topic
from gyre_runtime import Unavailable, instrument
from gyre_runtime.events import Event, message_types
from gyre_runtime.kafka import View

from gyre_trainer.domain import Erasure, Run
from gyre_trainer.handlers import RunRegistry

TAG = "gyre.rows_erased"
_AGAIN_S = 60.0
_FIRST_BACKOFF_S, _MAX_BACKOFF_S = 30.0, 1800.0
_HELD_S = 900.0
"""For how long a run may still pin what was just erased: longer than between its look at the tables and its pins."""
_LOG = logging.getLogger(__name__)

EraseRun = Callable[[Run, dict[str, str]], bool]
"""Deletes what the artefact and the records of a run name events by, and tags the records, blocking; whether it did.

Raises OSError where the file system does not delete.
"""


class ErasureConsumer:
    """Marks runs. The topic is read from its beginning at each start, and a run is marked once.

    Args:
        runs: of all loops.
        erase: changes what a run left.
        clock: monotonic, seconds.
    """

    def __init__(self, runs: RunRegistry, erase: EraseRun, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._runs, self._erase, self._clock = runs, erase, clock
        self._erasures: dict[str, dict[Erasure, float]] = {}
        self._failed: dict[str, tuple[float, float]] = {}
        self._told = asyncio.Event()

    @property
    def held(self) -> int:
        """Count of the erasures that runs are still compared with."""
        return sum(map(len, self._erasures.values()))

    def note(self, loop: str, message: privacy.UserErased) -> None:
        """Take in what went with a user."""
        at = message.erased_time.ToNanoseconds() / 1e9
        known, now = self._erasures.setdefault(loop, {}), self._clock()
        for table, each in message.expired.items():
            if each.ids:
                known[Erasure(table, frozenset(each.ids), at)] = now
        self._told.set()

    async def follow(self, bootstrap: str, loops: Iterable[str]) -> None:
        """Follow the topics of all loops until cancelled."""
        types = message_types(privacy.UserErased)
        async with AsyncExitStack() as stack:
            for name in loops:
                view = View(
                    bootstrap, topic(name, "privacy.erasures"), types, on_change=self._noting(name), holds_events=False
                )
                await stack.enter_async_context(view)
            while True:
                try:
                    await self.mark()
                    await self.tell()
                except Unavailable as error:
                    _LOG.warning("what was erased is told later", extra={"problem": str(error)})
                try:
                    await asyncio.wait_for(self._told.wait(), _AGAIN_S)
                except TimeoutError:
                    continue
                self._told.clear()

    def _noting(self, loop: str) -> Callable[[str, Event | None], None]:
        def changed(_key: str, event: Event | None) -> None:
            if event is not None:
                self.note(loop, event.message)

        return changed

    async def mark(self) -> None:
        """Mark the runs of what is known to be gone; those that pinned it just before, a minute later.

        An erasure that no run can pin any more is forgotten then; the next start reads it from the topic.

        Raises:
            Unavailable: the runs cannot be read or written.
        """
        for loop, erasures in self._erasures.items():
            now = self._clock()
            for run in self._runs.mark_erased(loop, erasures.keys()):
                _LOG.info("a run's rows were erased", extra={"run_id": run.run_id, "loop": loop})
            self._erasures[loop] = {each: since for each, since in erasures.items() if now - since < _HELD_S}

    async def tell(self) -> None:
        """Erase what marked runs left, once they are over; what cannot be erased is tried again, with a back-off.

        Raises:
            Unavailable: the runs cannot be read or written.
        """
        waiting = self._runs.unrecorded()
        self._failed = {run.run_id: self._failed[run.run_id] for run in waiting if run.run_id in self._failed}
        for run in waiting:
            due, backoff_s = self._failed.get(run.run_id, (0.0, _FIRST_BACKOFF_S))
            if self._clock() < due:
                continue
            if await self._erased(run):
                self._failed.pop(run.run_id, None)
                self._runs.change(run, erased_recorded=True)
            else:
                self._failed[run.run_id] = self._clock() + backoff_s, min(2 * backoff_s, _MAX_BACKOFF_S)

    async def _erased(self, run: Run) -> bool:
        """Erase what one run left; whether that is done."""
        facts = {"run_id": run.run_id, "loop": run.loop}
        try:
            is_done = await asyncio.to_thread(self._erase, run, {TAG: _time_of(run)})
        except OSError as error:
            _LOG.warning("what a run left is not erased yet", extra={**facts, "problem": f"{error!r:.200}"})
            is_done = False
        if not is_done:
            instrument("gyre_trainer_erasures_failed_total").add(loop=run.loop)
        return is_done


def _time_of(run: Run) -> str:
    return datetime.fromtimestamp(run.erased_time or 0.0, UTC).isoformat(timespec="seconds")
