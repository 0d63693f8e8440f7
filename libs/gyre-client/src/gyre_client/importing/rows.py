"""Rows of a file, one after the other in bounded memory, each with its line; what is no row is reported, too.

CSV and JSON lines are read line by line, so that one broken line costs only itself and every error names its line;
pyarrow's readers of both give up the whole file. Parquet is read in batches.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import Any, BinaryIO

from gyre_core.shown import cut
from gyre_runtime import Invalid

from gyre_client.importing.mapping import CsvFormat

BATCH_ROWS = 10_000
_SHOWN = 200
SUFFIXES = {".csv": "csv", ".tsv": "csv", ".jsonl": "json", ".ndjson": "json", ".json": "json", ".parquet": "parquet"}


@dataclass(frozen=True, slots=True)
class Row:
    """One row: its line from 1, a heading counted (of Parquet, its number from 1), and its values by column.

    Values are texts of CSV, and of JSON and Parquet what these have; None where a value is missing, of CSV "".
    """

    line: int
    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row that does not fit: its line, the column or `(row)`, the value as it stands there (cut), and the rule."""

    line: int
    field: str
    value: str
    rule: str


def shown(value: object) -> str:
    """A value as the rejects show it: a text as it is, others as JSON has them; cut at 200 characters."""
    if not isinstance(value, str):
        with suppress(TypeError, ValueError):
            return cut(json.dumps(value, ensure_ascii=False), _SHOWN)
    return cut(str(value), _SHOWN)


def rows_of(
    path: Path, columns: Iterable[str], csv_format: CsvFormat, *, on_bytes: Callable[[int, int], object]
) -> Iterator[Row | Rejected]:
    """Yield the rows of a file, whose format its suffix says, in its order; errors come as it is read.

    Empty lines are left out. What is no row of the format is `Rejected`, and the reading goes on.

    Args:
        path: the file.
        columns: those that a CSV or Parquet file must have, each once; a JSON line may lack any. Of CSV and JSON the
            rows hold others, too.
        csv_format: of CSV files.
        on_bytes: called now and then with how far the reading is, and how far it goes: bytes, of Parquet rows.

    Raises:
        Invalid: the suffix is unknown, the file is not of its format, or a column is missing.
        OSError: the file cannot be read.
    """
    kind = SUFFIXES.get(path.suffix.lower())
    if kind is None:
        raise Invalid("FORMAT_UNKNOWN", f"{path}: its suffix must be one of {', '.join(SUFFIXES)}")
    wanted = list(dict.fromkeys(columns))
    if kind == "parquet":
        yield from _parquet(path, wanted, on_bytes)
        return
    size = path.stat().st_size
    with path.open("rb") as raw:
        rows = _csv(path, raw, wanted, csv_format) if kind == "csv" else _json(raw)
        for number, row in enumerate(rows):
            if number % BATCH_ROWS == 0:
                on_bytes(raw.tell(), size)
            yield row
    on_bytes(size, size)


def _csv(path: Path, raw: BinaryIO, wanted: Sequence[str], csv_format: CsvFormat) -> Iterator[Row | Rejected]:
    # What is not UTF-8 becomes surrogates, which no text may hold: the row is refused, not the file.
    text = TextIOWrapper(raw, encoding="utf-8-sig", errors="surrogateescape", newline="")
    delimiter = "\t" if path.suffix.lower() == ".tsv" and csv_format.delimiter == "," else csv_format.delimiter
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    names = csv_format.columns or next(reader, [])
    _require(path, wanted, names)
    while True:
        line = reader.line_num + 1
        try:
            values = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            yield Rejected(line, "(row)", "", f"is no CSV: {error}")
            continue
        if len(values) == len(names):
            yield Row(line, dict(zip(names, values, strict=True)))
        elif values:
            yield Rejected(
                line, "(row)", shown(delimiter.join(values)), f"must have {len(names)} columns, not {len(values)}"
            )
    text.detach()


def _json(raw: BinaryIO) -> Iterator[Row | Rejected]:
    for line, text in enumerate(raw, start=1):
        if not text.strip():
            continue
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            yield Rejected(line, "(row)", shown(text.decode("utf-8", "replace").rstrip()), f"is no JSON: {error}")
            continue
        if isinstance(values, dict):
            yield Row(line, values)
        else:
            yield Rejected(line, "(row)", shown(values), "must be a JSON object")


def _parquet(path: Path, wanted: Sequence[str], on_bytes: Callable[[int, int], object]) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            _require(path, wanted, file.schema_arrow.names)
            line, rows = 0, file.metadata.num_rows
            for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=list(wanted)):
                on_bytes(line, rows)
                for values in batch.to_pylist():
                    line += 1
                    yield Row(line, values)
            on_bytes(rows, rows)
    except pa.ArrowException as error:
        raise Invalid("NOT_PARQUET", f"{path}: cannot be read as Parquet: {error}") from error


def _require(path: Path, wanted: Sequence[str], there: Sequence[str]) -> None:
    missing = [name for name in wanted if name not in there]
    if missing:
        listed = ", ".join(there) or "none"
        raise Invalid("COLUMN_MISSING", f"{path}: has no column {', '.join(map(repr, missing))}; it has {listed}")
    twice = sorted({name for name in wanted if list(there).count(name) > 1})
    if twice:
        raise Invalid("COLUMN_TWICE", f"{path}: has column {', '.join(map(repr, twice))} twice")
