"""Forgetting a user: online, in the warehouse with its old snapshots and files, and whatever is replayed afterwards."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from gyre.events.v1 import behavior_pb2 as behavior
from gyre.events.v1 import privacy_pb2 as privacy
from gyre.features.v1 import features_pb2 as pb
from gyre.features.v1.features_pb2_grpc import FeaturesServiceStub
from gyre_core.features import Layout
from gyre_core.keyring import Keyring
from gyre_core.keys import pattern as store_keys
from gyre_core.spec import LoopSpec
from gyre_core.topics import declared, tombstones_kept_s, topic
from gyre_features.online.store import OnlineStore
from gyre_features.privacy.erasure import ERASED, Eraser, drop_notes, erase_user
from gyre_features.processes.serve import serve
from gyre_features.settings import FeaturesSettings
from gyre_features.warehouse.archive import Archive
from gyre_local.testing import eventually
from gyre_privacy.pseudonyms import user_hash
from gyre_privacy.search import SearchedStores, needles_of, search
from gyre_privacy.tombstones import Tombstones
from gyre_runtime import Lifespan, ServiceSettings, channel
from gyre_runtime.checkpoints import Checkpoint
from gyre_runtime.kafka import Producer, create_topics, read_compacted
from gyre_warehouse.tables import (
    INTERACTIONS,
    append,
    ensure_table,
    offsets_of,
    open_catalog,
    read_columns,
    schema_of,
)
from pyiceberg.schema import Schema
from pyiceberg.table import Table
from redis.asyncio import Redis

Start = Callable[..., Any]
Produce = Callable[..., Awaitable[None]]
BEGIN = 1_370_000_000.0


async def _table(folder: Path, spec: LoopSpec, history: Any) -> Table:
    """A table of 90 ratings in three snapshots."""
    catalog = open_catalog(FeaturesSettings(warehouse=str(folder)))
    archive = Archive(catalog, rows=1000, seconds=60, payload_bytes=10**9)
    ratings = history.ratings(90)
    for start in range(0, 90, 30):
        await archive.add(ratings[start : start + 30])
        await archive.flush()
    return ensure_table(catalog, spec.loop, INTERACTIONS)


def _users_on_disk(folder: Path) -> list[str]:
    """The user of every row of every data file, whether a snapshot names the file or not."""
    return [
        user
        for path in sorted(folder.glob("data/**/behavior_*/**/*.parquet"))
        for user in pq.read_table(path, columns=["user_id"]).column("user_id").to_pylist()
    ]


async def test_nothing_of_a_user_is_left_in_any_file(tmp_path: Path, spec: LoopSpec, history: Any) -> None:
    """The rows go, the old snapshots go, the files go; all other rows and the Kafka offsets stay."""
    table = await _table(tmp_path, spec, history)
    before = _users_on_disk(tmp_path)
    own = before.count("u1")
    assert own > 1
    rows, expired, found = erase_user(table, "u1".__eq__, since_ms=0)
    assert (rows, len(expired), found) == (own, 4, 0)
    assert sorted(_users_on_disk(tmp_path)) == sorted(user for user in before if user != "u1")
    again = ensure_table(open_catalog(FeaturesSettings(warehouse=str(tmp_path))), spec.loop, INTERACTIONS)
    assert sorted(again.scan().to_arrow()["user_id"].to_pylist()) == sorted(_users_on_disk(tmp_path))
    assert len(again.snapshots()) == 1
    assert offsets_of(again) == {0: 90}


async def test_a_user_goes_from_a_table_that_got_columns_later(tmp_path: Path, spec: LoopSpec, history: Any) -> None:
    """Rows of an older schema are rewritten with those of the present one; the others keep what they hold."""
    catalog = open_catalog(FeaturesSettings(warehouse=str(tmp_path)))
    catalog.create_namespace(spec.loop)
    older = Schema(*(field for field in schema_of(INTERACTIONS).fields if field.name not in {"value", "simulated"}))
    old = catalog.create_table((spec.loop, INTERACTIONS), schema=older)
    row = {"event_id": "old", "kafka_partition": 0, "kafka_offset": 0}
    rows = [{**row, "user_id": user} for user in ("u1", "u2")]
    append(old, pa.Table.from_pylist(rows, old.schema().as_arrow()), {0: Checkpoint(0)})
    table = await _table(tmp_path, spec, history)
    before = _users_on_disk(tmp_path)
    erased, _, found = erase_user(table, "u1".__eq__, since_ms=0)
    assert (erased, found) == (before.count("u1"), 0)
    left = read_columns(table, ["event_id", "user_id", "value"]).to_pylist()
    assert sorted(each["user_id"] for each in left) == sorted(user for user in before if user != "u1")
    assert {each["value"] for each in left if each["event_id"] == "old"} == {None}
    assert {each["value"] for each in left if each["event_id"] != "old"} == {7.0}


async def test_an_unknown_user_costs_no_snapshot(tmp_path: Path, spec: LoopSpec, history: Any) -> None:
    """Where there are no rows nothing is rewritten, so that training sets stay repeatable."""
    table = await _table(tmp_path, spec, history)
    assert erase_user(table, "nobody".__eq__, since_ms=2**60) == (0, [], 0)
    assert len(table.snapshots()) == 3


@pytest.mark.parametrize("step", ["files", "manifest"])
@pytest.mark.parametrize("has_rows", [True, False])
async def test_files_of_a_killed_job_hold_no_forgotten_user(
    tmp_path: Path, spec: LoopSpec, history: Any, monkeypatch: pytest.MonkeyPatch, step: str, has_rows: bool
) -> None:
    """What an append killed before its commit left of the user goes with the user, bounds, too; all else stays."""
    table, marked = await _table(tmp_path, spec, history), "marked-7f3a91"
    if has_rows:
        append(table, _rows_of_users(table, marked, "u2"), {0: Checkpoint(91)})
    others = table.scan().to_arrow().filter(pc.field("user_id") != marked)
    with monkeypatch.context() as patched:
        if step == "files":
            patched.setattr("pyiceberg.table.update.snapshot._SnapshotProducer._manifests", _killed)
        else:
            patched.setattr("pyiceberg.catalog.sql.SqlCatalog.commit_table", _killed)
        for part in (_rows_of_users(table, marked, "u2"), _rows_of_users(table, "u2", "u3")):
            with pytest.raises(KeyboardInterrupt):
                append(table, part, {0: Checkpoint(92)})
    again = ensure_table(open_catalog(FeaturesSettings(warehouse=str(tmp_path))), spec.loop, INTERACTIONS)
    left = Counter(_users_on_disk(tmp_path))
    assert left.pop(marked) == 1 + has_rows
    assert erase_user(again, marked.__eq__, since_ms=2**60)[::2] == (has_rows, 0)
    left["u2"] -= 1  # the other row of the orphan
    assert Counter(_users_on_disk(tmp_path)) == left
    assert again.scan().to_arrow().sort_by("event_id") == others.sort_by("event_id")
    assert not (await search(SearchedStores(folders=[tmp_path]), needles_of([marked]))).hits


def _rows_of_users(table: Table, *users: str) -> pa.Table:
    rows = [{"event_id": f"e-{user}", "user_id": user, "kafka_partition": 0, "kafka_offset": 89} for user in users]
    return pa.Table.from_pylist(rows, table.schema().as_arrow())


def _killed(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


async def test_an_erasure_that_was_cut_short_is_finished(
    tmp_path: Path, spec: LoopSpec, history: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash in the middle of deleting files, and the next call deletes the rest and the old snapshots."""
    table = await _table(tmp_path, spec, history)
    delete, count = type(table.io).delete, 0

    def cut(self: Any, location: str) -> None:
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt
        delete(self, location)

    monkeypatch.setattr(type(table.io), "delete", cut)
    with pytest.raises(KeyboardInterrupt):
        erase_user(table, "u1".__eq__, since_ms=0)
    monkeypatch.undo()
    again = ensure_table(open_catalog(FeaturesSettings(warehouse=str(tmp_path))), spec.loop, INTERACTIONS)
    rows, expired, found = erase_user(again, "u1".__eq__, since_ms=0)
    assert (rows, found) == (0, 0)
    assert len(expired) >= 3
    assert "u1" not in _users_on_disk(tmp_path)


