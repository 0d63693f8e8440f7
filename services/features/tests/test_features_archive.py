"""The archive: every event is one row, whatever dies and however many archivers write."""

import asyncio
import contextlib
import signal
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import GroupCoordinatorNotAvailableError
from gyre.events.v1 import behavior_pb2 as behavior
from gyre.events.v1 import features_pb2 as events_pb2
from gyre_core.spec import LoopSpec
from gyre_core.topics import declared, topic
from gyre_features.settings import FeaturesSettings
from gyre_features.warehouse.archive import Archive
from gyre_local.testing import eventually
from gyre_runtime import Unavailable
from gyre_runtime.events import Event
from gyre_runtime.kafka import Producer, create_topics
from gyre_warehouse.tables import APPLIED, IMPRESSIONS, INTERACTIONS, REFUSED, ensure_table, open_catalog, read_columns

Start = Callable[..., Any]
BEGIN = 1_370_000_000.0


def _interaction(number: int) -> behavior.Interaction:
    return behavior.Interaction(user_id=f"u{number % 7}", item_id=f"i{number % 11}", type="rating", value=number % 10)


def _events(spec: LoopSpec, first: int, end: int) -> list[Event]:
    name = topic(spec.loop, "behavior.interactions")
    return [
        Event(f"e{each}", "test", "", BEGIN + each, _interaction(each), None, name, 0, each, "k", BEGIN)
        for each in range(first, end)
    ]


def _stored(warehouse: Path, loop: str) -> list[str]:
    catalog = open_catalog(FeaturesSettings(warehouse=str(warehouse)))
    return sorted(ensure_table(catalog, loop, INTERACTIONS).scan().to_arrow()["event_id"].to_pylist())


async def test_a_zombie_archiver_neither_loses_nor_repeats_a_row(tmp_path: Path, spec: LoopSpec) -> None:
    """Two archivers that hold overlapping events leave each event in the table once."""
    catalog = open_catalog(FeaturesSettings(warehouse=str(tmp_path)))
    zombie, successor = (Archive(catalog, rows=1000, seconds=60, payload_bytes=10**9) for _ in range(2))
    await zombie.add(_events(spec, 0, 40))
    await successor.add(_events(spec, 0, 25))
    await successor.flush()
    await zombie.flush()
    await successor.add(_events(spec, 25, 60))
    await successor.flush()
    assert _stored(tmp_path, spec.loop) == sorted(f"e{each}" for each in range(60))


