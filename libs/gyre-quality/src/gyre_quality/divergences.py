"""Four distances between a reference and a chunk of rows, for all features at once, from their sketches.

All are 0 for equal distributions. Shares are smoothed by one observation spread like the reference, so that an empty
bin gives no infinity and a bin that is empty in both gives nothing.
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
        """One measure of every feature."""
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
    """The shares of each bin in the chunk and in the reference [features, bins]; 0 beyond a feature's own bins.

    The reference gets half an observation a bin (Krichevsky and Trofimov 1981), the chunk one observation spread as the
    reference is: a Dirichlet prior that pulls towards no drift.
    """
    sizes = np.asarray([feature.size for feature in reference.bins.by_feature.values()])
    own = np.arange(reference.bins.width) < sizes[:, None]
    q = np.where(own, reference.counts + 0.5, 0.0) / (reference.rows + 0.5 * sizes)[:, None]
    p = (chunk.counts + q) / (chunk.rows + 1.0)
    return p, q


def wasserstein(reference: Sketch, chunk: Sketch) -> Vector:
    """The Wasserstein-1 distance of each feature, in units of the reference's standard deviation.

    The integral of the distance between both distribution functions (Vallender 1974), linear within a bin; the outer
    bins end at the extremes seen. The difference of means, which is exact in a sketch, is a lower bound (Kantorovich
    and Rubinstein 1958) and catches tails that the outer bins blur. For a category it is the total variation: the same
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
    area = float(np.sum(np.diff(points) * _mean_distance(gaps)))
    shift = abs(float(chunk.mean[index] - reference.mean[index]))
    unit = float(reference.deviation[index]) or abs(float(reference.mean[index])) or 1.0
    return max(area, shift) / unit


def _distribution(sketch: Sketch, index: int, feature: NumberBins) -> Vector:
    """The distribution function at the lower end, at each edge and at the upper end."""
    counts = sketch.counts[index, 1 : feature.size]
    return np.concatenate([[0.0], np.cumsum(counts) / counts.sum()])


def _mean_distance(gaps: Vector) -> Vector:
    """The mean of |gap| over each interval, where the gap runs linearly and may cross 0."""
    first, second = gaps[:-1], gaps[1:]
    crosses = first * second < 0
    total = np.abs(first) + np.abs(second)
    return np.where(crosses, (first**2 + second**2) / (2 * np.where(crosses, total, 1.0)), total / 2)


def _category_distance(reference: Sketch, chunk: Sketch, index: int) -> float:
    first, second = reference.counts[index, 1:], chunk.counts[index, 1:]
    if not (first.sum() and second.sum()):
        return 0.0
    return float(np.abs(first / first.sum() - second / second.sum()).sum() / 2)


def _relative_entropy(p: NDArray[np.float64], q: NDArray[np.float64]) -> Vector:
    ratio = np.divide(p, q, out=np.ones_like(p), where=q > 0)
    return np.asarray(np.maximum(np.sum(p * np.log(np.where(p > 0, ratio, 1.0)), axis=1), 0.0))