@pytest.mark.parametrize("keyring", [None, Keyring(b"k" * 32)], ids=["id", "hash"])
@pytest.mark.parametrize(("clock", "late"), [("replay", False), ("wall", True)])
def test_what_counts_after_a_tombstone(
    spec: LoopSpec, history: Any, clock: str, late: bool, keyring: Keyring | None
) -> None:
    """What reached Kafka before it is covered; what is sent again later is so where the event's time can tell."""
    tombstones = Tombstones({spec.loop: spec.model_copy(update={"clock": clock})}, keyring)
    message = privacy.UserForgotten(user_id="u1")
    if keyring is not None:
        message = privacy.UserForgotten(user_hash=user_hash(keyring, spec.loop, "u1"))
    message.forgotten_time.FromNanoseconds(int((BEGIN + 50) * 1e9))
    tombstones.note(spec.loop, message)
    own, other = history.rating(1, 1), history.rating(2, 1)
    before = history.event("behavior.interactions", own, 40)
    assert tombstones.cover(before)
    assert tombstones.cover(before._replace(arrival_time=BEGIN + 60)) == late
    assert not tombstones.cover(history.event("behavior.interactions", own, 60))
    assert not tombstones.cover(history.event("behavior.interactions", other, 40))


def test_a_tombstone_is_let_go_once_its_topic_has_deleted_it(spec: LoopSpec, history: Any) -> None:
    """However long a process lives it remembers no more tombstones than Kafka does: what the oldest covered is gone."""
    now = [0.0]
    tombstones = Tombstones({spec.loop: spec}, None, clock=lambda: now[0])
    events = {user: next(each for each in history.ratings(90) if each.message.user_id == user) for user in ("u1", "u2")}
    for user in ("u1", "u2"):
        message = privacy.UserForgotten(user_id=user)
        message.forgotten_time.FromSeconds(2_000_000_000)
        tombstones.note(spec.loop, message)
        assert tombstones.cover(events[user])
        now[0] += tombstones_kept_s(spec) / 2 + 1
    assert tombstones.cover(events["u1"])
    tombstones.note(spec.loop, privacy.UserForgotten(user_id="u3"))
    assert [tombstones.cover(events[user]) for user in ("u1", "u2")] == [False, True]


