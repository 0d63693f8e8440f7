"""Dead letters of a loop: what could not be read and why, and the way back to the topic they came from.

A letter is known by the place of its record (topic, partition, offset) and by when Kafka first took that in, however
often it was written: it is listed, counted and replayed once. A replay writes the original records and the position
behind their letters in one Kafka transaction, under the consumer group `GROUP`, whose offsets say what was replayed. A
letter that holds an excerpt only stands for the record at its place; where that is gone, the replay says so and passes
it over.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError
from gyre_core.topics import TOPICS, dead_letter_topic, topic
from gyre_runtime import Invalid, NotFound, Unavailable
from gyre_runtime.events import FIRST_APPEND_TIME, Record, header_texts
from gyre_runtime.kafka import RecordReader, TransactionalProducer, read_records, start_whole
from gyre_runtime.kafka.dead_letters import ADDED_HEADERS, RECORD_HASH, record_hash

GROUP = "gyre-dlq-replay"
_PLACE = ("gyre_topic", "gyre_partition", "gyre_offset")
_BATCH = 200
_IDENTITY = ("ce_id", "ce_source")
_SOURCE = "gyre/dlq"
_Identity = tuple[str, ...]


@dataclass(slots=True)
class DeadLetter:
    """One record that could not be handled, however often it was dead-lettered; place and time are of the first copy.

    Attributes:
        topic: the dead-letter topic.
        partition: within it.
        offset: within the partition.
        time: when it was dead-lettered, unix seconds.
        reason: UPPER_SNAKE.
        error: a sentence.
        origin: `topic/partition/offset` where it came from.
        group: the consumer group that could not handle it.
        replayed: whether a replay has passed it: it was put back, or its record was gone.
        copies: how many copies of it its dead-letter topic holds.
        excerpt: whether it holds the beginning of its record only, which did not fit.
        key: of the original record.
        value: of the original record.
        headers: of the original record, without those that dead-lettering added.
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
    copies: int
    excerpt: bool
    key: bytes | None = field(repr=False)
    value: bytes | None = field(repr=False)
    headers: list[tuple[str, bytes]] = field(repr=False)

    @property
    def timestamp(self) -> int:
        """When it was dead-lettered, whole unix milliseconds."""
        return round(self.time * 1000)

    @property
    def timestamp_type(self) -> int:
        """Kafka's number of CreateTime, 0: a letter is decoded as a consumed record is."""
        return 0


def dead_letter_topics(loop: str, suffix: str | None = None) -> dict[str, str]:
    """The names of a loop's dead-letter topics, each with the topic that it belongs to; Kafka need not have them.

    Of one topic only where a suffix, such as `behavior.interactions`, is given.

    Raises:
        NotFound: the loop has no such topic, or it has no dead letters.
    """
    suffixes = [each.suffix for each in TOPICS if each.dead_letter]
    if suffix is not None and suffix not in suffixes:
        raise NotFound("TOPIC_UNKNOWN", f"topic {suffix!r}: must be one of {', '.join(suffixes)}")
    names = [topic(loop, each) for each in suffixes if suffix in (None, each)]
    return {dead_letter_topic(name): name for name in names}


async def list_dead_letters(kafka: str, loop: str, suffix: str | None = None) -> list[DeadLetter]:
    """Read every dead letter that Kafka still keeps, replayed ones too, each once, by topic, partition and offset.

    Raises:
        Unavailable: Kafka does not answer.
        NotFound: there is no such topic (TOPIC_UNKNOWN), or Kafka has none of the loop (UNKNOWN_LOOP).
    """
    found: list[DeadLetter] = []
    async with _translated(kafka), _offsets(kafka) as consumer:
        for name in await _existing(consumer, loop, dead_letter_topics(loop, suffix)):
            replayed, known = _Replayed(consumer, name), dict[_Identity, DeadLetter]()
            async for each in read_records(kafka, name):
                letter = known.setdefault(_identity(each), _letter(each))
                letter.copies += 1
                letter.replayed = letter.replayed or await replayed.holds(each)
            found += known.values()
    return sorted(found, key=lambda each: (each.topic, each.partition, each.offset))


async def replay_dead_letters(
    kafka: str,
    loop: str,
    suffix: str | None = None,
    *,
    on_replay: Callable[[str, int], object] = lambda *_: None,
    on_gone: Callable[[str, str], object] = lambda *_: None,
) -> int:
    """Put every letter that was not replayed yet back into its topic: the record with when Kafka first took it in.

    A record without `ce_id` gets one that its place decides, so that it counts once even if it comes twice.

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
        NotFound: there is no such topic (TOPIC_UNKNOWN), or Kafka has none of the loop (UNKNOWN_LOOP).
    """
    topics, count = dead_letter_topics(loop, suffix), 0
    async with (
        _translated(kafka),
        _offsets(kafka) as consumer,  # first: it fails at once without Kafka, the producer would wait
        RecordReader(kafka) as reader,
        TransactionalProducer(kafka, f"{GROUP}-{loop}", source=_SOURCE, compressed=True) as producer,
    ):
        lost = _Lost(reader, on_gone)
        for name in await _existing(consumer, loop, topics):
            fresh, ends = await _not_replayed(kafka, consumer, name)
            for start in range(0, max(len(fresh), 1), _BATCH):
                batch = fresh[start : start + _BATCH]
                following = {(each.topic, each.partition): each.offset + 1 for each in batch}
                if start + _BATCH >= len(fresh):
                    following = ends  # copies of what is replayed are behind it, too
                if following:
                    moved = await _move(producer, topics[name], batch, following, lost)
                    on_replay(topics[name], moved)
                    count += moved
    return count


