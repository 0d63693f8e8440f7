"""Which of a topic partition's events may repeat one another: by windows of the times at which Kafka appended them."""

from __future__ import annotations

_MAX_BACK_S = 3600
"""Append times that go back by so much at most are those of brokers, or producers, whose clocks differ."""


class AppendWindows:
    """The windows of append times that a topic partition's log passes through, read event by event.

    An event is a repeat where its identity counted in the window that the log has reached, or in the one before. That
    follows from the log alone, so that whoever reads it, whenever, drops the same events. Times that go back a little
    belong to the window that was reached; where they go back further, the clock that made the ones before was wrong,
    and the next window is that of the earlier time. A jump ahead is one window, too: a clock may be wrong for a moment.

    Attributes:
        start: of the window that was reached, unix seconds; None before the first event.
        number: of that window, counted as the log passes through them.

    Args:
        window_s: length of a window, seconds.
        start: of the window that was reached so far, unix seconds; None where nothing is known.
    """

    __slots__ = ("_back_s", "_window_s", "number", "start")

    def __init__(self, window_s: int, start: int | None = None) -> None:
        self._window_s, self._back_s = window_s, max(_MAX_BACK_S, window_s)
        self.start, self.number = start, 0

    def reach(self, arrival_time: float) -> int:
        """The number of the window that the log is in once it holds an event.

        Args:
            arrival_time: when Kafka appended the event, unix seconds; 0 when not known, which moves nothing.
        """
        start = self.start
        if start is not None and (not arrival_time or start - self._back_s <= arrival_time < start + self._window_s):
            return self.number
        self.start = int(arrival_time // self._window_s) * self._window_s
        # By one, however far: the events before a jump stay known, for it may be a clock that is ahead.
        self.number += 1
        return self.number
