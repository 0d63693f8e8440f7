"""The consumer: hands over decoded events, commits after success, retries the transient, dead-letters the permanent.

Delivery is at least once: a handler is idempotent by event id. A batch that was under way when partitions move is
finished and committed first, or left uncommitted as a whole.
"""

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaError
from gyre_core.topics import dead_letter_topic

from gyre_runtime import tracing
from gyre_runtime.admission import Admission
from gyre_runtime.errors import is_transient
from gyre_runtime.events import Event, MessageTypes
from gyre_runtime.kafka._names import start_when_up, topic_labels
from gyre_runtime.kafka.dead_letters import dead_letter
from gyre_runtime.kafka.producer import Producer
from gyre_runtime.kafka.topics import DeadLetterTopic, create_topics
from gyre_runtime.metrics import instrument

_LOG = logging.getLogger(__name__)
_FIRST_BACKOFF_S, _MOST_BACKOFF_S = 0.1, 10.0
_LONGEST_HANDLING_MS = 30 * 60 * 1000
_REBALANCE_MS = 60_000
_HEARTBEAT_MS = 1000
_MAX_LINKS = 16

Handler = Callable[[list[Event]], Awaitable[object]]
OnPartitions = Callable[["Consumer", tuple[TopicPartition, ...]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class ConsumerOptions:
    """How a consumer works; the defaults suit most.

    Attributes:
        max_records: most events in one batch.
        max_wait_ms: how long a poll waits for the first record, and so how long a stop may take.
        from_beginning: where a group without offsets begins; False is the end.
        flow: `model` gives every batch an always sampled span; `request` one only when a producer's trace is sampled.
        dead_letters: send what cannot be handled to the dead-letter topic. False where another group of the same topic
            does that already: it is then counted and left out.
        admission: decides every record, and is told by `on_assigned` where a partition's clock stands. Without it
            only the topic's types and the proto's constraints do.
        on_assigned: awaited with new partitions before their first record; may `seek`, and `Consumer.hold` some.
        on_revoked: awaited when partitions go, after the batch under way.
    """

    max_records: int = 500
    max_wait_ms: int = 200
    from_beginning: bool = True
    flow: tracing.Flow = "request"
    dead_letters: bool = True
    admission: Admission | None = None
    on_assigned: OnPartitions | None = None
    on_revoked: OnPartitions | None = None


class _Abandoned(Exception):  # noqa: N818 - a signal, not an error
    """The batch is given up uncommitted: the consumer stops, or its partitions go."""


class Consumer:
    """One member of a consumer group; an async context manager.

    Args:
        bootstrap: Kafka's host:port list.
        group: name of the consumer group, such as `features-stream`.
        topics: full names.
        types: payload classes by full proto name, from `message_types`.
        options: how it works.
    """

    def __init__(
        self,
        bootstrap: str,
        *,
        group: str,
        topics: Sequence[str],
        types: MessageTypes,
        options: ConsumerOptions = ConsumerOptions(),
    ) -> None:
        self._bootstrap, self._group, self._topics = bootstrap, group, tuple(topics)
        self._options = options
        self._admission = options.admission or Admission({}, types)
        self._kafka: AIOKafkaConsumer | None = None
        self._letters = Producer(bootstrap, source=f"gyre/{group}")
        self._stopping, self._revoking, self._running = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._running.set()
        self._failure: Exception | None = None
        self._rebalances = 0
        self._held: set[TopicPartition] = set()
        self._busy = asyncio.Lock()
        self._events = {topic: instrument("gyre_consumer_events_total").bind(**topic_labels(topic)) for topic in topics}

    async def __aenter__(self) -> Self:
        """Connect and join the group, waiting for the broker as long as it takes."""
        await create_topics(self._bootstrap, [DeadLetterTopic(dead_letter_topic(topic)) for topic in self._topics])
        await self._letters.__aenter__()

        async def start() -> None:
            kafka = self._make()
            try:
                kafka.subscribe(self._topics, listener=_Listener(self))
                self._kafka = kafka
                await kafka.start()
            except BaseException:
                await kafka.stop()
                raise

        try:
            await start_when_up(start, self._bootstrap, self._group)
        except BaseException:
            await self._letters.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the group at once, so that another member takes the partitions over."""
        self.stop()
        if self._kafka is not None:
            await self._kafka.stop()
        await self._letters.__aexit__(None, None, None)

    def _make(self) -> AIOKafkaConsumer:
        return AIOKafkaConsumer(
            bootstrap_servers=self._bootstrap,
            client_id=self._group,
            group_id=self._group,
            enable_auto_commit=False,
            auto_offset_reset="earliest" if self._options.from_beginning else "latest",
            isolation_level="read_committed",
            max_poll_interval_ms=_LONGEST_HANDLING_MS,
            rebalance_timeout_ms=_REBALANCE_MS,
            heartbeat_interval_ms=_HEARTBEAT_MS,
            fetch_max_wait_ms=100,
            max_partition_fetch_bytes=8 * 1024 * 1024,
        )

    @property
    def kafka(self) -> AIOKafkaConsumer:
        """The aiokafka consumer beneath, for offsets and seeking."""
        if self._kafka is None:
            raise RuntimeError("the consumer is used outside of its context")
        return self._kafka

    def stop(self) -> None:
        """End `run` after the batch under way."""
        self._stopping.set()
        self._running.set()

    def pause(self) -> None:
        """Hand over no further batch until `resume`; the membership in the group stays."""
        self._running.clear()

    def resume(self) -> None:
        """Go on after `pause`."""
        self._running.set()

    def hold(self, *partitions: TopicPartition) -> None:
        """Hand over nothing of some partitions until `release` or the next assignment."""
        self._held.update(partitions)
        self.kafka.pause(*partitions)

    def release(self, *partitions: TopicPartition) -> None:
        """Go on with partitions after `hold`; those that are gone meanwhile are passed over."""
        self._held.difference_update(partitions)
        self.kafka.resume(*self.kafka.assignment().intersection(partitions))

    async def before_revoked(self, partitions: tuple[TopicPartition, ...]) -> None:
        """Wait for the batch under way, or end its retries; aiokafka calls this before partitions move."""
        self._revoking.set()
        self._rebalances += 1
        async with self._busy:
            self._revoking.clear()
            await self._notify(self._options.on_revoked, partitions)

    async def after_assigned(self, partitions: tuple[TopicPartition, ...]) -> None:
        """Let the service seek before the first record of new partitions.

        aiokafka fetches from the committed offsets and hands over what it got while its listener is still awaited, so
        the partitions are paused from the first moment until the hook is done.
        """
        self._held.clear()
        hook = self._options.on_assigned
        if hook is None or not partitions:
            return
        self.kafka.pause(*partitions)
        await self._notify(hook, partitions)
        if self._failure is None:
            self.kafka.resume(*set(partitions) - self._held)

    async def _notify(self, hook: OnPartitions | None, partitions: tuple[TopicPartition, ...]) -> None:
        """Call a hook; aiokafka would only log its failure, so `run` raises it."""
        if hook is None or not partitions:
            return
        try:
            await hook(self, partitions)
        except Exception as error:  # noqa: BLE001 - raised by `run`
            self._failure = error

    async def ping(self) -> None:
        """Check that the broker answers; for a `Dependency`."""
        await self._letters.ping()

    async def run_each(self, handler: Callable[[Event], Awaitable[object]]) -> None:
        """Hand over one event at a time, in order, within a span that is the child of its producer's."""

        async def handle(events: list[Event]) -> None:
            for event in events:
                with self._span(f"{event.topic} process", [event]):
                    await handler(event)

        await self._loop(handle, one_by_one=True)

    async def run(self, handler: Handler) -> None:
        """Hand over batches until `stop`; within a partition in order, never an empty batch.

        A handler that raises what `is_transient` is called again with the same batch. When it raises anything else the
        batch is handed over event by event, and the ones it still refuses are dead-lettered.
        """

        async def handle(events: list[Event]) -> None:
            with self._span(f"{events[0].topic} process", events):
                await handler(events)

        await self._loop(handle, one_by_one=False)

    async def _loop(self, handler: Handler, *, one_by_one: bool) -> None:
        options = self._options
        while not self._stopping.is_set():
            await self._running.wait()
            if self._stopping.is_set():
                break
            fetched = await self.kafka.getmany(timeout_ms=options.max_wait_ms, max_records=options.max_records)
            if self._failure is not None:
                raise self._failure
            records = [record for partition in fetched.values() for record in partition]
            if not records or not await self._still_ours():
                continue
            async with self._busy:
                with contextlib.suppress(_Abandoned):
                    await self._process(records, handler, one_by_one=one_by_one)
                    await self._commit(records)

    async def _still_ours(self) -> bool:
        """Wait while paused; say whether the partitions, and so the records in hand, are still this member's."""
        rebalances = self._rebalances
        await self._running.wait()
        return rebalances == self._rebalances and not self._stopping.is_set()

    async def _process(self, records: list[Any], handler: Handler, *, one_by_one: bool) -> None:
        events, refused = self._admission.decide_all(records)
        for record, refusal in refused:
            await self._dead_letter(record, refusal.reason, refusal.detail)
        by_place = {(record.topic, record.partition, record.offset): record for record in records}
        for batch in [[event] for event in events] if one_by_one else [events] if events else []:
            await self._deliver(batch, handler, by_place)

    async def _deliver(self, batch: list[Event], handler: Handler, by_place: dict[tuple[str, int, int], Any]) -> None:
        error = await self._attempt(batch, handler)
        if error is None:
            for topic, count in Counter(event.topic for event in batch).items():
                self._events[topic](count)
            return
        if len(batch) > 1:
            for event in batch:
                await self._deliver([event], handler, by_place)
            return
        _LOG.error("an event cannot be handled", exc_info=error, extra={"event_id": batch[0].id})
        reason = getattr(error, "reason", "HANDLER_FAILED")
        record = by_place[batch[0].topic, batch[0].partition, batch[0].offset]
        await self._dead_letter(record, reason, f"{type(error).__name__}: {error}")

    async def _attempt(self, batch: list[Event], handler: Handler) -> Exception | None:
        """Call the handler until it succeeds or fails for good; return the permanent error."""
        backoff_s = _FIRST_BACKOFF_S
        while True:
            try:
                await handler(batch)
            except Exception as error:  # noqa: BLE001 - the boundary: sorted into transient and permanent
                if not is_transient(error):
                    return error
                reason = getattr(error, "reason", type(error).__name__)
                instrument("gyre_consumer_retries_total").add(**topic_labels(batch[0].topic), reason=reason)
                _LOG.warning("trying again", extra={"topic": batch[0].topic, "problem": str(error), "in_s": backoff_s})
            else:
                return None
            await self._back_off(backoff_s)
            backoff_s = min(backoff_s * 2, _MOST_BACKOFF_S)

    async def _back_off(self, seconds: float) -> None:
        """Wait, unless the consumer stops or its partitions go.

        Raises:
            _Abandoned: they do.
        """
        waits = [asyncio.create_task(each.wait()) for each in (self._stopping, self._revoking)]
        done, _ = await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for each in waits:
            each.cancel()
        if done:
            raise _Abandoned

    async def _dead_letter(self, record: Any, reason: str, error: str) -> None:
        if self._options.dead_letters:
            await dead_letter(self._letters, record, reason=reason, error=error, group=self._group)
        else:
            instrument("gyre_consumer_skipped_total").add(**topic_labels(record.topic), reason=reason)

    async def _commit(self, records: Iterable[Any]) -> None:
        own = self.kafka.assignment()
        offsets = {TopicPartition(record.topic, record.partition): record.offset + 1 for record in records}
        offsets = {partition: offset for partition, offset in offsets.items() if partition in own}
        try:
            if offsets:
                await self.kafka.commit(offsets)
        except (CommitFailedError, IllegalStateError) as error:
            _LOG.warning("partitions moved before the commit: the batch comes again", extra={"problem": str(error)})
        except KafkaError as error:
            if not error.retriable:
                raise
            _LOG.warning("commit failed: covered by the next one", extra={"problem": type(error).__name__})
        self._tell_lag(offsets)

    def _tell_lag(self, offsets: dict[TopicPartition, int]) -> None:
        lag: dict[str, int] = {}
        for partition, offset in offsets.items():
            high = self.kafka.highwater(partition) if partition in self.kafka.assignment() else None
            lag[partition.topic] = lag.get(partition.topic, 0) + max(0, (high or offset) - offset)
        for topic, count in lag.items():
            instrument("gyre_consumer_lag").set(count, **topic_labels(topic))

    @contextlib.contextmanager
    def _span(self, name: str, events: list[Event]) -> Any:
        flow = self._options.flow
        parents = dict.fromkeys(event.traceparent for event in events if tracing.is_sampled(event.traceparent))
        if flow == "request" and not parents:
            yield
            return
        sampled = [parent for parent in parents if parent]
        # Of a batch with one sampled event, the span belongs into that event's trace, whatever came with it.
        parent = sampled[0] if len(sampled) == 1 else None
        with tracing.start_span(
            name,
            parent=parent,
            links=() if parent else sampled[:_MAX_LINKS],
            flow=flow,
            attributes={"messaging.system": "kafka", "messaging.batch.message_count": len(events)},
        ):
            yield


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka has no types
    """Finishes the batch under way before partitions move."""

    def __init__(self, consumer: Consumer) -> None:
        self._consumer = consumer

    async def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None:
        """Wait for the batch under way; one that is only retrying is abandoned."""
        await self._consumer.before_revoked(tuple(sorted(revoked)))

    async def on_partitions_assigned(self, assigned: set[TopicPartition]) -> None:
        """Let the service seek."""
        await self._consumer.after_assigned(tuple(sorted(assigned)))
