"""What the stream and its store hold is bounded: keys by time, the worker by what Redis takes."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from gyre.events.v1 import behavior_pb2 as behavior
from gyre_core.features import Layout, Reader, Replay, RequestContext
from gyre_core.keys import KEYS
from gyre_core.keys import pattern as store_keys
from gyre_core.keys import prefix as key_prefix
from gyre_core.spec import LoopSpec, parse_loop
from gyre_core.topics import declared, topic
from gyre_features.online import OnlineStore
from gyre_features.stream.loop_stream import LoopStream, feature_event
from gyre_local.process import Process
from gyre_local.testing import eventually
from gyre_runtime.events import Event
from gyre_runtime.kafka import create_topics
from redis.asyncio import Redis

pytestmark = pytest.mark.adapter
BEGIN = 1_370_000_000.0
TTL_SPEC = """
version: 1
loop: {loop}
clock: replay
events: {{interactions: {{rating: {{value: {{min: 0, max: 10}}}}}}}}
items:
  fields:
    genres: {{kind: categories, values: [action, drama, comedy]}}
    price: {{kind: number}}
features:
  - {{name: popular, kind: decayed_count, scope: item, events: [rating], half_lives: [7d]}}
  - {{name: genre, kind: field, scope: item, field: genres, ttl: 90d}}
  - {{name: taste, kind: affinity, scope: user, field: genres, events: [rating], half_lives: [30d]}}
  - {{name: rating, kind: decayed_mean, scope: global, events: [rating], half_lives: [30d]}}
  - {{name: seen, kind: history, scope: user, events: [rating], length: 5}}
