"""Counts and rates in windows of time, all windows of a kind of entity and all candidates at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gyre_core.features.compiling import windows_of
from gyre_core.features.events import ENTITY_KINDS
from gyre_core.features.frame import F32, F64, EntityBlock, Frame, Step
from gyre_core.features.layout import Layout
from gyre_core.features.slots import EntityLayout, WindowSlot
from gyre_core.spec import WindowedCountFeature, WindowedRateFeature

WindowedFeature = WindowedCountFeature | WindowedRateFeature
IntP = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class _Column:
    """What a column is made of: a count, or the ratio of two with what the prior adds to either."""

    to: int
    above: int
    below: int
    pseudo: float
    weight: float


def windowed_steps(layout: Layout) -> Iterator[Step]:
    """One step for each kind of entity that has windows."""
    for kind in ENTITY_KINDS:
        found = [each for each in layout.features if isinstance(each, WindowedFeature) and each.scope == kind]
        if found:
            yield _step(layout, kind, found)


def _step(layout: Layout, kind: str, features: Sequence[WindowedFeature]) -> Step:
    read: dict[tuple[WindowSlot, bool], int] = {}
    columns = [column for feature in features for column in _columns_of(layout, feature, read)]
    counts = _Counts(layout.slots(features[0].scope), list(read))
    plain = [column for column in columns if column.below < 0]
    ratios = [column for column in columns if column.below >= 0]
    plain_to, plain_of = np.array([[each.to, each.above] for each in plain], dtype=np.intp).reshape(-1, 2).T
    to, above, below = np.array([[each.to, each.above, each.below] for each in ratios], dtype=np.intp).reshape(-1, 3).T
    pseudo, weight = np.array([[each.pseudo, each.weight] for each in ratios]).reshape(-1, 2).T

    def step(frame: Frame, out: F32) -> None:
        found = counts.at(frame.block(kind), frame.context.time)
        if plain:
            out[:, plain_to] = found[:, plain_of]
        if ratios:
            out[:, to] = (found[:, above] + pseudo) / (found[:, below] + weight)

    return step


def _columns_of(
    layout: Layout, feature: WindowedFeature, read: dict[tuple[WindowSlot, bool], int]
) -> Iterator[_Column]:
    """The columns of a feature, by the places in `read` of the counts that they need, which are added to it."""
    sliding = feature.mode == "sliding"
    places = [read.setdefault((slot, sliding), len(read)) for slot in windows_of(feature)]
    for number, to in enumerate(layout.columns_of(feature)):
        if isinstance(feature, WindowedRateFeature):
            above, below = places[2 * number : 2 * number + 2]
            prior = feature.prior
            yield _Column(to, above, below, prior.mean * prior.weight, prior.weight)
        else:
            yield _Column(to, places[number], -1, 0.0, 0.0)


class _Counts:
    """Counts events in windows, from all buckets in the order in which they are stored.

    Bucket b stands at b mod `length`, so that the time of the read says which bucket a place should hold, and how old
    it is. It holds that one where the value's newest bucket is not older, nor newer by `length` or more.
    """

    def __init__(self, entity: EntityLayout, read: Sequence[tuple[WindowSlot, bool]]) -> None:
        slots = np.array([entity.windows.index(slot) for slot, _ in read], dtype=np.intp)
        lengths = np.array([slot.length for slot, _ in read])
        self._sizes = np.array([slot.bucket_s for slot, _ in read])
        self._newest_at = len(entity.mins) + len(entity.maxs) + slots
        self._window_of: IntP = np.repeat(np.arange(len(read)), lengths)
        self._sums = np.eye(len(read))[self._window_of]
        self._place = np.arange(lengths.sum()) - (np.cumsum(lengths) - lengths)[self._window_of]
        self._length = lengths[self._window_of].astype(np.float64)
        self._sliding = np.array([sliding for _, sliding in read])[self._window_of]
        self._bucket_at = np.array(entity.bucket_starts)[slots][self._window_of] + self._place

    def at(self, block: EntityBlock, time: float) -> F64:
        """The counts as of a time, of shape [entities, windows]."""
        now = time / self._sizes
        part = np.floor(now)
        age = (part[self._window_of] - self._place) % self._length
        # Of the oldest part, that a sliding window has left but for a share, that share counts.
        left = np.where(age == self._length - 1.0, 1.0 - (now % 1.0)[self._window_of], 1.0)
        weights = np.where(self._sliding, left, age == 1.0)
        ahead = block.times[:, self._newest_at] - part
        since = ahead[:, self._window_of] + age
        held = since >= 0.0
        if ahead.max(initial=0.0) > 0.0:
            held &= since < self._length
        counts: F64 = (block.buckets[:, self._bucket_at] * held) @ (self._sums * weights[:, None])
        return counts
