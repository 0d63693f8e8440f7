"""One worker of the stream: every loop's events to its store, from the store's fences on, the catalogue first."""

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError
from gyre.events.v1.features_pb2 import BatchApplied
from gyre_core.topics import topic
from gyre_runtime import Unavailable, instrument
from gyre_runtime.admission import Admission
from gyre_runtime.events import Event
from gyre_runtime.kafka import Consumer, Producer

from gyre_features.online.store import OnlineStore
from gyre_features.stream.loop_stream import LoopStream, Rewound
from gyre_features.stream.outbox import identity_of

CATALOGUE = "catalog.items"
_POLL_S = 0.05
_PATIENCE_S = 10.0
_RETRY_S = 0.5
_TELLING_S = 5.0
_LOG = logging.getLogger(__name__)


class StreamWorker:
    """Hands each loop its events, seeks on assignment, and holds behaviour back until the catalogue is known."""

    def __init__(
        self,
        stores: Iterable[OnlineStore],
        producer: Producer,
        *,
        admission: Admission,
        most_events: int,
        forgotten: Callable[[Event], bool] = lambda _event: False,
    ) -> None:
        self._producer = producer
        self._streams = {
            store.spec.loop: LoopStream(store, on_batch=self._note, most_events=most_events, forgotten=forgotten)
            for store in stores
        }
        self._admission = admission
        self._consumer: Consumer | None = None
        self._waits: dict[str, asyncio.Task[None]] = {}
        self._refused: list[BatchApplied] = []

    async def assigned(self, consumer: Consumer, partitions: tuple[TopicPartition, ...]) -> None:
        """Begin every partition where the store stands, whatever the group has committed; wait while it is away."""
        self._consumer = consumer
        for name in self._streams:
            await self._begin(name, consumer, [each for each in partitions if each.topic.startswith(f"{name}.")])

    async def _begin(self, name: str, consumer: Consumer, own: Sequence[TopicPartition]) -> None:
        stream, begin, untold = self._streams[name], None, list[BatchApplied]()
        while begin is None:
            try:
                untold = await stream.untold()
                begin = await stream.assigned((each.topic, each.partition) for each in own)
            except Unavailable as error:
                _LOG.warning("waiting for the online store", extra={"loop": name, "problem": str(error)})
                await asyncio.sleep(_RETRY_S)
        for batch in untold:
            self._tell(batch)
        for each in own:
            self._admission.start(each.topic, each.partition)
            consumer.kafka.seek(each, begin[each.topic, each.partition])
        if name in self._waits:
            self._waits.pop(name).cancel()
        behaviour = [each for each in own if not each.topic.endswith(f".{CATALOGUE}")]
        if behaviour:
            consumer.hold(*behaviour)
            wait = _release_after_catalogue(consumer, stream, behaviour)
            self._waits[name] = asyncio.create_task(wait, name=f"catalogue of {name} first")

    async def close(self) -> None:
        """End what waits, and let Kafka take what is still to be told; what it does not take, the next start tells."""
        for each in self._waits.values():
            each.cancel()
        await asyncio.gather(*self._waits.values(), return_exceptions=True)
        with contextlib.suppress(TimeoutError, Unavailable):
            async with asyncio.timeout(_TELLING_S):
                await self._producer.flush()
                for stream in self._streams.values():
                    await stream.clear_outbox()

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

    async def _note(self, batch: BatchApplied, events: Sequence[Event]) -> None:
        arrivals = [event.arrival_time for event in events if event.arrival_time]
        if arrivals:
            applied_time = batch.applied_time.ToNanoseconds() / 1e9
            freshness = instrument("gyre_features_freshness_seconds")
            for arrival in {min(arrivals), max(arrivals)}:
                freshness.observe(max(applied_time - arrival, 0.0), loop=batch.loop)
        for source, count in Counter(event.topic for event in events).items():
            instrument("gyre_features_events_total").add(count, loop=batch.loop, topic=source)
        again, self._refused = self._refused, []
        for each in (*again, batch):
            self._tell(each)

    def _tell(self, batch: BatchApplied) -> None:
        """Send a batch to `features.applied`; until Kafka has it, it stands in the store's outbox."""

        def settled(arrived: bool) -> None:
            if arrived:
                self._streams[batch.loop].told(batch)
            else:
                self._refused.append(batch)

        name, time_ns = topic(batch.loop, "features.applied"), batch.applied_time.ToNanoseconds()
        key, id_ = str(batch.shard), identity_of(batch)
        if not self._producer.enqueue(name, batch, key=key, time=time_ns / 1e9, id=id_, on_settled=settled):
            settled(arrived=False)


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
