"""Follows what was erased of whom: runs that read it are marked, and what they wrote of events' ids is deleted."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from datetime import UTC, datetime

from gyre.events.v1 import privacy_pb2 as privacy
from gyre_core.topics import topic
from gyre_runtime.events import Event, message_types
from gyre_runtime.kafka import View

from gyre_trainer.domain import Erasure, Run
from gyre_trainer.handlers import RunRegistry

TAG = "gyre.rows_erased"
_AGAIN_S = 60.0
_LOG = logging.getLogger(__name__)

EraseRun = Callable[[Run, dict[str, str]], bool]
"""Deletes what the artefact and the records of a run name events by, and tags the records, blocking; whether it did."""


class ErasureConsumer:
    """Marks runs. The topic is read from its beginning at each start, and a run is marked once.

    Args:
        runs: of all loops.
        erase: changes what a run left.
    """

    def __init__(self, runs: RunRegistry, erase: EraseRun) -> None:
        self._runs, self._erase = runs, erase
        self._erasures: dict[str, set[Erasure]] = {}
        self._told = asyncio.Event()

    def note(self, loop: str, message: privacy.UserErased) -> None:
        """Take in what went with a user."""
        at = message.erased_time.ToNanoseconds() / 1e9
        known = self._erasures.setdefault(loop, set())
        known.update(Erasure(table, frozenset(each.ids), at) for table, each in message.expired.items() if each.ids)
        self._told.set()

    async def follow(self, bootstrap: str, loops: Iterable[str]) -> None:
        """Follow the topics of all loops until cancelled."""
        types = message_types(privacy.UserErased)
        async with AsyncExitStack() as stack:
            for name in loops:
                view = View(bootstrap, topic(name, "privacy.erasures"), types, on_change=self._noting(name))
                await stack.enter_async_context(view)
            while True:
                await self.mark()
                await self.tell()
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
        """Mark the runs of what is known to be gone; those that pinned it just before, a minute later."""
        for loop, erasures in self._erasures.items():
            for run in self._runs.mark_erased(loop, erasures):
                _LOG.info("a run's rows were erased", extra={"run_id": run.run_id, "loop": loop})

    async def tell(self) -> None:
        """Erase what marked runs left, once they are over; what MLflow does not take is tried again."""
        for run in self._runs.unrecorded():
            if await asyncio.to_thread(self._erase, run, {TAG: _time_of(run)}):
                self._runs.change(run, erased_recorded=True)


def _time_of(run: Run) -> str:
    return datetime.fromtimestamp(run.erased_time or 0.0, UTC).isoformat(timespec="seconds")
