"""Learnt priors and vectors on the real Redis: the script merges them as Python does, and reads equal a replay."""

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
ITEMS = [f"i{number}" for number in range(12)]
SPEC = """
version: 1
loop: {loop}
clock: replay
events: {{interactions: {{click: {{}}}}}}
items:
  fields:
    genre: {{kind: category, values: [action, drama]}}
    embedding: {{kind: vector, length: 5}}
features:
  - {{name: ctr, kind: smoothed_rate, events: [click], per: [impression], half_lives: [6h, 7d], prior: {{mean: 0.2}}}}
  - {{name: genre_ctr, kind: smoothed_rate, by: genre, events: [click], per: [impression], half_lives: [1d]}}
  - {{name: own_ctr, kind: smoothed_rate, scope: user, events: [click], per: [impression], half_lives: [1d]}}
  - {{name: embedding, kind: vector, field: embedding}}
  - {{name: place, kind: position}}
  - {{name: same_genre, kind: diversity, field: genre}}
  - {{name: device, kind: context, field: device, values: [phone, desktop]}}
  - {{name: ctr_rank, kind: rank, of: embedding_0}}
training:
  label: {{events: [click], attribution_window: 30m}}
shards: {{kafka_partitions: 1, online_shards: {shards}}}
"""


async def _ignore(batch: object, events: Sequence[Event]) -> None:
    pass


def _spec(loop: str, *, shards: int = 1) -> LoopSpec:
    return parse_loop(SPEC.format(loop=loop, shards=shards), source="test")


def _story(spec: LoopSpec, count: int, *, seed: int) -> tuple[list[Event], list[Event]]:
    """A catalogue; and impressions with clicks, more of the first items, out of order within five hours."""
    draw = random.Random(seed)
    catalogue, found = [], []
    for number, item in enumerate(ITEMS[:-1]):
        vector = behavior.Vector(values=[draw.gauss(0, 1) for _ in range(5)])
        genre = behavior.FieldValue(text=("action", "drama")[number % 2])
        fields = {"genre": genre, "embedding": behavior.FieldValue(vector=vector)}
        message: object = behavior.ItemChanged(item_id=item, fields=fields)
        catalogue.append(_event(spec, "catalog.items", message, offset=number, time=BEGIN))
    for number in range(count):
        user, shown = f"u{draw.randrange(6)}", draw.sample(ITEMS, 5)
        time = BEGIN + 1 + draw.random() * 5 * 3600
        message = behavior.Impression(user_id=user, item_ids=shown, shown=4)
        found.append(_event(spec, "behavior.impressions", message, offset=number, time=time))
        item = min(shown[:4], key=lambda each: (draw.random() < 0.5, int(each[1:])))
        message = behavior.Interaction(user_id=user, item_id=item, type="click")
        found.append(_event(spec, "behavior.interactions", message, offset=number, time=time + 30))
    return catalogue, found


def _event(spec: LoopSpec, suffix: str, message: object, *, offset: int, time: float) -> Event:
    name = topic(spec.loop, suffix)
    return Event(f"{suffix}-{offset}", "test", "", time, message, None, name, 0, offset, "k", time)


@pytest.mark.parametrize("seed", range(2))
async def test_the_script_merges_as_python_does_bit_for_bit(redis: Redis, loop_name: str, seed: int) -> None:
    """Batch by batch, what stands in Redis is what `merge` makes of the same deltas."""
    spec = _spec(loop_name)
    layout = Layout.compile(spec)
    store, expected = OnlineStore(redis, spec, layout), dict[EntityId, bytes]()
    catalogue, behaviour = _story(spec, 150, seed=seed)
    events, place, draw = [*catalogue, *behaviour], ("any", 0), random.Random(seed)
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
            assert await redis.get(store.names.entity(*entity)) == expected[entity], entity
        first = end
    assert {kind for kind, _ in expected} == {"item", "user", "global"}


@pytest.mark.parametrize("shards", [1, 3])
async def test_redelivered_and_reordered_batches_read_as_a_replay(redis: Redis, loop_name: str, shards: int) -> None:
    """Overlapping batches of two workers read as a replay of each event once, learnt priors and labels included."""
    spec = _spec(loop_name, shards=shards)
    layout = Layout.compile(spec)
    store, draw = OnlineStore(redis, spec, layout), random.Random(7)
    workers = [LoopStream(store, on_batch=_ignore) for _ in range(2)]
    catalogue, events = _story(spec, 120, seed=9)
    await workers[0].apply(catalogue)
    end = 0
    while end < len(events):
        begin = max(0, end - draw.randrange(40))
        end = min(len(events), end + draw.randrange(1, 60))
        await draw.choice(workers).apply(events[begin:end])
    await workers[1].apply(events)
    replay, reader = Replay(layout), Reader(layout)
    replay.apply(feature_event(event) for event in [*catalogue, *sorted(events, key=lambda event: event.time)])
    for user in ("u0", "u5", "nobody"):
        context = RequestContext(BEGIN + 5.2 * 3600, labels={"device": "phone"})
        values = await store.read(user, ITEMS)
        found, _ = reader.matrix(values.user, values.everyone, values.items, ITEMS, context)
        wanted, _ = replay.matrix(user, ITEMS, context)
        assert found == pytest.approx(wanted, rel=1e-5)
        assert len(set(wanted[:, layout.index["ctr_6h"]].tolist())) == len(ITEMS)
