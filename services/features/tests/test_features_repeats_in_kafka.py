"""A producer's repeats through Kafka and the stream's process, which stands still between them, or loses its Redis."""

from typing import Any

import pytest
from gyre.events.v1 import behavior_pb2 as behavior
from gyre_core.features import Layout, Reader, RequestContext
from gyre_core.keys import pattern as store_keys
from gyre_core.spec import LoopSpec
from gyre_core.topics import declared, topic
from gyre_features.online.store import OnlineStore
from gyre_local.testing import eventually
from gyre_runtime.kafka import Producer, create_topics, read_records
from redis.asyncio import Redis

pytestmark = pytest.mark.adapter
BEGIN = 1_370_000_000.0
CLICKS = "behavior.interactions"
WINDOW_S = 10


def _window(milliseconds: int) -> int:
    return milliseconds // 1000 // WINDOW_S


class _Clicks:
    """One item's clicks on their way through Kafka and the stream's process.

    Args:
        kafka: bootstrap servers.
        spec: the loop.
        redis: the store's.
        start: starts a process.
    """

    def __init__(self, kafka: str, spec: LoopSpec, redis: Redis, start: Any) -> None:
        self.kafka, self.spec, self.name, self._start = kafka, spec, topic(spec.loop, CLICKS), start
        self.store, self.sent = OnlineStore(redis, spec, Layout.compile(spec)), 0

    def start(self) -> Any:
        """Start the stream."""
        return self._start("stream", GYRE_FEATURES_DUPLICATES_S=str(WINDOW_S))

    async def send(self, producer: Producer, id_: str) -> None:
        """Send a click."""
        message = behavior.Interaction(user_id="u1", item_id="i1", type="rating", value=7)
        await producer.send(self.name, message, key="u1", id=id_, time=BEGIN)
        self.sent += 1

    async def appended(self) -> list[int]:
        """When Kafka appended the clicks, unix milliseconds."""
        return [each.timestamp async for each in read_records(self.kafka, self.name)]

    async def applied(self) -> None:
        """Wait until the store holds what was sent."""
        places = [(self.name, number) for number in range(self.spec.shards.kafka_partitions)]

        async def reached() -> bool:
            (offsets,) = await self.store.applied_offsets(places)
            return sum(offsets.values()) == self.sent

        await eventually(reached, timeout_s=60, message="what was sent is applied")

    async def counted(self) -> float:
        """How many clicks count."""
        values, layout = await self.store.read("nobody", ["i1"]), self.store.layout
        reader, context = Reader(layout), RequestContext(BEGIN)
        matrix, _ = reader.matrix(values.user, values.everyone, values.items, ["i1"], context)
        return round(float(matrix[0][layout.columns.index("popular_7d")]), 3)

    async def until_window(self, producer: Producer, window: int) -> None:
        """Send clicks of ids of their own until Kafka appends one in a window or after it."""

        async def reached() -> bool:
            await self.send(producer, f"tick-{self.sent}")
            return _window((await self.appended())[-1]) >= window

        await eventually(reached, timeout_s=120, message="the log reaches another window")


@pytest.fixture
async def clicks(kafka: str, spec: LoopSpec, redis: Redis, start_process: Any) -> _Clicks:
    """Clicks of the loop in Kafka, and its stream."""
    await create_topics(kafka, declared(spec))
    return _Clicks(kafka, spec, redis, start_process)


async def test_a_repeat_counts_once_though_the_stream_stood_still_between(clicks: _Clicks) -> None:
    """A producer's retry right behind its event is dropped, also by a stream that reads it three windows later."""
    stream = clicks.start()
    async with Producer(clicks.kafka, source="shop") as producer:
        await clicks.send(producer, "the stream is there")
        await clicks.applied()
        await clicks.send(producer, "sent twice")
        await clicks.applied()
        stream.kill()
        stream.wait()
        await clicks.send(producer, "sent twice")
        _, first, again = await clicks.appended()
        assert again - first <= 1000 * WINDOW_S
        await clicks.until_window(producer, _window(first) + 3)
    others = clicks.sent - 2
    clicks.start()
    await clicks.applied()
    assert await clicks.counted() == 1 + others


async def test_a_rebuilt_store_counts_what_counted(clicks: _Clicks, redis: Redis) -> None:
    """An id that comes again beyond two windows counts live, and where a lost Redis is read from Kafka again."""
    stream = clicks.start()
    async with Producer(clicks.kafka, source="shop") as producer:
        await clicks.send(producer, "comes again")
        await clicks.applied()
        (first,) = await clicks.appended()
        await clicks.until_window(producer, _window(first) + 2)
        await clicks.send(producer, "comes again")
        await clicks.applied()
    live = await clicks.counted()
    assert live == clicks.sent
    stream.kill()
    stream.wait()
    async for key in redis.scan_iter(store_keys(clicks.spec.loop), count=1000):
        await redis.delete(key)
    clicks.start()
    await clicks.applied()
    assert await clicks.counted() == live
