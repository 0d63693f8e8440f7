"""Dead letters of a loop: what could not be read and why, and the way back to the topic they came from.

A replay moves each letter exactly once: the original record and the position behind it are written in one Kafka
transaction, under the consumer group `GROUP`, whose offsets say what was replayed.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError
from gyre_core.topics import TOPICS, dead_letter_topic, topic
from gyre_runtime import NotFound, Unavailable
from gyre_runtime.events import Record
from gyre_runtime.kafka import TransactionalProducer, read_records
from gyre_runtime.kafka.dead_letters import ADDED_HEADERS

GROUP = "gyre-dlq-replay"
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
    kafka: str, loop: str, suffix: str | None = None, *, on_replay: Callable[[str, int], object] = lambda *_: None
) -> int:
    """Put every letter that was not replayed yet back into its topic, with the headers removed that were added.

    Two replays at the same time do not repeat each other's work: the newer one fences the older.

    Args:
        kafka: host:port list.
        loop: the loop's name.
        suffix: of one topic only.
        on_replay: called with the topic and a count of letters put back.

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
        TransactionalProducer(kafka, f"{GROUP}-{loop}", source="gyre/dlq") as producer,
    ):
        for name in await _existing(consumer, topics):
            replayed = _Replayed(consumer, name)
            fresh = [each async for each in read_records(kafka, name) if not await replayed.holds(each)]
            for start in range(0, len(fresh), _BATCH):
                batch = fresh[start : start + _BATCH]
                await _move(producer, topics[name], batch)
                on_replay(topics[name], len(batch))
            count += len(fresh)
    return count


async def _move(producer: TransactionalProducer, to: str, letters: list[Any]) -> None:
    """Put letters back and remember how far, both or neither."""
    async with producer.transaction() as transaction:
        for letter in letters:
            await transaction.send_record(to, original(letter))
        following = {(each.topic, each.partition): each.offset + 1 for each in letters}
        await transaction.commit_offsets(following, group=GROUP)


def original(record: Any) -> Record:
    """The record as it was before it was dead-lettered."""
    return Record(record.key, record.value, [each for each in record.headers if each[0] not in ADDED_HEADERS])


def _letter(record: Any, *, replayed: bool) -> DeadLetter:
    added = {name: value.decode("utf-8", "replace") for name, value in record.headers if name in ADDED_HEADERS}
    return DeadLetter(
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        time=record.timestamp / 1000,
        reason=added.get("gyre_reason", ""),
        error=added.get("gyre_error", ""),
        origin="/".join(added.get(name, "") for name in ("gyre_topic", "gyre_partition", "gyre_offset")),
        group=added.get("gyre_group", ""),
        replayed=replayed,
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