@pytest.mark.adapter
async def test_a_forgotten_user_stays_forgotten(  # noqa: PLR0917 (fixtures)
    tmp_path: Path,
    spec: LoopSpec,
    layout: Layout,
    history: Any,
    kafka: str,
    redis: Redis,
    redis_url: str,
    loop_file: Path,
    start_process: Start,
    produce: Produce,
    privacy_key_file: Path,
) -> None:
    """`DeleteEntity` proves it in both stores; a lost Redis that is rebuilt from Kafka does not bring the user back."""
    await create_topics(kafka, declared(spec))
    ratings = history.ratings(90)
    own = sum(event.message.user_id == "u1" for event in ratings)
    await produce([*history.catalogue(), *ratings])
    stream = start_process("stream")
    start_process("archive", GYRE_FEATURES_ARCHIVE_S="0.2")
    store, warehouse = OnlineStore(redis, spec, layout), tmp_path / "warehouse"
    await _until(lambda: _applied(store, 90))
    await eventually(lambda: _rows(warehouse, spec) == 90, timeout_s=60, message="the rows are stored")

    settings = FeaturesSettings(
        loops=(loop_file,),
        kafka=kafka,
        redis=redis_url,
        drain_s=1,
        features_forget_wait_s=25,
        privacy_key_file=privacy_key_file,
    )
    async with Lifespan(drain_s=1) as lifespan:
        running = await serve(lifespan, settings)
        opened = await lifespan.enter(channel(running.server.address, ServiceSettings(), name="features"))
        request = pb.DeleteEntityRequest(loop=spec.loop, kind=pb.ENTITY_KIND_USER, id="u1")
        answer = await FeaturesServiceStub(opened).DeleteEntity(request, timeout=40)
    assert (answer.deleted_keys, answer.found_keys) == (1, 0)
    assert (answer.warehouse_erased, answer.erased_rows[INTERACTIONS], answer.found_rows) == (True, own, 0)
    assert answer.kafka_until_time.ToSeconds() - answer.forgotten_time.ToSeconds() == 30 * 86_400
    assert "u1" not in _users_on_disk(warehouse)

    stream.kill()
    stream.wait()
    async for key in redis.scan_iter(store_keys(spec.loop)):
        await redis.delete(key)
    start_process("stream")
    await _until(lambda: _applied(store, 90))
    assert (await store.read("u1", [])).user is None
    assert (await store.read("u2", [])).user is not None

    back = history.event("behavior.interactions", history.rating(1, 3), 95)
    await produce([back])
    await _until(lambda: _applied(store, 91))
    assert len(list(layout.history((await store.read("u1", [])).user))) == 1


async def _applied(store: OnlineStore, count: int) -> bool:
    name = topic(store.spec.loop, "behavior.interactions")
    (applied_offsets,) = await store.applied_offsets(
        [(name, each) for each in range(store.spec.shards.kafka_partitions)]
    )
    return sum(applied_offsets.values()) >= count


