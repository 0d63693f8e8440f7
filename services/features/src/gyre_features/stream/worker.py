"""One layout's stream from Kafka to its store, from the store's checkpoints on, the catalogue first."""

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError
from gyre.events.v1.features_pb2 import BatchApplied
from gyre_core.topics import topic
from gyre_runtime import Unavailable, instrument
from gyre_runtime.checkpoints import Batch, Checkpoint, Place
from gyre_runtime.events import Event
from gyre_runtime.kafka import Consumer, Producer

from gyre_features.online.store import OnlineStore
from gyre_features.stream.loop_stream import LoopStream, ReadTombstones, nobody_forgotten
from gyre_features.stream.outbox import identity_of

CATALOGUE = "catalog.items"
_POLL_S = 0.05
_STALL_TIMEOUT_S = 10.0
_RETRY_S = 0.5
_TELLING_S = 5.0
_PUBLISH_S = 1.0
_LOG = logging.getLogger(__name__)

Fill = Callable[[Sequence[Place]], Awaitable[None]]
"""Applies what the warehouse holds of topic partitions beyond the store's checkpoints."""


@dataclass(frozen=True, slots=True)
class Filling:
    """How a layout that is not filled yet is filled beside the others.

    Attributes:
        fill: applies from the warehouse what the store lacks of some partitions and Kafka is not to bring, if anything.
        is_filling: whether the layout is still being filled, so that nobody reads it.
        gives_way: whether another layout is read meanwhile, whose events come first.
        share: of the time that applying events may take while it gives way, above 0 and at most 1.
        max_events: in one batch, while it gives way.
    """

    fill: Fill
    is_filling: Callable[[], bool]
    gives_way: Callable[[], bool]
    share: float
    max_events: int


class StreamWorker:
    """Applies a consumer's batches to the store of one loop's layout, and holds behaviour back until items are known.

    Its methods are the hooks of a `Consumer`; applied batches are published to `features.applied`.

    Args:
        store: of the layout.
        producer: for what is published.
        max_events: in one batch, so in one script of Redis.
        filling: how the layout is filled from the warehouse; None where it never is.
        forgotten: whether an event is of a user who was forgotten.
        read_tombstones: returns once `forgotten` knows everybody who was forgotten before.
    """

    def __init__(
        self,
        store: OnlineStore,
        producer: Producer,
        *,
        max_events: int,
        filling: Filling | None = None,
        forgotten: Callable[[Event], bool] = lambda _event: False,
        read_tombstones: ReadTombstones = nobody_forgotten,
    ) -> None:
        self._producer, self._loop = producer, store.spec.loop
        self._filling, self._max_events = filling, max_events
        self._stream = LoopStream(
            store,
            on_batch=self._note,
            max_events=max_events,
            forgotten=forgotten,
            read_tombstones=read_tombstones,
        )
        self._wait: asyncio.Task[None] | None = None
        self._refused: list[BatchApplied] = []

    async def stored(self, places: Sequence[Place]) -> Mapping[Place, Sequence[Checkpoint]]:
        """Fill the store from the warehouse where needed.

        Answer the checkpoints up to which it then holds each partition.

        Batches that the store's outbox holds are published to `features.applied` meanwhile.

        Raises:
            Unavailable: the store does not answer, or cannot be filled.
        """
        if self._filling is not None:
            await self._filled(self._filling.fill(places))
        for batch in await self._stream.unpublished():
            self._publish(batch)
        return await self._stream.checkpoints(places)

    async def _filled(self, work: Awaitable[None]) -> None:
        """Do the work, and publish the batches that it leaves in the store's outbox meanwhile."""
        running = asyncio.ensure_future(work)
        try:
            while not running.done():
                await asyncio.wait({running}, timeout=_PUBLISH_S)
                for batch in await self._stream.unpublished():
                    self._publish(batch)
                await self._producer.flush()
                await self._stream.clear_outbox()
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
        running.result()

    async def assigned(self, consumer: Consumer, partitions: tuple[TopicPartition, ...]) -> None:
        """Hold the behaviour partitions back until the store has applied the catalogue up to its present end.

        Returns at once.

        Where the catalogue makes no progress for 10 s they are released all the same.
        """
        declared = self._stream.store.spec.shards.kafka_partitions
        found = {
            name: consumer.partition_count(name) for name in {self._catalogue, *(each.topic for each in partitions)}
        }
        if more := {name: count for name, count in found.items() if count > declared}:
            problem = f"gyre.yaml says shards.kafka_partitions: {declared}, and Kafka has {max(more.values())}"
            facts = {"loop": self._loop, "topics": sorted(more), "problem": problem}
            _LOG.warning("more partitions than declared: all are read", extra=facts)
        self._stream.follow_catalogue(max(found[self._catalogue], declared))
        if self._wait is not None:
            self._wait.cancel()
        behaviour = [each for each in partitions if each.topic != self._catalogue]
        if behaviour:
            consumer.hold(*behaviour)
            wait = _release_after_catalogue(consumer, self._stream, behaviour)
            self._wait = asyncio.create_task(wait, name=f"catalogue of {self._loop} first")
            self._wait.add_done_callback(partial(_fail_with, consumer))

    @property
    def _catalogue(self) -> str:
        return topic(self._loop, CATALOGUE)

    async def close(self) -> None:
        """Stop waiting for the catalogue, and wait up to 5 s for Kafka to take what is published.

        Raises nothing for it.

        What is left stands in the outbox, and the next start publishes it. The producer stays open.
        """
        if self._wait is not None:
            self._wait.cancel()
            await asyncio.gather(self._wait, return_exceptions=True)
        with contextlib.suppress(TimeoutError, Unavailable):
            async with asyncio.timeout(_TELLING_S):
                await self._producer.flush()
                await self._stream.clear_outbox()

    async def apply(self, batch: Batch) -> None:
        """Apply a batch and publish it.

        While the layout gives way to another, wait afterwards to keep its share of time.

        Raises:
            Unavailable: the store does not answer; call again with the same batch.
            StoreLostState: the store holds less than it did.
        """
        started, filling = time.monotonic(), self._filling
        if filling is None or not filling.gives_way():
            self._stream.max_events = self._max_events
            await self._stream.apply(batch.events, batch.ends)
            return
        self._stream.max_events = filling.max_events
        await self._stream.apply(batch.events, batch.ends)
        await asyncio.sleep((time.monotonic() - started) * (1 / filling.share - 1))

    async def _note(self, batch: BatchApplied, events: Sequence[Event]) -> None:
        # What was replayed came long ago.
        arrivals = [event.arrival_time for event in events if event.arrival_time and not event.first_arrival_time]
        is_read = self._filling is None or not self._filling.is_filling()
        if arrivals and is_read:
            applied_time = batch.applied_time.ToNanoseconds() / 1e9
            freshness = instrument("gyre_features_freshness_seconds")
            for arrival in {min(arrivals), max(arrivals)}:
                freshness.observe(max(applied_time - arrival, 0.0), loop=batch.loop, layout=batch.layout)
        for source, count in Counter(event.topic for event in events).items():
            applied = instrument("gyre_features_events_total")
            applied.add(count, loop=batch.loop, layout=batch.layout, topic=source)
        again, self._refused = self._refused, []
        for each in (*again, batch):
            self._publish(each)

    def _publish(self, batch: BatchApplied) -> None:
        """Send a batch to `features.applied`; until Kafka has it, it stands in the store's outbox."""

        def settled(arrived: bool) -> None:
            if arrived:
                self._stream.published(batch)
            else:
                self._refused.append(batch)

        name, time_ns = topic(batch.loop, "features.applied"), batch.applied_time.ToNanoseconds()
        key, id_ = str(batch.shard), identity_of(batch)
        if not self._producer.enqueue(name, batch, key=key, time=time_ns / 1e9, id=id_, on_settled=settled):
            settled(arrived=False)


