"""What the store holds after a stream of events, number by number, beside its definition over the whole list of events.

The definitions are written down here once more, in decimal and whole numbers, and share no code with folding, merging
and replaying, which mirror each other in Python and in the store's script.
"""

import random
from collections.abc import Iterator, Sequence
from decimal import Context, Decimal
from math import log2
from typing import Any

import pytest
from gyre.events.v1 import behavior_pb2 as behavior
from gyre_core.features import GLOBAL_ID, EntityId, Layout, State, item_hash
from gyre_core.features.identity import id_group
from gyre_core.features.slots import RingSlot, SumSlot, WindowSlot
from gyre_core.spec import LoopSpec, parse_loop
from gyre_core.topics import topic
from gyre_features.online import OnlineStore
from gyre_features.stream.loop_stream import LoopStream
from gyre_runtime.events import Event
from redis.asyncio import Redis

pytestmark = pytest.mark.adapter
BEGIN = 1_370_000_000.0
EXACT = Context(prec=40)
GENRES = ("action", "drama", "comedy")
USERS = ("ann", "bob", "eve")
ITEMS = {f"i{number}": {number % 3, (number * number) % 3} for number in range(7)}
"""The indices of each item's genres."""
SPEC = """
version: 1
loop: {loop}
clock: replay
events:
  max_lateness: 7d
  interactions:
    rating: {{value: {{min: -1000000000, max: 1000000000}}}}
    click: {{}}
items:
  fields:
    genres: {{kind: categories, values: [action, drama, comedy]}}
features:
  - {{name: clicks, kind: decayed_count, scope: item, events: [click], half_lives: [10m, 1d]}}
  - {{name: user_genre, kind: decayed_count, scope: user, by: genres, events: [click, rating], half_lives: [1h, 7d]}}
  - name: genre_ctr
    kind: decayed_rate
    scope: global
    by: genres
    events: [click]
    per: [impression]
    half_lives: [1d]
    prior: {{mean: 0.1, weight: 10}}
  - {{name: genre_score, kind: decayed_mean, scope: user, by: genres, events: [rating], half_lives: [7d]}}
  - {{name: score, kind: decayed_mean, scope: item, events: [rating], half_lives: [3h]}}
  - name: item_ctr
    kind: smoothed_rate
    scope: item
    by: genres
    events: [click]
    per: [impression]
    half_lives: [1d]
    prior: {{mean: 0.1, weight: 10}}
  - {{name: item_clicks, kind: windowed_count, scope: item, events: [click], windows: [10m, 2h]}}
  - {{name: hourly, kind: windowed_count, scope: user, events: [click, rating], windows: [1h], mode: tumbling}}
  - {{name: all_ctr, kind: windowed_rate, scope: global, events: [click], per: [impression], windows: [1h]}}
  - {{name: item_genres, kind: field, field: genres}}
  - {{name: first_seen, kind: age, scope: item, of: first_event, events: [click, rating]}}
  - {{name: recent, kind: age, scope: user, of: last_event, events: [click]}}
  - {{name: last, kind: history, events: [click], length: 5, field: genres}}
training: {{label: {{events: [click], attribution_window: 30m}}}}
serving: {{fallback_feature: clicks_1d}}
shards: {{kafka_partitions: 2, online_shards: {shards}}}
"""


class Happened:
    """One event on one item: what all definitions are over."""

    def __init__(self, type_: str, user: str, item: str, time: float, value: float | None = None) -> None:
        self.type, self.user, self.item, self.time, self.value = type_, user, item, time, value

    def writes(self, entity: EntityId) -> bool:
        """Whether it counts for an entity."""
        return entity in (("user", self.user), ("item", self.item), ("global", GLOBAL_ID))


def happened(count: int, *, seed: int) -> Iterator[list[Happened]]:
    """Clicks, ratings and impressions, out of order within five hours; those of an impression together."""
    draw = random.Random(seed)
    for _ in range(count):
        type_, user, time = draw.choice(["click", "rating", "impression"]), draw.choice(USERS), _time(draw)
        if type_ == "impression":
            yield [Happened(type_, user, item, time) for item in draw.sample(list(ITEMS), 3)]
        else:
            # Whole numbers add up without rounding; some cancel each other, as float32 sums could not.
            value = draw.choice([1.0, 1e8, -1e8, 3.0]) if type_ == "rating" else None
            yield [Happened(type_, user, draw.choice(list(ITEMS)), time, value)]


def _time(draw: random.Random) -> float:
    return BEGIN + draw.randrange(5 * 3600 * 4) / 4


def exact_sum(slot: SumSlot, events: Sequence[Happened], newest: float) -> tuple[Decimal, Decimal]:
    """A decayed sum as of the newest event, and the sum of the magnitudes of what it adds up."""
    total = size = Decimal(0)
    for each in events:
        if each.type in slot.events and _is_of(slot, each):
            valued = slot.measure.startswith("value")
            if not valued or each.value is not None:
                added = Decimal(each.value or 0) if slot.measure in ("value", "value_by") else Decimal(1)
                age = Decimal(newest) - Decimal(each.time)
                weight = EXACT.power(2, EXACT.divide(-age, Decimal(slot.half_life_s)))
                total, size = EXACT.fma(added, weight, total), EXACT.fma(abs(added), weight, size)
    return total, size