async def _until(condition: Callable[[], Awaitable[bool]]) -> None:
    await eventually(condition, timeout_s=60, message="the events were applied")


def _rows(warehouse: Path, spec: LoopSpec) -> int:
    catalog = open_catalog(FeaturesSettings(warehouse=str(warehouse)))
    return int(ensure_table(catalog, spec.loop, INTERACTIONS).scan().to_arrow().num_rows)


@pytest.mark.adapter
async def test_no_buffer_of_late_events_holds_a_forgotten_user(  # noqa: PLR0917 (fixtures)
    tmp_path: Path,
    spec: LoopSpec,
    history: Any,
    kafka: str,
    redis: Redis,
    redis_url: str,
    loop_file: Path,
    start_process: Start,
    produce: Produce,
    privacy_key_file: Path,
) -> None:
    """Events that wait for fields of unknown items go with their user; a search of all bytes in Redis finds nobody."""
    await create_topics(kafka, declared(spec))
    other, marked = "somebody-else", "the-forgotten-user"
    events = [
        history.event("behavior.interactions", _rating(user, item), number)
        for number, (user, item) in enumerate((user, item) for user in (marked, other) for item in ("new-1", "new-2"))
    ]
    start_process("stream")
    start_process("archive", GYRE_FEATURES_ARCHIVE_S="0.2")
    await produce(events)

    async def holds(user: str) -> bool:
        return await _holds(redis, spec, user.encode())

    await eventually(lambda: holds(other), timeout_s=60, message="the events were applied")
    await eventually(lambda: holds(marked), timeout_s=60, message="the events were applied")
    await eventually(lambda: _rows(tmp_path / "warehouse", spec) == 4, timeout_s=60, message="the rows are stored")
    settings = FeaturesSettings(
        loops=(loop_file,),
        kafka=kafka,
        redis=redis_url,
        drain_s=1,
        features_forget_wait_s=25,
        privacy_key_file=privacy_key_file,
    )
    async with Lifespan(drain_s=1) as lifespan:
        running = await serve(lifespan, settings)
        opened = await lifespan.enter(channel(running.server.address, ServiceSettings(), name="features"))
        request = pb.DeleteEntityRequest(loop=spec.loop, kind=pb.ENTITY_KIND_USER, id=marked)
        stub = FeaturesServiceStub(opened)
        first = await stub.DeleteEntity(request, timeout=60)
        assert not await holds(marked)
        assert await holds(other)
        second = await stub.DeleteEntity(request, timeout=60)
    assert (first.warehouse_erased, first.erased_rows[INTERACTIONS]) == (True, 2)
    assert second.erased_rows[INTERACTIONS] == 2, "a repeated call reports all that went"


def _rating(user_id: str, item_id: str) -> behavior.Interaction:
    return behavior.Interaction(user_id=user_id, item_id=item_id, type="rating", value=7)


async def _holds(redis: Redis, spec: LoopSpec, wanted: bytes) -> bool:
    """Whether any key of the loop, or anything in it, has these bytes; knows nothing of how keys are made."""
    async for key in redis.scan_iter(f"*{spec.loop}*"):
        kind = (await redis.type(key)).decode()
        if kind == "string":
            content = [await redis.get(key) or b""]
        elif kind == "zset":
            content = await redis.zrange(key, 0, -1)
        elif kind == "hash":
            content = [each for pair in (await redis.hgetall(key)).items() for each in pair]
        elif kind == "set":
            content = list(await redis.smembers(key))
        else:
            content = await redis.lrange(key, 0, -1)
        if any(wanted in each for each in (key, *content)):
            return True
    return False


