"""The stream on the real Kafka and Redis: every event counts once, whatever dies and however batches are cut."""

import itertools
import random
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from gyre.events.v1 import behavior_pb2 as behavior
from gyre.events.v1 import features_pb2
from gyre_core.features import Layout, Reader, Replay, RequestContext
from gyre_core.spec import LoopSpec
from gyre_core.topics import dead_letter_topic, declared, topic
from gyre_features.online.store import OnlineStore
from gyre_features.online.stream import LoopStream, feature_event
from gyre_local.testing import eventually
from gyre_runtime.events import Event, Record, encode, message_types
from gyre_runtime.kafka import Producer, create_topics
from gyre_runtime.kafka.view import read_log
from redis.asyncio import Redis

Start = Callable[..., "subprocess.Popen[bytes]"]
pytestmark = pytest.mark.adapter
BEGIN = 1_370_000_000.0
GENRES = ("action", "drama", "comedy")


def _catalogue(spec: LoopSpec, items: int) -> list[Event]:
    events = []
    for number in range(items):
        fields = {"genres": behavior.FieldValue(categories=behavior.Categories(values=[GENRES[number % 3]]))}
        message = behavior.ItemChanged(item_id=f"i{number}", fields=fields)
        events.append(_event(spec, "catalog.items", message, number, time=BEGIN - 1))
    return events


def _ratings(spec: LoopSpec, count: int, *, seed: int = 1) -> list[Event]:
    draw = random.Random(seed)
    return [
        _event(
            spec,
            "behavior.interactions",
            behavior.Interaction(
                user_id=f"u{draw.randrange(9)}", item_id=f"i{draw.randrange(12)}", type="rating", value=7
            ),
            number,
            time=BEGIN + number,
        )
        for number in range(count)
    ]


def _event(spec: LoopSpec, suffix: str, message: object, offset: int, *, time: float) -> Event:
    return Event(f"{suffix}-{offset}", "test", "", time, message, None, topic(spec.loop, suffix), 0, offset, "k", time)


async def _ignore(batch: object, events: Sequence[Event]) -> None:
    pass


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    """A client of the session's Redis."""
    async with Redis.from_url(redis_url) as client:
        yield client


async def _assert_equal_to_replay(store: OnlineStore, events: Sequence[Event]) -> None:
    """What the store reads as is what a replay of the events, each applied once, reads as."""
    replay = Replay(store.layout)
    replay.apply(feature_event(event) for event in events)
    items, context = [f"i{number}" for number in range(12)], RequestContext(BEGIN + 2000)
    for user in (f"u{number}" for number in range(9)):
        values = await store.read(user, items)
        matrix, _ = Reader(store.layout).matrix(values.user, values.everyone, values.items, items, context)
        expected, _ = replay.matrix(user, items, context)
        assert matrix == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("shards", [1, 3])
async def test_batches_of_any_boundaries_and_redeliveries_give_the_values_of_a_replay(
    redis: Redis, sharded: Callable[[int], LoopSpec], shards: int
) -> None:
    """Overlapping batches, handed over by workers that do not know of each other, apply each event once."""
    spec = sharded(shards)
    store = OnlineStore(redis, spec, Layout.compile(spec))
    catalogue, ratings = _catalogue(spec, 12), _ratings(spec, 300)
    first, second = LoopStream(store, on_batch=_ignore), LoopStream(store, on_batch=_ignore)
    await first.apply(catalogue)
    draw = random.Random(5)
    end = 0
    while end < len(ratings):
        begin = max(0, end - draw.randrange(40))
        end = min(len(ratings), end + draw.randrange(1, 60))
        await draw.choice([first, second]).apply(ratings[begin:end])
    await second.apply(ratings)
    await _assert_equal_to_replay(store, [*catalogue, *ratings])


async def test_a_producer_that_sends_twice_counts_once(redis: Redis, spec: LoopSpec, layout: Layout) -> None:
    """Two records with the same source and id are one event, within a batch and across batches."""
    store = OnlineStore(redis, spec, layout)
    stream = LoopStream(store, on_batch=_ignore)
    one = _ratings(spec, 1)[0]
    await stream.apply([one, one._replace(offset=1)])
    await stream.apply([one._replace(offset=2)])
    popular = await store.popular(10)
    expected = BEGIN / (7 * 86400)
    assert popular == [(one.message.item_id, pytest.approx(expected))]