def _is_of(slot: SumSlot, each: Happened) -> bool:
    if slot.category < 0:
        return True
    if slot.field in ("#item", "#user"):
        return id_group(each.item if slot.field == "#item" else each.user) == slot.category
    return slot.category in ITEMS[each.item]


def exact_buckets(slot: WindowSlot, events: Sequence[Happened]) -> list[int]:
    """How many events fell in each of the newest buckets, where a value holds them."""
    numbers = [int(each.time // slot.bucket_s) for each in events if each.type in slot.events]
    newest, found = max(numbers, default=0), [0] * slot.length
    for number in numbers:
        if number > newest - slot.length:
            found[number % slot.length] += 1
    return found


def exact_history(slot: RingSlot, events: Sequence[Happened]) -> list[tuple[Any, ...]]:
    """The newest events of a user: time, item and the bits of its genres."""
    found = [
        (each.time, item_hash(each.item), sum(1 << index for index in ITEMS[each.item]))
        for each in events
        if each.type in slot.events
    ]
    return sorted(found, reverse=True)[: slot.length]


def assert_as_defined(state: State, events: Sequence[Happened]) -> None:
    """Every number of a value is what its definition gives."""
    layout = state.layout
    named = [slot.events for slots in (layout.sums, layout.windows, layout.rings) for slot in slots]
    counted = {type_ for types in (*named, *layout.mins, *layout.maxs) for type_ in types}
    newest = max(each.time for each in events if each.type in counted)
    assert state.reference_time == newest
    for slot, found in zip(layout.sums, state.sums, strict=True):
        total, size = exact_sum(slot, events, newest)
        assert abs(Decimal(found) - total) <= Decimal("1e-12") * size, slot
    for index, slot in enumerate(layout.windows):
        first, end = layout.bucket_starts[index : index + 2]
        assert state.buckets[first:end] == exact_buckets(slot, events), slot
    for types, time in zip(layout.mins, state.mins, strict=True):
        assert time == min((each.time for each in events if each.type in types), default=float("inf"))
    for types, time in zip(layout.maxs, state.maxs, strict=True):
        assert time == max((each.time for each in events if each.type in types), default=float("-inf"))
    for slot, ring in zip(layout.rings, state.rings, strict=True):
        assert ring == exact_history(slot, events)


def _message(together: Sequence[Happened]) -> behavior.Interaction | behavior.Impression:
    first = together[0]
    if first.type == "impression":
        items = [each.item for each in together]
        return behavior.Impression(user_id=first.user, item_ids=items, shown=len(items))
    return behavior.Interaction(user_id=first.user, item_id=first.item, type=first.type, value=first.value)


def _event(spec: LoopSpec, suffix: str, message: Any, *, offset: int, time: float) -> Event:
    return Event(f"{suffix}-{offset}", "test", "", time, message, None, topic(spec.loop, suffix), 0, offset, "k", time)


def _catalogue(spec: LoopSpec) -> list[Event]:
    found = []
    for offset, (item, genres) in enumerate(ITEMS.items()):
        held = behavior.Categories(values=[GENRES[index] for index in genres])
        message = behavior.ItemChanged(item_id=item, fields={"genres": behavior.FieldValue(categories=held)})
        found.append(_event(spec, "catalog.items", message, offset=offset, time=BEGIN - 1))
    return found


async def _ignore(batch: object, events: object) -> None:
    pass


@pytest.mark.parametrize(("seed", "shards", "late"), [(1, 1, 0), (2, 1, 4), (3, 3, 0), (4, 3, 7)])
async def test_the_store_holds_what_the_definitions_give(
    redis: Redis, loop_name: str, seed: int, shards: int, late: int
) -> None:
    """In small batches out of order, sums, windows, first and last times, histories and popularity are as defined.

    So they are where the fields of some items come after half of the events.
    """
    spec = parse_loop(SPEC.format(loop=loop_name, shards=shards), source="test")
    layout, draw = Layout.compile(spec), random.Random(seed)
    store, groups, at = OnlineStore(redis, spec, layout), list(happened(260, seed=seed)), 0
    stream = LoopStream(store, on_batch=_ignore)
    catalogue = _catalogue(spec)
    await stream.apply(catalogue[late:])
    while at < len(groups):
        if at > len(groups) / 2:
            # In another partition, where the offsets before them do not count.
            await stream.apply([each._replace(partition=1) for each in catalogue[:late]])
        end = min(len(groups), at + draw.randrange(1, 12))
        suffixes = [f"behavior.{'impressions' if each[0].type == 'impression' else 'interactions'}" for each in groups]
        await stream.apply(
            [
                _event(spec, suffixes[number], _message(groups[number]), offset=number, time=groups[number][0].time)
                for number in range(at, end)
            ]
        )
        at = end
    events = [each for group in groups for each in group]
    entities: list[EntityId] = [*(("user", user) for user in USERS), *(("item", item) for item in ITEMS)]
    entities.append(("global", GLOBAL_ID))
    stored = await store.values(entities)
    for entity in entities:
        own, value = [each for each in events if each.writes(entity)], stored[entity]
        assert value is not None
        assert_as_defined(State.unpack(layout.slots(entity[0]), value), own)
    clicks = SumSlot("count", ("click",), 86_400.0)
    ranked = dict(await store.popular(len(ITEMS)))
    for item in ITEMS:
        own = [each for each in events if each.item == item]
        count = exact_sum(clicks, own, newest := max(each.time for each in own))[0]
        assert ranked[item] == pytest.approx(newest / 86_400 + log2(count), rel=1e-14)
