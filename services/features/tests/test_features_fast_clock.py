"""A producer whose clock is fast takes late fields' corrections from nobody, in the stream and in a fill alike."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from gyre.events.v1 import behavior_pb2 as behavior
from gyre.events.v1.features_pb2 import BatchApplied
from gyre_core.features import BUFFER_IDLE_S, Layout, State
from gyre_core.spec import LoopSpec
from gyre_features.online.store import OnlineStore
from gyre_features.parity import AppliedBatch
from gyre_features.parity.replaying import BatchReplay, ValueKey
from gyre_features.settings import FeaturesSettings
from gyre_features.stream.backfill import Archived
from gyre_features.stream.loop_stream import LoopStream, feature_event
from gyre_features.warehouse.archive import Archive
from gyre_runtime.events import Event
from gyre_warehouse.tables import open_catalog
from redis.asyncio import Redis

pytestmark = pytest.mark.adapter
BEGIN = 1_370_000_000.0
AHEAD_S = 299.0


async def _ignore(*_: object) -> None:
    pass


def _change(history: Any, genre: str, offset: int, *, time: float, arrival: float) -> Event:
    """A change of the first item's genres."""
    genres = behavior.FieldValue(categories=behavior.Categories(values=[genre]))
    message = behavior.ItemChanged(item_id="i1", fields={"genres": genres})
    found: Event = history.event("catalog.items", message, offset, time=time)
    return found._replace(arrival_time=arrival)


def _rating(history: Any, user: int, offset: int, *, time: float, arrival: float) -> Event:
    """A rating of the item of the user's number."""
    found: Event = history.event("behavior.interactions", history.rating(user, user), offset, time=time)
    return found._replace(arrival_time=arrival)


async def _sums(store: OnlineStore) -> list[float]:
    """What the store holds of the first user."""
    value = (await store.values([("user", "u1")]))["user", "u1"]
    assert value is not None
    return list(State.unpack(store.layout.slots("user"), value).sums)


def _events(history: Any, *, fast: bool, corrected: bool = True) -> list[Event]:
    """A rating of a film of action, what else arrives a second later, and the news that the film was a comedy."""
    found = [
        _change(history, "action", 0, time=BEGIN - 1000, arrival=BEGIN - 1000),
        _rating(history, 1, 0, time=BEGIN, arrival=BEGIN),
        _rating(history, 2, 1, time=BEGIN + (AHEAD_S if fast else 1), arrival=BEGIN + 1),
    ]
    return [*found, _change(history, "comedy", 1, time=BEGIN - 1, arrival=BEGIN + 5)] if corrected else found


async def _live(redis: Redis, store: OnlineStore, events: Sequence[Event]) -> list[float]:
    """The first user's sums once a stream has taken the events one by one into an empty store."""
    await redis.flushdb()
    stream = LoopStream(store, on_batch=_ignore)
    for event in events:
        await stream.apply([event])
    return await _sums(store)


async def test_a_fast_clock_takes_no_correction_from_another_user(
    redis: Redis, spec: LoopSpec, layout: Layout, history: Any
) -> None:
    """A late change of an item corrects a user's rating, whether another's event says a time far ahead or not."""
    store = OnlineStore(redis, spec, layout)
    uncorrected = await _live(redis, store, _events(history, fast=False, corrected=False))
    corrected = await _live(redis, store, _events(history, fast=False))
    assert corrected != pytest.approx(uncorrected)
    assert await _live(redis, store, _events(history, fast=True)) == pytest.approx(corrected)


async def test_a_clock_that_is_behind_makes_nothing_new_of_old_events(
    redis: Redis, spec: LoopSpec, layout: Layout, history: Any
) -> None:
    """Events that arrive long after they happened make others old by their own time, as in a history that is imported.

    So the rating of a minute and more before the newest is corrected no more, though all of them arrive at once.
    """
    store, now = OnlineStore(redis, spec, layout), BEGIN + 10**8
    late = [each._replace(arrival_time=now) for each in _events(history, fast=True)]
    uncorrected = await _live(redis, store, late[:-1])
    assert await _live(redis, store, late) == pytest.approx(uncorrected)


async def test_a_fill_knows_the_fast_clock_by_the_times_of_arrival_in_the_warehouse(
    redis: Redis, spec: LoopSpec, layout: Layout, history: Any, tmp_path: Path
) -> None:
    """After a fill of what lies before it, the change corrects the rating as it does in the stream."""
    *before, change = _events(history, fast=True)
    store = OnlineStore(redis, spec, layout)
    corrected = await _live(redis, store, _events(history, fast=False))
    catalog = open_catalog(FeaturesSettings(warehouse=str(tmp_path / "warehouse")))
    archive = Archive(catalog, rows=10**6, seconds=60, payload_bytes=10**9)
    await archive.add(before)
    await archive.flush()
    await redis.flushdb()
    places = list(dict.fromkeys((each.topic, 0) for each in before))
    assert await Archived(store, max_events=1).apply(catalog, places) == len(before)
    stream = LoopStream(store, on_batch=_ignore)
    await stream.assigned(places)
    await stream.apply([change])
    assert await _sums(store) == pytest.approx(corrected)


async def test_after_days_of_quiet_the_store_corrects_nothing_and_the_parity_check_knows(
    redis: Redis, spec: LoopSpec, layout: Layout, history: Any
) -> None:
    """What is buffered goes with its time to live where a loop stands still; the replay forgets it then, too."""
    store, batches = OnlineStore(redis, spec, layout), list[AppliedBatch]()
    days_s = 0.0

    async def note(batch: BatchApplied, kept: Sequence[Event]) -> None:
        time = batch.applied_time.ToNanoseconds() / 1e9 + days_s
        batches.append(AppliedBatch(0, batch.batch, time, [feature_event(each) for each in kept]))

    stream, (*before, change) = LoopStream(store, on_batch=note), _events(history, fast=False)
    for event in before:
        await stream.apply([event])
    uncorrected, buffer = await _sums(store), store.names.contributions(0, known=True)
    assert 0 < await redis.ttl(buffer) <= layout.max_field_lateness_s + BUFFER_IDLE_S
    await redis.delete(buffer)
    days_s = layout.max_field_lateness_s + BUFFER_IDLE_S + 60
    await stream.apply([change])
    assert await _sums(store) == pytest.approx(uncorrected)
    replay = BatchReplay(layout, shards=1, wanted=[ValueKey("user", "u1", each.number) for each in batches])
    replay.apply(batches)
    newest = replay.kept[max(replay.kept, key=lambda key: key.batch)]
    assert list(State.unpack(layout.slots("user"), newest).sums) == pytest.approx(uncorrected)
