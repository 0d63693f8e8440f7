"""Four distances between a reference and a chunk of rows, for all features at once, from their sketches.

All are 0 for equal distributions. The chunk's shares are smoothed towards the reference's, so that an empty bin gives
no infinity and a bin that is empty in both gives nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gyre_quality.bins import CategoryBins, NumberBins
from gyre_quality.sketches import Sketch

Vector = NDArray[np.float64]

MEASURES = ("kl", "psi", "js", "wasserstein")
"""Kullback and Leibler, population stability index, Jensen and Shannon, Wasserstein: rows of `Divergences.values`."""

DIVERGENCES = MEASURES[:3]
"""Those that grow with the square of a small difference; Wasserstein grows with the difference itself."""


@dataclass(frozen=True, slots=True)
class Divergences:
    """float64 [measures, features], in the order of `MEASURES` and of the reference's features."""

    values: NDArray[np.float64]

    def of(self, measure: str) -> Vector:
        """One of `MEASURES` for every feature, float64 [features]; raises ValueError for another name."""
        return np.asarray(self.values[MEASURES.index(measure)])


def divergences(reference: Sketch, chunk: Sketch) -> Divergences:
    """How far the chunk is from the reference.

    - kl: KL(chunk ‖ reference) in nats (Kullback and Leibler 1951).
    - psi: KL(chunk ‖ reference) + KL(reference ‖ chunk) (Jeffreys 1946; population stability index, Siddiqi 2006).
    - js: the mean divergence of both from their midpoint, in nats, at most ln 2 (Lin 1991).
    - wasserstein: see `wasserstein`.

    Raises:
        ValueError: the sketches have different bins.
    """
    if reference.bins != chunk.bins:
        raise ValueError("sketches have different bins: must be counted in the bins of one reference")
    p, q = smoothed_shares(reference, chunk)
    middle = (p + q) / 2
    kl, reverse = _relative_entropy(p, q), _relative_entropy(q, p)
    js = (_relative_entropy(p, middle) + _relative_entropy(q, middle)) / 2
    return Divergences(np.stack([kl, kl + reverse, js, wasserstein(reference, chunk)]))


def smoothed_shares(reference: Sketch, chunk: Sketch) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The shares of each bin, float64 [features, bins]: first those of the chunk, then those of the reference.

    Contrary to the arguments' order, as in KL(chunk ‖ reference). 0 beyond a feature's own bins, above 0 within them.
    The reference gets half an observation a bin (Krichevsky and Trofimov 1981), the chunk as many in all, spread like
    the reference: a Dirichlet prior that pulls towards no drift.
    """
    sizes = np.asarray([feature.size for feature in reference.bins.by_feature.values()])
    own = np.arange(reference.bins.width) < sizes[:, None]
    q = np.where(own, reference.counts + 0.5, 0.0) / (reference.rows + 0.5 * sizes)[:, None]
    prior = 0.5 * sizes[:, None]
    p = (chunk.counts + prior * q) / (chunk.rows + prior)
    return p, q


def wasserstein(reference: Sketch, chunk: Sketch) -> Vector:
    """The Wasserstein-1 distance of each feature, in units of the reference's standard deviation; float64 [features].

    0 where either has no finite values.
    The area between both distribution functions (Vallender 1974). Its parts above and below 0 differ by exactly the
    difference of means, which a sketch knows: so the distance is that difference plus twice the smaller part, and only
    the smaller part is read off the bins, linear within each, the outer ones ending at the extremes seen. A shift of
    all values, or a few huge ones, is thus measured exactly. For a category it is the total variation: the same
    distance where any two values are 1 apart. Missing values are left to the other measures.
    """
    return np.asarray(
        [
            _category_distance(reference, chunk, index)
            if isinstance(feature, CategoryBins)
            else _number_distance(reference, chunk, index, feature)
            for index, feature in enumerate(reference.bins.by_feature.values())
        ]
    )


def _number_distance(reference: Sketch, chunk: Sketch, index: int, feature: NumberBins) -> float:
    if not (reference.finite[index] and chunk.finite[index]):
        return 0.0
    low, high = (min(reference.low[index], chunk.low[index]), max(reference.high[index], chunk.high[index]))
    points = np.concatenate([[low], np.clip(feature.edges, low, high), [high]])
    gaps = _distribution(reference, index, feature) - _distribution(chunk, index, feature)
    widths = np.diff(points)
    smaller = min(float(widths @ _mean_excess(gaps)), float(widths @ _mean_excess(-gaps)))
    shift = abs(float(chunk.mean[index] - reference.mean[index]))
    unit = float(reference.deviation[index]) or abs(float(reference.mean[index])) or 1.0
    return (shift + 2 * smaller) / unit


def _distribution(sketch: Sketch, index: int, feature: NumberBins) -> Vector:
    """The distribution function at the lower end, at each edge and at the upper end."""
    counts = sketch.counts[index, 1 : feature.size]
    return np.concatenate([[0.0], np.cumsum(counts) / counts.sum()])


def _mean_excess(gaps: Vector) -> Vector:
    """The mean of max(gap, 0) over each interval, where the gap runs linearly and may cross 0."""
    first, second = gaps[:-1], gaps[1:]
    crosses = first * second < 0
    top = np.maximum(first, second)
    span = np.where(crosses, np.abs(first - second), 1.0)
    return np.where(crosses, top**2 / (2 * span), np.maximum(first + second, 0.0) / 2)


def _category_distance(reference: Sketch, chunk: Sketch, index: int) -> float:
    first, second = reference.counts[index, 1:], chunk.counts[index, 1:]
    if not (first.sum() and second.sum()):
        return 0.0
    return float(np.abs(first / first.sum() - second / second.sum()).sum() / 2)


def _relative_entropy(p: NDArray[np.float64], q: NDArray[np.float64]) -> Vector:
    ratio = np.divide(p, q, out=np.ones_like(p), where=q > 0)
    return np.asarray(np.maximum(np.sum(p * np.log(np.where(p > 0, ratio, 1.0)), axis=1), 0.0))