@pytest.mark.adapter
async def test_no_key_of_a_former_layout_or_shard_outlives_a_user(
    spec: LoopSpec, kafka: str, redis: Redis, redis_url: str, loop_file: Path, privacy_key_file: Path
) -> None:
    """Whatever layout, shard and format a key is of, it goes with its user; keys of others that look like it stay."""
    await create_topics(kafka, declared(spec))
    user, loop = "u*[1]:a", spec.loop
    own = [f"gyre2:{{{loop}:{shard}}}:{shard:016x}:user:{user}" for shard in (0, 7)]
    own.append(f"gyre:{loop}:{7:016x}:{{3}}:user:{user}")
    begin = f"gyre2:{{{loop}:0}}:{7:016x}"
    others = [f"{begin}:item:{user}", f"{begin}:user:x:user:{user}", f"{begin}:user:u1:a", f"{begin}:user:{user}b"]
    others.append(f"gyre2:{{another-{loop}:0}}:{7:016x}:user:{user}")
    others += [f"{begin}:item:x:user:{user}", f"{begin}:versions:x:user:{user}"]
    for key in (*own, *others):
        await redis.set(key, b"features")
    settings = FeaturesSettings(
        loops=(loop_file,),
        kafka=kafka,
        redis=redis_url,
        drain_s=1,
        features_forget_wait_s=0.1,
        privacy_key_file=privacy_key_file,
    )
    async with Lifespan(drain_s=1) as lifespan:
        running = await serve(lifespan, settings)
        opened = await lifespan.enter(channel(running.server.address, ServiceSettings(), name="features"))
        request = pb.DeleteEntityRequest(loop=loop, kind=pb.ENTITY_KIND_USER, id=user)
        answer = await FeaturesServiceStub(opened).DeleteEntity(request, timeout=60)
    assert not [key for key in own if await redis.exists(key)]
    assert [key for key in others if await redis.exists(key)] == others
    assert (answer.deleted_keys, answer.found_keys) == (3, 0)


class ManySnapshots:
    """An archive whose tables had more snapshots than one record can name."""

    def __init__(self) -> None:
        self.newest, self.erasures = 2**62, 0

    async def alone(self, _loop: str, tables: Sequence[str], work: object) -> dict[str, tuple[int, list[int], int]]:
        """As after an erasure: a row went, and every older snapshot; of notes there are none to drop."""
        if isinstance(work, partial):
            assert work.func is drop_notes
            return {}
        first, self.newest = self.newest, self.newest + 150_000
        self.erasures += 1
        return {name: (1, list(range(first, self.newest)), 0) for name in tables}


@pytest.mark.adapter
async def test_an_erasure_of_many_snapshots_fits_its_record(kafka: str, spec: LoopSpec) -> None:
    """However many snapshots went with a user, that is published, the newest by their ids, also a second time."""
    await create_topics(kafka, declared(spec))
    keyring, archive, name = Keyring(b"k" * 32), ManySnapshots(), topic(spec.loop, "privacy.erasures")
    async with Producer(kafka, source="test") as producer:
        archives: Any = {spec.loop: archive}
        eraser = Eraser(archives, producer, kafka, keyring, {spec.loop: 3600.0})
        task = asyncio.create_task(eraser.run())
        for time_s in (100, 200):
            message = privacy.UserForgotten(user_hash=user_hash(keyring, spec.loop, "u1"))
            message.forgotten_time.FromSeconds(time_s)
            eraser.note(spec.loop, message)

            async def newest(time_s: int = time_s) -> list[privacy.UserErased]:
                assert not task.done(), "the eraser ended"
                events = (await read_compacted(kafka, name, ERASED)).values()
                return [each.message for each in events if each.message.forgotten_time.seconds == time_s]

            (erased,) = await eventually(newest, timeout_s=60, message="the erasure is published")
            for snapshots in erased.expired.values():
                assert snapshots.ids[-1] == archive.newest - 1
                assert len(snapshots.ids) >= 10_000
        task.cancel()


@pytest.mark.adapter
@pytest.mark.parametrize(("kept_s", "erasures"), [(3600.0, 2), (0.0, 3)])
async def test_an_erasure_is_remembered_as_long_as_its_tombstone(
    kafka: str, spec: LoopSpec, kept_s: float, erasures: int
) -> None:
    """A tombstone that comes again is done, until its time is over: so nobody stays in memory for ever."""
    await create_topics(kafka, declared(spec))
    keyring, archive, name = Keyring(b"k" * 32), ManySnapshots(), topic(spec.loop, "privacy.erasures")
    archives: Any = {spec.loop: archive}
    async with Producer(kafka, source="test") as producer:
        eraser = Eraser(archives, producer, kafka, keyring, {spec.loop: kept_s})
        for user in ("u1", "u2", "u1", "last"):
            message = privacy.UserForgotten(user_hash=user_hash(keyring, spec.loop, user))
            message.forgotten_time.FromSeconds(100)
            eraser.note(spec.loop, message)
        task, last = asyncio.create_task(eraser.run()), user_hash(keyring, spec.loop, "last")

        async def done() -> bool:
            assert not task.done(), "the eraser ended"
            return any(each.message.user_hash == last for each in (await read_compacted(kafka, name, ERASED)).values())

        await eventually(done, timeout_s=60, message="the last erasure is published")
        task.cancel()
    assert archive.erasures == erasures + 1
