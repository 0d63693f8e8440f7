"""The consumer: hands over decoded events, commits after success, retries the transient, dead-letters the permanent.

Delivery is at least once: a handler is idempotent by event id. A batch that was under way when partitions move is
finished and committed first, or left uncommitted as a whole.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import (
    CommitFailedError,
    IllegalStateError,
    KafkaError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
)
from gyre_core.topics import dead_letter_topic

from gyre_runtime.admission import Admission
from gyre_runtime.checkpoints import Batch, Checkpoint, Place
from gyre_runtime.events import Event, MessageTypes
from gyre_runtime.kafka._delivery import Abandoned, ConsumerDelivery, OnBatch, StoreLostState, batch_span
from gyre_runtime.kafka._names import start_when_up, topic_labels
from gyre_runtime.kafka._options import ConsumerOptions, OnPartitions
from gyre_runtime.kafka._polling import CLIENT_MAX_WAIT_MS, FETCH_MAX_WAIT_MS, LongPoll
from gyre_runtime.kafka._positions import Positions, Resumption, seek_to_start
from gyre_runtime.kafka.producer import Producer
from gyre_runtime.kafka.topics import DeadLetterTopic, create_topics
from gyre_runtime.metrics import instrument

_LOG = logging.getLogger(__name__)
_LONGEST_HANDLING_MS = 30 * 60 * 1000
_REBALANCE_MS = 60_000
_HEARTBEAT_MS = 1000
_METADATA_MAX_AGE_MS = 5000
"""How soon partitions that were added to a topic are seen."""

_DEFAULTS = ConsumerOptions()
Handler = Callable[[list[Event]], Awaitable[object]]


class Consumer:
    """One member of a consumer group; an async context manager, for one of `run`, `run_each` and `run_batches`.

    Entering it joins the group and creates the topics' dead-letter topics. Offsets are committed after each batch.

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
        options: ConsumerOptions = _DEFAULTS,
    ) -> None:
        self._bootstrap, self._group, self._topics = bootstrap, group, tuple(topics)
        self._options = options
        self._admission = options.admission or Admission({}, types)
        self._kafka: AIOKafkaConsumer | None = None
        self._letters = Producer(bootstrap, source=f"gyre/{group}")
        self._delivery = ConsumerDelivery(
            group, self._admission, self._letters, writes_dead_letters=options.dead_letters
        )
        self._stopping, self._revoking = self._delivery.stopping, self._delivery.revoking
        self._running = asyncio.Event()
        self._running.set()
        self._failure: Exception | None = None
        self._rebalances = 0
        self._has_joined = False
        self._held: set[TopicPartition] = set()
        self._busy, self._poll = asyncio.Lock(), LongPoll()
        self._resumption = None if options.stored is None else Resumption(bootstrap, options.stored)
        self._positions = Positions(self._resumption)
        self._starting: asyncio.Task[None] | None = None
        self._has_begun = self._resumption is None

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
            if self._kafka is not None:
                await self._kafka.stop()
            await self._letters.__aexit__(None, None, None)
            raise
        self._has_joined = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the group at once, so that another member takes the partitions over."""
        self.stop()
        await self._end_starting()
        self._has_joined = False
        for each in self._topics:
            instrument("gyre_consumer_lag").set(0, **topic_labels(each), group=self._group)
        if self._kafka is not None:
            await self._kafka.stop()
        await self._letters.__aexit__(None, None, None)

    def _make(self) -> AIOKafkaConsumer:
        return AIOKafkaConsumer(
            bootstrap_servers=self._bootstrap,
            client_id=self._group,
            group_id=self._group,
            enable_auto_commit=False,
            auto_offset_reset="none",
            isolation_level="read_committed",
            max_poll_interval_ms=_LONGEST_HANDLING_MS,
            rebalance_timeout_ms=_REBALANCE_MS,
            heartbeat_interval_ms=_HEARTBEAT_MS,
            metadata_max_age_ms=_METADATA_MAX_AGE_MS,
            fetch_max_wait_ms=FETCH_MAX_WAIT_MS,
            consumer_timeout_ms=CLIENT_MAX_WAIT_MS,
            max_partition_fetch_bytes=8 * 1024 * 1024,
        )

    @property
    def kafka(self) -> AIOKafkaConsumer:
        """The aiokafka consumer beneath, for offsets and seeking; RuntimeError before it is entered."""
        if self._kafka is None:
            raise RuntimeError("the consumer is used outside of its context")
        return self._kafka

    @property
    def has_joined(self) -> bool:
        """Whether it is within its context, so that `kafka` can be asked; it may have no partitions yet."""
        return self._has_joined

    def stop(self) -> None:
        """Let `run` return for good, after the batch under way, or without it where it is only retried."""
        self._stopping.set()
        self._poll.interrupt()
        self._running.set()

    def pause(self) -> None:
        """Hand over no batch after the one under way until `resume`; the membership in the group stays."""
        self._running.clear()

    def resume(self) -> None:
        """Go on after `pause`; partitions of `hold` stay held."""
        self._running.set()

    def hold(self, *partitions: TopicPartition) -> None:
        """Hand over no further batch of some partitions until `release` or the next assignment."""
        self._held.update(partitions)
        self.kafka.pause(*partitions)

    def release(self, *partitions: TopicPartition) -> None:
        """Go on with partitions after `hold`; those that are gone meanwhile are passed over."""
        self._held.difference_update(partitions)
        self.kafka.resume(*self.kafka.assignment().intersection(partitions))

    def fail(self, error: Exception) -> None:
        """Let `run` raise an error in place of its next batch, for what works beside it; raises nothing itself."""
        self._failure = error
        self._poll.interrupt()

    async def before_revoked(self, partitions: tuple[TopicPartition, ...]) -> None:
        """Wait for the batch under way, or end its retries, then await `on_revoked`; called by aiokafka alone."""
        self._revoking.set()
        self._rebalances += 1
        await self._end_starting()
        async with self._busy:
            self._revoking.clear()
            await self._notify(self._options.on_revoked, partitions)
            self._positions.ends.clear()

    async def after_assigned(self, partitions: tuple[TopicPartition, ...]) -> None:
        """Let new partitions begin at the store's checkpoints, or where `on_assigned` seeks to; called by aiokafka.

        aiokafka fetches from the committed offsets and hands over what it got while its listener is still awaited, so
        the partitions are paused from the first moment on.
        """
        self._held.clear()
        hook = self._options.on_assigned
        self._has_begun = self._has_begun or not partitions
        if not partitions or (hook is None and self._resumption is None):
            return
        self.kafka.pause(*partitions)
        if self._resumption is not None:
            self._starting = asyncio.create_task(self._start(partitions, {}), name=f"begin {self._group}")
            return
        await self._notify(hook, partitions)
        if self._failure is None:
            self.kafka.resume(*set(partitions) - self._held)

    async def _start(self, partitions: Sequence[TopicPartition], reached: Mapping[Place, Checkpoint]) -> None:
        """Begin partitions at the store's checkpoints; aiokafka knows nothing of this task, so `run` raises for it."""
        if self._resumption is None:
            return
        try:
            starts = await self._resumption.starts(partitions, reached)
            self._has_begun = True
            for partition in partitions:
                self._positions.start(partition, starts[partition])
                self._admission.start(partition.topic, partition.partition, starts[partition].clock)
                self.kafka.seek(partition, starts[partition].kafka_offset)
            if self._options.on_assigned is not None:
                await self._options.on_assigned(self, tuple(partitions))
            self.kafka.resume(*set(partitions) - self._held)
        except IllegalStateError as error:
            _LOG.info("partitions moved meanwhile: the next assignment begins again", extra={"problem": str(error)})
        except Exception as error:  # noqa: BLE001 - raised by `run`
            self.fail(error)

    async def _end_starting(self) -> None:
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.gather(self._starting, return_exceptions=True)
            self._starting = None

    async def _restart(self, reached: Mapping[Place, Checkpoint]) -> None:
        """Begin all partitions again at the store's checkpoints, as after an assignment; see `Resumption.starts`."""
        await self._end_starting()
        partitions = tuple(sorted(self.kafka.assignment()))
        self._rebalances += 1
        self._held.clear()
        self._positions.ends.clear()
        self.kafka.pause(*partitions)
        self._starting = asyncio.create_task(self._start(partitions, reached), name=f"begin {self._group} again")

    async def _notify(self, hook: OnPartitions | None, partitions: tuple[TopicPartition, ...]) -> None:
        """Call a hook; aiokafka would only log its failure, so `run` raises it."""
        if hook is None or not partitions:
            return
        try:
            await hook(self, partitions)
        except Exception as error:  # noqa: BLE001 - raised by `run`
            self.fail(error)

    async def check(self) -> bool:
        """Check that the partitions were begun, and that what waits in them is taken; for a `Dependency`.

        False while a consumer with `stored` has not found where to begin; held partitions are not looked at.

        Raises:
            LogReplaced: another log stands in Kafka than the one that was applied.
            Unavailable: the store does not answer, or a position stands though records wait (NO_PROGRESS).
        """
        self._positions.check(self.kafka, self.kafka.assignment() - self._held)
        return self._has_begun

    def partition_count(self, topic: str) -> int:
        """How many partitions one of the topics has, assigned or not, as last heard from Kafka; 0 while not known."""
        return len(self.kafka.partitions_for_topic(topic) or ())

    async def ping(self) -> None:
        """Ask the broker for its metadata and return, raising Unavailable or KafkaError where it does not answer."""
        await self._letters.ping()

    async def run_each(self, handler: Callable[[Event], Awaitable[object]]) -> None:
        """Hand over one event at a time, in order, within a span that is the child of its producer's; else as `run`."""

        async def handle(batch: Batch) -> None:
            for event in batch.events:
                with batch_span(f"{event.topic} process", [event], self._options.flow):
                    await handler(event)

        await self._loop(handle, one_by_one=True)

    async def run(self, handler: Handler) -> None:
        """Hand over batches until `stop`; within a partition in order, never an empty batch.

        A handler that raises what `is_transient` is called again with the same batch. When it raises anything else the
        batch is halved until the events are alone that it refuses, which are dead-lettered.
        """

        async def handle(batch: Batch) -> None:
            if batch.events:
                with batch_span(f"{batch.events[0].topic} process", batch.events, self._options.flow):
                    await handler(list(batch.events))

        await self._loop(handle, one_by_one=False)

    async def run_batches(self, handler: Callable[[Batch], Awaitable[object]]) -> None:
        """Hand over batches as `run` does, with what was refused and the checkpoints after them, until `stop`.

        A batch may hold no event, where only refused records or none were passed. What the handler raises for such a
        batch and is not transient ends the run. `StoreLostState` lets every partition begin again at the store's
        checkpoints.
        """

        async def handle(batch: Batch) -> None:
            with batch_span(f"{self._group} process", batch.events, self._options.flow):
                await handler(batch)

        await self._loop(handle, one_by_one=False)

    async def _loop(self, handler: OnBatch, *, one_by_one: bool) -> None:
        while not self._stopping.is_set():
            await self._running.wait()
            if self._stopping.is_set():
                break
            fetched = await self._fetch()
            # From here on: what is awaited before the batch is handed over takes time in which partitions may move.
            rebalances = self._rebalances
            if self._failure is not None:
                raise self._failure
            try:
                ends = await self._positions.after(self.kafka, fetched)
                same = await self._positions.is_same_log(fetched)
            except IllegalStateError:
                continue  # partitions moved meanwhile
            await self._running.wait()
            if not ends or not self._still_ours(rebalances):
                continue
            if not same:
                await self._restart(dict(self._positions.ends))
                continue
            async with self._busy:
                if not self._still_ours(rebalances):
                    continue
                try:
                    records = [record for partition in fetched.values() for record in partition]
                    await self._delivery.process(records, ends, handler, one_by_one=one_by_one)
                except Abandoned:
                    continue
                except StoreLostState as error:
                    _LOG.warning("reading on from the store's checkpoints", extra={"problem": str(error)})
                    await self._restart({})
                    continue
                self._positions.ends.update(ends)
                await self._commit(ends)

    async def _fetch(self) -> dict[TopicPartition, list[Any]]:
        options = self._options
        try:
            fetched = await self._poll.records(self.kafka, max_records=options.max_records)
        except NoOffsetForPartitionError as error:
            if self._resumption is None:
                seek = self.kafka.seek_to_beginning if options.from_beginning else self.kafka.seek_to_end
                await seek(error.args[0])
        except OffsetOutOfRangeError as error:
            await self._out_of_range(error.args[0])
        else:
            return fetched
        return {}

    async def _out_of_range(self, positions: Mapping[TopicPartition, int]) -> None:
        """The log does not reach to where we read: a store's checkpoints say why, others read from its start."""
        if self._resumption is not None:
            await self._restart(dict(self._positions.ends))
            return
        await seek_to_start(self.kafka, positions)

    def _still_ours(self, rebalances: int) -> bool:
        """Whether no partition, and so none of the records in hand, moved since so many rebalances."""
        return rebalances == self._rebalances and not self._stopping.is_set()

    async def _commit(self, ends: Mapping[TopicPartition, Checkpoint]) -> None:
        own = self.kafka.assignment()
        offsets = {partition: end.kafka_offset for partition, end in ends.items() if partition in own}
        try:
            if offsets:
                await self.kafka.commit(offsets)
        except (CommitFailedError, IllegalStateError) as error:
            _LOG.warning("partitions moved before the commit: the batch comes again", extra={"problem": str(error)})
        except KafkaError as error:
            if not error.retriable:
                raise
            _LOG.warning("commit failed: covered by the next one", extra={"problem": type(error).__name__})
        self._report_lag(offsets)

    def _report_lag(self, offsets: dict[TopicPartition, int]) -> None:
        lag: dict[str, int] = {}
        for partition, offset in offsets.items():
            high = self.kafka.highwater(partition) if partition in self.kafka.assignment() else None
            lag[partition.topic] = lag.get(partition.topic, 0) + max(0, (high or offset) - offset)
        for topic, count in lag.items():
            instrument("gyre_consumer_lag").set(count, **topic_labels(topic), group=self._group)


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
