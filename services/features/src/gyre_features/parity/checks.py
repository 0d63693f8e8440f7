"""Runs parity checks: each in a process of its own, so that its memory goes with it and nobody waits for its work."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AsyncExitStack
from functools import partial

from gyre.events.v1 import privacy_pb2 as privacy
from gyre_core.layouts import KnownLayout
from gyre_core.spec import LoopSpec
from gyre_core.topics import topic
from gyre_runtime import Unavailable, instrument, load_loops
from gyre_runtime.events import Event, message_types
from gyre_runtime.kafka import View, ensure_topics
from gyre_runtime.layouts import read_layouts
from gyre_warehouse.tables import APPLIED, TRAINING_TABLE_OF, open_catalog

from gyre_features.parity.layouts import check_layouts
from gyre_features.parity.loop import LoopReport
from gyre_features.parity.served import CheckWindow
from gyre_features.settings import CheckSettings

_NICENESS = 10
_KAFKA_TIMEOUT_S = 30.0
_LOG = logging.getLogger(__name__)


def run_check(settings: CheckSettings, loop: str, max_impressions: int) -> list[LoopReport]:
    """Check the layouts of one loop in this process, blocking; for callers without a running event loop.

    Creates the loop's topics where they are missing; sets no metric. `max_impressions` is of each layout, the newest.

    Raises:
        TimeoutError: Kafka, which has the layouts' definitions, does not answer.
    """
    spec = load_loops(settings)[loop]
    known = asyncio.run(_known_layouts(settings, spec))
    window = CheckWindow(max_impressions, start=time.time() - settings.features_check_period_s)
    catalog, duplicates_s = open_catalog(settings), settings.features_duplicates_s
    return check_layouts(catalog, spec, known, window=window, duplicates_s=duplicates_s)


async def _known_layouts(settings: CheckSettings, spec: LoopSpec) -> dict[str, KnownLayout]:
    """The layouts of a loop by hash; none where no process has declared any yet."""
    try:
        async with asyncio.timeout(_KAFKA_TIMEOUT_S):
            await ensure_topics(settings, [spec])
            return await read_layouts(settings.kafka, spec.loop, timeout_s=_KAFKA_TIMEOUT_S)
    except TimeoutError as error:
        problem = f"Kafka, which has the definitions of the layouts, did not answer in {_KAFKA_TIMEOUT_S:.0f} s"
        raise TimeoutError(problem) from error


def _run_nicely(settings: CheckSettings, loop: str, max_impressions: int) -> list[LoopReport] | str:
    """What `run_check` gives, or what went wrong in words, since not every error survives the way between processes."""
    os.nice(_NICENESS)
    try:
        return run_check(settings, loop, max_impressions)
    except Exception as error:  # noqa: BLE001 - the outermost boundary of the process
        return f"{type(error).__name__}: {error}"


class Checks:
    """Checks loops, one at a time, and remembers what the last check of each found.

    Attributes:
        loops: by name.
        last: the reports of the last check that succeeded, one for each layout, by loop; none before the first.
    """

    def __init__(self, settings: CheckSettings, loops: Mapping[str, LoopSpec]) -> None:
        self._settings = settings
        self._turn = asyncio.Lock()
        self.loops = loops
        self.last: dict[str, list[LoopReport]] = {}
        self._erasures = Counter[str]()

    async def check(self, loop: str, *, max_impressions: int | None = None) -> list[LoopReport]:
        """Compare the features that impressions were answered with to those that a replay of the history gives, now.

        Waits for a check under way, runs in a process of its own, sets the metrics, logs, and replaces `last`. That
        numbers mismatch is no error here.

        Args:
            loop: its name.
            max_impressions: the newest ones that are checked, of each layout; None or 0 for the setting's number.

        Returns:
            One report for each layout, gyre.yaml's first.

        Raises:
            Unavailable: the warehouse, or the definitions of the layouts, cannot be read (CHECK_FAILED).
        """
        async with self._turn:
            erasures = self._erasures[loop]
            found = await self._apart(loop, max_impressions or self._settings.features_check_impressions)
        if isinstance(found, str):
            raise Unavailable("CHECK_FAILED", f"loop = {loop!r}: could not be checked: {found:.300}")
        gone = {each.layout for each in self.last.get(loop, ())} - {each.layout for each in found}
        for report in (*found, *(LoopReport(loop, layout) for layout in gone)):
            _record(report)
        for report in found:
            _log(report)
        self.last[loop] = found
        if self._erasures[loop] != erasures:  # of somebody whose rows the check may have read
            self._drop_examples(loop)
        return found

    def _drop_examples(self, loop: str) -> None:
        for report in self.last.get(loop, ()):
            report.found.examples.clear()

    async def follow_erasures(self) -> None:
        """Drop the examples of a loop's last check, which name requests, whenever a user was erased; until cancelled.

        They do not say whose they are; the counts, which name nobody, stay.
        """
        await ensure_topics(self._settings, self.loops.values())

        def erased(loop: str, _key: str, event: Event | None) -> None:
            if event is not None:
                self._erasures[loop] += 1
                self._drop_examples(loop)

        async with AsyncExitStack() as stack:
            for loop in self.loops:
                name, types = topic(loop, "privacy.erasures"), message_types(privacy.UserErased)
                view = View(self._settings.kafka, name, types, on_change=partial(erased, loop), holds_events=False)
                await stack.enter_async_context(view)
            await asyncio.Event().wait()

    async def _apart(self, loop: str, max_impressions: int) -> list[LoopReport] | str:
        pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
        try:
            running = asyncio.get_running_loop()
            return await running.run_in_executor(pool, _run_nicely, self._settings, loop, max_impressions)
        except BrokenProcessPool:
            return "its process was killed, perhaps for want of memory"
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()

    async def run(self) -> None:
        """Check the loops one after the other each interval, the first time one interval from now, until cancelled.

        A check that fails is logged, and waits for the next interval.
        """
        while True:
            await asyncio.sleep(self._settings.features_check_interval_s)
            for loop in self.loops:
                try:
                    await self.check(loop)
                except Unavailable as error:
                    _LOG.warning("a check waits for the next turn", extra={"loop": loop, "problem": str(error)})


def _record(report: LoopReport) -> None:
    """Set the metrics of a layout; those of a layout that is not checked any more are 0 from then on."""
    found = report.found
    for name, value in (
        ("mismatches", found.mismatches),
        ("checked", found.impressions),
        ("unknown", found.unknown),
        ("seconds", report.seconds),
    ):
        instrument(f"gyre_features_parity_{name}").set(value, loop=report.loop, layout=report.layout)
    for table in (*TRAINING_TABLE_OF.values(), APPLIED):
        labels = {"loop": report.loop, "layout": report.layout, "table": table}
        instrument("gyre_features_parity_rows").set(report.rows.read[table], **labels)
        instrument("gyre_features_parity_unreadable_rows").set(report.rows.unreadable[table], **labels)


def _log(report: LoopReport) -> None:
    """Write one line."""
    found = report.found
    facts = {"impressions": found.impressions, "mismatches": found.mismatches, "unknown": found.unknown}
    where = {"loop": report.loop, "layout": report.layout, "pending": report.pending}
    facts["unreadable_rows"] = report.rows.unreadable.total()
    _LOG.log(logging.ERROR if found.mismatches else logging.INFO, "parity was checked", extra={**where, **facts})
