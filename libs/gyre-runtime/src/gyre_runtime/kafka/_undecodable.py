"""Reads around records that aiokafka cannot decode: a header's name is no UTF-8 text, a batch's checksum is wrong."""

import logging
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import CorruptRecordException, UnsupportedCodecError

_LOG = logging.getLogger(__name__)
_WAIT_MS = 200
_MAX_RECORDS = 500
UNDECODABLE = (UnicodeDecodeError, UnsupportedCodecError, CorruptRecordException)
"""What aiokafka's `getmany` raises, again and again, while such a record is the next one."""


@dataclass(frozen=True, slots=True)
class UndecodableRecord:
    """Stands for a record that cannot be decoded: its place is known, and nothing of what it holds.

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


async def read_around(
    kafka: AIOKafkaConsumer, *, max_records: int = _MAX_RECORDS, partitions: Collection[TopicPartition] | None = None
) -> dict[TopicPartition, list[Any]]:
    """The next records of each partition, one by one: the first that cannot be decoded is stood for, and ends them.

    Args:
        kafka: the consumer.
        max_records: of each partition.
        partitions: which; by default all that are assigned and not paused.
    """
    fetched: dict[TopicPartition, list[Any]] = {}
    for partition in sorted(kafka.assignment() - kafka.paused() if partitions is None else partitions):
        records: list[Any] = []
        while len(records) < max_records:
            try:
                found = await kafka.getmany(partition, timeout_ms=_WAIT_MS, max_records=1)
            except UNDECODABLE as error:
                offset = await kafka.position(partition)
                _LOG.error("a record cannot be decoded", extra={"topic": partition.topic, "offset": offset})
                problem = f"{type(error).__name__}: {error}"
                records.append(UndecodableRecord(partition.topic, partition.partition, offset, problem))
                kafka.seek(partition, offset + 1)
                break
            if not found:
                break
            records += found[partition]
        if records:
            fetched[partition] = records
    return fetched
