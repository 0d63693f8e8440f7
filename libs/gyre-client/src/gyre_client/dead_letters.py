"""Dead letters of a loop: what could not be read and why, and the way back to the topic they came from.

A replay moves each letter exactly once: the original record and the position behind it are written in one Kafka
transaction, under the consumer group `GROUP`, whose offsets say what was replayed. A letter that holds an excerpt only
stands for the record at its place; where that is gone, the replay says so and passes it over.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError
from gyre_core.topics import TOPICS, dead_letter_topic, topic
from gyre_runtime import Invalid, NotFound, Unavailable
from gyre_runtime.events import Record
from gyre_runtime.kafka import RecordReader, TransactionalProducer, read_records
from gyre_runtime.kafka.dead_letters import ADDED_HEADERS, RECORD_HASH, record_hash

GROUP = "gyre-dlq-replay"
_PLACE = ("gyre_topic", "gyre_partition", "gyre_offset")
_BATCH = 200


@dataclass(slots=True)
class DeadLetter:
    """One record that could not be handled.

    Attributes:
        topic: the dead-letter topic.
        partition: within it.
        offset: within the partition.
        time: when it was dead-lettered, unix seconds.
        reason: UPPER_SNAKE.
        error: a sentence.
        origin: `topic/partition/offset` where it came from.
        group: the consumer group that could not handle it.
        replayed: whether it was put back already.
        excerpt: whether it holds the beginning of its record only, which did not fit.
        key: of the original record.
        value: of the original record.
        headers: of the original record.
    """

    topic: str
    partition: int
    offset: int
    time: float
    reason: str
    error: str
    origin: str
    group: str
    replayed: bool
    excerpt: bool
    key: bytes | None = field(repr=False)
    value: bytes | None = field(repr=False)
    headers: list[tuple[str, bytes]] = field(repr=False)


def dead_letter_topics(loop: str, suffix: str | None = None) -> dict[str, str]:
    """The dead-letter topics of a loop and the topic behind each; of one topic only where a suffix is given.

    Raises:
        NotFound: the loop has no such topic, or it has no dead letters.
    """
    suffixes = [each.suffix for each in TOPICS if each.dead_letter]
    if suffix is not None and suffix not in suffixes:
        raise NotFound("TOPIC_UNKNOWN", f"topic {suffix!r}: must be one of {', '.join(suffixes)}")
    names = [topic(loop, each) for each in suffixes if suffix in (None, each)]
    return {dead_letter_topic(name): name for name in names}


async def list_dead_letters(kafka: str, loop: str, suffix: str | None = None) -> list[DeadLetter]:
    """Every dead letter that Kafka still keeps, oldest first within a topic.

    Raises:
        Unavailable: Kafka does not answer.
        NotFound: there is no such topic.
    """
    found: list[DeadLetter] = []
    async with _translated(kafka), _offsets(kafka) as consumer:
        for name in await _existing(consumer, dead_letter_topics(loop, suffix)):
            replayed = _Replayed(consumer, name)
            found += [_letter(each, replayed=await replayed.holds(each)) async for each in read_records(kafka, name)]
    return sorted(found, key=lambda each: (each.topic, each.partition, each.offset))


async def replay_dead_letters(
    kafka: str,
    loop: str,
    suffix: str | None = None,
    *,
    on_replay: Callable[[str, int], object] = lambda *_: None,
    on_gone: Callable[[str, str], object] = lambda *_: None,
) -> int:
    """Put every letter that was not replayed yet back into its topic, with the headers removed that were added.

    Two replays at the same time do not repeat each other's work: the newer one fences the older.

    Args:
        kafka: host:port list.
        loop: the loop's name.
        suffix: of one topic only.
        on_replay: called with the topic and a count of letters put back.
        on_gone: called with the place (`topic/partition/offset`) of a record that its letter does not hold, and why it
            cannot be put back: GONE, it is not there any more; RECORD_TOO_LARGE, it does not fit, compressed either.

    Returns:
        How many were put back.

    Raises:
        Unavailable: Kafka does not answer.
        Precondition: another replay has begun meanwhile (FENCED).
        NotFound: there is no such topic.
    """
    topics, count = dead_letter_topics(loop, suffix), 0
    async with (
        _translated(kafka),
        _offsets(kafka) as consumer,  # first: it fails at once without Kafka, the producer would wait
        RecordReader(kafka) as reader,
        TransactionalProducer(kafka, f"{GROUP}-{loop}", source="gyre/dlq", compressed=True) as producer,
    ):
        for name in await _existing(consumer, topics):
            replayed = _Replayed(consumer, name)
            fresh = [each async for each in read_records(kafka, name) if not await replayed.holds(each)]
            for start in range(0, len(fresh), _BATCH):
                batch = fresh[start : start + _BATCH]
                moved = await _move(producer, topics[name], batch, reader, on_gone)
                on_replay(topics[name], moved)
                count += moved
    return count


async def _move(
    producer: TransactionalProducer,
    to: str,
    letters: list[Any],
    reader: RecordReader,
    on_gone: Callable[[str, str], object],
) -> int:
    """Put letters back and remember how far, both or neither; return how many were put back."""
    moved = 0
    async with producer.transaction() as transaction:
        for letter in letters:
            record = await _whole(letter, reader)
            reason = "GONE"
            if record is not None:
                try:
                    await transaction.send_record(to, record)
                except Invalid as error:
                    reason = error.reason
                else:
                    moved += 1
                    continue
            on_gone("/".join(_added(letter).get(name, "") for name in _PLACE), reason)
        following = {(each.topic, each.partition): each.offset + 1 for each in letters}
        await transaction.commit_offsets(following, group=GROUP)
    return moved


async def _whole(letter: Any, reader: RecordReader) -> Record | None:
    """The record of a letter: where the letter holds an excerpt, as it is read again; None where it is gone."""
    added = _added(letter)
    if RECORD_HASH not in added:
        return original(letter)
    name, partition, offset = (added.get(each, "") for each in _PLACE)
    record = await reader.read(name, int(partition), int(offset))
    if record is None or record_hash(record) != added[RECORD_HASH]:
        return None
    return Record(record.key, record.value, list(record.headers))


def original(record: Any) -> Record:
    """The record as it was before it was dead-lettered."""
    return Record(record.key, record.value, [each for each in record.headers if each[0] not in ADDED_HEADERS])


def _added(record: Any) -> dict[str, str]:
    return {name: (value or b"").decode("utf-8", "replace") for name, value in record.headers if name in ADDED_HEADERS}


def _letter(record: Any, *, replayed: bool) -> DeadLetter:
    added = _added(record)
    return DeadLetter(
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        time=record.timestamp / 1000,
        reason=added.get("gyre_reason", ""),
        error=added.get("gyre_error", ""),
        origin="/".join(added.get(name, "") for name in _PLACE),
        group=added.get("gyre_group", ""),
        replayed=replayed,
        excerpt=RECORD_HASH in added,
        key=record.key,
        value=record.value,
        headers=original(record).headers,
    )


class _Replayed:
    """How far a dead-letter topic was replayed."""

    def __init__(self, consumer: AIOKafkaConsumer, name: str) -> None:
        self._consumer, self._name = consumer, name
        self._positions: dict[int, int] = {}

    async def holds(self, record: Any) -> bool:
        """Whether a record was replayed already."""
        position = self._positions.get(record.partition)
        if position is None:
            committed = await self._consumer.committed(TopicPartition(self._name, record.partition))
            position = self._positions[record.partition] = committed or 0
        return bool(record.offset < position)


async def _existing(consumer: AIOKafkaConsumer, topics: dict[str, str]) -> list[str]:
    known = await consumer.topics()
    return [name for name in topics if name in known]


@asynccontextmanager
async def _offsets(kafka: str) -> AsyncIterator[AIOKafkaConsumer]:
    """A consumer of the group that only reads its offsets."""
    consumer = AIOKafkaConsumer(bootstrap_servers=kafka, group_id=GROUP, enable_auto_commit=False)
    try:
        await consumer.start()
        yield consumer
    finally:
        await consumer.stop()


@asynccontextmanager
async def _translated(kafka: str) -> AsyncIterator[None]:
    try:
        yield
    except KafkaError as error:
        raise Unavailable("KAFKA_UNAVAILABLE", f"Kafka at {kafka}: {type(error).__name__}") from error
