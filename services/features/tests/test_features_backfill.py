"""A backfill fills an empty store from the warehouse as the stream would have, whatever cuts it short."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from gyre.features.v1 import features_pb2 as pb
from gyre.features.v1.features_pb2_grpc import FeaturesServiceStub
from gyre_core.features import Layout, Reader, Replay, RequestContext
from gyre_core.layouts import LayoutDefinition
from gyre_core.spec import LoopSpec
from gyre_core.topics import topic
from gyre_features.online.store import OnlineStore
from gyre_features.processes import fill
from gyre_features.processes.fill import FillJob, run_fill
from gyre_features.processes.serve import serve
from gyre_features.settings import FeaturesSettings
from gyre_features.stream.backfill import Backfilled, backfill
from gyre_features.stream.loop_stream import LoopStream, feature_event
from gyre_features.warehouse.archive import Archive
from gyre_privacy.search import SearchedStores, needles_of, search
from gyre_privacy.tombstones import Tombstones
from gyre_runtime import Lifespan, Precondition, ServiceSettings, channel
from gyre_runtime.events import Event
from gyre_runtime.telemetry import Telemetry
from gyre_warehouse.tables import INTERACTIONS, append, arrow_schema, checkpoints_of, ensure_table, open_catalog
from gyre_warehouse.tables import ITEMS as CATALOGUE
from redis.asyncio import Redis

pytestmark = pytest.mark.adapter
ITEMS = [f"i{number}" for number in range(12)]
RATINGS = 240
MARKED, OTHER = "marked-7f3a91", "other-2c8b17"


@pytest.fixture
async def archived(tmp_path: Path, spec: LoopSpec, history: Any) -> list[Event]:
    """A catalogue and ratings over two partitions by user, in the warehouse."""
    events = [*history.catalogue(), *_by_user(history.ratings(RATINGS))]
    await _archive(tmp_path, events)
    return events


async def _archive(tmp_path: Path, events: Sequence[Event]) -> None:
    catalog = open_catalog(FeaturesSettings(warehouse=str(tmp_path / "warehouse")))
    archive = Archive(catalog, rows=10**6, seconds=60, payload_bytes=10**9)
    await archive.add(events)
    await archive.flush()


def _by_user(ratings: Sequence[Event]) -> list[Event]:
    """Ratings in the partition of their user, with the offsets of that partition."""
    offsets, placed = [0, 0], []
    for event in ratings:
        partition = int(event.message.user_id[1:]) % 2
        placed.append(event._replace(partition=partition, offset=offsets[partition]))
        offsets[partition] += 1
    return placed


@pytest.fixture
def store(redis: Redis, spec: LoopSpec, layout: Layout) -> OnlineStore:
    """The store that is filled."""
    return OnlineStore(redis, spec, layout)


async def _assert_equal(store: OnlineStore, events: Sequence[Event]) -> None:
    """The store reads as a replay of the events does."""
    replay, reader = Replay(store.layout), Reader(store.layout)
    replay.apply(feature_event(event) for event in events)
    context = RequestContext(max(event.time for event in events) + 60)
    for user in (f"u{number}" for number in range(9)):
        values = await store.read(user, ITEMS)
        found, _ = reader.matrix(values.user, values.everyone, values.items, ITEMS, context)
        assert found == pytest.approx(replay.matrix(user, ITEMS, context)[0], rel=1e-5)


@pytest.fixture
def filling(
    tmp_path: Path, loop_file: Path, kafka: str, redis_url: str, spec: LoopSpec
) -> Callable[[], Awaitable[Backfilled]]:
    """Run a backfill in the test's own process; answers what it did."""
    warehouse = str(tmp_path / "warehouse")
    settings = FeaturesSettings(
        loops=(loop_file,), kafka=kafka, redis=redis_url, warehouse=warehouse, features_batch_events=50
    )
    return lambda: asyncio.to_thread(backfill, settings, spec, processes=1)


