"""A dictionary that lets its entries go after some time."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Expiring(Generic[K, V]):
    """A dictionary whose entries are removed `kept_s` after they were put last, though only when another one is put.

    Args:
        kept_s: how long an entry stays, seconds.
        clock: monotonic, seconds.
    """

    def __init__(self, kept_s: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._kept_s, self._clock = kept_s, clock
        self._entries: dict[K, tuple[float, V]] = {}

    def put(self, key: K, value: V) -> None:
        """Set an entry, whose time begins again, and remove those that are over."""
        self._entries.pop(key, None)  # the newest stand last
        self._entries[key] = self._clock(), value
        self._expire()

    def get(self, key: K) -> V | None:
        """The value of a key, whose time goes on, also where it is over and nothing was put since; None for none."""
        found = self._entries.get(key)
        return None if found is None else found[1]

    def __len__(self) -> int:
        """Count of the entries."""
        return len(self._entries)

    def _expire(self) -> None:
        since = self._clock() - self._kept_s
        while self._entries:
            key, (put, _) = next(iter(self._entries.items()))
            if put >= since:
                break
            del self._entries[key]
