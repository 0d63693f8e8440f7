"""The folds that fields may still come late for, kept in memory; the online store keeps the like in sorted sets."""

from __future__ import annotations

import heapq
from collections.abc import Collection
from itertools import count

from gyre_core.features.layout import Layout
from gyre_core.features.versions import Fold

MOST_BATCHES = 2000
"""The batches whose folds the online store keeps at most, of known items and of unknown ones."""


class Shelf:
    """Remembered folds in memory; the online store has the like in a sorted set.

    Args:
        kept_s: a batch's folds go once an event is newer by this than the newest of them, seconds.
        most: batches that are kept at most.
    """

    def __init__(self, kept_s: float, *, most: int | None = None) -> None:
        self._kept_s, self._most = kept_s, most
        self._batches: list[tuple[float, int, list[Fold]]] = []
        self._by_item: dict[str, dict[Fold, None]] = {}
        self._next = count()

    def add(self, folds: list[Fold]) -> None:
        """Remember the folds of one batch."""
        if not folds:
            return
        heapq.heappush(self._batches, (max(fold.time for fold in folds), next(self._next), folds))
        for fold in folds:
            self._by_item.setdefault(fold.item_id, {})[fold] = None
        if self._most is not None and len(self._batches) > self._most:
            self.drop(heapq.heappop(self._batches)[2])

    def cut(self, newest: float) -> None:
        """Forget what is too old beside an event of this time, unix seconds."""
        while self._batches and self._batches[0][0] < newest - self._kept_s:
            self.drop(heapq.heappop(self._batches)[2])

    def of(self, item_id: str) -> list[Fold]:
        """The folds on an item."""
        return list(self._by_item.get(item_id, ()))

    def drop(self, folds: Collection[Fold]) -> None:
        """Forget folds."""
        for fold in folds:
            own = self._by_item.get(fold.item_id)
            if own is not None:
                own.pop(fold, None)
                if not own:
                    del self._by_item[fold.item_id]


class Remembered:
    """The folds of a layout: those on known items for `max_field_lateness`, on unknown ones for `max_lateness`.

    Args:
        layout: says for how long.
        most: batches that are kept at most, of either.
    """

    def __init__(self, layout: Layout, *, most: int | None = None) -> None:
        self._known = Shelf(layout.max_field_lateness_s, most=most)
        self._unknown = Shelf(layout.max_lateness_s, most=most)

    def add(self, folds: list[Fold]) -> None:
        """Remember the folds of one batch."""
        self._known.add([fold for fold in folds if fold.is_known])
        self._unknown.add([fold for fold in folds if not fold.is_known])

    def take(self, folds: list[Fold], *, gone: Collection[Fold]) -> None:
        """Remember the folds of one batch in place of those that are gone, and forget what is too old beside them."""
        self.drop(gone)
        self.add(folds)
        if folds:
            self.cut(max(fold.time for fold in folds))

    def cut(self, newest: float) -> None:
        """Forget what is too old beside an event of this time, unix seconds."""
        self._known.cut(newest)
        self._unknown.cut(newest)

    def of(self, item_id: str) -> list[Fold]:
        """The folds on an item."""
        return [*self._known.of(item_id), *self._unknown.of(item_id)]

    def drop(self, folds: Collection[Fold]) -> None:
        """Forget folds."""
        self._known.drop([fold for fold in folds if fold.is_known])
        self._unknown.drop([fold for fold in folds if not fold.is_known])
