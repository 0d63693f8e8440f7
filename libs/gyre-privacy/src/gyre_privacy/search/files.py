"""What a file holds: its bytes, and where its format hides values, those decoded."""

from __future__ import annotations

import gzip
import mmap
import re
import shutil
import sqlite3
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from aiokafka.record.memory_records import MemoryRecords

from gyre_privacy.search.needles import Needle
from gyre_privacy.search.rdb import RDB_MAGIC, compressed_strings

SEGMENT = re.compile(r"^\d{20}\.log(\.\w+)?$")
"""A segment of a partition on a broker's disk, also one that is being deleted, cleaned or swapped."""
_CHUNK = 1 << 20
_SQLITE_PARTS = ("-wal", "-shm", "-journal")


def found_in(path: Path, needles: list[Needle]) -> set[str]:
    """The names of the needles that a file holds, in its bytes or in what its format packs; reads all of it.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not of the format that it says it is.
    """
    if not path.stat().st_size:
        return set()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as raw:
        snapshot = raw[: len(RDB_MAGIC)] == RDB_MAGIC
        forms = {each: (*each.forms, *each.packed) if snapshot else each.forms for each in needles}
        names = {each.name for each in needles if any(raw.find(form) >= 0 for form in forms[each])}
        decode = _decoder(path, raw[:16])
    left = [each for each in needles if each.name not in names]
    if decode is not None and left:
        holds_bounds = decode is _avro
        for data in decode(path):
            names |= {each.name for each in left if each.is_in(data, holds_bounds=holds_bounds, packs_numbers=snapshot)}
    return names


def _decoder(path: Path, magic: bytes) -> Callable[[Path], Iterator[bytes]] | None:
    """What decodes a file, by how it begins."""
    by_magic: dict[bytes, Callable[[Path], Iterator[bytes]]] = {
        b"PAR1": _parquet,
        b"Obj\x01": _avro,
        b"SQLite format 3\0": _sqlite,
        b"PK\x03\x04": _zip,
        b"\x1f\x8b": _gzip,
        RDB_MAGIC: lambda file: compressed_strings(file.read_bytes()),
    }
    known = next((decode for start, decode in by_magic.items() if magic.startswith(start)), None)
    return _segment if known is None and SEGMENT.match(path.name) else known


def _parquet(path: Path) -> Iterator[bytes]:
    """The values of all text and binary columns, whether a snapshot names the file or not."""
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=8192):
                for column in batch.columns:
                    yield from _leaves(column)
    except pa.ArrowException as error:
        raise ValueError(f"not to be read as Parquet: {error}") from error


def _leaves(array: Any) -> Iterator[bytes]:
    kind = array.type
    if pa.types.is_dictionary(kind):
        yield from _leaves(array.dictionary)
    elif pa.types.is_struct(kind):
        for child in array.flatten():
            yield from _leaves(child)
    elif pa.types.is_map(kind):
        yield from _leaves(array.keys)
        yield from _leaves(array.items)
    elif pa.types.is_nested(kind):
        yield from _leaves(array.flatten())
    elif any(check(kind) for check in (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary)):
        data = array.buffers()[-1]
        yield data.to_pybytes() if data is not None else b""


def _avro(path: Path) -> Iterator[bytes]:
    """The blocks of an object container file (https://avro.apache.org/docs/1.12.0/specification/), inflated."""
    data = path.read_bytes()
    place, codec = 4, b"null"
    while count := _Long.at(data, place):
        place = count.end
        if count.value < 0:
            place = _Long.at(data, place, required=True).end
        for _ in range(abs(count.value)):
            name, place = _text(data, place)
            value, place = _text(data, place)
            codec = value if name == b"avro.codec" else codec
    place = _Long.at(data, place, required=True).end + 16
    while place < len(data):
        size = _Long.at(data, _Long.at(data, place, required=True).end, required=True)
        block = data[size.end : size.end + size.value]
        if codec not in {b"null", b"deflate"}:
            raise ValueError(f"avro.codec = {codec!r}: must be null or deflate to be searched")
        yield zlib.decompress(block, -15) if codec == b"deflate" else block
        place = size.end + size.value + 16


class _Long:
    """A number in Avro's variable-length zig-zag coding, and where it ends; false where it is 0."""

    def __init__(self, value: int, end: int) -> None:
        self.value, self.end = value, end

    def __bool__(self) -> bool:
        return self.value != 0

    @classmethod
    def at(cls, data: bytes, place: int, *, required: bool = False) -> _Long:
        """The number at a place; raises ValueError where the data ends before it, or with it where `required`."""
        raw = shift = 0
        while place < len(data):
            byte = data[place]
            raw |= (byte & 0x7F) << shift
            place, shift = place + 1, shift + 7
            if byte < 0x80:
                return cls((raw >> 1) ^ -(raw & 1), place)
        raise ValueError(f"the Avro file ends at {place}{', within a block' if required else ''}")


def _text(data: bytes, place: int) -> tuple[bytes, int]:
    size = _Long.at(data, place, required=True)
    return data[size.end : size.end + size.value], size.end + size.value


def _sqlite(path: Path) -> Iterator[bytes]:
    """The rows of all tables: long values lie in pieces in the file. A copy is read, which nobody writes to."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy.db"
        shutil.copyfile(path, copy)
        for part in _SQLITE_PARTS:
            beside = path.with_name(path.name + part)
            if beside.exists() and part != "-shm":
                shutil.copyfile(beside, copy.with_name(copy.name + part))
        try:
            with closing(sqlite3.connect(copy)) as database:
                database.text_factory = bytes
                names = [name for (name,) in database.execute("select name from sqlite_master where type = 'table'")]
                for name in names:
                    quoted = name.decode().replace('"', '""')
                    for row in database.execute(f'select * from "{quoted}"'):  # noqa: S608 - a name of its own schema
                        yield b"\0".join(value for value in row if isinstance(value, bytes))
        except sqlite3.Error as error:
            raise ValueError(f"not to be read as SQLite: {error}") from error


def _zip(path: Path) -> Iterator[bytes]:
    """The members of an archive, such as numpy's `.npz`."""
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                yield archive.read(name)
    except zipfile.BadZipFile as error:
        raise ValueError(f"not to be read as ZIP: {error}") from error


def _gzip(path: Path) -> Iterator[bytes]:
    """The content, in chunks that overlap by their half."""
    try:
        with gzip.open(path, "rb") as file:
            before = b""
            while chunk := file.read(_CHUNK):
                yield before + chunk
                before = chunk[-_CHUNK // 2 :]
    except (EOFError, zlib.error) as error:
        raise ValueError(f"not to be read as gzip: {error}") from error


def _segment(path: Path) -> Iterator[bytes]:
    """Keys, values and headers of the record batches of a segment, decompressed."""
    batches = MemoryRecords(path.read_bytes())
    while batches.has_next():
        batch = batches.next_batch()
        if batch is None or getattr(batch, "is_control_batch", False):
            continue
        for record in batch:
            headers = [part for name, value in record.headers for part in (name.encode(), value or b"")]
            yield b"\0".join((record.key or b"", record.value or b"", *headers))
