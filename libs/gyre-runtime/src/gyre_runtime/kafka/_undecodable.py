"""Records that aiokafka cannot decode: a header's name is no UTF-8 text, a batch's checksum is wrong.

aiokafka raises for such a record from `getmany`, again and again, and drops what it had taken from other partitions in
the same call, whose positions have moved. So every consumer of a process that imports `gyre_runtime.kafka` unpacks what
it fetched by `_PartitionRecords`, which raises nothing.
"""

import logging
from dataclasses import dataclass
from typing import Any

from aiokafka.consumer import fetcher
from aiokafka.errors import CorruptRecordException, UnsupportedCodecError

_LOG = logging.getLogger(__name__)
_UNDECODABLE = (UnicodeDecodeError, UnsupportedCodecError, CorruptRecordException)


@dataclass(frozen=True, slots=True)
class UndecodableRecord:
    """Stands for a record that cannot be decoded: its place is known, and nothing of what it holds.

    The other attributes are those of aiokafka's `ConsumerRecord`.

    Attributes:
        topic: full name, with `partition` and `offset`.
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


class _PartitionRecords(fetcher.PartitionRecords):  # type: ignore[misc]  # aiokafka has no types
    """Unpacks what was fetched of one partition; an `UndecodableRecord` ends it, and the next fetch starts behind."""

    next_fetch_offset: int

    def __next__(self) -> Any:
        try:
            return super().__next__()
        except _UNDECODABLE as error:
            offset = self.next_fetch_offset
            _LOG.error("a record cannot be decoded", extra={"topic": self._tp.topic, "offset": offset})
            # What was unpacking has ended with its error, so that the next call says that there is no more.
            self.next_fetch_offset = offset + 1
            return UndecodableRecord(self._tp.topic, self._tp.partition, offset, f"{type(error).__name__}: {error}")


fetcher.PartitionRecords = _PartitionRecords