async def _produce(kafka: str, events: Sequence[Event]) -> None:
    async with Producer(kafka, source="test") as producer:
        for event in events:
            record = encode(event.message, source=event.source, id=event.id, time=event.time, key="k")
            await producer.send_record(event.topic, record)


async def test_a_killed_stream_loses_nothing_and_doubles_nothing(
    kafka: str, redis: Redis, spec: LoopSpec, layout: Layout, start_process: Start
) -> None:
    """SIGKILL in the middle of a replay, and a restart, end with each event counted once."""
    await create_topics(kafka, declared(spec))
    store = OnlineStore(redis, spec, layout)
    catalogue, ratings = _catalogue(spec, 12), _ratings(spec, 1500)
    await _produce(kafka, [*catalogue, *ratings[:700]])
    place = (topic(spec.loop, "behavior.interactions"), 0)

    async def applied() -> int:
        fences = (await store.fences([(place[0], 0), (place[0], 1)]))[0]
        return sum(fences.values())

    victim = start_process("stream", GYRE_FEATURES_BATCH_EVENTS="20")
    await eventually(lambda: _reached(applied, 40), timeout_s=40, message="the stream began")
    victim.kill()
    victim.wait()
    assert await applied() > 0
    await _produce(kafka, ratings[700:])
    start_process("stream", GYRE_FEATURES_BATCH_EVENTS="20")
    await eventually(lambda: _reached(applied, 1500), timeout_s=60, message="the stream caught up")
    await _assert_equal_to_replay(store, [*catalogue, *ratings])


async def _reached(count: Callable[[], Awaitable[int]], wanted: int) -> bool:
    return await count() >= wanted


async def test_what_cannot_be_read_is_in_the_dead_letters_with_its_reason(
    kafka: str, redis: Redis, spec: LoopSpec, layout: Layout, start_process: Start
) -> None:
    """A poisoned record and a value out of range are dead-lettered with reason and rule; what follows is applied."""
    await create_topics(kafka, declared(spec))
    name = topic(spec.loop, "behavior.interactions")
    good, bad = _ratings(spec, 2)
    bad.message.value = 11
    async with Producer(kafka, source="test") as producer:
        await producer.send_record(name, Record(b"k", b"\xff\xff", [("ce_id", b"1")]))
    await _produce(kafka, [bad, good])
    start_process("stream")
    store = OnlineStore(redis, spec, layout)

    async def applied() -> bool:
        return bool(await store.popular(5))

    await eventually(applied, timeout_s=40, message="the good event was applied")
    reasons = await _reasons(kafka, dead_letter_topic(name))
    assert [reason for reason, _ in reasons] == ["NO_SOURCE", "VALUE_OUT_OF_RANGE"]
    assert reasons[1][1] == "rating value 11: must be 0 to 10"


async def _reasons(kafka: str, name: str) -> list[tuple[str, str]]:
    consumer = AIOKafkaConsumer(bootstrap_servers=kafka, enable_auto_commit=False, auto_offset_reset="earliest")
    await consumer.start()
    try:
        consumer.assign([TopicPartition(name, 0)])
        found: list[tuple[str, str]] = []
        while len(found) < 2:
            for records in (await consumer.getmany(timeout_ms=200)).values():
                for record in records:
                    headers = {key: value.decode() for key, value in record.headers}
                    found.append((headers["gyre_reason"], headers["gyre_error"]))
        return found
    finally:
        await consumer.stop()


async def test_every_batch_is_announced_with_its_offsets(
    kafka: str, redis: Redis, spec: LoopSpec, start_process: Start
) -> None:
    """features.applied names the offset ranges of each batch, without a gap."""
    await create_topics(kafka, declared(spec))
    ratings = _ratings(spec, 50)
    await _produce(kafka, ratings)
    start_process("stream", GYRE_FEATURES_BATCH_EVENTS="20")

    async def ranges() -> int:
        types = message_types(features_pb2.BatchApplied)
        log = [event.message async for event in read_log(kafka, topic(spec.loop, "features.applied"), types)]
        spans = sorted((each.first, each.end) for batch in log for each in batch.ranges)
        assert all(end == first for (_, end), (first, _) in itertools.pairwise(spans))
        return bool(spans) and spans[-1][1] == len(ratings)

    await eventually(ranges, timeout_s=40, message="all batches were announced")