training: {{label: {{events: [rating], attribution_window: 30m}}}}
serving: {{fallback_feature: popular_7d, recommend: {{genre_field: genres}}}}
shards: {{kafka_partitions: 2, online_shards: 1}}
"""


async def _ignore(batch: object, events: object) -> None:
    pass


async def test_every_key_has_a_time_to_live(redis: Redis, spec: LoopSpec, history_of: Any) -> None:
    """Of a store that was used for all it can be, each key fits one declared family and goes some time."""
    own = parse_loop(TTL_SPEC.format(loop=spec.loop), source="test")
    store, history = OnlineStore(redis, own, Layout.compile(own)), history_of(own)
    stream = LoopStream(store, on_batch=_ignore)
    changed = behavior.ItemChanged(item_id="i0", fields={"price": behavior.FieldValue(number=1)})
    unknown = history.event("behavior.interactions", history.rating(0, 99), 60)
    await stream.apply(history.catalogue())
    await stream.apply([*history.ratings(60), unknown])
    await stream.apply([history.event("catalog.items", changed, 12, time=BEGIN + 30)])
    await store.renew_leases()
    await store.refuse_prepared_batches()
    families = {each.name: _pattern(each.pattern) for each in KEYS}
    found: dict[str, list[float]] = {}
    async for key in redis.scan_iter(store_keys(own.loop), count=1000):
        (name,) = [name for name, pattern in families.items() if pattern.fullmatch(key.decode())]
        found.setdefault(name, []).append(await redis.ttl(key))
    assert set(found) == set(families)
    for name, ttls in found.items():
        assert min(ttls) > 0, name


async def test_leases_are_renewed_while_their_layout_is_served(redis: Redis, spec: LoopSpec, history: Any) -> None:
    """What has no time to live of its own is kept by the stream; what has one, and what another layout has, goes."""
    other = parse_loop(TTL_SPEC.format(loop=spec.loop), source="test")
    stores = [OnlineStore(redis, each, Layout.compile(each)) for each in (spec, other)]
    for store in stores:
        await LoopStream(store, on_batch=_ignore).apply([*history.catalogue(), *history.ratings(20)])
    served, old = (key_prefix(spec.loop, store.layout.hash, shard=0) for store in stores)
    names = [key.decode() async for key in redis.scan_iter(store_keys(spec.loop), count=1000)]
    for name in names:
        await redis.expire(name, 1000)
    assert await stores[0].renew_leases() > 12
    left = {name: await redis.ttl(name) for name in names}
    renewed = {name.removeprefix(served) for name, ttl in left.items() if ttl > 89 * 86_400}
    assert {f"item:i{number}" for number in range(12)} | {"batch", "outbox", "popular"} <= renewed
    assert sum(name.startswith("fence:") for name in renewed) == 2
    assert sum(name.startswith("duplicates:") for name in renewed) == sum(f"{served}dup" in name for name in names) > 0
    assert not any(name.startswith(("user:", "global:", "folds:", old)) for name in renewed)
    await redis.expire(f"{served}item:i0", 1000)
    assert await stores[0].renew_leases() == 0
    assert await redis.ttl(f"{served}item:i0") <= 1000
    await redis.delete(f"{served}lease")
    await stores[0].renew_leases()
    assert await redis.ttl(f"{served}item:i0") > 1000


def _pattern(declared_pattern: str) -> re.Pattern[str]:
    """A declared pattern as a regular expression."""
    text = re.escape(declared_pattern).replace(re.escape("<entity kind>"), "(item|user|global)")
    text = text.replace(re.escape("<newest or before>"), "(newest|before)")
    text = text.replace(re.escape("<known or unknown>"), "(known|unknown)").replace(re.escape("<shard>"), r"\d+")
    text = re.sub(r"<[a-z\\ ]+>", "[^{}]+", text)
    # Categories of popular items follow the name of the family.
    return re.compile(f"{text}(:[^:]+)?" if declared_pattern.endswith("popular") else text)


async def test_a_store_that_does_not_answer_holds_the_stream_back(  # noqa: PLR0917 - fixtures
    kafka: str, own_redis: Process, spec: LoopSpec, layout: Layout, history: Any, produce: Any, start_process: Any
) -> None:
    """While Redis takes no writes the worker stops reading and does not grow; then it goes on and nothing is lost."""
    await create_topics(kafka, declared(spec))
    ratings = history.ratings(12_000)
    url = f"redis://127.0.0.1:{own_redis.recipe.ports['server']}/0"
    async with Redis.from_url(url) as redis:
        store = OnlineStore(redis, spec, layout)
        await produce([*history.catalogue(), *ratings[:8000]])
        stream = start_process("stream", GYRE_REDIS=url, GYRE_FEATURES_BATCH_EVENTS="20")
        await eventually(lambda: _applied(store, 1000), timeout_s=30, message="the stream is under way")
        await redis.client_pause(60_000, all=False)
        stood, resident = await _fence(store), _resident_mb(stream.pid)
        await produce(ratings[8000:])
        await eventually(lambda: "trying again" in stream.log.read_text(), timeout_s=30, message="the stream waits")
        assert await _fence(store) == stood < 8000
        assert _resident_mb(stream.pid) - resident < 32
        await redis.client_unpause()
        await eventually(lambda: _applied(store, len(ratings)), timeout_s=60, message="the stream has caught up")
        replay, reader, context = Replay(layout), Reader(layout), RequestContext(BEGIN + 20_000)
        replay.apply(feature_event(each) for each in [*history.catalogue(), *ratings])
        items = [f"i{number}" for number in range(12)]
        for user in ("u0", "u5"):
            values = await store.read(user, items)
            found, _ = reader.matrix(values.user, values.everyone, values.items, items, context)
            assert found == pytest.approx(replay.matrix(user, items, context)[0], rel=1e-5)


async def _fence(store: OnlineStore) -> int:
    """How many interactions stand in the store."""
    name, partitions = topic(store.spec.loop, "behavior.interactions"), range(store.spec.shards.kafka_partitions)
    return sum((await store.applied_offsets([(name, each) for each in partitions]))[0].values())


async def _applied(store: OnlineStore, count: int) -> bool:
    return await _fence(store) >= count


def _resident_mb(pid: int) -> float:
    """The memory of a process, MB (proc(5))."""
    (line,) = [each for each in Path(f"/proc/{pid}/status").read_text().splitlines() if each.startswith("VmRSS")]
    return int(line.split()[1]) / 1024


async def test_impressions_of_many_items_are_several_scripts(redis: Redis, counting_shown: LoopSpec) -> None:
    """A thousand items in each of 30 impressions: no script changes more than 20,000, and all of them count."""
    name, batches = topic(counting_shown.loop, "behavior.impressions"), list[list[Event]]()
    store = OnlineStore(redis, counting_shown, Layout.compile(counting_shown))

    async def note(_batch: object, events: Sequence[Event]) -> None:
        batches.append(list(events))

    stream = LoopStream(store, on_batch=note)
    await stream.assigned([(name, 0)])
    sent = [
        behavior.Impression(
            request_id=f"r{number}", user_id="u", item_ids=[f"{number}-{each}" for each in range(1000)], shown=1000
        )
        for number in range(30)
    ]
    await stream.apply(
        [
            Event(f"e{offset}", "shop", "", BEGIN, each, None, name, 0, offset, arrival_time=BEGIN)
            for offset, each in enumerate(sent)
        ]
    )
    assert [sum(each.message.shown for each in events) for events in batches] == [20_000, 10_000]
    values = await store.read("u", ["0-0", "29-999", "30-0"])
    assert [each is None for each in values.items] == [False, False, True]