def _fail_with(consumer: Consumer, task: asyncio.Task[None]) -> None:
    """End the consumer's run with the error of a task, without which its partitions would be held for ever."""
    error = None if task.cancelled() else task.exception()
    if isinstance(error, Exception):
        consumer.fail(error)


async def _release_after_catalogue(consumer: Consumer, stream: LoopStream, behaviour: Sequence[TopicPartition]) -> None:
    """Let behaviour flow once the catalogue, as long as it is now, stands in the store, whoever applies it."""
    ends: dict[TopicPartition, int] | None = None
    seen, since = None, time.monotonic()
    while True:
        try:
            if ends is None:
                ends = await consumer.kafka.end_offsets([TopicPartition(*place) for place in stream.catalogue])
            progress = await _progress(consumer, stream, ends)
        except (KafkaError, Unavailable) as error:
            _LOG.warning("waiting for the catalogue", extra={"problem": str(error)})
            await asyncio.sleep(_RETRY_S)
            continue
        if all(progress[each] >= end for each, end in ends.items()):
            break
        if progress != seen:
            seen, since = progress, time.monotonic()
        elif time.monotonic() - since > _STALL_TIMEOUT_S:
            # Another worker of the group may read those partitions, and get nowhere.
            _LOG.warning("the catalogue does not get on", extra={"loop": stream.store.spec.loop})
            break
        await asyncio.sleep(_POLL_S)
    consumer.release(*behaviour)
    _LOG.info("the catalogue is known", extra={"loop": stream.store.spec.loop})


async def _progress(
    consumer: Consumer, stream: LoopStream, ends: Iterable[TopicPartition]
) -> dict[TopicPartition, int]:
    """How far each partition of the catalogue is in Kafka: by the store, or where it is our own, by what was read."""
    own = consumer.kafka.assignment()
    shards = await stream.store.checkpoints(stream.catalogue)
    progress = {each: min(found[each].kafka_offset for found in shards) for each in ends}
    for each in own.intersection(progress):
        # What was handed over is applied before the next batch is taken, so reading is as good.
        progress[each] = max(progress[each], await consumer.kafka.position(each))
    return progress