async def _not_replayed(
    kafka: str, consumer: AIOKafkaConsumer, name: str
) -> tuple[list[Any], dict[tuple[str, int], int]]:
    """The letters of a dead-letter topic that were not replayed, each once, and the ends of what was read."""
    replayed, known = _Replayed(consumer, name), set[_Identity]()
    fresh, ends = list[Any](), dict[tuple[str, int], int]()
    async for each in read_records(kafka, name):
        if not await replayed.holds(each):
            ends[each.topic, each.partition] = each.offset + 1
            if _identity(each) not in known:
                fresh.append(each)
        known.add(_identity(each))
    return fresh, ends


@dataclass(frozen=True, slots=True)
class _Lost:
    """Reads records again whose letters do not hold them, and reports which are gone."""

    reader: RecordReader
    report: Callable[[str, str], object]


async def _move(
    producer: TransactionalProducer, to: str, letters: list[Any], following: dict[tuple[str, int], int], lost: _Lost
) -> int:
    """Put letters back and remember how far, both or neither; return how many were put back."""
    moved = 0
    async with producer.transaction() as transaction:
        for letter in letters:
            record = await _whole(letter, lost.reader)
            reason = "GONE"
            if record is not None:
                try:
                    await transaction.send_record(to, record)
                except Invalid as error:
                    reason = error.reason
                else:
                    moved += 1
                    continue
            lost.report("/".join(_added(letter).get(name, "") for name in _PLACE), reason)
        await transaction.commit_offsets(following, group=GROUP)
    return moved


async def _whole(letter: Any, reader: RecordReader) -> Record | None:
    """The record of a letter: where the letter holds an excerpt, as it is read again; None where it is gone."""
    added = _added(letter)
    if RECORD_HASH not in added:
        return _identified(original(letter), letter)
    name, partition, offset = (added.get(each, "") for each in _PLACE)
    record = await reader.read(name, int(partition), int(offset))
    if record is None or record_hash(record) != added[RECORD_HASH]:
        return None
    own = [each for each in record.headers if each[0] != FIRST_APPEND_TIME]
    first_append = [each for each in letter.headers if each[0] == FIRST_APPEND_TIME]
    return _identified(Record(record.key, record.value, own + first_append), letter)


def _identified(record: Record, letter: Any) -> Record:
    """A record with an id and a source: where it has none, those of its place."""
    headers = [(name, value) for name, value in record.headers if name not in _IDENTITY or value]
    names = {name for name, _ in headers}
    if "ce_id" not in names:
        headers.append(("ce_id", "/".join(map(str, _identity(letter))).encode()))
    if "ce_source" not in names:
        headers.append(("ce_source", _SOURCE.encode()))
    return Record(record.key, record.value, headers)


def original(record: Any) -> Record:
    """A letter's record without the headers of dead-lettering; of a letter that holds an excerpt only that excerpt."""
    return Record(record.key, record.value, [each for each in record.headers if each[0] not in ADDED_HEADERS])


def _added(record: Any) -> dict[str, str]:
    return {name: text for name, text in header_texts(record.headers).items() if name in ADDED_HEADERS}


def _identity(letter: Any) -> _Identity:
    """What two copies of a letter have in common: the place of its record, and when Kafka first took that in."""
    said = header_texts(letter.headers)
    return tuple(said.get(each, "") for each in (*_PLACE, FIRST_APPEND_TIME))


def _letter(record: Any) -> DeadLetter:
    added = _added(record)
    reason = added.get("gyre_reason", "")
    return DeadLetter(
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        time=record.timestamp / 1000,
        reason=reason,
        error=added.get("gyre_error", "").removeprefix(f"{reason}: "),  # letters of former versions say it twice
        origin="/".join(added.get(name, "") for name in _PLACE),
        group=added.get("gyre_group", ""),
        replayed=False,
        copies=0,
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


async def _existing(consumer: AIOKafkaConsumer, loop: str, topics: dict[str, str]) -> list[str]:
    """Those of a loop's dead-letter topics that Kafka has.

    Raises:
        NotFound: it has no topic of the loop, which so is no loop of this mesh.
    """
    known: set[str] = await consumer.topics()
    suffixes = {each.suffix for each in TOPICS}
    loops = {name.partition(".")[0] for name in known if name.partition(".")[2] in suffixes}
    if loop not in loops:
        rule = f"must be one of {', '.join(sorted(loops))}" if loops else "Kafka has topics of no loop"
        raise NotFound("UNKNOWN_LOOP", f"loop = {loop!r}: {rule}", metadata={"loop": loop})
    return [name for name in topics if name in known]


@asynccontextmanager
async def _offsets(kafka: str) -> AsyncIterator[AIOKafkaConsumer]:
    """A consumer of the group that only reads its offsets."""
    consumer = AIOKafkaConsumer(bootstrap_servers=kafka, group_id=GROUP, enable_auto_commit=False)
    try:
        await start_whole(consumer.start)
        yield consumer
    finally:
        await consumer.stop()


@asynccontextmanager
async def _translated(kafka: str) -> AsyncIterator[None]:
    try:
        yield
    except KafkaError as error:
        raise Unavailable("KAFKA_UNAVAILABLE", f"Kafka at {kafka}: {type(error).__name__}") from error
