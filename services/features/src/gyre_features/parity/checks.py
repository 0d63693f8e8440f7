"""Runs parity checks: each in a process of its own, so that its memory goes with it and nobody waits for its work."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor

from gyre_core.spec import LoopSpec
from gyre_runtime import Unavailable, instrument, load_loops
from gyre_warehouse.tables import open_catalog

from gyre_features.parity.loop import LoopReport, check_loop
from gyre_features.parity.served import Period
from gyre_features.settings import CheckSettings

_NICENESS = 10
_LOG = logging.getLogger(__name__)


def run_check(settings: CheckSettings, loop: str, most: int) -> LoopReport:
    """Check one loop, in this process."""
    period = Period(most, begin=time.time() - settings.features_check_period_s)
    return check_loop(
        open_catalog(settings),
        load_loops(settings)[loop],
        period=period,
        duplicates_s=settings.features_duplicates_s,
    )


def _run_nicely(settings: CheckSettings, loop: str, most: int) -> LoopReport | str:
    """What `run_check` gives, or what went wrong in words, since not every error survives the way between processes."""
    os.nice(_NICENESS)
    try:
        return run_check(settings, loop, most)
    except Exception as error:  # noqa: BLE001 - the outermost boundary of the process
        return f"{type(error).__name__}: {error}"


class Checks:
    """Checks loops, one at a time, and remembers what the last check of each found.

    Attributes:
        loops: by name.
        last: the last report, by loop.
    """

    def __init__(self, settings: CheckSettings, loops: Mapping[str, LoopSpec]) -> None:
        self._settings = settings
        self._turn = asyncio.Lock()
        self.loops = loops
        self.last: dict[str, LoopReport] = {}

    async def check(self, loop: str, *, most: int | None = None) -> LoopReport:
        """Check a loop now.

        Raises:
            Unavailable: the warehouse cannot be read (CHECK_FAILED).
        """
        async with self._turn:
            found = await self._apart(loop, most or self._settings.features_check_impressions)
        if isinstance(found, str):
            raise Unavailable("CHECK_FAILED", f"loop = {loop!r}: could not be checked: {found:.300}")
        self.last[loop] = found
        _tell(found)
        return found

    async def _apart(self, loop: str, most: int) -> LoopReport | str:
        pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
        try:
            running = asyncio.get_running_loop()
            return await running.run_in_executor(pool, _run_nicely, self._settings, loop, most)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()

    async def run(self) -> None:
        """Check every loop each interval, until cancelled."""
        while True:
            await asyncio.sleep(self._settings.features_check_interval_s)
            for loop in self.loops:
                try:
                    await self.check(loop)
                except Unavailable as error:
                    _LOG.warning("a check waits for the next turn", extra={"loop": loop, "problem": str(error)})


def _tell(report: LoopReport) -> None:
    """Metrics and one line in the log."""
    found = report.found
    for name, value in (
        ("mismatches", found.mismatches),
        ("checked", found.impressions),
        ("unknown", found.unknown),
        ("seconds", report.seconds),
    ):
        instrument(f"gyre_features_parity_{name}").set(value, loop=report.loop)
    facts = {"impressions": found.impressions, "mismatches": found.mismatches, "unknown": found.unknown}
    level = logging.ERROR if found.mismatches else logging.INFO
    _LOG.log(level, "parity was checked", extra={"loop": report.loop, "pending": report.pending, **facts})
