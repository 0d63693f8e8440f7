"""The real warehouse: what is pinned stays as it was, and no more is read than a training set needs."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from gyre.events.v1 import behavior_pb2 as behavior
from gyre_core.features import Layout
from gyre_core.topics import topic
from gyre_local.timeouts import scaled
from gyre_runtime.checkpoints import Checkpoint
from gyre_runtime.kafka import Producer
from gyre_runtime.settings import WarehouseSettings
from gyre_trainer.adapters.tables import LoopTables
from gyre_trainer.adapters.warehouse import ArchivedWarehouse
from gyre_trainer.quality.tables import check_tables
from gyre_trainer.training_set import build
from gyre_warehouse.tables import INTERACTIONS, append, ensure_table, open_catalog

BEGIN = 1_370_000_000
HOUR_S = 3600


@pytest.fixture
def history(new_history):
    """Ten impressions an hour apart, each followed by a click, of which the last is still open."""
    made = new_history()
    made.item("a", time=BEGIN - HOUR_S, genre="drama")
    for number in range(10):
        made.show(f"u{number}", ["a", "b"], time=BEGIN + number * HOUR_S)
        made.act(f"u{number}", "a", time=BEGIN + number * HOUR_S + 60)
    return made


def test_a_pin_holds_what_was_there(tmp_path: Path, spec, layout, history) -> None:
    """What is appended later is not read through older pins; the replay clock's now is the newest event's time."""
    tables = LoopTables(WarehouseSettings(warehouse=str(tmp_path)), spec.loop)
    empty = tables.pin(None)
    assert (empty.snapshots, empty.now) == ({}, 0.0)
    history.archive(tmp_path, spec.loop)
    pins = tables.pin(None)
    assert len(pins.snapshots) == 3
    assert pins.now == BEGIN + 9 * HOUR_S + 60
    history.archive(tmp_path, spec.loop)
    assert tables.pin(12.5).now == 12.5
    assert tables.read(spec, layout, pins).interactions.num_rows == 10
    assert tables.read(spec, layout, tables.pin(None)).interactions.num_rows == 20
    assert tables.read(spec, layout, empty).interactions.num_rows == 0


@pytest.mark.parametrize(("most", "read"), [(3, 4), (9, 10), (100, 10)])
def test_no_impression_more_is_read(tmp_path: Path, make_spec, history, most: int, read: int) -> None:
    """The closed impressions of the history and those that are newer are read, and make the same training set."""
    spec = make_spec(history=most)
    layout = Layout.compile(spec)
    history.archive(tmp_path, spec.loop)
    tables = LoopTables(WarehouseSettings(warehouse=str(tmp_path)), spec.loop)
    pins = tables.pin(None)
    found = tables.read(spec, layout, pins)
    assert found.impressions.num_rows == read
    assert "scores" not in found.impressions.column_names
    made = build(spec, layout, found, now=pins.now)
    whole = build(spec, layout, history.tables())
    assert made.times.tolist() == whole.times.tolist() == [BEGIN + each * HOUR_S for each in range(9)][-most:]
    assert (made.features == whole.features).all()


@pytest.mark.parametrize("foreign", [0, 1])
def test_the_past_is_read_only_for_features_that_were_not_served(
    tmp_path: Path, make_spec, new_history, foreign: int
) -> None:
    """Served features need no event before the oldest impression; one impression without them needs all."""
    spec = make_spec(history=3)
    layout = Layout.compile(spec)
    served = {"layout": layout.hash, "features": bytes(4 * 2 * len(layout.columns)), "item_batches": [1, 1]}
    history = new_history()
    history.item("a", time=BEGIN - HOUR_S, genre="drama")
    for number in range(10):
        own = {} if number == 8 and foreign else served
        history.show(f"u{number}", ["a", "b"], time=BEGIN + number * HOUR_S, **own)
        history.act(f"u{number}", "a", time=BEGIN + number * HOUR_S + 60)
    history.archive(tmp_path, spec.loop)
    tables = LoopTables(WarehouseSettings(warehouse=str(tmp_path)), spec.loop)
    pins = tables.pin(None)
    found = tables.read(spec, layout, pins)
    assert found.interactions.num_rows == (10 if foreign else 4)
    made, whole = build(spec, layout, found, now=pins.now), build(spec, layout, history.tables())
    assert made.served.sum() == 3 - foreign
    assert (made.features == whole.features).all()
    assert (made.relevance == whole.relevance).all()


def test_rows_that_nobody_can_read_fail_no_run(tmp_path: Path, make_spec, new_history) -> None:
    """Another message's fields in the catalogue are set aside, counted and told in the report; the others are used."""
    spec = make_spec(history=5)
    layout, history = Layout.compile(spec), new_history()
    history.item("a", time=BEGIN - HOUR_S, genre="drama")
    history.item("b", time=BEGIN - HOUR_S, genre="comedy")
    for number, fields in enumerate(['{"userId": "u", "itemId": "c", "type": "click"}', '{"itemId": "c"', None]):
        history.item(f"c{number}", time=BEGIN - HOUR_S, genre="drama")
        history.items[-1]["fields"] = fields
    for number in range(6):
        history.show(f"u{number}", ["a", "b"], time=BEGIN + number * HOUR_S)
        history.act(f"u{number}", "a", time=BEGIN + number * HOUR_S + 60)
    history.archive(tmp_path, spec.loop)
    tables = LoopTables(WarehouseSettings(warehouse=str(tmp_path)), spec.loop)
    pins = tables.pin(None)
    found = tables.read(spec, layout, pins)
    assert len(build(spec, layout, found, now=pins.now)) == 5
    assert found.unreadable["items"] == (3, 5)
    checks = [check for each in check_tables(spec, found, now=pins.now) for check in each.checks]
    told = {each.column: (each.value, each.passed) for each in checks if each.name == "completeness.unreadable"}
    assert told["items"] == (0.6, False)
    assert told["interactions"] == (0.0, True)


