"""Reads topics without a group: a compacted topic as a live dictionary, and a whole log from its beginning."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError
from gyre_core.topics import has_single_key

from gyre_runtime.errors import Unavailable
from gyre_runtime.events import Event, MessageTypes, Unreadable, decode
from gyre_runtime.kafka._names import start_when_up, topic_labels
from gyre_runtime.kafka._polling import CLIENT_MAX_WAIT_MS, FETCH_MAX_WAIT_MS, LongPoll
from gyre_runtime.kafka._undecodable import UndecodableRecord
from gyre_runtime.metrics import instrument
from gyre_runtime.retrying import restart_for_ever

_LOG = logging.getLogger(__name__)
_WAIT_MS = 100
_ONCE_MAX_WAIT_MS = 20
"""Of a read that ends: the mark of a transaction at the end is seen when the broker stops waiting for more."""
_RETRY_S = 0.5
_NEAR_END = 50
"""Offsets before the end among which the newest record is looked for first."""
_NEWEST = 1000
"""Offsets before the end that are read of a topic in which every record seems to be too old."""

Offsets = dict[TopicPartition, int]
Fetched = dict[TopicPartition, list[Any]]
OnChange = Callable[[str, Event | None], None]


@dataclass(frozen=True, slots=True)
class Start:
    """Where in a topic to begin to read: at the latest of what is given, in each partition.

    Attributes:
        offset: the first that is wanted.
        last: only the last so many offsets, some of which transactions need for themselves; None for all.
        max_age_s: only what is at most so old by the records' times, seconds; None for all. Where nothing is, as with
            producers whose clocks are behind, the newest records.
    """

    offset: int = 0
    last: int | None = None
    max_age_s: float | None = None

    async def of(self, kafka: AIOKafkaConsumer, firsts: Offsets, ends: Offsets) -> Offsets:
        """The offset to begin at, by partition; asks Kafka only where `max_age_s` is given, and seeks nothing."""
        found = {place: max(first, self.offset) for place, first in firsts.items()}
        if self.last is not None:
            found = {place: max(offset, ends[place] - self.last) for place, offset in found.items()}
        if self.max_age_s is not None:
            since_ms = round((time.time() - self.max_age_s) * 1000)
            newer = await kafka.offsets_for_times(dict.fromkeys(found, since_ms))
            newest = {place: max(offset, ends[place] - _NEWEST) for place, offset in found.items()}
            found = {place: newer[place].offset if newer[place] else newest[place] for place in found}
        return found


class View:
    """Tails a compacted topic into a dictionary by record key; an async context manager.

    A record without a value removes its key. What cannot be read is counted and logged, and the key keeps its last
    good event, also where aiokafka cannot decode the record. When the tailing ends by an error it begins anew, counted
    in `gyre_task_restarts_total`; from then until it has caught up again the view is not ready, and `get` and `events`
    answer what it held before. Of a topic of one key it reads the end only: however often that was written, a start
    takes as long.

    Args:
        bootstrap: Kafka's host:port list.
        topic: full name.
        types: payload classes by full proto name.
        on_change: called with key and event, or None for a removed key, in the topic's order.
        start: where to begin; what is older is not seen.
        holds_events: whether the newest event of each key stays in memory; without, `get` and `events` know nothing,
            and a caller that is told of each change may let go what Kafka has deleted.
    """

    def __init__(
        self,
        bootstrap: str,
        topic: str,
        types: MessageTypes,
        *,
        on_change: OnChange | None = None,
        start: Start | None = None,
        holds_events: bool = True,
    ) -> None:
        self._start = start or Start(last=_NEAR_END if has_single_key(topic) else None)
        self._bootstrap, self._topic, self._types, self._on_change = bootstrap, topic, types, on_change
        self._events: dict[str, Event] = {}
        self._reading = self._events
        self._holds_events = holds_events
        self._ready = asyncio.Event()
        self._ends_passed = False
        self._changed, self._poll = asyncio.Condition(), LongPoll()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Start tailing."""
        name = f"view {self._topic}"
        self._task = asyncio.create_task(restart_for_ever(name, self._tail), name=name)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop tailing."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def ready(self) -> None:
        """Wait, without limit, until the view holds all that was in the topic when it started, once it exists."""
        await self._ready.wait()

    async def catch_up(self) -> None:
        """Wait, without limit, until the view holds all that is in the topic now; `is_ready` is False meanwhile."""
        await self.ready()
        self._ready.clear()
        self._ends_passed = True
        self._poll.interrupt()
        await self.ready()

    @property
    def is_ready(self) -> bool:
        """Whether the view holds all that was in the topic when it started, or at the last restart or `catch_up`."""
        return self._ready.is_set()

    async def check(self) -> bool:
        """`is_ready`, for a `Dependency`; asks nobody, so that a view stays ready while Kafka is away."""
        return self.is_ready

    def get(self, key: str) -> Event | None:
        """The newest event of a key that could be read; None where it has none, or was deleted."""
        return self._events.get(key)

    def events(self) -> dict[str, Event]:
        """The newest event of every key, in a new dictionary, without deleted keys."""
        return dict(self._events)

    async def wait_for(self, condition: Callable[["View"], bool]) -> None:
        """Wait, without limit, until a condition on the view holds, which may be before it is ready."""
        async with self._changed:
            await self._changed.wait_for(lambda: condition(self))

    async def _tail(self) -> None:
        self._ready.clear()
        self._reading = {} if self._events else self._events
        async with _reader(self._bootstrap, self._topic, self._start) as (kafka, first_ends):
            ends, may_be_before = first_ends, self._start.last is not None
            while True:
                try:
                    if self._ends_passed:
                        ends = await kafka.end_offsets(list(ends))
                        self._ends_passed = False
                    # A position moves past markers of transactions without a record: until then it is looked at often.
                    is_ready = self._ready.is_set()
                    fetched = await (self._poll.records(kafka) if is_ready else _next(kafka))
                    caught_up = self._ready.is_set() or await _reached(kafka, ends)
                except KafkaError as error:
                    if not error.retriable:
                        raise
                    _LOG.warning("view waits for Kafka", extra={"topic": self._topic, "problem": type(error).__name__})
                    await asyncio.sleep(_RETRY_S)
                    continue
                for records in fetched.values():
                    for record in records:
                        self._apply(record)
                if caught_up and may_be_before and not self._reading:  # the end holds nothing but marks of transactions
                    await kafka.seek_to_beginning(*ends)
                    may_be_before = False
                elif caught_up and not self._ends_passed:
                    self._replace()
                    self._ready.set()
                async with self._changed:
                    self._changed.notify_all()

    def _replace(self) -> None:
        """Let what was read again take the place of what was held before; keys that are no more are removed."""
        if self._reading is self._events:
            return
        gone = self._events.keys() - self._reading.keys()
        self._events = self._reading
        if self._on_change is not None:
            for key in gone:
                self._on_change(key, None)

    def _apply(self, record: Any) -> None:
        key = (record.key or b"").decode("utf-8", "replace")
        event: Event | None = None
        if record.value is None:
            self._reading.pop(key, None)
        else:
            try:
                event = decode(record, self._types)
            except Unreadable as error:
                instrument("gyre_view_unreadable_total").add(**topic_labels(self._topic), reason=error.reason)
                _LOG.error("a view keeps its last good event", extra={"topic": self._topic, "problem": str(error)})
                if key in self._events:
                    self._reading.setdefault(key, self._events[key])
                return
            if self._holds_events:
                self._reading[key] = event
        if self._on_change is not None:
            self._on_change(key, event)


