"""Measures of a ranking; a tie gets the average over all its orders, so that a constant model earns nothing.

Ties after McSherry and Najork, Computing Information Retrieval Performance Measures Efficiently in the Presence of Tied
Scores (ECIR 2008): every position within a tie holds the tie's mean gain.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]] | Sequence[float]


def ndcg(scores: Floats, relevance: Floats, k: int = 10) -> float:
    """Normalised discounted cumulative gain at k, gain 2^relevance - 1 (Järvelin and Kekäläinen 2002).

    `scores` (greater is better) and `relevance` are of shape [n]. 0 where nothing is relevant, else
    ValueError where the shapes differ or a score is NaN.
    """
    gains = np.exp2(np.asarray(relevance, dtype=np.float64)) - 1.0
    discounts = _discounts(len(gains), k)
    ideal = float(np.sort(gains)[::-1] @ discounts)
    if ideal <= 0:
        return 0.0
    gained = sum(mean * float(discounts[start:end].sum()) for start, end, mean in _ties(scores, gains))
    return gained / ideal


def hit_rate(scores: Floats, relevance: Floats, k: int = 10) -> float:
    """The probability that an item of relevance above 0 is among the first k, over all orders of tied items.

    Raises ValueError where the shapes differ or a score is NaN.
    """
    relevant = np.asarray(relevance, dtype=np.float64) > 0
    missed = 1.0
    for start, end, share in _ties(scores, relevant.astype(np.float64)):
        size, inside = end - start, min(end, k) - start
        if inside <= 0:
            break
        missed *= _none_drawn(size, round(share * size), inside)
    return 1.0 - missed


def reciprocal_rank(scores: Floats, relevance: Floats) -> float:
    """The expected 1 / position of the first item of relevance above 0, over all orders of ties; 0 where none is.

    Raises ValueError where the shapes differ or a score is NaN.
    """
    relevant = np.asarray(relevance, dtype=np.float64) > 0
    for start, end, share in _ties(scores, relevant.astype(np.float64)):
        size = end - start
        count = round(share * size)
        if count:
            return _expected_reciprocal(start, size, count)
    return 0.0


def uniform_propensity(n: int) -> float:
    """1 / n: the probability that an item is at its position when n candidates are in uniformly random order.

    Raises ValueError where n is below 1.
    """
    if n < 1:
        raise ValueError(f"n = {n}: must be at least 1")
    return 1.0 / n


def _discounts(n: int, k: int) -> npt.NDArray[np.float64]:
    positions = np.arange(n)
    return np.where(positions < k, 1.0 / np.log2(positions + 2.0), 0.0)


def _ties(scores: Floats, gains: npt.NDArray[np.float64]) -> Iterator[tuple[int, int, float]]:
    """Runs of equal scores from the best down: (first position, one past the last, mean gain)."""
    values = np.asarray(scores, dtype=np.float64)
    if values.shape != gains.shape or np.isnan(values).any():
        raise ValueError(f"{values.shape} scores for {gains.shape} items: must be as many, and numbers")
    order = np.argsort(-values, kind="stable")
    ordered, gained = values[order], gains[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(values) else np.array([], dtype=np.int64)
    for start, end in zip(starts, [*starts[1:], len(values)], strict=True):
        yield int(start), int(end), float(gained[start:end].mean())


def _none_drawn(size: int, relevant: int, draws: int) -> float:
    """The probability that `draws` of `size` items, without replacement, hold none of the relevant ones."""
    probability = 1.0
    for drawn in range(draws):
        probability *= max(size - relevant - drawn, 0) / (size - drawn)
    return probability


def _expected_reciprocal(start: int, size: int, count: int) -> float:
    """E[1 / position of the first of `count` relevant items] in a tie of `size` that begins at 0-based `start`."""
    expected, none_before = 0.0, 1.0
    for offset in range(size - count + 1):
        here = none_before * count / (size - offset)
        expected += here / (start + offset + 1)
        none_before -= here
    return expected
