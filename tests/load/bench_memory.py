"""How much of Redis a million users and items take: values of the movies loop as the stream writes them, by kind."""

from __future__ import annotations

import argparse
import asyncio
import random
from collections.abc import Sequence
from math import ceil
from pathlib import Path

from bench_mesh import infrastructure
from bench_report import Row, show, write
from gyre_core.features import Contribution, EntityKind, Event, FieldsChanged, Layout, UserInteraction, aggregate
from gyre_core.spec import LoopSpec, load_loop
from gyre_features.online import OnlineStore
from gyre_features.online.layout_program import lease_s
from redis.asyncio import Redis

LOOP_FILE = Path(__file__).parents[2] / "examples" / "movies" / "gyre.yaml"
SAMPLES = 100
_CHUNK = 2000


def main() -> None:
    """Run every case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entities", type=int, default=200_000, help="of each case")
    given = parser.parse_args()
    with infrastructure(("redis",)) as mesh:
        url = f"redis://{mesh.address('redis', 'server')}/0"
        rows = asyncio.run(measure(url, load_loop(LOOP_FILE), given.entities))
    show("Memory of the online store", rows)
    write("memory", rows)


async def measure(url: str, spec: LoopSpec, entities: int) -> list[Row]:
    """Fill an empty Redis with each case in turn."""
    layout, rows = Layout.compile(spec), list[Row]()
    full = max((ring.length for ring in layout.slots("user").rings), default=1)
    cases: list[tuple[str, EntityKind, int]] = [
        ("items", "item", 10),
        ("users with 10 events", "user", 10),
        (f"users with {full} events, a full history", "user", full),
    ]
    async with Redis.from_url(url) as redis:
        store = OnlineStore(redis, spec, layout)
        for case, kind, events in cases:
            values = [_value(spec, layout, kind, events, seed) for seed in range(SAMPLES)]
            used = await _filled(redis, store, kind, values, entities)
            size = sum(map(len, values)) / len(values)
            rows.append(Row("packed value", case, "size", size, "bytes"))
            rows.append(Row("Redis", f"{entities:,} {case}", "memory", used / entities, "bytes/entity"))
            rows.append(Row("Redis", f"a million {case}", "memory", used / entities * 1e6 / 1e9, "GB"))
        rows.append(
            Row("Redis", "remembered folds", "memory", await _contributions(redis, store, entities), "bytes/event")
        )
    return rows


def _value(spec: LoopSpec, layout: Layout, kind: EntityKind, count: int, seed: int) -> bytes:
    """The packed value of an entity with so many events, a second apart, of random types and values."""
    chance, names = random.Random(seed), list(spec.events.interactions)
    events: list[Event] = [FieldsChanged("item", "i", 1e9, {})]
    events += [UserInteraction("u", "i", chance.choice(names), 1e9 + n, chance.randint(1, 10)) for n in range(count)]
    return aggregate(layout, events, lambda _: None)[kind, kind[0]].pack(1)


async def _filled(redis: Redis, store: OnlineStore, kind: EntityKind, values: Sequence[bytes], entities: int) -> int:
    """Write values under keys as long as real ones, with their time to live; return what Redis took for them."""
    await redis.flushall()
    before = await _used(redis)
    ttl_s = ceil(store.layout.ttl_s(kind) or lease_s(store.layout))
    for first in range(0, entities, _CHUNK):
        pipe = redis.pipeline(transaction=False)
        for number in range(first, min(first + _CHUNK, entities)):
            key = store.names.entity(kind, f"{kind}-{number:08d}")
            pipe.set(key, values[number % len(values)], ex=ttl_s)
        await pipe.execute()
    return await _used(redis) - before


async def _contributions(redis: Redis, store: OnlineStore, events: int) -> float:
    """What Redis takes for what one event read of its item's fields, for as long as those may change late."""
    await redis.flushall()
    before, fields, type_ = await _used(redis), store.layout.item_fields, store.layout.events[0]
    for first in range(0, events, _CHUNK):
        numbers = range(first, first + _CHUNK)
        contributions = [
            Contribution(f"item-{n % 3000:05d}", f"user-{n:08d}", type_, 1e9 + n, 7.0, 5, is_known=True)
            for n in numbers
        ]
        await redis.zadd(
            store.names.contributions(0, known=True), {fields.pack_contributions(contributions): 1e9 + first}
        )
    return (await _used(redis) - before) / events


async def _used(redis: Redis) -> int:
    return int((await redis.info("memory"))["used_memory"])


if __name__ == "__main__":
    main()