@pytest.mark.adapter
async def test_the_archive_is_waited_for(stack, spec, history) -> None:
    """What Kafka held at the trigger is in the pinned snapshot, though the archive had it only later."""
    loop, warehouse = stack.loop, stack.folder / "warehouse"
    history.archive(warehouse, loop)
    async with Producer(stack.kafka, source="test") as producer:
        name = topic(loop, "behavior.interactions")
        for number in range(20):
            message = behavior.Interaction(user_id=f"u{number}", item_id="a", type="click")
            await producer.send(name, message, key=f"u{number}", time=BEGIN + 20 * HOUR_S)
    settings = stack.settings(trainer_archive_wait_s=30)
    pinning = asyncio.create_task(ArchivedWarehouse(settings, {loop: spec}).pin(loop))
    done, _ = await asyncio.wait([pinning], timeout=1.5)
    assert not done
    table = ensure_table(open_catalog(settings), loop, INTERACTIONS)
    before = table.current_snapshot().snapshot_id
    append(table, table.scan().to_arrow(), {0: Checkpoint(20), 1: Checkpoint(20)})
    async with asyncio.timeout(scaled(60)):
        pins = await pinning
    assert pins.snapshots[INTERACTIONS] != before


@pytest.mark.adapter
async def test_the_wait_for_the_archive_is_bounded(stack, spec, history, caplog) -> None:
    """Without an archive a run goes on after its time, and the log says how far behind the tables are."""
    history.archive(stack.folder / "warehouse", stack.loop)
    async with Producer(stack.kafka, source="test") as producer:
        message = behavior.Impression(
            request_id="r", user_id="u", item_ids=["a", "b"], method=behavior.IMPRESSION_METHOD_RANK
        )
        for _ in range(13):
            await producer.send(topic(stack.loop, "behavior.impressions"), message, key="u9", time=BEGIN)
    warehouse = ArchivedWarehouse(stack.settings(trainer_archive_wait_s=0.5), {stack.loop: spec})
    async with asyncio.timeout(scaled(60)):
        pins = await warehouse.pin(stack.loop)
    assert pins.now == BEGIN + 9 * HOUR_S + 60
    (said,) = [each for each in caplog.records if "archive is behind" in each.message]
    assert said.events in (3, 13)


@pytest.mark.adapter
async def test_on_the_wall_clock_now_is_the_wall_s(stack, spec, history) -> None:
    """A loop on the wall clock decides by the wall which windows are open, whatever its events say."""
    history.archive(stack.folder / "warehouse", stack.loop)
    wall = spec.model_copy(update={"clock": "wall"})
    before = time.time()
    pins = await ArchivedWarehouse(stack.settings(), {stack.loop: wall}).pin(stack.loop)
    assert before <= pins.now <= time.time()
