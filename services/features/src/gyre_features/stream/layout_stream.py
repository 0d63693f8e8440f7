"""One layout's stream: a consumer group of its own, and how far its store is."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from aiokafka import TopicPartition
from gyre_core.topics import is_compacted
from gyre_runtime.checkpoints import Place
from gyre_runtime.kafka import Consumer, ConsumerWork

from gyre_features.online.store import OnlineStore
from gyre_features.stream.worker import CATALOGUE, StreamWorker

_ROUND_S, _MAX_ROUNDS = 5.0, 10
"""A layout is filled once what Kafka held at a moment was applied within so long after it, or in so many rounds."""
_COMPACTED_AFTER_S = 600.0
"""Kafka compacts closed segments alone, so that what is younger is all there, but where a segment is full sooner."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the filling of a layout is.

    Attributes:
        filled: count of offsets, over all topic partitions, that its store has applied.
        total: count of those that it is to apply before it is filled.
        is_filled: whether it is, and now only follows Kafka.
    """

    filled: int
    total: int
    is_filled: bool


@dataclass
class LayoutStream:
    """Applies a loop's events to one layout.

    Attributes:
        store: of the layout.
        worker: what applies events.
        consumer: a member of the layout's own group.
        topics: full names of those that the consumer reads.
    """

    store: OnlineStore
    worker: StreamWorker
    consumer: Consumer
    topics: Sequence[str]
    _ends: Mapping[TopicPartition, int] = field(default_factory=dict, init=False)
    _since: float = field(default=0.0, init=False)
    _rounds: int = field(default=0, init=False)

    def work(self, ready: Callable[[], Awaitable[object]]) -> ConsumerWork:
        """The work that applies events, not started: it begins once `ready` has returned."""
        return ConsumerWork(self.consumer, self.worker.apply, ready=ready, close=self.worker.close)

    @property
    def is_leader(self) -> bool:
        """Whether this member of the group, which has the catalogue's first partition, says how far the layout is."""
        catalogue = TopicPartition(f"{self.store.spec.loop}.{CATALOGUE}", 0)
        return self.consumer.has_joined and catalogue in self.consumer.kafka.assignment()

    async def progress(self) -> Progress:
        """How far the layout is, for one caller that asks until it is filled.

        The store is compared with the ends that the topics had a moment ago, since they move on under traffic. Once it
        reaches them, it is filled if that took little time; otherwise the next ends are waited for.

        Raises:
            Unavailable: the store does not answer.
            KafkaError: Kafka does not.
        """
        if not self._ends:
            await self._take_ends()
        shards = await self.store.checkpoints(list(self._ends))
        held = {each: min(found[each].kafka_offset for found in shards) for each in self._ends}
        filled = sum(min(held[each], end) for each, end in self._ends.items())
        total = sum(self._ends.values())
        if any(held[each] < end for each, end in self._ends.items()):
            return Progress(filled, total, is_filled=False)
        if time.monotonic() - self._since <= _ROUND_S or self._rounds >= _MAX_ROUNDS:
            return Progress(total, total, is_filled=True)
        await self._take_ends()
        return Progress(filled, max(total, sum(self._ends.values())), is_filled=False)

    async def _take_ends(self) -> None:
        kafka = self.consumer.kafka
        count = self.consumer.partition_count
        partitions = [TopicPartition(name, number) for name in self.topics for number in range(count(name))]
        self._ends, self._since = await kafka.end_offsets(partitions), time.monotonic()
        self._rounds += 1


async def is_gone_from_kafka(consumer: Consumer, store: OnlineStore, places: Sequence[Place]) -> bool:
    """Whether Kafka has deleted records of some topic partition that the store has not applied yet, by their offsets.

    What compaction took out is not noticed; see `compacted_places`.

    Raises:
        Unavailable: the store does not answer.
        KafkaError: Kafka does not.
    """
    shards = await store.checkpoints(places)
    starts = await consumer.kafka.beginning_offsets([TopicPartition(*place) for place in places])
    return any(min(found[each].kafka_offset for found in shards) < start for each, start in starts.items())


async def compacted_places(consumer: Consumer, store: OnlineStore, places: Sequence[Place]) -> list[Place]:
    """Those of some topic partitions that a store has no checkpoint of and Kafka may have compacted, by their age.

    Only partitions of compacted topics; a store never had these, or lost them.

    A store with a checkpoint of a partition reads on in Kafka from there, so that what is refused gets its dead letter.

    Raises:
        Unavailable: the store does not answer.
        KafkaError: Kafka does not.
    """
    compacted = [place for place in places if is_compacted(place[0])]
    shards = await store.checkpoints(compacted)
    wanted = [TopicPartition(*place) for place in compacted if any(not found[place].offset for found in shards)]
    if not wanted:
        return []
    ends = await consumer.kafka.end_offsets(wanted)
    young_ms = round((time.time() - _COMPACTED_AFTER_S) * 1000)
    young = await consumer.kafka.offsets_for_times(dict.fromkeys(wanted, young_ms))
    found = []
    for each in wanted:
        first = young.get(each)
        old_until = ends[each] if first is None else min(first.offset, ends[each])
        if old_until > 0:
            found.append((each.topic, each.partition))
    return found
