"""The stream on the real Kafka and Redis: every event counts once, whatever dies and however batches are cut."""

import itertools
import random
import signal
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from gyre.events.v1 import behavior_pb2 as behavior
from gyre.events.v1 import features_pb2
from gyre_core.features import Layout, Reader, Replay, RequestContext
from gyre_core.keys import pattern as store_keys
from gyre_core.spec import LoopSpec
from gyre_core.topics import dead_letter_topic, declared, topic
from gyre_features.online.store import OnlineStore
from gyre_features.stream.loop_stream import LoopStream, StoreLostState, feature_event
from gyre_local.process import Process
from gyre_local.testing import eventually
from gyre_runtime import GyreError, Unavailable
from gyre_runtime.events import Event, Record, message_types
from gyre_runtime.kafka import Producer, create_topics
from gyre_runtime.kafka.view import read_log, read_records
from redis.asyncio import Redis

pytestmark = pytest.mark.adapter
BEGIN = 1_370_000_000.0
SMALL = {"GYRE_FEATURES_BATCH_EVENTS": "20"}


async def _ignore(batch: object, events: Sequence[Event]) -> None:
    pass


def _matrices(read: Callable[[str, list[str], RequestContext], Any]) -> list[Any]:
    items, context = [f"i{number}" for number in range(12)], RequestContext(BEGIN + 4000)
    return [read(f"u{number}", items, context) for number in range(9)]


async def _assert_equal_to_replay(store: OnlineStore, events: Sequence[Event]) -> None:
    """What the store reads as is what a replay of the events, each applied once, reads as."""
    replay, reader = Replay(store.layout), Reader(store.layout)
    replay.apply(feature_event(event) for event in events)

    async def stored(user: str, items: list[str], context: RequestContext) -> Any:
        values = await store.read(user, items)
        return reader.matrix(values.user, values.everyone, values.items, items, context)[0]

    expected = _matrices(lambda user, items, context: replay.matrix(user, items, context)[0])
    for found, wanted in zip(_matrices(stored), expected, strict=True):
        assert await found == pytest.approx(wanted, rel=1e-5)


async def _applied(store: OnlineStore, suffix: str = "behavior.interactions") -> int:
    """How many records of a topic stand in the store, by its fences."""
    name, partitions = topic(store.spec.loop, suffix), range(store.spec.shards.kafka_partitions)
    return min(
        sum(applied_offsets.values())
        for applied_offsets in await store.applied_offsets([(name, each) for each in partitions])
    )


async def _until_applied(store: OnlineStore, count: int) -> None:
    async def reached() -> bool:
        try:
            return await _applied(store) >= count
        except Unavailable:
            return False

    await eventually(reached, timeout_s=60, message=f"{count} events were applied")


async def _are_applied(store: OnlineStore, suffix: str, count: int) -> bool:
    return await _applied(store, suffix) == count


@pytest.mark.parametrize("shards", [1, 3])
async def test_batches_of_any_boundaries_and_redeliveries_give_the_values_of_a_replay(
    redis: Redis, sharded: Callable[[int], LoopSpec], history_of: Any, shards: int
) -> None:
    """Overlapping batches, handed over by workers that do not know of each other, apply each event once."""
    spec = sharded(shards)
    store, history = OnlineStore(redis, spec, Layout.compile(spec)), history_of(spec)
    catalogue, ratings = history.catalogue(), history.ratings(300)
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


@pytest.mark.parametrize("shards", [1, 3])
async def test_a_producer_that_sends_twice_counts_once(
    redis: Redis, sharded: Callable[[int], LoopSpec], history_of: Any, shards: int
) -> None:
    """Records with the same source and id are one event: in a batch, across batches, and for every virtual shard."""
    spec = sharded(shards)
    store, history = OnlineStore(redis, spec, Layout.compile(spec)), history_of(spec)
    stream = LoopStream(store, on_batch=_ignore)
    ratings = [each._replace(arrival_time=BEGIN) for each in history.ratings(1500)]
    await stream.apply([*ratings, *(each._replace(offset=each.offset + 1500) for each in ratings[:100])])
    again = [each._replace(offset=each.offset + 1600) for each in ratings]
    await stream.apply([*again[:700], history.event("behavior.interactions", history.rating(1, 1), 2300)])
    other = history.event("behavior.interactions", history.rating(1, 1), 2300)
    await _assert_equal_to_replay(store, [*ratings, other])


