"""What is counted for each of very many ids, in bounded memory: by all of them while they are few, else by a sample."""

from __future__ import annotations

from typing import TypeVar

Value = TypeVar("Value")


class HashSample(dict[int, Value]):
    """Values by hash, of those hashes that belong to the sample (distinct sampling, Gibbons 2001).

    Which hashes belong is decided by their lowest bits: so all that is known of an id is in or out together, and shares
    of the sample estimate those of the whole. Before `capacity` is reached every hash belongs. It is a dict that does
    not check what is set: ask `takes` before, and call `bound` after.

    Args:
        capacity: the most hashes that `bound` leaves.

    Raises:
        ValueError: `capacity` is not positive.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__()
        if capacity < 1:
            raise ValueError(f"capacity = {capacity}: must be at least 1")
        self._capacity = capacity
        self._mask = 0

    def takes(self, code: int) -> bool:
        """Whether a hash belongs to the sample, known or new; changes nothing."""
        return not code & self._mask

    def bound(self) -> None:
        """Where the sample is above its capacity, halve it until it is not: the others' values are deleted for good."""
        while len(self) > self._capacity:
            self._mask = 2 * self._mask + 1
            for code in [each for each in self if each & self._mask]:
                del self[code]
