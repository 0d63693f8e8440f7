"""A producer whose clock is fast makes nobody's shared features wrong, in stream, fill and replay of the tables."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from gyre.events.v1 import behavior_pb2 as behavior
from gyre_core.features import Layout, Reader, Replay, RequestContext
from gyre_core.spec import LoopSpec, parse_loop
from gyre_features.online.store import OnlineStore
from gyre_features.settings import FeaturesSettings
from gyre_features.stream.backfill import Archived
from gyre_features.stream.loop_stream import LoopStream
from gyre_features.warehouse.archive import Archive, rows_of
from gyre_runtime.checkpoints import checkpoints_after
from gyre_runtime.events import Event
from gyre_warehouse.rows import events_of
from gyre_warehouse.tables import INTERACTIONS, open_catalog
from redis.asyncio import Redis

pytestmark = pytest.mark.adapter
BEGIN, AHEAD_S = 1_700_000_000.0, 299.0
BEFORE, AFTER = 200, 100
ITEMS = ["top", "poor"]
SPEC = """
version: 1
loop: {loop}
events: {{interactions: {{click: {{}}}}}}
items: {{fields: {{price: {{kind: number}}}}}}
features:
  - {{name: popular, kind: decayed_count, scope: item, events: [click], half_lives: [5m]}}
  - {{name: recent, kind: windowed_count, scope: item, events: [click], windows: [1m]}}
serving: {{fallback_feature: popular_5m}}
shards: {{kafka_partitions: 1}}
"""


@pytest.fixture
def spec(loop_name: str) -> LoopSpec:
    """A loop on the wall clock whose features forget within minutes."""
    return parse_loop(SPEC.format(loop=f"loop-{loop_name[-8:]}"))


def _clicks(spec: LoopSpec) -> list[Event]:
    """Clicks on one item, one of them 299 s ahead, two of its user on another, and then more on the first."""
    clicks = [("top", f"u{number}", 0.001 * number) for number in range(BEFORE)]
    clicks += [("top", "fast", AHEAD_S), ("poor", "fast", AHEAD_S), ("poor", "fast", AHEAD_S)]
    clicks += [("top", f"v{number}", 1 + 0.001 * number) for number in range(AFTER)]
    name = f"{spec.loop}.behavior.interactions"
    return [
        Event(
            f"e{offset}",
            "shop",
            "",
            BEGIN + at,
            behavior.Interaction(user_id=user, item_id=item, type="click"),
            None,
            name,
            0,
            offset,
            user,
            BEGIN + (at if at < AHEAD_S else 0.5) + 0.25,
        )
        for offset, (item, user, at) in enumerate(clicks)
    ]


async def _ignore(*_: object) -> None:
    pass


async def _read(store: OnlineStore) -> list[float]:
    """Decayed count and window of the two items, two seconds after the begin."""
    values = await store.read("u", ITEMS)
    matrix, _ = Reader(store.layout).matrix(
        values.user, values.everyone, values.items, ITEMS, RequestContext(BEGIN + 2)
    )
    return [float(each) for each in matrix.ravel()]


def _assert_right(found: Sequence[float]) -> None:
    """All clicks count about once."""
    assert found == pytest.approx([BEFORE + AFTER + 1, BEFORE + AFTER + 1, 2, 2], rel=0.02)


async def test_one_event_ahead_makes_no_shared_feature_old(redis: Redis, spec: LoopSpec, tmp_path: Path) -> None:
    """Sums, windows and popularity of an item count every click, batch by batch; a fill and the tables say the same."""
    layout, events = Layout.compile(spec), _clicks(spec)
    store = OnlineStore(redis, spec, layout)
    stream = LoopStream(store, on_batch=_ignore, max_events=50)
    place = (events[0].topic, 0)
    await stream.assigned([place])
    await stream.apply(events)
    live = await _read(store)
    _assert_right(live)
    (first, score), (second, least) = await store.popular(2)
    assert (first, second) == ("top", "poor")
    assert 2 ** (score - least) == pytest.approx((BEFORE + AFTER + 1) / 2, rel=0.02)
    catalog = open_catalog(FeaturesSettings(warehouse=str(tmp_path / "warehouse")))
    archive = Archive(catalog, rows=10**6, seconds=60, payload_bytes=10**9)
    await archive.add(events, checkpoints_after(events))
    await archive.flush()
    await redis.flushdb()
    assert await Archived(OnlineStore(redis, spec, layout), max_events=50).apply(catalog, [place]) == len(events)
    assert await _read(store) == pytest.approx(live, rel=1e-6)
    replay = Replay(layout)
    replay.apply(sorted(events_of(INTERACTIONS, rows_of(place[0], events)), key=lambda event: event.time))
    matrix, _ = replay.matrix("u", ITEMS, RequestContext(BEGIN + 2))
    assert [float(each) for each in matrix.ravel()] == pytest.approx(live, rel=1e-5)