async def test_an_item_changed_by_another_worker_is_read_again(
    redis: Redis, spec: LoopSpec, layout: Layout, history: Any
) -> None:
    """A worker that remembers items learns from its next batch that somebody else changed the catalogue."""
    store = OnlineStore(redis, spec, layout)
    first, second = LoopStream(store, on_batch=_ignore), LoopStream(store, on_batch=_ignore)
    await second.apply(history.catalogue())
    ratings = [history.event("behavior.interactions", history.rating(each, 0), each) for each in range(3)]
    await first.apply(ratings[:1])
    fields = {"genres": behavior.FieldValue(categories=behavior.Categories(values=["comedy"]))}
    message = behavior.ItemChanged(item_id="i0", fields=fields)
    changed = history.event("catalog.items", message, 12, time=BEGIN)
    await second.apply([changed])
    await first.apply(ratings[1:2])
    await first.apply(ratings[2:])
    replay = Replay(layout)
    replay.apply(feature_event(each) for each in [*history.catalogue(), changed, ratings[2]])
    assert (await store.read("u2", [])).user[16:] == replay.value("user", "u2")[16:]


async def _held(redis: Redis, loop: str) -> dict[bytes, Any]:
    """What every key of a loop holds; the members of a set, which Redis dumps in any order."""
    found = {}
    async for key in redis.scan_iter(store_keys(loop)):
        found[key] = await (redis.smembers(key) if await redis.type(key) == b"set" else redis.dump(key))
    return found


@pytest.mark.parametrize("target", ["outbox", "popular", "category", "shelf"])
async def test_a_key_of_another_type_leaves_no_half_of_a_batch(
    redis: Redis, spec: LoopSpec, layout: Layout, history: Any, target: str
) -> None:
    """A batch that Redis refuses for the type of one key changes none; once the key is gone, it counts once."""
    store = OnlineStore(redis, spec, layout)
    stream, catalogue, ratings = LoopStream(store, on_batch=_ignore), history.catalogue(), history.ratings(40)
    await stream.apply([*catalogue, *ratings[:20]])
    popular, category = store.names.popular(0)[:2]
    contributions = store.names.contributions(0, known=True)
    name = {"outbox": store.names.outbox(0), "popular": popular, "category": category, "shelf": contributions}[target]
    before = await redis.dump(name)
    await redis.set(name, "not what the script writes")
    held = await _held(redis, spec.loop)
    with pytest.raises(GyreError, match=r"STORE_REFUSED.*WRONGTYPE"):
        await stream.apply(ratings[20:])
    assert await _held(redis, spec.loop) == held
    await redis.delete(name)
    if before is not None:
        await redis.restore(name, 0, before)
    await LoopStream(store, on_batch=_ignore).apply(ratings[20:])
    await _assert_equal_to_replay(store, [*catalogue, *ratings])


async def test_what_nobody_published_comes_in_the_order_of_the_batches(
    redis: Redis, spec: LoopSpec, layout: Layout, history: Any
) -> None:
    """Batches that stand in the outbox are answered by ascending number, also from the tenth on."""
    store = OnlineStore(redis, spec, layout)
    stream = LoopStream(store, on_batch=_ignore, max_events=1)
    await stream.apply(history.ratings(11))
    assert [each.batch for each in await stream.unpublished()] == list(range(1, 12))


async def test_a_store_that_lost_events_says_so(redis: Redis, spec: LoopSpec, layout: Layout, history: Any) -> None:
    """Where the fences stand lower than they did, nothing is applied over the gap; from the fences on, all is."""
    store = OnlineStore(redis, spec, layout)
    stream, ratings = LoopStream(store, on_batch=_ignore), history.ratings(100)
    await stream.apply(ratings[:50])
    await redis.delete(*[key async for key in redis.scan_iter(store_keys(spec.loop))])
    with pytest.raises(StoreLostState):
        await stream.apply(ratings[50:])
    place = (topic(spec.loop, "behavior.interactions"), 0)
    assert await stream.assigned([place]) == {place: 0}
    await stream.apply(ratings)
    await _assert_equal_to_replay(store, ratings)


