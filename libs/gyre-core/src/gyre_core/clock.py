"""The loop's clock: `wall`, or `replay`, whose now is the newest event time seen, so that 2013 behaves like 2013."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal


class LoopClock:
    """What time it is for one loop, unix seconds.

    Lateness is only meaningful within one ordered stream, so a consumer of several partitions gives each its own clock:
    their histories are read at different speeds.
    """

    def __init__(
        self, kind: Literal["wall", "replay"], *, wall: Callable[[], float] = time.time, start: float = 0.0
    ) -> None:
        self.kind = kind
        self._wall = wall
        self._newest = start

    def now(self) -> float:
        """The time now; on the replay clock `start` until something was observed."""
        return self._wall() if self.kind == "wall" else self._newest

    def wall(self) -> float:
        """The wall's time, whatever the loop's clock."""
        return self._wall()

    def observe(self, event_time: float) -> None:
        """Tell the clock an event's or request's own time; the replay clock never runs backwards."""
        self._newest = max(self._newest, event_time)
