"""Features of a candidate among the others of its request: ranks, standard scores, its place, what came before it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from gyre_core.features.frame import F32, F64, Frame, Step
from gyre_core.features.layout import Layout
from gyre_core.spec import DiversityFeature, PositionFeature, RankFeature, ZScoreFeature

ComparingFeature = RankFeature | ZScoreFeature | PositionFeature | DiversityFeature


def comparison(layout: Layout, feature: ComparingFeature) -> Step:
    """The step that writes the column of a feature that depends on the other candidates or on their order."""
    to = layout.index[feature.name]
    if isinstance(feature, DiversityFeature):
        return _diversity(layout, feature, to)
    if isinstance(feature, PositionFeature):
        return _position(to)
    return _relative(average_ranks if isinstance(feature, RankFeature) else z_scores, layout.index[feature.of], to)


def _position(to: int) -> Step:
    def step(frame: Frame, out: F32) -> None:
        out[:, to] = frame.positions()

    return step


def _diversity(layout: Layout, feature: DiversityFeature, to: int) -> Step:
    """The share of the candidates before each, in the caller's order, that share a category with it."""
    slot = layout.slots("item").field(feature.field)

    def step(frame: Frame, out: F32) -> None:
        order = np.argsort(frame.positions())
        held = frame.items.lasts[order, slot.first : slot.first + slot.count]
        out[order, to] = _alike_before(held) / np.maximum(np.arange(len(order)), 1)

    return step


def _alike_before(held: F32) -> F64:
    """How many rows before each have a category in common with it.

    Rows with a category are the bits of one number, which makes this linear in the rows: a thousand take well under a
    millisecond, where comparing all pairs takes several.
    """
    rows, categories = np.nonzero(held)
    ends, own = np.cumsum(np.bincount(rows, minlength=len(held))).tolist(), categories.tolist()
    with_category = [0] * held.shape[1]
    found, start, bit = [], 0, 1
    for end in ends:
        alike = 0
        for category in own[start:end]:
            alike |= with_category[category]
            with_category[category] |= bit
        found.append(alike.bit_count())
        start, bit = end, bit << 1
    return np.array(found, dtype=np.float64)


def _relative(compare: Callable[[F32], F64], of: int, to: int) -> Step:
    def step(_: Frame, out: F32) -> None:
        out[:, to] = compare(out[:, of])

    return step


def average_ranks(values: npt.NDArray[Any]) -> F64:
    """The rank of each value, 0 for the least to 1 for the greatest, ties averaged; 0.5 for a single value."""
    if len(values) < 2:
        return np.full(len(values), 0.5)
    ordered = np.sort(values)
    below = np.searchsorted(ordered, values, side="left")
    through = np.searchsorted(ordered, values, side="right")
    ranks: F64 = (below + through - 1) / (2.0 * (len(values) - 1))
    return ranks


def z_scores(values: npt.NDArray[Any]) -> F64:
    """Values standardised to mean 0 and deviation 1 (divisor n); all 0 where they do not differ."""
    centred: F64 = values - values.mean(dtype=np.float64) if len(values) else values.astype(np.float64)
    spread = float(np.sqrt((centred**2).mean())) if len(values) else 0.0
    return centred / spread if spread > 0 else np.zeros(len(values))