async def test_a_batch_that_a_dead_worker_did_not_tell_is_told_by_the_next(  # noqa: PLR0917 - fixtures
    kafka: str, redis: Redis, spec: LoopSpec, layout: Layout, history: Any, produce: Any, start_process: Any
) -> None:
    """Killed between the script and Kafka's acknowledgement, a worker leaves no gap in `features.applied`."""
    await create_topics(kafka, declared(spec))
    store, ratings = OnlineStore(redis, spec, layout), history.ratings(100)
    await produce(ratings)
    dead = LoopStream(store, on_batch=_ignore, max_events=20)
    # Its producer may spread the ratings over partitions as it likes: the dead worker had some of the first's.
    name, types = topic(spec.loop, "behavior.interactions"), message_types(behavior.Interaction)
    first = [event async for event in read_log(kafka, name, types) if event.partition == 0]
    await dead.apply(first[:30])
    unpublished = await dead.unpublished()
    assert [each.batch for each in unpublished] == [1, 2]
    worker = start_process("stream", **SMALL)

    async def published() -> list[features_pb2.BatchApplied] | None:
        found = await _published(kafka, spec)
        return found if sum(each.events for each in found) == len(ratings) else None

    found = await eventually(published, timeout_s=40, message="every batch was told")
    assert [each for each in found if each.batch <= 2] == unpublished
    assert [each.batch for each in found] == list(range(1, len(found) + 1))
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(15) == 0
    assert await store.outbox(0) == {}


async def _published(kafka: str, spec: LoopSpec) -> list[features_pb2.BatchApplied]:
    """The batches of `features.applied` by number; each may have been told more than once, in the same words."""
    types = message_types(features_pb2.BatchApplied)
    log = [event.message async for event in read_log(kafka, topic(spec.loop, "features.applied"), types)]
    by_number: dict[int, features_pb2.BatchApplied] = {}
    for each in log:
        assert by_number.setdefault(each.batch, each) == each
    return [by_number[number] for number in sorted(by_number)]


@pytest.mark.parametrize("spec", ["users"], indirect=True)
async def test_kills_and_rebalances_lose_nothing_and_double_nothing(  # noqa: PLR0917 - fixtures
    kafka: str, redis: Redis, spec: LoopSpec, layout: Layout, history: Any, produce: Any, start_process: Any
) -> None:
    """SIGKILL twice in the middle of a replay, and workers that come and go under load: each event counts once."""
    await create_topics(kafka, declared(spec))
    store = OnlineStore(redis, spec, layout)
    catalogue, people, ratings = history.catalogue(), history.people(400), history.ratings(3000)
    await produce([*catalogue, *people[:200], *ratings[:1500]])
    first = start_process("stream", **SMALL)
    await _until_applied(store, 40)
    first.kill()
    first.wait()
    assert await _applied(store) < 1500
    second, _third = start_process("stream", **SMALL), start_process("stream", **SMALL)
    await _until_applied(store, 1500)
    await produce([*people[200:], *ratings[1500:]])
    await _until_applied(store, 1600)
    second.kill()
    second.wait()
    start_process("stream", **SMALL)
    await _until_applied(store, 3000)
    await eventually(lambda: _are_applied(store, "catalog.users", 400), timeout_s=30, message="users are known")
    assert await _applied(store) == 3000
    await _assert_equal_to_replay(store, [*catalogue, *people, *ratings])

    async def published() -> bool:
        return sum(each.events for each in await _published(kafka, spec)) == len(catalogue) + len(people) + len(ratings)

    await eventually(published, timeout_s=20, message="every batch was told, those of the killed, too")


