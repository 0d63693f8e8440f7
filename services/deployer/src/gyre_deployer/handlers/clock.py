"""The time of day for what is written down, and for how long something takes a clock that nobody corrects."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Clock:
    """Both clocks of a process.

    Attributes:
        wall: the time of day, unix seconds; it may be wrong, and may be corrected in either direction at any moment.
        monotonic: seconds since some moment; it only goes on, and means nothing in another process.
    """

    wall: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic


SYSTEM_CLOCK = Clock()
"""The machine's."""


class Ages:
    """How long ago something was of which only the time of day is written down, whatever happens to that since.

    The age is taken from the time of day once, when it is first asked for, and grows by the monotonic clock from then
    on. What is ahead of the time of day then, since that was corrected, counts as of now.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._begun: dict[str, tuple[float, float]] = {}

    def of(self, name: str, time: float) -> float:
        """Seconds since `time`, unix seconds, of what has that name; another time begins anew."""
        known = self._begun.get(name)
        if known is None or known[0] != time:
            known = time, self._clock.monotonic() - max(0.0, self._clock.wall() - time)
            self._begun[name] = known
        return self._clock.monotonic() - known[1]

    def begin(self, name: str, time: float) -> None:
        """Count from now, which is `time` on the wall clock."""
        self._begun[name] = time, self._clock.monotonic()

    def forget(self, name: str) -> None:
        """Forget what has that name."""
        self._begun.pop(name, None)