async def test_a_warehouse_that_takes_nothing_keeps_the_rows(tmp_path: Path, spec: LoopSpec) -> None:
    """While the catalogue is locked rows wait, the batch is refused as transient, and comes again without doubling."""
    catalog = open_catalog(FeaturesSettings(warehouse=str(tmp_path)))
    archive = Archive(catalog, rows=40, seconds=60, payload_bytes=10**9)
    archive.checkpoints(topic(spec.loop, "behavior.interactions"))
    await archive.add(_events(spec, 0, 40))
    with contextlib.closing(sqlite3.connect(tmp_path / "catalog.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(Unavailable) as caught:
            await archive.add(_events(spec, 30, 70))
        assert caught.value.reason == "WAREHOUSE_UNAVAILABLE"
        other.execute("ROLLBACK")
    await archive.add(_events(spec, 30, 70))
    await archive.flush()
    assert _stored(tmp_path, spec.loop) == sorted(f"e{each}" for each in range(70))


async def test_a_read_and_the_log_of_batches_are_kept_whole(tmp_path: Path, spec: LoopSpec) -> None:
    """The warehouse holds what a read can be repeated from: its context, labels, order, batch numbers and offsets."""
    impression = behavior.Impression(
        request_id="r", user_id="u", item_ids=["a", "b"], context={"hour": 7}, labels={"device": "tv"},
        positions=[1, 0], item_batches=[3, -1], user_batch=2, global_batch=4,
    )  # fmt: skip
    applied = events_pb2.BatchApplied(loop=spec.loop, layout="l", shard=1, batch=4, events=2)
    applied.applied_time.FromMicroseconds(1_370_000_001_500_000)
    name = topic(spec.loop, "behavior.interactions")
    applied.ranges.add(topic=name, partition=1, first=5, end=9)
    catalog = open_catalog(FeaturesSettings(warehouse=str(tmp_path)))
    archive = Archive(catalog, rows=1000, seconds=60, payload_bytes=10**9)
    for suffix, message in (("behavior.impressions", impression), ("features.applied", applied)):
        await archive.add([Event("e", "test", "", BEGIN, message, None, topic(spec.loop, suffix), 0, 0, "k", BEGIN)])
    await archive.flush()
    shown = ["context", "labels", "positions", "item_batches", "user_batch", "global_batch"]
    (read,) = read_columns(ensure_table(catalog, spec.loop, IMPRESSIONS), shown).to_pylist()
    assert list(read.values()) == [[("hour", 7.0)], [("device", "tv")], [1, 0], [3, -1], 2, 4]
    columns = ["layout", "shard", "batch", "events", "applied_time", "range_topics", "range_firsts", "range_ends"]
    (batch,) = read_columns(ensure_table(catalog, spec.loop, APPLIED), columns).to_pylist()
    assert batch.pop("applied_time").timestamp() == 1_370_000_001.5
    assert list(batch.values()) == ["l", 1, 4, 2, [name], [5], [9]]


async def test_rows_wait_longer_where_commits_pile_up(
    tmp_path: Path, spec: LoopSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trickle does not commit for ever at the same pace: with more commits behind it, rows wait for company."""
    monkeypatch.setattr("gyre_features.warehouse.archive._COMMITS_FOR_A_SECOND", 0.1)
    catalog = open_catalog(FeaturesSettings(warehouse=str(tmp_path)))
    archive = Archive(catalog, rows=1000, seconds=0.02, payload_bytes=10**9)
    in_time = asyncio.create_task(archive.run())
    try:
        await archive.add(_events(spec, 0, 1))
        await eventually(lambda: _stored(tmp_path, spec.loop))
        for each in range(1, 4):
            await archive.add(_events(spec, each, each + 1))
            await archive.flush()
        await archive.add(_events(spec, 4, 5))
        looks = _count_looks(monkeypatch)
        await eventually(lambda: len(looks) >= 20, message="the archive looked twenty times whether to append")
        assert len(_stored(tmp_path, spec.loop)) == 4
    finally:
        in_time.cancel()


def _count_looks(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A list that grows by the patience of each look of the archive at what waits."""
    looks: list[float] = []
    patience = Archive._max_wait_s

    def looked(archive: Archive) -> float:
        looks.append(patience.__get__(archive))
        return looks[-1]

    monkeypatch.setattr(Archive, "_max_wait_s", property(looked))
    return looks


async def _produce(kafka: str, name: str, first: int, end: int) -> None:
    async with Producer(kafka, source="test") as producer:
        for each in range(first, end):
            producer.enqueue(name, _interaction(each), key=f"u{each}", time=BEGIN + each, id=f"e{each}")


async def _handed_over(kafka: str, name: str) -> int:
    """How many events of a topic the group was given, by its offsets: in the warehouse or waiting for it."""
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    try:
        offsets = await admin.list_consumer_group_offsets(f"features-archive-{name.partition('.')[0]}")
    except GroupCoordinatorNotAvailableError:
        return 0
    finally:
        await admin.close()
    return sum(found.offset for place, found in offsets.items() if place.topic == name)


PATIENT = {"GYRE_FEATURES_ARCHIVE_ROWS": "1000000", "GYRE_FEATURES_ARCHIVE_S": "3600"}
QUICK = {"GYRE_FEATURES_ARCHIVE_ROWS": "60", "GYRE_FEATURES_ARCHIVE_S": "0.2"}


@pytest.mark.adapter
async def test_rows_that_wait_survive_a_kill_and_are_appended_on_sigterm(
    kafka: str, tmp_path: Path, spec: LoopSpec, start_process: Start
) -> None:
    """SIGKILL while Kafka's offsets are ahead of the table loses nothing; SIGTERM leaves nothing waiting, exit 0."""
    await create_topics(kafka, declared(spec))
    name, warehouse = topic(spec.loop, "behavior.interactions"), tmp_path / "warehouse"
    await _produce(kafka, name, 0, 300)
    victim = start_process("archive", **PATIENT)

    async def handed_over(count: int) -> bool:
        return await _handed_over(kafka, name) >= count

    await eventually(lambda: handed_over(300), timeout_s=40, message="the rows wait in memory")
    victim.kill()
    victim.wait()
    assert _stored(warehouse, spec.loop) == []
    await _produce(kafka, name, 300, 350)
    successor = start_process("archive", **PATIENT)
    await eventually(lambda: handed_over(350), timeout_s=40, message="the successor read on")
    successor.send_signal(signal.SIGTERM)
    assert successor.wait(15) == 0
    assert _stored(warehouse, spec.loop) == sorted(f"e{each}" for each in range(350))


@pytest.mark.adapter
async def test_two_archives_share_the_partitions(
    kafka: str, tmp_path: Path, spec: LoopSpec, start_process: Start
) -> None:
    """A second archive that joins under load, and a kill of the first, leave each event in the table once."""
    await create_topics(kafka, declared(spec))
    name, warehouse = topic(spec.loop, "behavior.interactions"), tmp_path / "warehouse"
    await _produce(kafka, name, 0, 400)
    first = start_process("archive", **QUICK)
    await eventually(lambda: _stored(warehouse, spec.loop), timeout_s=40, message="the archive began")
    second = start_process("archive", **QUICK)
    await _produce(kafka, name, 400, 800)
    await eventually(lambda: "metrics listening" in second.log.read_text(), timeout_s=40)
    await _produce(kafka, name, 800, 1000)
    first.kill()
    first.wait()
    await eventually(lambda: len(_stored(warehouse, spec.loop)) >= 1000, timeout_s=60, message="all rows are there")
    assert _stored(warehouse, spec.loop) == sorted(f"e{each}" for each in range(1000))


async def test_what_a_table_cannot_hold_is_set_aside(tmp_path: Path, spec: LoopSpec) -> None:
    """One event beyond its column is in refused_rows once, by place and reason; those around it are in the table."""
    catalog, name = open_catalog(FeaturesSettings(warehouse=str(tmp_path))), topic(spec.loop, "features.applied")
    batches = [1, 2**63, 3]
    events = [
        Event(f"e{number}", "test", "", BEGIN, events_pb2.BatchApplied(batch=each), None, name, 0, number, "k", BEGIN)
        for number, each in enumerate(batches)
    ]
    for _ in range(2):
        archive = Archive(catalog, rows=1000, seconds=60, payload_bytes=10**9)
        await archive.add(events)
        await archive.flush()
    held = ensure_table(catalog, spec.loop, APPLIED).scan().to_arrow()
    assert held["batch"].to_pylist() == [1, 3]
    (aside,) = ensure_table(catalog, spec.loop, REFUSED).scan().to_arrow().to_pylist()
    assert (aside["topic"], aside["kafka_partition"], aside["kafka_offset"]) == (name, 0, 1)
    assert not aside["event_id"], "an id may be made from a user's"