async def read_compacted(bootstrap: str, topic: str, types: MessageTypes, *, timeout_s: float = 30) -> dict[str, Event]:
    """Read a compacted topic once to its present end: the newest event of each key.

    Keys that were deleted are left out; a record that cannot be read is logged, counted and passed over.

    Raises:
        TimeoutError: it could not be read in time, as where there is no such topic.
    """
    async with asyncio.timeout(timeout_s), View(bootstrap, topic, types) as view:
        await view.ready()
        return view.events()


async def read_log(bootstrap: str, topic: str, types: MessageTypes, *, start: int = 0) -> AsyncIterator[Event]:
    """Iterate over all committed events of a topic, from an offset on to its end as it is at the start.

    In order within a partition, and none between partitions. Kafka and the topic are waited for without limit.

    Args:
        bootstrap: Kafka's host:port list.
        topic: full name.
        types: payload classes by full proto name.
        start: the offset to begin at in each partition.

    Raises:
        Unreadable: a record is no such event; a log does not skip.
        Unavailable: Kafka went away.
    """
    async with aclosing(read_records(bootstrap, topic, Start(start))) as records:
        async for record in records:
            yield decode(record, types)


async def read_newest(bootstrap: str, topic: str, types: MessageTypes) -> Event | None:
    """The committed event of the greatest offset in a topic of one partition; None for an empty topic.

    Kafka and the topic are waited for without limit.

    Raises:
        Unreadable: it is no such event.
        Unavailable: Kafka went away.
    """
    for last in (_NEAR_END, None):
        newest = None
        async for record in read_records(bootstrap, topic, Start(last=last)):
            newest = record
        if newest is not None:
            return decode(newest, types)
    return None