async def test_redis_away_and_back(  # noqa: PLR0917 - fixtures
    kafka: str, own_redis: Process, spec: LoopSpec, layout: Layout, history: Any, produce: Any, start_process: Any
) -> None:
    """While Redis is away the stream waits, back it goes on; what Redis forgot is read from Kafka once more."""
    await create_topics(kafka, declared(spec))
    url = f"redis://127.0.0.1:{own_redis.recipe.ports['server']}/0"
    catalogue, ratings = history.catalogue(), history.ratings(900)
    async with Redis.from_url(url) as redis:
        store = OnlineStore(redis, spec, layout)
        await produce([*catalogue, *ratings[:300]])
        stream = start_process("stream", GYRE_REDIS=url, **SMALL)
        await _until_applied(store, 300)
        own_redis.stop()
        await produce(ratings[300:600])
        await eventually(lambda: "trying again" in stream.log.read_text(), timeout_s=20, message="the stream waits")
        own_redis.start()
        await _until_applied(store, 600)
        await _assert_equal_to_replay(store, [*catalogue, *ratings[:600]])
        await redis.flushall()
        await produce(ratings[600:])
        await _until_applied(store, 900)
        await _assert_equal_to_replay(store, [*catalogue, *ratings])
        own_redis.stop()
        stream.send_signal(signal.SIGTERM)
        assert stream.wait(15) == 0
        late = start_process("stream", GYRE_REDIS=url)
        await eventually(lambda: "nothing is read" in late.log.read_text(), timeout_s=20)
        late.send_signal(signal.SIGTERM)
        assert late.wait(15) == 0


async def test_what_cannot_be_read_is_in_the_dead_letters_with_its_reason(  # noqa: PLR0917 - fixtures
    kafka: str, redis: Redis, spec: LoopSpec, layout: Layout, history: Any, produce: Any, start_process: Any
) -> None:
    """A poisoned record and a value out of range are dead-lettered with reason and rule; the rest is announced."""
    await create_topics(kafka, declared(spec))
    name = topic(spec.loop, "behavior.interactions")
    bad, *ratings = history.ratings(51)
    bad.message.value = 11
    async with Producer(kafka, source="test") as producer:
        await producer.send_record(name, Record(b"k", b"\xff\xff", [("ce_id", b"1")]))
    await produce([bad, *ratings])
    start_process("stream", **SMALL)
    reasons = await _reasons(kafka, dead_letter_topic(name), 2)
    assert sorted(reason for reason, _ in reasons) == ["NO_SOURCE", "VALUE_OUT_OF_RANGE"]
    assert ("VALUE_OUT_OF_RANGE", "rating value 11: must be 0 to 10") in reasons

    async def announced() -> bool:
        log = await _published(kafka, spec)
        _assert_no_overlap([each for batch in log for each in batch.ranges])
        return sum(batch.events for batch in log) == len(ratings)

    await eventually(announced, timeout_s=40, message="all batches were announced")
    await _assert_equal_to_replay(OnlineStore(redis, spec, layout), ratings)


def _assert_no_overlap(ranges: Sequence[features_pb2.OffsetRange]) -> None:
    spans = sorted((each.partition, each.first, each.end) for each in ranges)
    for before, after in itertools.pairwise(spans):
        assert before[0] < after[0] or before[2] <= after[1]


async def _reasons(kafka: str, name: str, count: int) -> list[tuple[str, str]]:
    consumer = AIOKafkaConsumer(bootstrap_servers=kafka, enable_auto_commit=False, auto_offset_reset="earliest")
    await consumer.start()
    try:
        consumer.assign([TopicPartition(name, 0)])
        found: list[tuple[str, str]] = []
        while len(found) < count:
            for records in (await consumer.getmany(timeout_ms=200)).values():
                for record in records:
                    headers = {key: value.decode() for key, value in record.headers}
                    found.append((headers["gyre_reason"], headers["gyre_error"]))
        return found
    finally:
        await consumer.stop()


async def test_what_redis_refuses_for_good_is_set_aside(  # noqa: PLR0917 - fixtures
    kafka: str, redis: Redis, spec: LoopSpec, layout: Layout, history: Any, produce: Any, start_process: Any
) -> None:
    """A write that Redis can never take is dead-lettered with its reason instead of being tried for ever."""
    await create_topics(kafka, declared(spec))
    store, ratings = OnlineStore(redis, spec, layout), history.ratings(6)
    refused = store.names.popular(0)[0]
    await redis.set(refused, "no sorted set of items")
    await produce(ratings[:3])
    start_process("stream", **SMALL)

    async def set_aside() -> bool:
        name = f"{topic(spec.loop, 'behavior.interactions')}.dlq"
        reasons = [dict(each.headers)["gyre_reason"] async for each in read_records(kafka, name)]
        return reasons == [b"STORE_REFUSED"] * 3

    await eventually(set_aside, timeout_s=40, message="what cannot be stored is set aside")
    await redis.delete(refused)
    await produce(ratings[3:])
    await _until_applied(store, 6)
