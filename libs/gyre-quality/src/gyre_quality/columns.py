"""Columns of numpy or pyarrow as the arrays that the checks count with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

# A numpy array, a pyarrow Array or ChunkedArray, or a sequence. pyarrow's types are met by their methods alone: who
# has no pyarrow needs none.
Column = Any
Columns = Mapping[str, Column]


def as_numbers(column: Column, name: str = "column") -> NDArray[np.floating[Any]]:
    """The column as float32 where it was float32, else float64 [rows]; NaN where a value is missing.

    Texts of numbers are read as numbers; `name` stands in the error.

    Raises:
        ValueError: it holds something that is no number.
    """
    array = column.to_numpy(zero_copy_only=False) if hasattr(column, "null_count") else np.asarray(column)
    if array.dtype == np.float32:
        return np.asarray(array)
    try:
        return np.asarray(array, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} is of type {array.dtype}: must be numbers") from error


def as_codes(column: Column) -> tuple[NDArray[np.int64], list[str]]:
    """For each row the index of its value among the distinct values, and these as text; -1 where a value is missing.

    Missing are null, NaN and NaT. The indices are those of this column alone, in no promised order; an entry that no
    row has can be among the values.
    """
    if hasattr(column, "null_count"):
        return _arrow_codes(column)
    array = np.asarray(column)
    if array.dtype.kind in "OUS":
        return _value_codes(array.tolist())
    missing = np.isnan(array) if array.dtype.kind in "fmM" else np.zeros(array.shape, dtype=bool)
    values, inverse = np.unique(array, return_inverse=True)
    return np.where(missing, -1, inverse), [str(value) for value in values.tolist()]


def as_ids(column: Column) -> NDArray[np.int64]:
    """The indices of `as_codes`: equal exactly where values of this column are; -1 where one is null, NaN or NaT.

    Numbers of two columns do not compare: see `as_shared_ids`.
    """
    return as_codes(column)[0]


def as_shared_ids(first: Column, second: Column) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Both columns numbered alike: a number in one equals that in the other exactly where the values' texts do.

    So 1 and "1" are one value; -1 where a value is missing, as `as_codes` says.
    """
    (codes, values), (others, other_values) = as_codes(first), as_codes(second)
    index: dict[str, int] = {}
    # The last entry is met by index -1, a missing value.
    table, other_table = (
        np.asarray([*(index.setdefault(value, len(index)) for value in each), -1], dtype=np.int64)
        for each in (values, other_values)
    )
    return np.asarray(table[codes]), np.asarray(other_table[others])


def stable_ids(column: Column) -> NDArray[np.uint64]:
    """A 64-bit number for each row that depends on its value alone, for `Reservoir`: of a text, its BLAKE2b (RFC 7693).

    Raises:
        ValueError: a value is missing.
    """
    codes, values = as_codes(column)
    if codes.size and codes.min() < 0:
        raise ValueError(f"ids: {np.count_nonzero(codes < 0)} are missing, must be given in each row")
    digests = b"".join(blake2b(value.encode(), digest_size=8).digest() for value in values)
    return np.asarray(np.frombuffer(digests, dtype="<u8")[codes])


def lengths(columns: Columns) -> int:
    """The number of rows that all columns have; 0 without columns.

    Raises:
        ValueError: they differ.
    """
    sizes = {name: len(column) for name, column in columns.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"columns {sizes}: must have equally many rows")
    return next(iter(sizes.values()), 0)


def hashed(values: Sequence[int] | NDArray[np.integer[Any]], seed: int) -> NDArray[np.uint64]:
    """A 64-bit hash of each whole number, not for secrets (splitmix64's finaliser, Steele, Lea and Flood 2014).

    The same in every process; negative numbers count modulo 2^64.
    """
    mixed = np.asarray(values).astype(np.uint64) + np.uint64((seed * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15) % 2**64)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(mixed ^ (mixed >> np.uint64(31)))


def _arrow_codes(column: Any) -> tuple[NDArray[np.int64], list[str]]:
    # A dictionary array encodes to itself; chunks are joined, which also unifies their dictionaries.
    encoded = column.dictionary_encode()
    if hasattr(encoded, "combine_chunks"):
        encoded = encoded.combine_chunks()
    if hasattr(encoded, "num_chunks"):
        encoded = encoded.chunk(0)
    indices = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    # A dictionary may hold an entry twice, null or NaN.
    codes, values = _value_codes(encoded.dictionary.to_pylist())
    return np.append(codes, -1)[indices], values


def _value_codes(given: Sequence[Any]) -> tuple[NDArray[np.int64], list[str]]:
    index: dict[Any, int] = {}
    codes = np.fromiter(
        (-1 if _is_missing(value) else index.setdefault(value, len(index)) for value in given),
        dtype=np.int64,
        count=len(given),
    )
    return codes, [value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value) for value in index]


def _is_missing(value: Any) -> bool:
    return value is None or value != value  # noqa: PLR0124 - only NaN differs from itself
