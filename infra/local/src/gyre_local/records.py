"""Records that no client of our own writes, for tests."""

from pathlib import Path

from aiokafka import AIOKafkaProducer
from aiokafka.record.default_records import _DefaultRecordBatchBuilderPy

_MAGIC = 2
_BATCH_BYTES = 1_000_000


class _NotUtf8(str):
    """A header's name that is no UTF-8 text, as a producer in another language may write it."""

    __slots__ = ()

    def encode(self, *_: object) -> bytes:
        """Bytes that no text has."""
        return b"\xff\xfe"


async def send_undecodable(bootstrap: str, topic: str, *, partition: int = 0) -> None:
    """Write a record that aiokafka cannot decode: the name of its header is no UTF-8 text."""
    builder = _DefaultRecordBatchBuilderPy(_MAGIC, 0, 0, -1, -1, -1, _BATCH_BYTES)
    builder.append(0, 0, b"k", b"v", [(_NotUtf8("name"), b"value")])
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap)
    await producer.start()
    try:
        batch = producer.create_batch()
        batch.append(key=b"k", value=b"v", timestamp=0)
        batch._builder = builder  # noqa: SLF001 - only so such a record can be written
        await (await producer.send_batch(batch, topic, partition=partition))
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
