"""Bins fixed by the reference: quantiles for numbers with a bin of its own for a frequent value, values for text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gyre_quality.columns import Column, Columns, as_codes, as_numbers

# Edges beyond the reference's range, in its standard deviations.
_OUTSIDE = np.asarray([0.5, 1.0, 2.0, 4.0])

MISSING = 0
"""The bin of missing values, the first of every feature."""


@dataclass(frozen=True, slots=True)
class NumberBins:
    """Bin 1 holds x <= edges[0], bin i edges[i-2] < x <= edges[i-1], the last what lies above all edges.

    `single` says that the reference was float32: then float32 columns are compared in float32, twice as fast.
    """

    edges: tuple[float, ...]
    single: bool = False

    @property
    def size(self) -> int:
        """How many bins there are, that of missing values included."""
        return len(self.edges) + 2

    @property
    def labels(self) -> list[str]:
        """A name for each bin, [size], the edges cut to four digits."""
        above = f"> {self.edges[-1]:.4g}" if self.edges else "any"
        return ["missing", *(f"≤ {edge:.4g}" for edge in self.edges), above]

    def codes(self, values: NDArray[np.floating[Any]]) -> NDArray[np.int64]:
        """The bin of each value [rows]; NaN is in bin `MISSING`, infinities in the outer bins."""
        narrow = self.single and values.dtype == np.float32
        edges = np.asarray(self.edges, dtype=np.float32 if narrow else np.float64)
        codes = np.searchsorted(edges, values, side="left") + 1
        codes[np.isnan(values)] = MISSING
        return codes


@dataclass(frozen=True, slots=True)
class CategoryBins:
    """One bin for each value of the reference, and a last one for all others."""

    values: tuple[str, ...]

    @property
    def size(self) -> int:
        """How many bins there are, those of missing and of other values included."""
        return len(self.values) + 2

    @property
    def labels(self) -> list[str]:
        """A name for each bin, [size]: the value, `missing` or `other`."""
        return ["missing", *self.values, "other"]

    def codes(self, column: Column) -> NDArray[np.int64]:
        """The bin of each value [rows], compared as text; missing ones in bin `MISSING`, unknown ones in the last."""
        indices, values = as_codes(column)
        position = {value: index + 1 for index, value in enumerate(self.values)}
        # The last entry is met by index -1, a missing value.
        table = np.asarray([*(position.get(value, self.size - 1) for value in values), MISSING], dtype=np.int64)
        return np.asarray(table[indices])


FeatureBins = NumberBins | CategoryBins


@dataclass(frozen=True, slots=True)
class Bins:
    """The bins of each feature by name, in the order of the reference's columns."""

    by_feature: Mapping[str, FeatureBins]

    @property
    def names(self) -> tuple[str, ...]:
        """The features in order."""
        return tuple(self.by_feature)

    @property
    def width(self) -> int:
        """The number of bins of the feature that has most; 0 without features."""
        return max((bins.size for bins in self.by_feature.values()), default=0)

    def encode(self, name: str, column: Column) -> NDArray[np.floating[Any]]:
        """The column of a feature as numbers for a classifier: numbers as they are, the bin for a category.

        Raises:
            KeyError: no such feature.
            ValueError: numbers are wanted, and the column holds others.
        """
        bins = self.by_feature[name]
        if isinstance(bins, NumberBins):
            return as_numbers(column, name)
        return bins.codes(column).astype(np.float32)

    def as_dict(self) -> dict[str, Any]:
        """The bins as JSON can hold them."""
        return {
            name: {"edges": list(bins.edges), "single": bins.single}
            if isinstance(bins, NumberBins)
            else {"values": list(bins.values)}
            for name, bins in self.by_feature.items()
        }

    @classmethod
    def from_dict(cls, body: Mapping[str, Any]) -> Bins:
        """The bins from what `as_dict` gave."""
        return cls(
            {
                name: CategoryBins(tuple(bins["values"]))
                if "values" in bins
                else NumberBins(tuple(bins["edges"]), bins["single"])
                for name, bins in body.items()
            }
        )


def fit_bins(
    columns: Columns, *, categories: Iterable[str] = (), quantiles: int = 20, max_categories: int = 100
) -> Bins:
    """Fit bins of equal share over the reference, or over a sample of it, one feature for each column.

    Args:
        columns: the reference by feature name; columns of text are categories by themselves.
        categories: features whose numbers are names.
        quantiles: how many bins of equal share a number gets; a value that fills more than one stands alone.
        max_categories: the most frequent values that get a bin; rarer ones share the bin `other`.

    Raises:
        ValueError: `quantiles` or `max_categories` is below 1, or `categories` names no column.
    """
    for field, value in (("quantiles", quantiles), ("max_categories", max_categories)):
        if value < 1:
            raise ValueError(f"{field} = {value}: must be at least 1")
    named = set(categories)
    if unknown := named - set(columns):
        raise ValueError(f"categories = {sorted(unknown)}: must be columns of the reference")
    fitted: dict[str, FeatureBins] = {}
    for name, column in columns.items():
        if name in named or _is_text(column):
            fitted[name] = _category_bins(column, max_categories)
        else:
            fitted[name] = number_bins(as_numbers(column, name), quantiles)
    return Bins(fitted)


def number_bins(values: NDArray[np.floating[Any]], quantiles: int) -> NumberBins:
    """Bins between the quantiles of the finite values, and a few of growing width beyond them.

    Edges are values of the data, so that ties fall on one side. A value that two quantiles meet gets an edge just
    below it as well, which leaves it alone in its bin: most features of a ranker pile up at 0. The bins beyond the
    reference are empty in it; they tell a chunk that left its range a little from one that left it far.
    """
    ordered = np.sort(values[np.isfinite(values)])
    single = values.dtype == np.float32
    if ordered.size == 0:
        return NumberBins((), single)
    at = (np.arange(1, quantiles) * ordered.size) // quantiles
    edges, repeats = np.unique(np.append(ordered[at], ordered[-1]), return_counts=True)
    heavy = edges[repeats > 1]
    below = np.nextafter(heavy, np.asarray(-np.inf, dtype=heavy.dtype))
    beyond = _OUTSIDE * float(np.std(ordered, dtype=np.float64))
    outside = np.concatenate([float(ordered[0]) - beyond, float(ordered[-1]) + beyond]).astype(ordered.dtype)
    every = np.concatenate([edges, below, [np.nextafter(ordered[0], -np.inf, dtype=ordered.dtype)], outside])
    return NumberBins(tuple(np.unique(every[np.isfinite(every)]).astype(np.float64).tolist()), single)


def _category_bins(column: Column, limit: int) -> CategoryBins:
    indices, values = as_codes(column)
    counts = np.bincount(indices[indices >= 0], minlength=len(values))
    ranked = sorted(range(len(values)), key=lambda index: (-int(counts[index]), values[index]))
    return CategoryBins(tuple(values[index] for index in ranked[:limit] if counts[index]))


def _is_text(column: Column) -> bool:
    if hasattr(column, "null_count"):
        kind = str(column.type)
        return kind.startswith(("string", "large_string", "string_view", "dictionary", "bool"))
    return np.asarray(column).dtype.kind in "OUSb"
