"""Which of a topic partition's events may repeat one another: by windows of the times at which Kafka appended them."""

from __future__ import annotations

from typing import NamedTuple

DUPLICATES_S = 300
"""How long a window of append times is where no setting says otherwise, seconds."""
_MAX_BACK_S = 3600
"""Append times that go back by so much at most are those of brokers, or producers, whose clocks differ."""
_MAX_BEHIND = 1000
"""So many events in a row that are further back are right, and the times before them were ahead."""


class AppendWindow(NamedTuple):
    """The window of append times (when Kafka had an event) that a topic partition's log has reached.

    Attributes:
        start: of the window, unix seconds; None before the first event.
        behind: count of the last events in a row whose append times were too far back to be believed.
    """

    start: int | None = None
    behind: int = 0


class AppendWindows:
    """The windows of append times that a topic partition's log passes through, read event by event.

    An event is a repeat where its identity counted in the window that the log has reached, or in the one before. That
    follows from the log alone, so that whoever reads it, whenever, drops the same events. Times that go back belong to
    the window that was reached: one producer's clock, or its old events, decide for nobody else. Where a thousand in a
    row are further back than clocks differ, the clock that made the ones before was wrong, and the window is that of
    the earlier time from then on, with all that is known. A jump ahead is one window: a clock may err for a moment.

    Attributes:
        window: that was reached.
        number: of that window, counted from 0 as the log passes through them; it says nothing about wall time.

    Args:
        window_s: length of a window, seconds.
        window: that was reached so far.
    """

    __slots__ = ("_back_s", "_window_s", "number", "window")

    def __init__(self, window_s: int, window: AppendWindow = AppendWindow()) -> None:  # noqa: B008 - immutable
        self._window_s, self._back_s = window_s, max(_MAX_BACK_S, window_s)
        self.window, self.number = window, 0

    def reach(self, arrival_time: float) -> int:
        """Move on to the window that the log is in once it holds an event, if that is another; answer its number.

        Args:
            arrival_time: when Kafka appended the event, unix seconds; 0 when not known, which moves nothing.
        """
        start, behind = self.window
        if start is not None and not arrival_time:
            return self.number
        if start is None or arrival_time >= start + self._window_s:
            # By one, however far: the events before a jump stay known, for it may be a clock that is ahead.
            self.window = AppendWindow(self._start_of(arrival_time))
            self.number += 1
        elif arrival_time < start - self._back_s:
            is_right = behind + 1 >= _MAX_BEHIND
            self.window = AppendWindow(self._start_of(arrival_time)) if is_right else AppendWindow(start, behind + 1)
        elif behind:
            self.window = AppendWindow(start)
        return self.number

    def _start_of(self, arrival_time: float) -> int:
        return int(arrival_time // self._window_s) * self._window_s


class WindowIdentities:
    """Remembers the identities that counted of a topic partition in its newest two windows of append times, in memory.

    For each event in the order of the log first `reach` is called, then `is_repeat`.

    Args:
        window_s: length of a window, seconds.
    """

    def __init__(self, window_s: int) -> None:
        self._windows, self._number = AppendWindows(window_s), 0
        self._newest, self._before = set[tuple[str, ...]](), set[tuple[str, ...]]()

    def reach(self, arrival_time: float) -> None:
        """Move on to the window that an event is in, by when Kafka had it, unix seconds; 0, not known, moves nothing.

        With each new window the identities of the oldest one are forgotten.
        """
        number = self._windows.reach(arrival_time)
        if number != self._number:
            self._number, self._newest, self._before = number, set(), self._newest

    def is_repeat(self, identity: tuple[str, ...]) -> bool:
        """Whether an identity counted in the newest two windows; one that did not is remembered and counts from now on.

        So a second call with it gives True.
        """
        if identity in self._newest or identity in self._before:
            return True
        self._newest.add(identity)
        return False
