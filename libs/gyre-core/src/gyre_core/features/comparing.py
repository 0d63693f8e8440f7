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
    """The step of a feature whose column depends on the other candidates."""
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
        held = frame.items.lasts[:, slot.first : slot.first + slot.count]
        positions = frame.positions()
        before = positions[None, :] < positions[:, None]
        alike = (held @ held.T > 0) & before
        out[:, to] = alike.sum(axis=1) / np.maximum(before.sum(axis=1), 1)

    return step


def _relative(compare: Callable[[F32], F64], of: int, to: int) -> Step:
    def step(_: Frame, out: F32) -> None:
        out[:, to] = compare(out[:, of])

    return step


def average_ranks(values: npt.NDArray[Any]) -> F64:
    """Ranks from 0 (least) to 1 (greatest), ties averaged; 0.5 for a single value."""
    if len(values) < 2:
        return np.full(len(values), 0.5)
    ordered = np.sort(values)
    below = np.searchsorted(ordered, values, side="left")
    through = np.searchsorted(ordered, values, side="right")
    ranks: F64 = (below + through - 1) / (2.0 * (len(values) - 1))
    return ranks


def z_scores(values: npt.NDArray[Any]) -> F64:
    """Values standardised to mean 0 and deviation 1; all 0 where they do not differ."""
    centred: F64 = values - values.mean(dtype=np.float64) if len(values) else values.astype(np.float64)
    spread = float(np.sqrt((centred**2).mean())) if len(values) else 0.0
    return centred / spread if spread > 0 else np.zeros(len(values))
