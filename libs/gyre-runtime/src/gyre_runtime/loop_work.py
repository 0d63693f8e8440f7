"""Work that a process does for one loop, started again by itself when it fails, so that no loop stops another."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from typing import Protocol

from gyre_runtime.metrics import instrument

_LOG = logging.getLogger(__name__)
_FIRST_BACKOFF_S, _MAX_BACKOFF_S = 1.0, 30.0
_HEALTHY_S = 120.0
"""After so long a run the back-off begins anew."""


class LoopWork(Protocol):
    """Something that is done for one loop until it is stopped."""

    async def run(self) -> None:
        """Work until `stop`, then return; raises what it cannot go on from. Returning unasked counts as a failure."""

    def stop(self) -> None:
        """Let `run` finish what it does and return; does not wait for it."""

    async def check(self) -> bool:
        """Whether the work gets on, for a `Dependency`.

        False before it has begun, and raises why not where it knows.
        """


class LoopRunner:
    """Runs one loop's work, and new work after a back-off of 1 to 30 s when it fails, which is logged and counted.

    Args:
        loop: its name.
        make: makes the work, each time that it starts.
    """

    def __init__(self, loop: str, make: Callable[[], LoopWork]) -> None:
        self._loop, self._make = loop, make
        self._work: LoopWork | None = None
        self._problem: Exception | None = None
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Work until `stop`; no failure of the work ends it."""
        backoff_s = _FIRST_BACKOFF_S
        while not self._stopping.is_set():
            start_s = time.monotonic()
            try:
                self._work = self._make()
                await self._work.run()
                if not self._stopping.is_set():
                    raise RuntimeError("it returned, though nobody stopped it")  # noqa: TRY301 - restarted as any failure
            except Exception as error:  # noqa: BLE001 - the boundary between loops: logged, counted and tried again
                self._problem = error
                if time.monotonic() - start_s > _HEALTHY_S:
                    backoff_s = _FIRST_BACKOFF_S
                _LOG.critical("a loop's work failed", exc_info=error, extra={"loop": self._loop, "in_s": backoff_s})
                instrument("gyre_loop_restarts_total").add(loop=self._loop)
            else:
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), backoff_s)
            backoff_s = min(backoff_s * 2, _MAX_BACKOFF_S)
            self._problem = None

    def stop(self) -> None:
        """Let `run` finish what it does and return; does not wait for it."""
        self._stopping.set()
        if self._work is not None:
            self._work.stop()

    async def check(self) -> bool:
        """Whether the work gets on; raises why not, while it waits to start again the error that it failed with."""
        if self._problem is not None:
            raise self._problem
        return self._work is not None and await self._work.check()
