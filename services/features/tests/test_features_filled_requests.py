"""A fill from the warehouse counts one impression of a user's request, as the stream does, and so does what follows."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gyre.events.v1 import behavior_pb2 as behavior
from gyre_core.features import Layout, State
from gyre_core.spec import LoopSpec
from gyre_features.online.store import OnlineStore
from gyre_features.settings import FeaturesSettings
from gyre_features.stream.backfill import Archived
from gyre_features.stream.loop_stream import LoopStream
from gyre_features.warehouse.archive import Archive
from gyre_runtime.events import Event
from gyre_warehouse.tables import open_catalog
from pyiceberg.catalog import Catalog
from redis.asyncio import Redis

pytestmark = pytest.mark.adapter
ITEM = "i1"


class _Shown:
    """Impressions of one item, each with an id of its own.

    Args:
        history: makes events of the loop.
    """

    def __init__(self, history: Any) -> None:
        self._history = history

    def event(self, offset: int, user_id: str, request_id: str) -> Event:
        """The impression of a user's request at an offset."""
        message = behavior.Impression(user_id=user_id, item_ids=[ITEM], shown=1, request_id=request_id)
        found: Event = self._history.event("behavior.impressions", message, offset)
        return found


@pytest.fixture
def shown(counting_shown: LoopSpec, history_of: Callable[[LoopSpec], Any]) -> _Shown:
    """Makes impressions."""
    return _Shown(history_of(counting_shown))


@pytest.fixture
def repeated(shown: _Shown) -> list[Event]:
    """Two impressions of one user's request, then one of another request and one of another user."""
    requests = [("u1", "r1"), ("u1", "r1"), ("u1", "r2"), ("u2", "r1")]
    return [shown.event(offset, user, request) for offset, (user, request) in enumerate(requests)]


@pytest.fixture
async def catalog(tmp_path: Path, repeated: list[Event]) -> Catalog:
    """The warehouse that holds the impressions."""
    found = open_catalog(FeaturesSettings(warehouse=str(tmp_path / "warehouse")))
    archive = Archive(found, rows=10**6, seconds=60, payload_bytes=10**9)
    await archive.add(repeated)
    await archive.flush()
    return found


@pytest.fixture
def store(redis: Redis, counting_shown: LoopSpec) -> OnlineStore:
    """The store that counts what was shown."""
    return OnlineStore(redis, counting_shown, Layout.compile(counting_shown))


async def _ignore(*_: object) -> None:
    pass


async def _sums(store: OnlineStore) -> list[float]:
    """What the store holds of the item."""
    value = (await store.values([("item", ITEM)]))["item", ITEM]
    assert value is not None
    return list(State.unpack(store.layout.slots("item"), value).sums)


@pytest.mark.parametrize("max_events", [1, 1000], ids=["in batches of one", "in one batch"])
async def test_a_fill_drops_the_repeats_of_a_request_that_the_stream_drops(
    redis: Redis, store: OnlineStore, catalog: Catalog, repeated: list[Event], max_events: int
) -> None:
    """A store filled from the warehouse holds the values of the store that the stream filled."""
    await LoopStream(store, on_batch=_ignore, max_events=max_events).apply(repeated)
    live = await _sums(store)
    await redis.flushdb()
    assert await Archived(store, max_events=max_events).apply(catalog, [(repeated[0].topic, 0)]) == len(repeated)
    assert await _sums(store) == pytest.approx(live)


async def test_a_repeat_from_kafka_after_a_fill_is_dropped(
    store: OnlineStore, catalog: Catalog, repeated: list[Event], shown: _Shown
) -> None:
    """What Kafka holds beyond a fill counts unless the fill counted an impression of its request."""
    place = (repeated[0].topic, 0)
    await Archived(store, max_events=1000).apply(catalog, [place])
    filled = await _sums(store)
    stream = LoopStream(store, on_batch=_ignore)
    assert await stream.assigned([place]) == {place: len(repeated)}
    await stream.apply([shown.event(len(repeated), "u1", "r2")])
    assert await _sums(store) == pytest.approx(filled)
    await stream.apply([shown.event(len(repeated) + 1, "u1", "r3")])
    assert sum(await _sums(store)) > sum(filled)
