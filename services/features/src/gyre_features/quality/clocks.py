"""What a partition's replay clock showed at the offsets from which a successor may begin."""

from __future__ import annotations

from array import array
from bisect import bisect_right

from gyre_runtime.admission import PartitionClock


class ClockHistory:
    """The replay clock of a partition at every offset since one; 16 bytes for each record that moved it.

    Args:
        clock: at the first offset.
    """

    def __init__(self, clock: PartitionClock) -> None:
        self._first = clock
        self._offsets = array("q")
        self._times = array("d")

    def note(self, offset: int, clock: PartitionClock) -> None:
        """Note the clock before the record at an offset; one at or before the newest offset noted changes nothing."""
        if clock == self._newest or (self._offsets and offset <= self._offsets[-1]):
            return
        self._offsets.append(offset)
        self._times.append(clock.newest)

    @property
    def _newest(self) -> PartitionClock:
        return PartitionClock(self._times[-1]) if self._times else self._first

    def at(self, offset: int) -> PartitionClock:
        """The clock before the record at an offset.

        Before the first offset, or what was dropped, that of the oldest kept.
        """
        moves = bisect_right(self._offsets, offset)
        return PartitionClock(self._times[moves - 1]) if moves else self._first

    def forget_before(self, offset: int) -> None:
        """Drop the history before an offset, from which a successor begins.

        `at` that offset and later ones stays the same.
        """
        self._first = self.at(offset)
        moves = bisect_right(self._offsets, offset)
        del self._offsets[:moves], self._times[:moves]
