"""The stream on the real Redis: any order within the bounds, any crash and any redelivery give the same features."""

import asyncio
import itertools
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from gyre.events.v1 import behavior_pb2 as behavior
from gyre.events.v1.features_pb2 import BatchApplied
from gyre_core.features import FieldsChanged, Layout, Reader, Replay, RequestContext, batch_of
from gyre_core.keys import pattern as store_keys
from gyre_core.spec import LoopSpec, parse_loop
from gyre_core.topics import topic
from gyre_features.online import OnlineStore, Write
from gyre_features.parity import AppliedBatch, BatchReplay, ValueKey
from gyre_features.stream.loop_stream import LoopStream, feature_event
from gyre_runtime import Unavailable
from gyre_runtime.events import Event
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

pytestmark = pytest.mark.adapter
START = 1_365_000_000.0
HOUR = 3600.0
ITEMS, USERS = [f"i{number}" for number in range(4)], [f"u{number}" for number in range(3)]
GENRES = ["action", "drama", "comedy"]
SPEC = """
version: 1
loop: permutations
clock: replay
events:
  max_lateness: 1h
  max_field_lateness: 1h
  interactions: {click: {}, rating: {value: {min: -5, max: 5}}}
items:
  fields:
    genres: {kind: categories, values: [action, drama, comedy]}
    price: {kind: number}
features:
  - {name: popular, kind: decayed_count, scope: item, events: [click], half_lives: [1d]}
  - {name: taste, kind: affinity, scope: user, field: genres, events: [click], half_lives: [1d]}
  - {name: liked, kind: decayed_mean, scope: user, by: genres, events: [rating], half_lives: [7d]}
  - {name: ctr, kind: decayed_rate, scope: global, by: genres, events: [click], per: [impression], half_lives: [7d]}
  - {name: hourly, kind: windowed_count, scope: user, events: [click], windows: [1h]}
  - {name: seen, kind: history, scope: user, events: [click], length: 4, field: genres}
  - {name: genre, kind: field, scope: item, field: genres}
training: {label: {events: [click], attribution_window: 30m}}
shards: {kafka_partitions: 2, online_shards: SHARDS}
"""
SPECS = {shards: parse_loop(SPEC.replace("SHARDS", str(shards)), source="test") for shards in (1, 2)}
LAYOUTS = {shards: Layout.compile(spec) for shards, spec in SPECS.items()}
_loops = itertools.count()


class Crashing(OnlineStore):
    """A store on which calls of the script fail: before they did anything, or after they did all of it."""

    failures: list[str | None]

    async def apply(self, shard: int, write: Write) -> Any:
        """Fail as planned."""
        failure = self.failures.pop(0) if self.failures else None
        if failure == "before":
            raise Unavailable("TEST", "the call did not arrive")
        outcome = await super().apply(shard, write)
        if failure == "after":
            raise Unavailable("TEST", "the answer did not arrive")
        return outcome


def _events(draw: Any) -> list[Event]:
    """Behaviour and catalogue of an hour in the order of time, with their partitions but without offsets."""
    at = st.integers(0, 59).map(lambda minute: START + 60.0 * minute)
    item, user = st.sampled_from(ITEMS), st.sampled_from(USERS)
    click = st.builds(lambda u, i: behavior.Interaction(user_id=u, item_id=i, type="click"), user, item)
    value = st.integers(-5, 5)
    rating = st.builds(
        lambda u, i, v: behavior.Interaction(user_id=u, item_id=i, type="rating", value=v), user, item, value
    )
    shown = st.lists(item, min_size=1, max_size=3)
    impression = st.builds(lambda u, i: behavior.Impression(user_id=u, item_ids=i, shown=len(i)), user, shown)
    change = st.builds(_change, item, st.lists(st.sampled_from(GENRES), unique=True, max_size=2))
    messages = draw(st.lists(st.tuples(at, click | rating | impression | change), min_size=1, max_size=30))
    return [_event(number, time, message) for number, (time, message) in enumerate(messages)]


def _change(item: str, genres: Sequence[str]) -> behavior.ItemChanged:
    fields = {"genres": behavior.FieldValue(categories=behavior.Categories(values=genres))}
    return behavior.ItemChanged(item_id=item, fields=fields)


