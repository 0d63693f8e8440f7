"""Aggregates by category and windows on the real Redis: the script merges them as Python does, bit for bit."""

import random
from collections.abc import Sequence

import pytest
from gyre.events.v1 import behavior_pb2 as behavior
from gyre_core.features import EntityId, Layout, Reader, Replay, RequestContext, aggregate, merge
from gyre_core.spec import LoopSpec, parse_loop
from gyre_core.topics import topic
from gyre_features.online import Applied, OnlineStore, Write
from gyre_features.stream.loop_stream import LoopStream, feature_event
from gyre_runtime.checkpoints import Checkpoint
from gyre_runtime.events import Event
from redis.asyncio import Redis

pytestmark = pytest.mark.adapter
BEGIN = 1_370_000_000.0
GENRES = ("action", "drama", "comedy")
ITEMS = [f"i{number}" for number in range(8)]
SPEC = """
version: 1
loop: {loop}
clock: replay
events:
  interactions:
    rating: {{value: {{min: 0, max: 10}}}}
    click: {{}}
items:
  fields:
    genres: {{kind: categories, values: [action, drama, comedy]}}
features:
  - {{name: user_genre, kind: decayed_count, scope: user, by: genres, events: [click], half_lives: [1h, 7d]}}
  - name: genre_ctr
    kind: decayed_rate
    scope: global
    by: genres
    events: [click]
    per: [impression]
    half_lives: [1d]
    prior: {{mean: 0.1, weight: 10}}
  - {{name: genre_score, kind: decayed_mean, scope: user, by: genres, events: [rating], half_lives: [7d]}}
  - {{name: item_clicks, kind: windowed_count, scope: item, events: [click], windows: [10m, 2h]}}
  - {{name: hourly, kind: windowed_count, scope: user, events: [click, rating], windows: [1h], mode: tumbling}}
  - {{name: item_ctr, kind: windowed_rate, scope: item, events: [click], per: [impression], windows: [3h], buckets: 4}}
  - {{name: all_ctr, kind: windowed_rate, scope: global, events: [click], per: [impression], windows: [1h]}}
  - {{name: item_genres, kind: field, field: genres}}
  - {{name: first_seen, kind: age, of: first_event, events: [click]}}
  - {{name: last, kind: history, events: [click], length: 3, field: genres}}
training:
  label: {{events: [click], attribution_window: 30m}}
shards: {{kafka_partitions: 1, online_shards: {shards}}}
"""


async def _ignore(batch: object, events: Sequence[Event]) -> None:
    pass


def _spec(loop: str, *, shards: int = 1) -> LoopSpec:
    return parse_loop(SPEC.format(loop=loop, shards=shards), source="test")


def _catalogue(spec: LoopSpec) -> list[Event]:
    found: list[Event] = []
    for number, item in enumerate(ITEMS[:-1]):
        held = behavior.Categories(values=[GENRES[number % 3], *GENRES[: number % 2]])
        message = behavior.ItemChanged(item_id=item, fields={"genres": behavior.FieldValue(categories=held)})
        found.append(_event(spec, "catalog.items", message, offset=number, time=BEGIN))
    return found


def _behaviour(spec: LoopSpec, count: int, *, seed: int) -> list[Event]:
    """Clicks, ratings and impressions of three people, out of order within five hours, in two topics."""
    draw, found = random.Random(seed), []
    offsets = {"behavior.interactions": 0, "behavior.impressions": 0}
    for _ in range(count):
        user, message = f"u{draw.randrange(3)}", None
        if draw.random() < 0.4:
            shown = draw.sample(ITEMS, 4)
            message, suffix = behavior.Impression(user_id=user, item_ids=shown, shown=3), "behavior.impressions"
        else:
            type_ = draw.choice(["click", "rating"])
            message = behavior.Interaction(user_id=user, item_id=draw.choice(ITEMS), type=type_)
            suffix = "behavior.interactions"
            if type_ == "rating":
                message.value = draw.random() * 10
        time = BEGIN + 1 + draw.random() * 5 * 3600
        found.append(_event(spec, suffix, message, offset=offsets[suffix], time=time))
        offsets[suffix] += 1
    return found


def _event(spec: LoopSpec, suffix: str, message: object, *, offset: int, time: float) -> Event:
    name = topic(spec.loop, suffix)
    return Event(f"{suffix}-{offset}", "test", "", time, message, None, name, 0, offset, "k", time)


async def _stored(redis: Redis, store: OnlineStore, entity: EntityId) -> bytes:
    value = await redis.get(store.names.entity(*entity))
    assert isinstance(value, bytes)
    return value


@pytest.mark.parametrize("seed", range(4))
async def test_the_script_merges_as_python_does_bit_for_bit(redis: Redis, loop_name: str, seed: int) -> None:
    """Batch by batch, what stands in Redis is what `merge` makes of the same deltas."""
    spec = _spec(loop_name)
    layout = Layout.compile(spec)
    store, expected = OnlineStore(redis, spec, layout), dict[EntityId, bytes]()
    events, place, draw = [*_catalogue(spec), *_behaviour(spec, 300, seed=seed)], ("any", 0), random.Random(seed)
    first, number = 0, 0
    while first < len(events):
        end, number = min(len(events), first + draw.randrange(1, 40)), number + 1
        batch = [feature_event(event) for event in events[first:end]]
        deltas = aggregate(layout, batch, lambda item_id: expected.get(("item", item_id)))
        packed = {entity: delta.pack(0) for entity, delta in deltas.items()}
        applied = await store.apply(
            0, Write({place: first}, {place: Checkpoint(end)}, packed, identities={}, description=b"-")
        )
        assert isinstance(applied, Applied)
        assert applied.batch == number
        for entity, delta in deltas.items():
            expected[entity] = merge(layout.slots(entity[0]), expected.get(entity), delta.pack(number))
            assert await _stored(redis, store, entity) == expected[entity], entity
        first = end


@pytest.mark.parametrize("shards", [1, 3])
async def test_redelivered_and_reordered_batches_give_the_values_of_a_replay(
    redis: Redis, loop_name: str, shards: int
) -> None:
    """Overlapping batches of two workers over two topics read as a replay of each event once, in the order of time."""
    spec = _spec(loop_name, shards=shards)
    layout = Layout.compile(spec)
    store, draw = OnlineStore(redis, spec, layout), random.Random(7)
    workers = [LoopStream(store, on_batch=_ignore) for _ in range(2)]
    catalogue, events = _catalogue(spec), _behaviour(spec, 250, seed=9)
    await workers[0].apply(catalogue)
    end = 0
    while end < len(events):
        begin = max(0, end - draw.randrange(40))
        end = min(len(events), end + draw.randrange(1, 60))
        await draw.choice(workers).apply(events[begin:end])
    await workers[1].apply(events)
    replay, reader = Replay(layout), Reader(layout)
    replay.apply(feature_event(event) for event in [*catalogue, *sorted(events, key=lambda event: event.time)])
    for user in ("u0", "u1", "u2", "nobody"):
        context = RequestContext(BEGIN + 5.2 * 3600)
        values = await store.read(user, ITEMS)
        found, _ = reader.matrix(values.user, values.everyone, values.items, ITEMS, context)
        wanted, _ = replay.matrix(user, ITEMS, context)
        assert found == pytest.approx(wanted, rel=1e-5)
        assert len({tuple(row) for row in wanted.tolist()}) > 1
