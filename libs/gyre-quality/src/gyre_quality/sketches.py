"""What is kept of a stream: a mergeable sketch of each feature, and a mergeable weighted sample of whole rows.

Both are functions of the set of rows: how the rows were cut into chunks, and in which order the parts were merged, does
not show. So workers, windows and days add up.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gyre_quality.bins import MISSING, Bins, NumberBins
from gyre_quality.columns import Columns, as_numbers, hashed, lengths

_BLOCK_ROWS = 65_536

Matrix = NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class Sketch:
    """Counts and moments of every feature over some rows.

    Attributes:
        bins: the bins that `counts` counts in; only sketches of equal bins merge.
        rows: how many rows were seen.
        counts: int64 [features, widest feature's bins]; bin 0 holds missing values.
        finite: int64 [features], how many numbers the moments are of; infinite ones are only counted in their bins.
        low, high: float64 [features], smallest and greatest number; infinities before there is one.
        mean, spread: float64 [features], mean of the finite numbers and sum of squared distances from it; 0 for
            categories.
    """

    bins: Bins
    rows: int
    counts: NDArray[np.int64]
    finite: NDArray[np.int64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    mean: NDArray[np.float64]
    spread: NDArray[np.float64]

    @classmethod
    def empty(cls, bins: Bins) -> Sketch:
        """The sketch of no rows."""
        size = len(bins.names)
        counts = np.zeros((size, bins.width), dtype=np.int64)
        zeros, ends = np.zeros(size), np.full(size, np.inf)
        return cls(bins, 0, counts, zeros.astype(np.int64), ends, -ends, zeros, zeros)

    @classmethod
    def of(cls, bins: Bins, columns: Columns) -> Sketch:
        """The sketch of columns by feature name; those that are no feature are ignored.

        Raises:
            ValueError: a feature has no column or one that does not hold numbers, or columns differ in length.
        """
        if absent := [name for name in bins.names if name not in columns]:
            raise ValueError(f"columns lack {absent}: must hold every feature of the reference")
        rows = lengths({name: columns[name] for name in bins.names})
        made = _Building(bins)
        for index, (name, feature) in enumerate(bins.by_feature.items()):
            if isinstance(feature, NumberBins):
                made.numbers(index, feature, as_numbers(columns[name], name))
            else:
                made.codes(index, feature.codes(columns[name]))
        return made.sketch(rows)

    @classmethod
    def of_matrix(cls, bins: Bins, matrix: Matrix) -> Sketch:
        """The sketch of a matrix [rows, features] of numbers, in the order of the bins.

        Raises:
            ValueError: the shape does not fit, or a feature is a category.
        """
        if matrix.ndim != 2 or matrix.shape[1] != len(bins.names):
            raise ValueError(f"matrix of shape {matrix.shape}: must have {len(bins.names)} columns")
        features = [feature for feature in bins.by_feature.values() if isinstance(feature, NumberBins)]
        if len(features) < len(bins.names):
            raise ValueError("a matrix has no categories: use Sketch.of")
        parts = []
        for start in range(0, len(matrix), _BLOCK_ROWS):
            # Columns next to one another in memory make the search several times faster.
            block = np.ascontiguousarray(matrix[start : start + _BLOCK_ROWS].T)
            made = _Building(bins)
            for index, feature in enumerate(features):
                made.numbers(index, feature, block[index])
            parts.append(made.sketch(block.shape[1]))
        return merged(parts, bins)

    def merge(self, other: Sketch) -> Sketch:
        """A new sketch of both sets of rows, which must not overlap; moments by Chan, Golub and LeVeque (1979).

        Raises:
            ValueError: the bins differ.
        """
        if self.bins != other.bins:
            raise ValueError("sketches have different bins: must be counted in the bins of one reference")
        ours, theirs = self.finite, other.finite
        total = np.maximum(ours + theirs, 1)
        gap = other.mean - self.mean
        return Sketch(
            self.bins,
            self.rows + other.rows,
            self.counts + other.counts,
            ours + theirs,
            np.minimum(self.low, other.low),
            np.maximum(self.high, other.high),
            (self.mean * ours + other.mean * theirs) / total,
            self.spread + other.spread + gap * gap * ours * theirs / total,
        )

    @property
    def missing(self) -> NDArray[np.int64]:
        """Missing values of each feature."""
        return np.asarray(self.counts[:, MISSING])

    @property
    def deviation(self) -> NDArray[np.float64]:
        """The standard deviation of each feature's finite numbers, of the whole population (divided by n)."""
        return np.asarray(np.sqrt(self.spread / np.maximum(self.finite, 1)))

    def without(self, part: Sketch) -> Sketch:
        """A new sketch of the rows that are not in `part`, which must have been merged into this one; not checked.

        Extremes stay those of all rows, since what a part contributed to them is not known.
        """
        rest = self.finite - part.finite
        mean = (self.mean * self.finite - part.mean * part.finite) / np.maximum(rest, 1)
        gap = part.mean - mean
        taken = part.spread + gap * gap * rest * part.finite / np.maximum(self.finite, 1)
        spread = np.maximum(self.spread - taken, 0.0)
        counts = self.counts - part.counts
        return Sketch(self.bins, self.rows - part.rows, counts, rest, self.low, self.high, mean, spread)

    def to_bytes(self) -> bytes:
        """The counts and moments without the bins: `from_bytes` takes those of the reference, the training data."""
        return packed(
            rows=np.int64(self.rows),
            counts=self.counts,
            finite=self.finite,
            ends=np.stack([self.low, self.high]),
            moments=np.stack([self.mean, self.spread]),
        )

    @classmethod
    def from_bytes(cls, bins: Bins, data: bytes) -> Sketch:
        """The sketch from what `to_bytes` gave.

        Raises:
            ValueError: it was counted in bins of another shape.
        """
        arrays = unpacked(data)
        counts = arrays["counts"]
        if counts.shape != (len(bins.names), bins.width):
            raise ValueError(f"counts of shape {counts.shape}: must be {(len(bins.names), bins.width)} as the bins are")
        (low, high), (mean, spread) = arrays["ends"], arrays["moments"]
        return cls(bins, int(arrays["rows"]), counts, arrays["finite"], low, high, mean, spread)


class _Building:
    """A sketch while it is filled, feature by feature."""

    def __init__(self, bins: Bins) -> None:
        self._bins = bins
        size = len(bins.names)
        self._counts = np.zeros((size, bins.width), dtype=np.int64)
        self._finite = np.zeros(size, dtype=np.int64)
        self._low, self._high = np.full(size, np.inf), np.full(size, -np.inf)
        self._mean, self._spread = np.zeros(size), np.zeros(size)

    def numbers(self, index: int, feature: NumberBins, values: NDArray[np.floating[Any]]) -> None:
        edges = np.asarray(feature.edges, np.float32 if feature.single and values.dtype == np.float32 else np.float64)
        counts = np.bincount(np.searchsorted(edges, values, side="left") + 1, minlength=self._bins.width)
        with np.errstate(invalid="ignore"):  # infinities of both signs, which the next lines take out
            total = float(values.sum(dtype=np.float64))
        if not np.isfinite(total):
            # Missing values sort above all edges; they leave that bin for their own.
            missing = int(np.count_nonzero(np.isnan(values)))
            counts[feature.size - 1] -= missing
            counts[MISSING] = missing
            values = values[np.isfinite(values)]
            total = float(values.sum(dtype=np.float64))
        self._counts[index] = counts
        if values.size:
            self._finite[index] = values.size
            self._low[index], self._high[index] = values.min(), values.max()
            self._mean[index] = total / values.size
            distances = values - np.float64(self._mean[index])
            self._spread[index] = float(np.dot(distances, distances))

    def codes(self, index: int, codes: NDArray[np.int64]) -> None:
        self._counts[index] = np.bincount(codes, minlength=self._bins.width)

    def sketch(self, rows: int) -> Sketch:
        ends = self._low, self._high
        return Sketch(self._bins, rows, self._counts, self._finite, *ends, self._mean, self._spread)


def merged(parts: Iterable[Sketch], bins: Bins) -> Sketch:
    """The sketch of the rows of all parts; of none where there are no parts. Raises ValueError where bins differ."""
    return reduce(Sketch.merge, parts, Sketch.empty(bins))


@dataclass(frozen=True, slots=True)
class Reservoir:
    """A weighted sample of rows without replacement (Efraimidis and Spirakis 2006, algorithm A-ES).

    Each row draws ln(u) / weight and the greatest stay. u is a hash of the row's id and the seed, not a new random
    number: so the sample depends on the rows alone, a redelivered row changes nothing, and merging is exact in any
    order. It is immutable: `add` and `merge` return another one.

    Attributes:
        capacity: the most rows that stay.
        seed: of the hash; only samples of one seed merge.
        keys: float64 [rows], greatest first.
        ids: uint64 [rows].
        values: float32 [rows, features].
    """

    capacity: int
    seed: int
    keys: NDArray[np.float64]
    ids: NDArray[np.uint64]
    values: NDArray[np.float32]

    @classmethod
    def empty(cls, capacity: int, features: int, *, seed: int = 0) -> Reservoir:
        """The sample of no rows."""
        if capacity < 1:
            raise ValueError(f"capacity = {capacity}: must be at least 1")
        return cls(capacity, seed, np.empty(0), np.empty(0, dtype=np.uint64), np.empty((0, features), dtype=np.float32))

    def add(self, values: Matrix, ids: NDArray[Any], weights: NDArray[Any] | None = None) -> Reservoir:
        """A new sample that further rows, too, are drawn for; this one stays.

        Args:
            values: float32 [rows, features].
            ids: whole numbers [rows] that name the rows; a row seen before counts once.
            weights: positive [rows], the same each time a row is seen; equal when left out.

        Raises:
            ValueError: a weight is not positive, or the arrays do not fit together.
        """
        if values.ndim != 2 or values.shape[1] != self.values.shape[1] or len(values) != len(ids):
            raise ValueError(
                f"values of shape {values.shape} with {len(ids)} ids: must be a row of {self.values.shape[1]} for each"
            )
        keys = np.log((hashed(ids, self.seed).astype(np.float64) + 0.5) / 2.0**64)
        if weights is not None:
            if not np.all(np.asarray(weights) > 0):
                raise ValueError("weights: must all be positive")
            keys = keys / weights
        # Repeats within the batch must not crowd out others.
        best = np.unique(np.asarray(ids), return_index=True)[1]
        if best.size > self.capacity:
            best = best[np.argpartition(-keys[best], self.capacity - 1)[: self.capacity]]
        rows = np.asarray(ids)[best].astype(np.uint64)
        return self.merge(Reservoir(self.capacity, self.seed, keys[best], rows, values[best].astype(np.float32)))

    def merge(self, other: Reservoir) -> Reservoir:
        """A new sample of both sets of rows; a row (by its id) that is in both counts once.

        Raises:
            ValueError: capacity, seed or number of features differ.
        """
        if (self.capacity, self.seed, self.values.shape[1]) != (other.capacity, other.seed, other.values.shape[1]):
            raise ValueError("reservoirs differ in capacity, seed or features: must be of one kind")
        keys, ids = np.concatenate([self.keys, other.keys]), np.concatenate([self.ids, other.ids])
        values = np.concatenate([self.values, other.values])
        order = np.lexsort((ids, -keys))
        fresh = np.ones(order.size, dtype=bool)
        fresh[1:] = ids[order][1:] != ids[order][:-1]
        kept = order[fresh][: self.capacity]
        return Reservoir(self.capacity, self.seed, keys[kept], ids[kept], values[kept])

    def to_bytes(self) -> bytes:
        """The sample, to be read by `from_bytes`."""
        return packed(
            kind=np.array([self.capacity, self.seed], dtype=np.int64), keys=self.keys, ids=self.ids, values=self.values
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Reservoir:
        """The sample from what `to_bytes` gave."""
        arrays = unpacked(data)
        capacity, seed = arrays["kind"].tolist()
        return cls(capacity, seed, arrays["keys"], arrays["ids"], arrays["values"])


def packed(**arrays: Any) -> bytes:
    """Arrays by name as one compressed block."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def unpacked(data: bytes) -> dict[str, NDArray[Any]]:
    """The arrays of a block of `packed`, by name; nothing in it is executed (no pickles)."""
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}
