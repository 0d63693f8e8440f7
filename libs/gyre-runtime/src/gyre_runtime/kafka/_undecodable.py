"""Records that aiokafka cannot decode: a header's name is no UTF-8 text, a batch is corrupt or too large.

aiokafka raises for such a record from `getmany`, again and again, and drops what it had taken from other partitions in
the same call, whose positions have moved. So every consumer of a process that imports `gyre_runtime.kafka` unpacks what
it fetched by `_PartitionRecords`, which raises nothing.

Kafka answers a fetch with whole batches, so a batch with such a record is unpacked record by record: each record has
its offset before what can be wrong in it. A batch that is wrong as a whole has its last offset in its header.
"""

import logging
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from aiokafka.consumer import fetcher
from aiokafka.errors import CorruptRecordException, UnsupportedCodecError
from aiokafka.record.default_records import DefaultRecordBase, _DefaultRecordBatchPy
from aiokafka.record.memory_records import _MemoryRecordsPy
from aiokafka.record.util import decode_varint

from gyre_runtime.kafka import _decompression

_LOG = logging.getLogger(__name__)
_UNDECODABLE = (UnicodeDecodeError, UnsupportedCodecError, CorruptRecordException)
_HEADER_BYTES = DefaultRecordBase.HEADER_STRUCT.size
_MAGIC_AT = struct.calcsize(">qii")
_MAGIC = 2


@dataclass(frozen=True, slots=True)
class UndecodableRecord:
    """Stands for a record that cannot be decoded: its place is known, and nothing of what it holds.

    The other attributes are those of aiokafka's `ConsumerRecord`.

    Attributes:
        topic: full name, with `partition`.
        offset: of the record; of a batch that is wrong as a whole, for which one of these stands, the last.
        problem: why it cannot be decoded.
    """

    topic: str
    partition: int
    offset: int
    problem: str
    key: bytes | None = None
    value: bytes = b""
    headers: tuple[tuple[str, bytes], ...] = ()
    timestamp: int = 0
    timestamp_type: int = 0
    checksum: int | None = None
    serialized_key_size: int = -1
    serialized_value_size: int = -1


class _Unpacked(NamedTuple):
    """A record of a batch, or None and why it cannot be decoded; `offset` is the last one that it stands for."""

    offset: int
    record: Any
    problem: str = ""


class _Batches(_MemoryRecordsPy):  # type: ignore[misc]  # final for aiokafka's own types
    """The batches of what was fetched; it keeps the bytes of the one that was taken last."""

    taken: memoryview = memoryview(b"")

    def next_batch(self, *_: Any) -> Any:
        """Take the next batch.

        Raises:
            CorruptRecordException: it is too short to be one; it is passed.
        """
        self.taken = self._next_slice or self.taken
        try:
            return super().next_batch()
        except CorruptRecordException:
            if self._next_slice is self.taken:
                self._cache_next()
            raise

    @property
    def next_base(self) -> int | None:
        """The first offset of the batch after the one that was taken; None where nothing more was fetched."""
        return None if self._next_slice is None else int.from_bytes(self._next_slice[:8], "big", signed=True)


class _PartitionRecords(fetcher.PartitionRecords):  # type: ignore[misc]  # aiokafka has no types
    """Unpacks what was fetched of one partition, with an `UndecodableRecord` for each record that cannot be decoded."""

    next_fetch_offset: int
    _records: _Batches

    def _unpack_records(self) -> Iterator[Any]:
        while True:
            try:
                yield from super()._unpack_records()
            except _UNDECODABLE as error:
                yield from self._from_the_batch_of(error)
            else:
                return

    def _from_the_batch_of(self, error: Exception) -> Iterator[Any]:
        """What is left of the batch that an error came from, record by record."""
        end = self._batch_end()
        for offset, record, problem in _unpacked(self._records.taken, max(end, self.next_fetch_offset + 1), error):
            if offset < self.next_fetch_offset:
                continue
            self.next_fetch_offset = offset + 1
            if record is not None:
                yield self._consumer_record(self._tp, record)
                continue
            _LOG.error("a record cannot be decoded", extra={"topic": self._tp.topic, "offset": offset})
            yield UndecodableRecord(self._tp.topic, self._tp.partition, offset, problem)
        self.next_fetch_offset = max(self.next_fetch_offset, end)

    def _batch_end(self) -> int:
        """The offset behind the last one of the batch that was taken; a corrupt header may give one that is not."""
        raw, following = self._records.taken, self._records.next_base
        first = int.from_bytes(raw[:8], "big", signed=True)
        end = first + 1
        if _has_header(raw):
            end = max(end, _DefaultRecordBatchPy(raw[:_HEADER_BYTES]).next_offset)
        if following is not None and following > first:
            end = min(end, following)
        return end


def _has_header(raw: memoryview) -> bool:
    """Whether a batch has the header of the present format, in which a batch has several records."""
    return len(raw) >= _HEADER_BYTES and raw[_MAGIC_AT] >= _MAGIC


def _unpacked(raw: memoryview, end: int, error: Exception) -> Iterator[_Unpacked]:
    """The records of a batch, each by itself.

    Args:
        raw: the batch's bytes.
        end: offset behind the one that stands for what cannot be told apart.
        error: what aiokafka raised for the batch.
    """
    batch = _whole_batch(raw)
    if batch is None:
        yield _Unpacked(end - 1, None, _problem(error))
        return
    for _ in range(batch._num_records):  # noqa: SLF001 - aiokafka gives no offset of what it cannot decode
        start = batch._pos  # noqa: SLF001
        try:
            record = batch._read_msg()  # noqa: SLF001
        except (*_UNDECODABLE, ValueError, IndexError) as broken:
            place = _place_of(batch, start)
            if place is None:
                yield _Unpacked(end - 1, None, _problem(broken))
                return
            offset, batch._pos = place  # noqa: SLF001
            yield _Unpacked(offset, None, _problem(broken))
        else:
            yield _Unpacked(record.offset, record)


def _whole_batch(raw: memoryview) -> Any:
    """A batch, decompressed; None where none of its records can be told from the others."""
    if not _has_header(raw):
        return None
    batch = _DefaultRecordBatchPy(raw)
    try:
        return iter(batch) if batch.validate_crc() else None
    except _UNDECODABLE:
        return None


def _place_of(batch: Any, start: int) -> tuple[int, int] | None:
    """The offset of the record that begins at a place of a batch's bytes, and where it ends; None where it has none."""
    content = batch._buffer  # noqa: SLF001
    try:
        length, first = decode_varint(content, start)
        _, at = decode_varint(content, first)
        _, at = decode_varint(content, at)
        delta, at = decode_varint(content, at)
    except (ValueError, IndexError):
        return None
    is_whole = at <= first + length <= len(content) and 0 <= delta <= batch.last_offset_delta
    return (batch.base_offset + delta, first + length) if is_whole else None


def _problem(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


_decompression.install()
fetcher.MemoryRecords = _Batches
fetcher.PartitionRecords = _PartitionRecords