def _event(number: int, time: float, message: Any) -> Event:
    is_change = isinstance(message, behavior.ItemChanged)
    suffix = {"Interaction": "interactions", "Impression": "impressions"}.get(type(message).__name__)
    name = "catalog.items" if is_change else f"behavior.{suffix}"
    key = message.item_id if is_change else message.user_id
    if isinstance(message, behavior.Impression):
        message.request_id = f"r{number}"  # two answers are two requests
    return Event(f"e{number}", "test", "", time, message, None, name, ord(key[-1]) % 2, 0, key)


def _log(loop: str, events: Sequence[Event]) -> dict[tuple[str, int], list[Event]]:
    """The events by topic partition, in the order in which they came."""
    log: dict[tuple[str, int], list[Event]] = {}
    for event in events:
        place = (topic(loop, event.topic), event.partition)
        own = log.setdefault(place, [])
        own.append(event._replace(topic=place[0], offset=len(own)))
    return log


async def _deliver(redis: Redis, spec: LoopSpec, layout: Layout, log: dict[Any, list[Event]], draw: Any) -> OnlineStore:
    """Hand everything to workers that die, come back, take over from one another, and get things again."""
    store = Crashing(redis, spec, layout)
    store.failures = draw(st.lists(st.sampled_from([None, None, None, "before", "after"]), max_size=12))
    size, again = st.integers(1, 6), st.integers(0, 3)
    workers: list[LoopStream] = []
    at = dict.fromkeys(log, 0)
    while any(at[place] < len(events) for place, events in log.items()):
        if not workers or draw(st.integers(0, 4)) == 0:
            workers = [*workers[-1:], LoopStream(store, on_batch=_ignore, max_events=draw(size))]
            at = await workers[-1].assigned(log)
        batch = []
        for place in draw(st.permutations(list(log))):
            begin, end = max(0, at[place] - draw(again)), at[place] + draw(size)
            batch += log[place][begin:end]
        try:
            await draw(st.sampled_from(workers)).apply(batch)
        except Unavailable:
            workers = []
            continue
        for event in batch:
            place = (event.topic, event.partition)
            at[place] = max(at[place], event.offset + 1)
    return store


async def _ignore(batch: object, events: Sequence[Event]) -> None:
    pass


async def _features(store: OnlineStore) -> tuple[np.ndarray, list[Any]]:
    """Everybody's features of all items, and their histories."""
    reader, context = Reader(store.layout), RequestContext(START + HOUR)
    matrices, histories = [], []
    for user in USERS:
        values = await store.read(user, ITEMS)
        matrices.append(reader.matrix(values.user, values.everyone, values.items, ITEMS, context)[0])
        histories.append(store.layout.history(values.user))
    return np.stack(matrices), histories


async def _case(url: str, shards: int, events: Sequence[Event], draw: Any) -> tuple[np.ndarray, list[Any]]:
    spec = SPECS[shards].model_copy(update={"loop": f"permutations-{next(_loops)}"})
    async with Redis.from_url(url) as redis:
        try:
            return await _features(await _deliver(redis, spec, LAYOUTS[shards], _log(spec.loop, events), draw))
        finally:
            found = [key async for key in redis.scan_iter(store_keys(spec.loop), count=10_000)]
            if found:
                await redis.delete(*found)


@given(data=st.data(), shards=st.sampled_from([1, 1, 2]))
@settings(max_examples=60, deadline=None)
def test_any_order_any_crash_and_any_redelivery_give_what_the_order_of_time_gives(
    redis_url: str, data: st.DataObject, shards: int
) -> None:
    """Unknown items, changed items, repeats by the producer and by Kafka: features to 1e-5, histories exactly."""
    events = _events(data.draw)
    repeats = data.draw(st.lists(st.sampled_from(events), max_size=3))
    arrived = data.draw(st.permutations([*events, *repeats]))
    found, histories = asyncio.run(_case(redis_url, shards, arrived, data.draw))
    replay, context = Replay(LAYOUTS[shards]), RequestContext(START + HOUR)
    # Of two versions of one time the later in the log stands, so these keep the order that they came in.
    # A version that is sent again is the later in the log; what users do counts once, where it came first.
    first = {event.id: place for place, event in reversed([*enumerate(arrived)])}
    last = {event.id: place for place, event in enumerate(arrived)}
    came = sorted(events, key=lambda event: (last if "catalog" in event.topic else first)[event.id])
    ordered = sorted(map(feature_event, came), key=lambda event: (event.time, not isinstance(event, FieldsChanged)))
    replay.apply(ordered)
    wanted = np.stack([replay.matrix(user, ITEMS, context)[0] for user in USERS])
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    assert histories == [LAYOUTS[shards].history(replay.value("user", user)) for user in USERS]


