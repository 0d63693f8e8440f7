"""Decompression of batches within a bound: a batch of a few kilobytes can hold hundreds of megabytes.

aiokafka unpacks a batch as a whole, however large it becomes. So every consumer of a process that imports
`gyre_runtime.kafka` unpacks by the functions of this module, which stop at `MAX_UNPACKED_BYTES` and raise what stands
for a corrupt batch; and a poll hands over no more of a partition once it has unpacked half as much of it.
"""

import gzip
import io
import struct
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import aiokafka.codec
import cramjam
import numpy as np
from aiokafka.consumer import fetcher
from aiokafka.errors import CorruptRecordException
from aiokafka.record import default_records, legacy_records
from gyre_core.topics import MAX_UNPACKED_BYTES

_XERIAL_HEADER_BYTES, _LENGTH_BYTES = 16, 4
_ROOM_BYTES, _USUAL_RATIO = 256 * 1024, 8
"""Most batches fit into so much and so many times their size: the greatest buffer would cost each more than itself."""
Decode = Callable[[Any], bytes]


class _UnpackedTotal:
    """How many bytes the process has unpacked of compressed batches."""

    total = 0


class _FetchResult(fetcher.FetchResult):  # type: ignore[misc]  # aiokafka has no types
    """What was fetched of one partition, handed over in parts of at most half the bound and a batch."""

    _partition_records: Any

    def getall(self, max_records: int | None = None) -> list[Any]:
        """The next records: at most so many, and none of a further batch once much was unpacked."""
        if not self.check_assignment(self._topic_partition) or not self.has_more():
            return []
        records, stop_at = [], _UnpackedTotal.total + MAX_UNPACKED_BYTES // 2
        for record in self._partition_records:
            records.append(record)
            if len(records) == max_records or _UnpackedTotal.total > stop_at:
                self._update_position()
                return records
        self._update_position()
        self._partition_records = None
        return records


def _too_large() -> CorruptRecordException:
    return CorruptRecordException(f"the batch has more than {MAX_UNPACKED_BYTES:,} bytes unpacked")


def _bounded(decode: Decode) -> Decode:
    """A decoder that counts what it unpacks, and raises CorruptRecordException for what is no such data."""

    @wraps(decode)
    def decoded(payload: Any) -> bytes:
        try:
            unpacked = decode(payload)
        except (CorruptRecordException, MemoryError):
            raise
        except Exception as error:
            raise CorruptRecordException(f"the batch cannot be unpacked: {error}") from error
        _UnpackedTotal.total += len(unpacked)
        return unpacked

    return decoded


def _gunzip(payload: Any) -> bytes:
    with gzip.GzipFile(fileobj=io.BytesIO(payload)) as members:
        unpacked = members.read(MAX_UNPACKED_BYTES + 1)
    if len(unpacked) > MAX_UNPACKED_BYTES:
        raise _too_large()
    return unpacked


def _into_buffer(decompress_into: Callable[[Any, Any], int]) -> Decode:
    """A decoder of frames, which do not always say how much they hold."""

    def decode(payload: Any) -> bytes:
        for room in (min(_ROOM_BYTES + _USUAL_RATIO * len(payload), MAX_UNPACKED_BYTES), MAX_UNPACKED_BYTES):
            buffer = np.empty(room, np.uint8)
            try:
                size = decompress_into(payload, buffer)
            except cramjam.DecompressionError as error:
                if "whole buffer" not in str(error):
                    raise
            else:
                return buffer[:size].tobytes()
        raise _too_large()

    return decode


def _unsnap(payload: Any) -> bytes:
    """Snappy's blocks say how much they hold."""
    if sum(map(cramjam.snappy.decompress_raw_len, _snappy_blocks(payload))) > MAX_UNPACKED_BYTES:
        raise _too_large()
    return bytes(aiokafka.codec.snappy_decode(payload))


def _snappy_blocks(payload: Any) -> Iterator[Any]:
    """The blocks of a batch: one, or several with xerial's framing (https://github.com/xerial/snappy-java)."""
    if not aiokafka.codec._detect_xerial_stream(payload):  # noqa: SLF001 - the batch is unpacked by the same test
        yield payload
        return
    at = _XERIAL_HEADER_BYTES
    while at < len(payload):
        (size,) = struct.unpack_from("!i", payload, at)
        if size <= 0:
            raise CorruptRecordException(f"a block of snappy of {size} bytes")
        at += _LENGTH_BYTES
        yield payload[at : at + size]
        at += size


_DECODERS = {
    "gzip_decode": _bounded(_gunzip),
    "snappy_decode": _bounded(_unsnap),
    "lz4_decode": _bounded(_into_buffer(cramjam.lz4.decompress_into)),
    "zstd_decode": _bounded(_into_buffer(cramjam.zstd.decompress_into)),
}


def install() -> None:
    """Let aiokafka unpack by these functions, in its compiled modules, too."""
    modules: list[Any] = [default_records, legacy_records]
    try:
        from aiokafka.record._crecords import default_records as compiled
        from aiokafka.record._crecords import legacy_records as compiled_legacy
    except ImportError:  # aiokafka goes on without them, too
        pass
    else:
        modules += [compiled, compiled_legacy]
    for module in modules:
        for name, decode in _DECODERS.items():
            if hasattr(module, name):
                setattr(module, name, decode)
    fetcher.FetchResult = _FetchResult
