"""What repeats an event counts once by the log's append times alone, whenever and in whatever batches it is read."""

import asyncio
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from gyre.events.v1 import behavior_pb2 as behavior
from gyre_core import append_windows
from gyre_core.features import Layout, Reader, RequestContext
from gyre_core.keys import pattern as store_keys
from gyre_core.spec import LoopSpec
from gyre_core.topics import topic
from gyre_features.online.store import OnlineStore
from gyre_features.settings import FeaturesSettings
from gyre_features.stream.backfill import Archived
from gyre_features.stream.loop_stream import LoopStream
from gyre_features.warehouse.archive import Archive
from gyre_runtime.events import Event
from gyre_warehouse.tables import open_catalog
from redis.asyncio import Redis

pytestmark = pytest.mark.adapter
BEGIN = 1_370_000_000.0
EVENT_TIME = BEGIN - 10**6
"""Before all append times of a log: behaviour counts no later than Kafka had it."""
CLICKS = "behavior.interactions"
WINDOW_S = 10
HOUR_S = 3600.0
MAX_BEHIND = 4
"""So many far back in a row are believed here; a thousand otherwise."""


async def _ignore(*_: object) -> None:
    pass


def _store(redis: Redis, spec: LoopSpec) -> OnlineStore:
    return OnlineStore(redis, spec, Layout.compile(spec), duplicates_s=WINDOW_S)


async def _counted(store: OnlineStore, item: str) -> float:
    """How many ratings of an item the store counted, all of one event time."""
    values = await store.read("nobody", [item])
    matrix, _ = Reader(store.layout).matrix(
        values.user, values.everyone, values.items, [item], RequestContext(EVENT_TIME)
    )
    return float(matrix[0][store.layout.columns.index("popular_7d")])


def _log(spec: LoopSpec, count: int, *, partition: int, seed: int) -> list[Event]:
    """A partition's ratings of items i0 to i3: ids come again, append times jump on and now and then go back."""
    draw, now, found = random.Random(seed), BEGIN, list[Event]()
    for offset in range(count):
        now += draw.choice([0.0, 0.001, 0.5, 2.0, 9.0, 11.0, 25.0, -0.5, -4.0, -15.0])
        now += draw.choice([-3 * HOUR_S, HOUR_S]) if draw.random() < 0.02 else 0.0
        message = behavior.Interaction(user_id="u1", item_id=f"i{draw.randrange(4)}", type="rating", value=7)
        name = topic(spec.loop, CLICKS)
        id_ = f"e{draw.randrange(6)}"
        found.append(Event(id_, "shop", "", EVENT_TIME, message, None, name, partition, offset, "k", round(now, 3)))
    return found


