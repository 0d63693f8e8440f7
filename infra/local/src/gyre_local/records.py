"""Records that no client of our own writes, for tests."""

from collections.abc import Sequence
from pathlib import Path

from aiokafka import AIOKafkaProducer
from aiokafka.record.default_records import _DefaultRecordBatchBuilderPy

_MAGIC = 2
_BATCH_BYTES = 1_000_000
Sent = tuple[bytes | None, bytes, Sequence[tuple[str, bytes]]]
"""Key, value and headers of a record."""


class _NotUtf8(str):
    """A header's name that is no UTF-8 text, as a producer in another language may write it."""

    __slots__ = ()

    def encode(self, *_: object) -> bytes:
        """Bytes that no text has."""
        return b"\xff\xfe"


async def send_undecodable(bootstrap: str, topic: str, *batch: Sent | None, partition: int = 0) -> None:
    """Write a record that aiokafka cannot decode: the name of its header is no UTF-8 text.

    Args:
        bootstrap: Kafka's host:port list.
        topic: full name.
        batch: keys, values and headers of the batch that it is written in, None for itself; by default it alone.
        partition: of the topic.
    """
    builder = _DefaultRecordBatchBuilderPy(_MAGIC, 0, 0, -1, -1, -1, _BATCH_BYTES)
    undecodable: Sent = b"k", b"v", [(_NotUtf8("name"), b"value")]
    for offset, each in enumerate(batch or [None]):
        key, value, headers = each or undecodable
        builder.append(offset, 0, key, value, list(headers))
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap)
    await producer.start()
    try:
        sent = producer.create_batch()
        sent.append(key=b"k", value=b"v", timestamp=0)
        sent._builder = builder  # noqa: SLF001 - only so such a record can be written
        await (await producer.send_batch(sent, topic, partition=partition))
    finally:
        await producer.stop()


def corrupt(directory: Path, topic: str, marker: bytes, *, partition: int = 0) -> None:
    """Flip a bit of a record on a broker's disk, so that its batch's checksum is wrong, as a bad disk does.

    Args:
        directory: of the broker.
        topic: full name.
        marker: bytes of the record that no other one has.
        partition: of the topic.

    Raises:
        LookupError: no segment of the partition has these bytes.
    """
    for path in directory.rglob(f"{topic}-{partition}/*.log"):
        place = path.read_bytes().find(marker)
        if place >= 0:
            with path.open("r+b") as segment:
                segment.seek(place)
                segment.write(bytes([marker[0] ^ 1]))
            return
    raise LookupError(f"{directory}: no segment of {topic}-{partition} has {marker!r}")