async def test_an_empty_store_is_filled_by_two_processes(
    archived: list[Event], store: OnlineStore, start_process: Callable[..., Any]
) -> None:
    """The command applies every archived event once, the partitions side by side, and says how many."""
    process = start_process("backfill", GYRE_FEATURES_BATCH_EVENTS="50")
    assert await asyncio.to_thread(process.wait, 60) == 0, process.log.read_text()
    assert f"{len(archived)} events applied" in process.log.read_text()
    await _assert_equal(store, archived)


async def test_the_stream_goes_on_where_a_backfill_ends(
    archived: list[Event],
    store: OnlineStore,
    spec: LoopSpec,
    history: Any,
    filling: Callable[[], Awaitable[Backfilled]],
) -> None:
    """The fences stand behind the archived events: a second backfill adds nothing, and newer events are added."""
    assert [(await filling()).events, (await filling()).events] == [len(archived), 0]
    name = topic(spec.loop, "behavior.interactions")
    stream = LoopStream(store, on_batch=_ignore)
    begin = await stream.assigned([(name, 0), (name, 1)])
    assert sum(begin.values()) == RATINGS
    newer = [
        event._replace(partition=0, offset=begin[name, 0] + number, time=event.time + 1000, id=f"newer-{number}")
        for number, event in enumerate(history.ratings(40, seed=2))
    ]
    await stream.apply(newer)
    await _assert_equal(store, [*archived, *newer])


@pytest.fixture
def strange_row(archived: list[Event], spec: LoopSpec, tmp_path: Path) -> list[Event]:
    """The archived events, behind which the catalogue has a row with another message's fields."""
    catalog = open_catalog(FeaturesSettings(warehouse=str(tmp_path / "warehouse")))
    table = ensure_table(catalog, spec.loop, CATALOGUE)
    rows = table.scan(row_filter="kafka_partition = 0").to_arrow().slice(0, 1).to_pylist()
    end = checkpoints_of(table)[0]
    strange = {"event_id": "strange", "kafka_offset": end.offset, "fields": '{"userId": "u", "type": "rating"}'}
    append(table, pa.Table.from_pylist([rows[0] | strange], arrow_schema(CATALOGUE)), {0: end.at(end.offset + 1)})
    return archived