def _expected(log: Sequence[Event]) -> dict[str, int]:
    """How often each item counts in a partition's log, by the rule's own words: slow, and with no state to keep."""
    windows: list[tuple[int, int, int]] = []
    for event in log:
        own = int(event.arrival_time // WINDOW_S)
        if not windows:
            windows.append((own, 0, 0))
            continue
        window, run, behind = windows[-1]
        if own > window:
            windows.append((own, run + 1, 0))
        elif event.arrival_time >= window * WINDOW_S - HOUR_S:
            windows.append((window, run, 0))  # a clock that is a little behind
        elif behind + 1 < MAX_BEHIND:
            windows.append((window, run, behind + 1))  # an old event, or a clock that is far behind
        else:
            windows.append((own, run, 0))  # the clock before was ahead
    counting: list[int] = []
    for at, event in enumerate(log):
        _, run, _ = windows[at]
        near = [each for each in counting if windows[each][1] >= run - 1]
        if all(log[each].id != event.id for each in near):
            counting.append(at)
    items = [log[each].message.item_id for each in counting]
    return {item: items.count(item) for item in sorted(set(items))}


async def _apply(redis: Redis, spec: LoopSpec, events: Sequence[Event], *, seed: int) -> OnlineStore:
    """Apply a log in batches of random length, each by a process that has just started; some of it twice."""
    draw, at, store = random.Random(seed), 0, _store(redis, spec)
    while at < len(events):
        stream = LoopStream(store, on_batch=_ignore, max_events=draw.choice([1, 3, 1000]))
        await stream.assigned({(event.topic, event.partition) for event in events})
        length = draw.choice([1, 2, 10, 100])
        await stream.apply(events[max(at - draw.randrange(3), 0) : at + length])
        at += length
    return store


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("seed", range(3))
async def test_one_log_gives_the_same_counts_however_it_is_read(
    redis: Redis, sharded: Any, tmp_path: Path, shards: int, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In batches of any length, over restarts, in one batch and from the warehouse, its append times decide."""
    monkeypatch.setattr(append_windows, "_MAX_BEHIND", MAX_BEHIND)
    spec: LoopSpec = sharded(shards)
    logs = [_log(spec, 150, partition=number, seed=2 * seed + number) for number in (0, 1)]
    wanted: dict[str, int] = {}
    for log in logs:
        for item, count in _expected(log).items():
            wanted[item] = wanted.get(item, 0) + count
    assert sum(wanted.values()) < 300
    mixed = sorted((event for log in logs for event in log), key=lambda event: (event.offset // 7, event.partition))
    catalog = open_catalog(FeaturesSettings(warehouse=str(tmp_path / "warehouse")))
    archive = Archive(catalog, rows=10**6, seconds=60, payload_bytes=10**9)
    await archive.add(mixed)
    await archive.flush()
    for way in ("restarts", "one batch", "warehouse"):
        await redis.flushdb()
        store = _store(redis, spec)
        if way == "restarts":
            await _apply(redis, spec, mixed, seed=seed)
        elif way == "one batch":
            await LoopStream(store, on_batch=_ignore, max_events=1000).apply([*logs[0], *logs[1]])
        else:
            places = [(topic(spec.loop, CLICKS), number) for number in (0, 1)]
            await Archived(store, max_events=1000).apply(catalog, places)
        found = {item: round(await _counted(store, item), 3) for item in wanted}
        assert found == wanted, way


async def test_what_is_remembered_is_bounded_by_the_log(redis: Redis, spec: LoopSpec) -> None:
    """A backlog of many windows leaves the identities of the two newest ones of each partition, and no other."""
    store, name = _store(redis, spec), topic(spec.loop, CLICKS)
    message = behavior.Interaction(user_id="u1", item_id="i1", type="rating", value=7)
    events = [
        Event(f"e{number}", "shop", "", BEGIN, message, None, name, number % 2, number // 2, "k", BEGIN + number // 2)
        for number in range(400)
    ]
    for first in range(0, 400, 50):
        await LoopStream(store, on_batch=_ignore).apply(events[first : first + 50])
    sets = [key async for key in redis.scan_iter(store_keys(spec.loop), count=1000) if b":duplicates:" in key]
    assert sorted(sets) == sorted(key.encode() for part in (0, 1) for key in store.names.duplicates(0, (name, part)))
    assert [await redis.scard(key) for key in sets] == [WINDOW_S] * 4
    lease_s = await redis.ttl(store.names.applied_offset(0, (name, 0)))
    assert {await redis.ttl(key) >= lease_s - HOUR_S for key in sets} == {True}


def _rated(spec: LoopSpec, id_: str, offset: int, after_s: float) -> Event:
    message = behavior.Interaction(user_id="u1", item_id=f"i{offset}", type="rating", value=7)
    return Event(id_, "shop", "", BEGIN, message, None, topic(spec.loop, CLICKS), 0, offset, "k", BEGIN + after_s)


async def _applied(store: OnlineStore, items: int) -> list[int]:
    """Which of the items i0, i1, … were rated as the store counted it."""
    return [number for number in range(items) if await _counted(store, f"i{number}")]


@pytest.mark.parametrize("ahead_s", [15, 25, 1800, 2 * HOUR_S, 400 * 24 * HOUR_S])
async def test_a_clock_that_is_ahead_for_a_moment_makes_nobody_forgotten(
    redis: Redis, spec: LoopSpec, ahead_s: float
) -> None:
    """A record whose append time lies windows ahead, between an event and its repeat, forgets nothing."""
    store = _store(redis, spec)
    for number, (id_, after_s) in enumerate([("A", 0.0), ("B", ahead_s), ("A", 1.0)]):
        await LoopStream(store, on_batch=_ignore).apply([_rated(spec, id_, number, after_s)])
    assert await _applied(store, 3) == [0, 1]


async def test_events_that_are_old_make_nobody_forgotten(redis: Redis, spec: LoopSpec) -> None:
    """Records whose append times are hours old, between an event and its repeat, take no identity away."""
    store = _store(redis, spec)
    log = [("A", 0.0), ("old", -2 * HOUR_S), ("B", 1.0), ("older", -900 * HOUR_S), ("C", 2.0), ("A", 3.0), ("old", 4.0)]
    for number, (id_, after_s) in enumerate(log):
        await LoopStream(store, on_batch=_ignore).apply([_rated(spec, id_, number, after_s)])
    assert await _applied(store, len(log)) == [0, 1, 2, 3, 4]


async def test_checkpoints_that_were_read_before_a_batch_move_no_window(redis: Redis, spec: LoopSpec) -> None:
    """Checkpoints read before a script ran, and known after it, leave the windows as the script left them."""
    store = _store(redis, spec)
    place, stream = (topic(spec.loop, CLICKS), 0), LoopStream(store, on_batch=_ignore)
    await stream.apply([_rated(spec, "A", 0, 1)])
    apply, checkpoints = store.apply, store.checkpoints
    read, applied = asyncio.Event(), asyncio.Event()

    async def slow_checkpoints(places: Any) -> Any:
        found = await checkpoints(places)
        read.set()
        await applied.wait()
        return found

    async def apply_between(shard: int, write: Any) -> Any:
        store.checkpoints = slow_checkpoints  # type: ignore[method-assign]
        reading = asyncio.create_task(stream.checkpoints([place]))
        await read.wait()
        outcome = await apply(shard, write)
        applied.set()
        await reading
        store.checkpoints, store.apply = checkpoints, apply  # type: ignore[method-assign]
        return outcome

    store.apply = apply_between  # type: ignore[method-assign]
    for number, (id_, after_s) in enumerate([("B", WINDOW_S + 1.0), ("C", WINDOW_S + 2.0), ("A", WINDOW_S + 3.0)], 1):
        await stream.apply([_rated(spec, id_, number, after_s)])
    assert await _applied(store, 4) == [0, 1, 2]
