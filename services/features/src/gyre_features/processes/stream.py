"""`stream`: Kafka to Redis. Begins at the fences of the store, the catalogue before behaviour."""

import asyncio
import logging
from collections.abc import Iterable, Sequence

from aiokafka import TopicPartition
from gyre.events.v1 import behavior_pb2 as behavior
from gyre.events.v1 import features_pb2 as events_pb2
from gyre_core.features import Layout
from gyre_core.spec import LoopSpec
from gyre_core.topics import topic
from gyre_runtime import Dependency, Lifespan, build_server, instrument, load_loops
from gyre_runtime.events import Event, message_types
from gyre_runtime.kafka import Consumer, ConsumerOptions, Producer, ensure_topics
from redis.asyncio import Redis

from gyre_features.domain import Admission
from gyre_features.online.store import OnlineStore
from gyre_features.online.stream import Batch, LoopStream
from gyre_features.settings import FeaturesSettings

GROUP = "features-stream"
CATALOGUE = "catalog.items"
TOPICS = ("behavior.impressions", "behavior.interactions", CATALOGUE)
TYPES = message_types(behavior.Impression, behavior.Interaction, behavior.ItemChanged)
_POLL_S = 0.05
_LOG = logging.getLogger(__name__)


def open_redis(settings: FeaturesSettings) -> Redis:
    """A client that answers bytes; it connects when it is first used."""
    return Redis.from_url(settings.redis, socket_timeout=5, socket_connect_timeout=2, health_check_interval=30)


def open_store(settings: FeaturesSettings, redis: Redis, spec: LoopSpec) -> OnlineStore:
    """The online store of a loop's current layout."""
    return OnlineStore(
        redis,
        spec,
        Layout.compile(spec),
        duplicates_s=settings.features_duplicates_s,
        popular_kept=settings.features_popular_kept,
    )


class StreamWorker:
    """Hands each loop its events, seeks on assignment, and holds behaviour back until the catalogue is known."""

    def __init__(self, stores: Iterable[OnlineStore], producer: Producer) -> None:
        self._producer = producer
        self._streams = {store.spec.loop: LoopStream(store, on_batch=self._note) for store in stores}
        self.admission = Admission({name: stream.store.spec for name, stream in self._streams.items()})
        self._wait: asyncio.Task[None] | None = None

    async def assigned(self, consumer: Consumer, partitions: tuple[TopicPartition, ...]) -> None:
        """Begin every partition where the store stands, whatever the group has committed."""
        for name, stream in self._streams.items():
            own = [each for each in partitions if each.topic.startswith(f"{name}.")]
            begin = await stream.assigned((each.topic, each.partition) for each in own)
            for each in own:
                self.admission.forget(each.topic, each.partition)
                consumer.kafka.seek(each, begin[each.topic, each.partition])
        if self._wait is not None:
            self._wait.cancel()
        catalogue = [each for each in partitions if each.topic.endswith(f".{CATALOGUE}")]
        behaviour = [each for each in partitions if not each.topic.endswith(f".{CATALOGUE}")]
        if catalogue and behaviour:
            consumer.hold(*behaviour)
            self._wait = asyncio.create_task(_resume_after(consumer, catalogue, behaviour), name="catalogue first")

    async def close(self) -> None:
        """End what waits."""
        if self._wait is not None:
            self._wait.cancel()
            await asyncio.gather(self._wait, return_exceptions=True)

    async def apply(self, events: list[Event]) -> None:
        """Apply a batch of any loops' events."""
        by_loop: dict[str, list[Event]] = {}
        for event in events:
            by_loop.setdefault(event.topic.partition(".")[0], []).append(event)
        for name, own in by_loop.items():
            await self._streams[name].apply(own)

    async def _note(self, batch: Batch, events: Sequence[Event]) -> None:
        stream = self._streams[next(iter(batch.ranges))[0].partition(".")[0]]
        name = stream.store.spec.loop
        arrivals = [event.arrival_time for event in events if event.arrival_time]
        if arrivals:
            freshness = instrument("gyre_features_freshness_seconds")
            for arrival in {min(arrivals), max(arrivals)}:
                freshness.observe(max(batch.applied_time - arrival, 0.0), loop=name)
        for source in {event.topic for event in events}:
            count = sum(event.topic == source for event in events)
            instrument("gyre_features_events_total").add(count, loop=name, topic=source)
        message = events_pb2.BatchApplied(
            loop=name, layout=stream.store.layout.hash, shard=batch.shard, batch=batch.number, events=batch.events
        )
        for (source, partition), (first, end) in batch.ranges.items():
            message.ranges.add(topic=source, partition=partition, first=first, end=end)
        message.newest_event_time.FromNanoseconds(int(batch.newest_event_time * 1e9))
        message.applied_time.FromNanoseconds(int(batch.applied_time * 1e9))
        self._producer.enqueue(topic(name, "features.applied"), message, key=str(batch.shard))


async def _resume_after(
    consumer: Consumer, catalogue: Sequence[TopicPartition], behaviour: Sequence[TopicPartition]
) -> None:
    """Let behaviour flow once the catalogue, as long as it was at the assignment, has been read."""
    ends = await consumer.kafka.end_offsets(catalogue)
    while True:
        reached = [await consumer.kafka.position(each) >= ends[each] for each in catalogue]
        if all(reached):
            break
        await asyncio.sleep(_POLL_S)
    consumer.release(*behaviour)
    _LOG.info("the catalogue is known")


async def stream(lifespan: Lifespan, settings: FeaturesSettings) -> None:
    """Wire the process."""
    loops = load_loops(settings)
    await ensure_topics(settings, loops.values())
    redis = await lifespan.enter(open_redis(settings))
    stores = [open_store(settings, redis, spec) for spec in loops.values()]
    producer = await lifespan.enter(Producer(settings.kafka, source="gyre/features-stream"))
    worker = StreamWorker(stores, producer)
    consumer = Consumer(
        settings.kafka,
        group=GROUP,
        topics=[topic(name, suffix) for name in loops for suffix in TOPICS],
        types=TYPES,
        options=ConsumerOptions(
            max_records=settings.features_batch_events,
            max_wait_ms=20,
            admit=worker.admission,
            on_assigned=worker.assigned,
        ),
    )
    lifespan.depends_on(Dependency("redis", stores[0].ping))
    lifespan.depends_on(Dependency("kafka", producer.ping))
    await lifespan.enter(build_server(settings, [], health=lifespan.health))
    lifespan.background("stream", _consume(consumer, worker), stop=consumer.stop)


async def _consume(consumer: Consumer, worker: StreamWorker) -> None:
    """Join the group as a background task, so that health answers while Kafka or Redis are still away."""
    async with consumer:
        try:
            await consumer.run(worker.apply)
        finally:
            await worker.close()