async def read_records(bootstrap: str, topic: str, start: Start | None = None) -> AsyncGenerator[Any, None]:
    """Iterate over the committed records of a topic (aiokafka's `ConsumerRecord`), to its end as it is at the start.

    In order within a partition, and none between partitions. Kafka and the topic are waited for without limit.

    One that aiokafka cannot decode comes as an `UndecodableRecord`.

    Args:
        bootstrap: Kafka's host:port list.
        topic: full name.
        start: where to begin; at the beginning by default.

    Raises:
        Unavailable: Kafka went away.
    """
    async with _reader(bootstrap, topic, start or Start(), max_wait_ms=_ONCE_MAX_WAIT_MS) as (kafka, ends):
        try:
            while not await _reached(kafka, ends):
                for records in (await _next(kafka)).values():
                    for record in records:
                        yield record
        except KafkaError as error:
            raise Unavailable(
                "KAFKA_UNAVAILABLE", f"the topic {topic} cannot be read: {type(error).__name__}"
            ) from error


class RecordReader:
    """Reads single committed records by their place, one read at a time; an async context manager.

    It is in no consumer group and commits nothing. Entering it waits for the broker without limit.
    """

    def __init__(self, bootstrap: str) -> None:
        self._kafka = AIOKafkaConsumer(
            bootstrap_servers=bootstrap,
            enable_auto_commit=False,
            auto_offset_reset="none",
            isolation_level="read_committed",
        )
        self._bootstrap = bootstrap

    async def __aenter__(self) -> Self:
        """Connect, waiting for the broker as long as it takes."""
        try:
            await start_when_up(self._kafka.start, self._bootstrap, "records")
        except BaseException:
            await self._kafka.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Disconnect."""
        await self._kafka.stop()

    async def read(self, topic: str, partition: int, offset: int) -> Any | None:
        """The committed record at a place (aiokafka's `ConsumerRecord`), None where there is none, or no more.

        None, too, for an unknown topic or partition, the mark of a transaction, and a record that cannot be decoded.

        Raises:
            KafkaError: Kafka does not answer.
        """
        if partition not in ((await self._kafka._client.fetch_all_metadata()).partitions_for_topic(topic) or ()):  # noqa: SLF001 - aiokafka's own `_wait_topics` does so
            return None
        place = TopicPartition(topic, partition)
        self._kafka.assign([place])
        first = (await self._kafka.beginning_offsets([place]))[place]
        end = (await self._kafka.end_offsets([place]))[place]
        if not first <= offset < end:
            return None
        self._kafka.seek(place, offset)
        while await self._kafka.position(place) <= offset:
            found = await self._kafka.getmany(place, timeout_ms=_WAIT_MS, max_records=1)
            for record in found.get(place, ()):
                is_readable = record.offset == offset and not isinstance(record, UndecodableRecord)
                return record if is_readable else None
        return None


@asynccontextmanager
async def _reader(
    bootstrap: str, topic: str, start: Start, *, max_wait_ms: int = FETCH_MAX_WAIT_MS
) -> AsyncIterator[tuple[AIOKafkaConsumer, Offsets]]:
    """Yield a consumer at an offset of every partition, and their present ends as committed readers see them."""
    kafka = AIOKafkaConsumer(
        bootstrap_servers=bootstrap,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        isolation_level="read_committed",
        fetch_max_wait_ms=max_wait_ms,
        consumer_timeout_ms=CLIENT_MAX_WAIT_MS,
    )
    try:
        await start_when_up(kafka.start, bootstrap, topic)
        partitions = [TopicPartition(topic, number) for number in await _partitions(kafka, topic)]
        # Asked before the first fetch, which the broker may hold, and with it what is asked behind it.
        firsts, ends = await kafka.beginning_offsets(partitions), await kafka.end_offsets(partitions)
        starts = await start.of(kafka, firsts, ends)
        kafka.assign(partitions)
        for partition, offset in starts.items():
            kafka.seek(partition, offset)
        yield kafka, ends
    finally:
        await kafka.stop()


def _next(kafka: AIOKafkaConsumer) -> Awaitable[Fetched]:
    records: Awaitable[Fetched] = kafka.getmany(timeout_ms=_WAIT_MS)
    return records


async def _partitions(kafka: AIOKafkaConsumer, topic: str) -> list[int]:
    """Return the partitions of a topic, waiting until it exists."""
    while True:
        known = (await kafka._client.fetch_all_metadata()).partitions_for_topic(topic)  # noqa: SLF001 - aiokafka's own `_wait_topics` does so
        if known:
            return sorted(known)
        _LOG.warning("waiting for a topic", extra={"topic": topic})
        await asyncio.sleep(_RETRY_S)


async def _reached(kafka: AIOKafkaConsumer, ends: dict[TopicPartition, int]) -> bool:
    for partition, end in ends.items():
        if end > 0 and await kafka.position(partition) < end:
            return False
    return True
