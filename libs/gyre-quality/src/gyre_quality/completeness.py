"""Whether the data is all there: missing values, ranges, freshness, volume, duplicates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gyre_quality.columns import Column, Columns, as_ids, as_numbers
from gyre_quality.report import Check

MAD_TO_DEVIATION = 1.4826
"""A normal distribution's standard deviation over its median absolute deviation (Rousseeuw and Croux 1993)."""


def check_missing(columns: Columns, max_share: float | Mapping[str, float]) -> list[Check]:
    """One check for each column: the share of missing values (null or NaN), and the rows without one.

    Args:
        columns: by name.
        max_share: 0 to 1, for all columns or by name; a column that it does not name may lack nothing, and a name
            without a column is ignored.
    """
    limits = max_share if isinstance(max_share, Mapping) else dict.fromkeys(columns, max_share)
    checks = []
    for name, column in columns.items():
        rows = np.flatnonzero(_missing(column))
        share, limit = rows.size / max(len(column), 1), limits.get(name, 0.0)
        checks.append(
            Check("completeness.missing", name, share, limit, share <= limit, f"{rows.size} of {len(column)}", rows)
        )
    return checks


def check_ranges(columns: Columns, ranges: Mapping[str, tuple[float, float]], *, max_share: float = 0.0) -> list[Check]:
    """One check for each range: the share of present values outside its inclusive bounds, and their rows.

    Infinite values are outside; missing ones are left to `check_missing`, columns without a range unchecked.

    Raises:
        ValueError: a range names no column, or one that is no numbers, or ends below its start.
    """
    checks = []
    for name, (low, high) in ranges.items():
        if name not in columns:
            raise ValueError(f"ranges = {name}: must be a column")
        if not low <= high:
            raise ValueError(f"ranges.{name} = {low} to {high}: must start at or below its end")
        values = as_numbers(columns[name], name)
        rows = np.flatnonzero((values < low) | (values > high))
        share = rows.size / max(int(np.count_nonzero(~np.isnan(values))), 1)
        detail = f"{rows.size} values outside {low:g} to {high:g}"
        checks.append(Check("completeness.range", name, share, max_share, share <= max_share, detail, rows))
    return checks


def check_freshness(event_times: ArrayLike, now: float, max_age_s: float) -> Check:
    """The age of the newest event in seconds; infinite without events, below 0 (and passed) where it is ahead of `now`.

    Args:
        event_times: unix seconds [rows].
        now: unix seconds, of the loop's clock.
        max_age_s: the oldest that the newest event may be, inclusive.
    """
    times = np.asarray(event_times, dtype=np.float64)
    age = now - float(times.max()) if times.size else float("inf")
    return Check("completeness.freshness", "", age, max_age_s, age <= max_age_s, "age of the newest event, seconds")


def check_volume(count: int, history: ArrayLike, *, max_z: float = 4.0) -> Check:
    """How far a count is from those of earlier, like periods, in robust standard deviations of its logarithm.

    Too many fail as too few do. Median and median absolute deviation, so that one outage in the history does not hide
    the next. Counts scatter by at least their square root (Poisson), however even the history is.

    Raises:
        ValueError: the history has fewer than 3 counts.
    """
    past = np.asarray(history, dtype=np.float64)
    if past.size < 3:
        raise ValueError(f"history has {past.size} counts: must have at least 3")
    logs = np.log1p(past)
    middle = float(np.median(logs))
    spread = MAD_TO_DEVIATION * float(np.median(np.abs(logs - middle)))
    spread = max(spread, 1.0 / float(np.sqrt(np.expm1(middle) + 1.0)))
    z = (float(np.log1p(count)) - middle) / spread
    detail = f"{count} rows, usually {np.expm1(middle):.0f}; z = {z:.1f}"
    return Check("completeness.volume", "", abs(z), max_z, abs(z) <= max_z, detail)


def check_duplicates(columns: Columns, *, max_share: float = 0.0) -> Check:
    """The share of rows that repeat an earlier row in all of these columns, at least one; and the repeats' rows.

    Rows that lack one of the columns are left out: what has no id repeats none.
    """
    codes = [as_ids(column) for column in columns.values()]
    known = np.flatnonzero(np.all([code >= 0 for code in codes], axis=0))
    keys = joint([code[known] for code in codes])
    _, first = np.unique(keys, return_index=True)
    repeats = np.ones(known.size, dtype=bool)
    repeats[first] = False
    rows = known[repeats]
    share = rows.size / max(known.size, 1)
    detail = f"{rows.size} of {known.size} rows repeat an earlier one"
    return Check("completeness.duplicates", ", ".join(columns), share, max_share, share <= max_share, detail, rows)


def joint(codes: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    """One number for each row, equal exactly where all of its codes (at least 0, one array a column) are equal."""
    keys = codes[0]
    for code in codes[1:]:
        # Renumbering keeps the product of the ranges far from 64 bits.
        keys = np.unique(keys, return_inverse=True)[1] * (int(code.max(initial=0)) + 1) + code
    return keys


def _missing(column: Column) -> NDArray[np.bool_]:
    if hasattr(column, "null_count"):
        null: NDArray[np.bool_] = np.asarray(column.is_null().to_numpy(zero_copy_only=False), dtype=bool)
        if str(column.type) in ("float", "double", "halffloat"):
            null = null | np.isnan(column.to_numpy(zero_copy_only=False).astype(np.float64))
        return null
    array: NDArray[Any] = np.asarray(column)
    if array.dtype.kind == "f":
        return np.asarray(np.isnan(array))
    if array.dtype.kind == "O":
        return as_ids(array) < 0
    return np.zeros(array.shape, dtype=bool)
