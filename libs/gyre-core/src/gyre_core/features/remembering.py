"""The contributions that late fields may still correct, in memory; the online store has them in sorted sets."""

from __future__ import annotations

import heapq
from collections.abc import Collection
from itertools import count
from math import inf

from gyre_core.features.layout import Layout
from gyre_core.features.versions import Contribution

MAX_BUFFERED_BATCHES = 2000
"""The batches whose contributions the online store keeps at most, of known items and of unknown ones."""

BUFFER_IDLE_S = 86_400
"""How long a buffer in the online store outlives its bound where nothing changes it, seconds of wall time."""


def time_seen(event_time: float, arrival_time: float) -> float:
    """The time at which behaviour counts in features, unix seconds: no later than the log had it, where that is known.

    So a producer whose clock is fast makes nobody's sums and windows old, and takes late fields' corrections from
    nobody.

    Args:
        event_time: as the producer says, unix seconds.
        arrival_time: when the log got it, unix seconds; 0 when not known.
    """
    return min(event_time, arrival_time) if arrival_time else event_time


class ContributionBuffer:
    """Buffered contributions in memory, batch by batch; the online store has the like in a sorted set.

    Args:
        kept_s: a batch's contributions go once an event is newer by this than the newest of them, seconds.
        max_batches: batches that are kept at most, else the oldest goes; None bounds nothing.
    """

    def __init__(self, kept_s: float, *, max_batches: int | None = None) -> None:
        self._kept_s, self._max_batches = kept_s, max_batches
        self._batches: list[tuple[float, int, list[Contribution]]] = []
        self._by_item: dict[str, dict[Contribution, None]] = {}
        self._next = count()

    def add(self, contributions: list[Contribution]) -> None:
        """Buffer the contributions of one batch; one beyond `max_batches` drops the oldest by event time."""
        if not contributions:
            return
        heapq.heappush(
            self._batches, (max(contribution.time for contribution in contributions), next(self._next), contributions)
        )
        for contribution in contributions:
            self._by_item.setdefault(contribution.item_id, {})[contribution] = None
        if self._max_batches is not None and len(self._batches) > self._max_batches:
            self.drop(heapq.heappop(self._batches)[2])

    def cut(self, newest: float) -> None:
        """Drop the batches whose newest contribution is older than an event of this time by more than `kept_s`."""
        while self._batches and self._batches[0][0] < newest - self._kept_s:
            self.drop(heapq.heappop(self._batches)[2])

    def expire(self, idle_s: float) -> None:
        """Drop everything where nothing changed the buffer for so many seconds that the online store's expired."""
        if idle_s > self._kept_s + BUFFER_IDLE_S:
            self._batches.clear()
            self._by_item.clear()

    def of(self, item_id: str) -> list[Contribution]:
        """The contributions on an item, in the order in which they were added; none for an unknown one."""
        return list(self._by_item.get(item_id, ()))

    def drop(self, contributions: Collection[Contribution]) -> None:
        """Drop these very objects, of whichever batch; those that are not buffered are ignored."""
        for contribution in contributions:
            own = self._by_item.get(contribution.item_id)
            if own is not None:
                own.pop(contribution, None)
                if not own:
                    del self._by_item[contribution.item_id]


class ContributionBuffers:
    """The contributions of a layout: those on known items for `max_field_lateness`, on unknown ones for `max_lateness`.

    Args:
        layout: says for how long.
        max_batches: batches that are kept at most, of either; None bounds nothing.
    """

    def __init__(self, layout: Layout, *, max_batches: int | None = None) -> None:
        self._known = ContributionBuffer(layout.max_field_lateness_s, max_batches=max_batches)
        self._unknown = ContributionBuffer(layout.max_lateness_s, max_batches=max_batches)
        self._changed = inf

    def expire(self, now: float) -> None:
        """Drop what the online store's buffers have let expire by a wall time, unix seconds."""
        self._known.expire(now - self._changed)
        self._unknown.expire(now - self._changed)

    def add(self, contributions: list[Contribution]) -> None:
        """Buffer the contributions of one batch; nothing is dropped for its age."""
        self._known.add([contribution for contribution in contributions if contribution.is_known])
        self._unknown.add([contribution for contribution in contributions if not contribution.is_known])

    def replace(
        self, contributions: list[Contribution], *, gone: Collection[Contribution], newest: float, now: float
    ) -> None:
        """Buffer the contributions of one batch in place of those that are gone, and drop what is too old then.

        Without either nothing changes, and nothing is dropped for its age.

        Args:
            contributions: of the batch.
            gone: those that they replace.
            newest: the greatest `time_seen` of the batch's behaviour, unix seconds.
            now: wall time at which the online store had the batch, unix seconds.
        """
        self.drop(gone)
        self.add(contributions)
        if contributions or gone:
            self.cut(newest)
            self._changed = now

    def cut(self, newest: float) -> None:
        """Drop what is too old beside an event of this time, unix seconds, each by its own bound."""
        self._known.cut(newest)
        self._unknown.cut(newest)

    def of(self, item_id: str) -> list[Contribution]:
        """The contributions on an item, those that knew its fields first."""
        return [*self._known.of(item_id), *self._unknown.of(item_id)]

    def drop(self, contributions: Collection[Contribution]) -> None:
        """Drop these very objects; those that are not buffered are ignored."""
        self._known.drop([contribution for contribution in contributions if contribution.is_known])
        self._unknown.drop([contribution for contribution in contributions if not contribution.is_known])
