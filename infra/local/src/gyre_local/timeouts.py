"""Limits of waiting that grow with the machine: how much longer than on a quiet one things may take here.

What waits polls a condition and goes on as soon as it holds, so that a generous limit costs time only where something
failed. Every limit of the tests and of a component's start is multiplied by `timeout_factor()`.
"""

from __future__ import annotations

import functools
import math
import os
import time
from collections.abc import Callable, Mapping

VARIABLE = "GYRE_TEST_TIMEOUT_FACTOR"
MIN_FACTOR = 2.0
"""Also on a machine that seems quiet, since the load average follows the load by up to a minute."""
MAX_FACTOR = 30.0
_LOOPS = 100_000
_USUAL_S = 0.002
"""Processor time of the loop of `slowness` on a server's core of 2023 with CPython 3.11."""


def timeout_factor(environ: Mapping[str, str] | None = None) -> float:
    """By what to multiply a limit now: `GYRE_TEST_TIMEOUT_FACTOR`, or what the machine's speed and load ask for.

    Raises:
        ValueError: the variable is no finite number above 0.
    """
    given = (os.environ if environ is None else environ).get(VARIABLE)
    if given is None:
        return min(max(MIN_FACTOR, slowness() * contention()), MAX_FACTOR)
    try:
        factor = float(given)
    except ValueError:
        factor = math.nan
    if not (math.isfinite(factor) and factor > 0):
        raise ValueError(f"{VARIABLE} = {given!r}: must be a finite number above 0")
    return factor


def scaled(limit_s: float) -> float:
    """The limit, in seconds, that stands for `limit_s` of a quiet machine of usual speed."""
    return limit_s * timeout_factor()


@functools.cache
def slowness() -> float:
    """How many times the usual processor time this machine takes for the same work, at least 1; measured once."""
    return max(1.0, min(_measured_s() for _ in range(3)) / _USUAL_S)


def contention(load: Callable[[], tuple[float, float, float]] = os.getloadavg) -> float:
    """Twice the tasks that wanted each processor in the last minute, at least 1; what crosses processes waits often."""
    return max(1.0, 2 * load()[0] / len(os.sched_getaffinity(0)))


def _measured_s() -> float:
    started = time.thread_time()
    for _ in range(_LOOPS):
        pass
    return time.thread_time() - started


class Deadline:
    """A limit that is looked at again and again: it follows the machine's load while the waiting goes on."""

    def __init__(self, limit_s: float, *, now: Callable[[], float] = time.monotonic) -> None:
        self._limit_s, self._now, self._since, self._factor = limit_s, now, now(), 0.0

    @property
    def limit_s(self) -> float:
        """Seconds that the waiting may take in all, by the greatest factor since it began."""
        self._factor = max(self._factor, timeout_factor())
        return self._limit_s * self._factor

    @property
    def passed(self) -> bool:
        """True once the waiting took longer than that."""
        return self._now() - self._since > self.limit_s
