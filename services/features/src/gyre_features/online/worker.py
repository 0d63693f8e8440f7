"""One worker of the stream: every loop's events to its store, from the store's fences on, the catalogue first."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError
from gyre.events.v1 import features_pb2 as events_pb2
from gyre_core.topics import topic
from gyre_runtime import Unavailable, instrument
from gyre_runtime.events import Event
from gyre_runtime.kafka import Consumer, Producer

from gyre_features.domain import Admission
from gyre_features.online.store import OnlineStore
from gyre_features.online.stream import Batch, LoopStream, Rewound

CATALOGUE = "catalog.items"
_POLL_S = 0.05
_PATIENCE_S = 10.0
_RETRY_S = 0.5
_LOG = logging.getLogger(__name__)


class StreamWorker:
    """Hands each loop its events, seeks on assignment, and holds behaviour back until the catalogue is known."""

    def __init__(
        self,
        stores: Iterable[OnlineStore],
        producer: Producer,
        *,
        most_events: int,
        forgotten: Callable[[Event], bool] = lambda _event: False,
    ) -> None:
        self._producer = producer
        self._streams = {
            store.spec.loop: LoopStream(store, on_batch=self._note, most_events=most_events, forgotten=forgotten)
            for store in stores
        }
        self.admission = Admission({name: stream.store.spec for name, stream in self._streams.items()})
        self._consumer: Consumer | None = None
        self._waits: dict[str, asyncio.Task[None]] = {}

    async def assigned(self, consumer: Consumer, partitions: tuple[TopicPartition, ...]) -> None:
        """Begin every partition where the store stands, whatever the group has committed; wait while it is away."""
        self._consumer = consumer
        for name in self._streams:
            await self._begin(name, consumer, [each for each in partitions if each.topic.startswith(f"{name}.")])

    async def _begin(self, name: str, consumer: Consumer, own: Sequence[TopicPartition]) -> None:
        stream, begin = self._streams[name], None
        while begin is None:
            try:
                begin = await stream.assigned((each.topic, each.partition) for each in own)
            except Unavailable as error:
                _LOG.warning("waiting for the online store", extra={"loop": name, "problem": str(error)})
                await asyncio.sleep(_RETRY_S)
        for each in own:
            self.admission.forget(each.topic, each.partition)
            consumer.kafka.seek(each, begin[each.topic, each.partition])
        if name in self._waits:
            self._waits.pop(name).cancel()
        behaviour = [each for each in own if not each.topic.endswith(f".{CATALOGUE}")]
        if behaviour:
            consumer.hold(*behaviour)
            wait = _release_after_catalogue(consumer, stream, behaviour)
            self._waits[name] = asyncio.create_task(wait, name=f"catalogue of {name} first")

    async def close(self) -> None:
        """End what waits."""
        for each in self._waits.values():
            each.cancel()
        await asyncio.gather(*self._waits.values(), return_exceptions=True)

    async def apply(self, events: list[Event]) -> None:
        """Apply a batch of any loops' events.

        Raises:
            Unavailable: a store does not answer; call again with the same events.
        """
        by_loop: dict[str, list[Event]] = {}
        for event in events:
            by_loop.setdefault(event.topic.partition(".")[0], []).append(event)
        for name, own in by_loop.items():
            try:
                await self._streams[name].apply(own)
            except Rewound as error:
                _LOG.warning("reading on from the store's fences", extra={"loop": name, "problem": str(error)})
                await self._rewind(name)

    async def _rewind(self, name: str) -> None:
        consumer = self._consumer
        if consumer is not None:
            own = [each for each in consumer.kafka.assignment() if each.topic.startswith(f"{name}.")]
            await self._begin(name, consumer, own)

    async def _note(self, batch: Batch, events: Sequence[Event]) -> None:
        stream = self._streams[next(iter(batch.ranges))[0].partition(".")[0]]
        name = stream.store.spec.loop
        arrivals = [event.arrival_time for event in events if event.arrival_time]
        if arrivals:
            freshness = instrument("gyre_features_freshness_seconds")
            for arrival in {min(arrivals), max(arrivals)}:
                freshness.observe(max(batch.applied_time - arrival, 0.0), loop=name)
        for source, count in Counter(event.topic for event in events).items():
            instrument("gyre_features_events_total").add(count, loop=name, topic=source)
        message = events_pb2.BatchApplied(
            loop=name, layout=stream.store.layout.hash, shard=batch.shard, batch=batch.number, events=batch.events
        )
        for (source, partition), (first, end) in batch.ranges.items():
            message.ranges.add(topic=source, partition=partition, first=first, end=end)
        message.newest_event_time.FromNanoseconds(int(batch.newest_event_time * 1e9))
        message.applied_time.FromNanoseconds(int(batch.applied_time * 1e9))
        self._producer.enqueue(topic(name, "features.applied"), message, key=str(batch.shard))


async def _release_after_catalogue(consumer: Consumer, stream: LoopStream, behaviour: Sequence[TopicPartition]) -> None:
    """Let behaviour flow once the catalogue, as long as it is now, stands in the store, whoever applies it."""
    ends: dict[TopicPartition, int] | None = None
    stand, since = None, time.monotonic()
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
        if progress != stand:
            stand, since = progress, time.monotonic()
        elif time.monotonic() - since > _PATIENCE_S:
            # The last records may be ones that nobody can apply, so that no fence ever passes them.
            _LOG.warning("the catalogue does not get on", extra={"loop": stream.store.spec.loop})
            break
        await asyncio.sleep(_POLL_S)
    consumer.release(*behaviour)
    _LOG.info("the catalogue is known", extra={"loop": stream.store.spec.loop})


async def _progress(
    consumer: Consumer, stream: LoopStream, ends: Iterable[TopicPartition]
) -> dict[TopicPartition, int]:
    """How far each partition of the catalogue is: by the fences, or where it is our own, by what was read."""
    own = consumer.kafka.assignment()
    shards = await stream.store.fences(stream.catalogue)
    progress = {each: min(fences[each.topic, each.partition] for fences in shards) for each in ends}
    for each in own.intersection(progress):
        # What was handed over is applied before the next batch is taken, so reading is as good.
        progress[each] = max(progress[each], await consumer.kafka.position(each))
    return progress