async def test_workers_that_change_items_and_fold_events_at_once_agree(redis: Redis) -> None:
    """One worker has the catalogue, two have behaviour, none waits for another: as in the order of time."""
    spec, layout = SPECS[1].model_copy(update={"loop": "permutations-at-once"}), LAYOUTS[1]
    chance = random.Random(4)
    made = [
        (START + 6.0 * number, chance.choice([_click, _click, _click, _some_change])(chance)) for number in range(600)
    ]
    log = _log(spec.loop, [_event(number, time, message) for number, (time, message) in enumerate(made)])
    store = OnlineStore(redis, spec, layout)

    async def work(places: Sequence[Any]) -> None:
        worker = LoopStream(store, on_batch=_ignore, max_events=8)
        await worker.assigned(places)
        for first in range(0, 400, 8):
            await worker.apply([event for place in places for event in log[place][first : first + 8]])

    catalogue = [place for place in log if "catalog" in place[0]]
    await asyncio.gather(work(catalogue), *(work([place]) for place in log if place not in catalogue))
    found, histories = await _features(store)
    replay, context = Replay(layout), RequestContext(START + HOUR)
    events = sorted(itertools.chain.from_iterable(log.values()), key=lambda event: event.time)
    replay.apply(map(feature_event, events))
    wanted = np.stack([replay.matrix(user, ITEMS, context)[0] for user in USERS])
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    assert histories == [layout.history(replay.value("user", user)) for user in USERS]


async def test_a_replay_of_the_batches_makes_up_for_late_fields_as_the_store_did(redis: Redis) -> None:
    """Batch by batch, every user's value reads in the parity check's replay as it read in the store."""
    spec, layout = SPECS[1].model_copy(update={"loop": "permutations-parity"}), LAYOUTS[1]
    chance, reader = random.Random(6), Reader(layout)
    made = [
        (START + 6.0 * number, chance.choice([_click, _click, _click, _some_change])(chance)) for number in range(600)
    ]
    chance.shuffle(made)
    log = _log(spec.loop, [_event(number, time, message) for number, (time, message) in enumerate(made)])
    store, batches, served = OnlineStore(redis, spec, layout), list[AppliedBatch](), dict[ValueKey, bytes]()

    async def note(batch: BatchApplied, kept: Sequence[Event]) -> None:
        time, events = batch.applied_time.ToNanoseconds() / 1e9, [feature_event(event) for event in kept]
        batches.append(AppliedBatch(batch.shard, batch.batch, time, events))

    worker = LoopStream(store, on_batch=note, max_events=25)
    for first in range(0, 400, 20):
        await worker.apply([event for own in log.values() for event in own[first : first + 20]])
        for (kind, id_), value in (await store.values([("user", user) for user in USERS])).items():
            if value is not None:
                served[ValueKey(kind, id_, batch_of(value))] = value
    replay = BatchReplay(layout, shards=1, wanted=served)
    replay.apply(batches)
    assert len(served) > len(USERS)
    values, context = await store.values([("item", item) for item in ITEMS]), RequestContext(START + HOUR)
    items = [values["item", item] for item in ITEMS]
    for write, value in served.items():
        found, wanted = (reader.matrix(each, None, items, ITEMS, context)[0] for each in (replay.kept[write], value))
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def _click(chance: random.Random) -> behavior.Interaction:
    return behavior.Interaction(user_id=chance.choice(USERS), item_id=chance.choice(ITEMS), type="click")


def _some_change(chance: random.Random) -> behavior.ItemChanged:
    return _change(chance.choice(ITEMS), chance.sample(GENRES, chance.randint(0, 2)))