@pytest.mark.parametrize("few", [20_000, 0], ids=["here", "in a process"])
async def test_what_a_fill_sets_aside_is_counted(  # noqa: PLR0917 (fixtures)
    few: int,
    strange_row: list[Event],
    store: OnlineStore,
    tmp_path: Path,
    loop_file: Path,
    kafka: str,
    redis_url: str,
    telemetry: Telemetry,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The stream's process counts what was read and what was set aside, also where another process does the work."""
    monkeypatch.setattr(fill, "_FEW_EVENTS", few)
    settings = FeaturesSettings(loops=(loop_file,), kafka=kafka, redis=redis_url, warehouse=str(tmp_path / "warehouse"))
    places = tuple({(event.topic, event.partition) for event in strange_row})
    job = FillJob(settings, store.spec.loop, LayoutDefinition.of(store.spec), 0, places, gives_way=False)
    await run_fill(job, store, Tombstones({store.spec.loop: store.spec}, None))
    await _assert_equal(store, strange_row)

    def counted(what: str, table: str) -> float | None:
        labels = {"loop": store.spec.loop, "table": table}
        found: float | None = telemetry.registry.get_sample_value(f"gyre_warehouse_{what}_rows_total", labels)
        return found

    assert (counted("unreadable", CATALOGUE), counted("read", CATALOGUE)) == (1, len(ITEMS) + 1)
    assert (counted("unreadable", INTERACTIONS), counted("read", INTERACTIONS)) == (None, RATINGS)


async def test_a_row_that_nobody_can_read_stops_no_backfill(
    strange_row: list[Event], store: OnlineStore, start_process: Callable[..., Any]
) -> None:
    """Another message's fields in the catalogue are set aside, as the command says; all else is applied."""
    archived = strange_row
    process = start_process("backfill", GYRE_FEATURES_BATCH_EVENTS="50")
    assert await asyncio.to_thread(process.wait, 60) == 0, process.log.read_text()
    said = process.log.read_text()
    assert f"{len(archived)} events applied" in said
    assert f"set aside: 1 of {len(ITEMS) + 1} rows of {CATALOGUE} cannot be read" in said
    await _assert_equal(store, archived)


async def test_a_backfill_that_was_cut_short_is_started_again(
    archived: list[Event], store: OnlineStore, filling: Callable[[], Awaitable[Backfilled]]
) -> None:
    """What was applied before stands, and the rest is added: nothing twice, nothing missing."""
    stream = LoopStream(store, on_batch=_ignore, max_events=50)
    catalogue, ratings = archived[:12], archived[12:]
    await stream.assigned({(event.topic, event.partition) for event in archived})
    await stream.apply([*catalogue, *[event for event in ratings if event.partition == 0][:70]])
    assert (await filling()).events == RATINGS - 70
    await _assert_equal(store, archived)


async def test_a_store_of_the_former_format_counts_as_empty(
    archived: list[Event],
    store: OnlineStore,
    former_store: dict[str, bytes],
    redis: Redis,
    filling: Callable[[], Awaitable[Backfilled]],
) -> None:
    """After an upgrade every archived event is applied, whatever the former format's fences say, and that one stays."""
    assert (await filling()).events == len(archived)
    await _assert_equal(store, archived)
    assert dict(zip(former_store, await redis.mget(former_store), strict=True)) == former_store


async def test_the_batches_of_a_backfill_are_told_later(
    archived: list[Event], store: OnlineStore, filling: Callable[[], Awaitable[Backfilled]]
) -> None:
    """Its batches wait in the outbox with all of their offsets, so that the log has no hole."""
    await filling()
    published = await LoopStream(store, on_batch=_ignore).unpublished()
    assert [batch.batch for batch in published] == list(range(1, len(published) + 1))
    assert sum(batch.events for batch in published) == len(archived)
    assert sum(each.end - each.first for batch in published for each in batch.ranges) == len(archived)


async def test_a_forgotten_user_is_not_brought_back(  # noqa: PLR0917 (fixtures)
    tmp_path: Path,
    history: Any,
    spec: LoopSpec,
    loop_file: Path,
    kafka: str,
    redis_url: str,
    privacy_key_file: Path,
) -> None:
    """Rows that the archive has not erased yet, since it is away, count no more: a search of Redis finds nobody."""
    ratings = _by_user(history.ratings(RATINGS))
    for event in ratings:
        event.message.user_id = {"u1": MARKED, "u2": OTHER}.get(event.message.user_id, "u3")
    await _archive(tmp_path, [*history.catalogue(), *ratings])
    settings = FeaturesSettings(
        loops=(loop_file,),
        kafka=kafka,
        redis=redis_url,
        warehouse=str(tmp_path / "warehouse"),
        drain_s=1,
        features_forget_wait_s=0,
        privacy_key_file=privacy_key_file,
    )
    async with Lifespan(drain_s=1) as lifespan:
        running = await serve(lifespan, settings)
        opened = await lifespan.enter(channel(running.server.address, ServiceSettings(), name="features"))
        request = pb.DeleteEntityRequest(loop=spec.loop, kind=pb.ENTITY_KIND_USER, id=MARKED)
        answer = await FeaturesServiceStub(opened).DeleteEntity(request, timeout=40)
    assert not answer.warehouse_erased
    await asyncio.to_thread(backfill, settings, spec, processes=1)
    assert await _found(redis_url, spec, OTHER)
    assert not await _found(redis_url, spec, MARKED)
    blind = settings.model_copy(update={"privacy_key_file": None})
    with pytest.raises(Precondition, match="PRIVACY_KEY_MISSING"):
        await asyncio.to_thread(backfill, blind, spec, processes=1)


async def _found(redis_url: str, spec: LoopSpec, user_id: str) -> set[str]:
    """The keys of the loop that hold a user's id, whatever they are."""
    return set((await search(SearchedStores(redis=redis_url, loop=spec.loop), needles_of([user_id]))).hits)


async def _ignore(*_: object) -> None:
    pass
