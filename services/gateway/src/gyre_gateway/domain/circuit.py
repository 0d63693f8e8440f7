"""The circuit between one gateway and a candidate: opened at once by failures, half-open after a back-off.

The pattern of a circuit breaker (Nygard, *Release It!*, 2nd ed., 5.2): it protects callers and is no verdict on the
version, so what opened it may as well have been a stall of everything behind this gateway.
"""

from __future__ import annotations

from collections import deque
from enum import StrEnum

WINDOW, MAX_FAILURES = 20, 5
"""So many failures among so many of the last outcomes open the circuit."""
BACKOFF_S, MAX_BACKOFF_S = 1.0, 8.0
"""Seconds from opening to the first probe; doubled by each probe that fails, up to the second."""
HOLD_S = 2 * MAX_BACKOFF_S
"""Seconds after the last failure for which an open circuit counts as evidence: one back-off until a probe is due, and
another for one to come and be answered. Without requests nothing else is ever learnt."""


class Passage(StrEnum):
    """What a circuit lets a request do."""

    ASK = "ask"
    PROBE = "probe"
    """Ask, as the only request of this back-off."""
    AVOID = "avoid"


class Circuit:
    """A circuit breaker for the candidate version in one gateway: its last outcomes, and whether it may be used."""

    def __init__(self) -> None:
        self._recent: deque[bool] = deque(maxlen=WINDOW)
        self._backoff_s = BACKOFF_S
        self._probe_time = self._failure_time = 0.0
        self.is_open = False

    def reset(self) -> None:
        """Close, and forget every outcome."""
        self._recent.clear()
        self._backoff_s = BACKOFF_S
        self.is_open = False

    def holds(self, now: float) -> bool:
        """Whether it is open because of a failure that is not long ago; later it waits for a probe only."""
        return self.is_open and now - self._failure_time <= HOLD_S

    def passage(self, now: float, *, asks: bool = True) -> Passage:
        """What a request that comes at `now` (monotonic, seconds) may do; a probe without outcome costs a back-off.

        One that asks nobody, since it is answered from memory, is no probe, and leaves that to the next.
        """
        if not self.is_open:
            return Passage.ASK
        if now < self._probe_time or not asks:
            return Passage.AVOID
        self._probe_time = now + self._backoff_s
        return Passage.PROBE

    def note(self, now: float, *, failed: bool, is_probe: bool) -> None:
        """Take in an outcome; once open, only probes count, since what was asked before says nothing of later."""
        if not self.is_open:
            self._recent.append(failed)
            if sum(self._recent) >= MAX_FAILURES:
                self.is_open = True
                self._failure_time, self._probe_time = now, now + self._backoff_s
            elif len(self._recent) == WINDOW and not any(self._recent):
                self._backoff_s = BACKOFF_S
        elif is_probe and failed:
            self._backoff_s = min(2 * self._backoff_s, MAX_BACKOFF_S)
            self._failure_time, self._probe_time = now, now + self._backoff_s
        elif is_probe:
            self._recent.clear()
            self.is_open = False
