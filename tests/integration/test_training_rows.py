"""From the archive's tables to the training set: what the one writes the other holds."""

from pathlib import Path

import pyarrow.parquet as pq
from gyre.events.v1 import behavior_pb2 as behavior
from gyre_core.features import Layout
from gyre_core.spec import parse_loop
from gyre_features.warehouse.archive import Archive
from gyre_runtime.checkpoints import checkpoints_after
from gyre_runtime.events import Event
from gyre_runtime.settings import WarehouseSettings
from gyre_trainer.adapters.tables import LoopTables
from gyre_trainer.training_set import build
from gyre_warehouse.tables import open_catalog

LOOP = """
version: 1
loop: shop
clock: replay
events: {interactions: {click: {}}}
features: [{name: popular, kind: decayed_count, scope: item, events: [click], half_lives: [1d]}]
training: {label: {events: [click], attribution_window: 1m}}
"""
BEGIN = 1_365_000_000.0
METHODS = [behavior.IMPRESSION_METHOD_RANK, behavior.IMPRESSION_METHOD_RECOMMEND, 99]


def _event(suffix: str, message: behavior.Impression | behavior.Interaction, number: int, at: float) -> Event:
    """An event of the only partition of its topic."""
    return Event(f"e{number}", "shop", "", at, message, None, f"shop.{suffix}", 0, number, "u0", at)


async def test_the_method_of_an_impression_comes_to_the_training_set(tmp_path: Path) -> None:
    """In the set that is trained on, and in the file of `join`; the number of a newer gateway's method, as it is."""
    spec, settings = parse_loop(LOOP, source="test"), WarehouseSettings(warehouse=str(tmp_path / "warehouse"))
    shown = {"user_id": "u0", "item_ids": ["a", "b"], "shown": 2}
    impressions = [
        _event("behavior.impressions", behavior.Impression(request_id=f"r{n}", method=each, **shown), n, BEGIN + n)
        for n, each in enumerate(METHODS)
    ]
    clicks = [
        _event("behavior.interactions", behavior.Interaction(user_id=user, item_id="b", type="click"), n, BEGIN + at)
        for n, (user, at) in enumerate([("u0", 9), ("u1", 3600)])
    ]
    archive = Archive(open_catalog(settings), rows=100, seconds=60, payload_bytes=10**6)
    for events in (impressions, clicks):
        await archive.add(events, checkpoints_after(events))
    await archive.flush()
    layout, tables, file = Layout.compile(spec), LoopTables(settings, "shop"), tmp_path / "set.parquet"
    pins = tables.pin(None)
    made = build(spec, layout, tables.read(spec, layout, pins), now=pins.now)
    tables.join(spec, pins, path=file, memory_bytes=256 * 1024 * 1024)
    assert (made.rows or {})["method"].to_pylist() == ["rank", "recommend", "99"]
    assert pq.read_table(file)["method"].to_pylist() == ["rank", "recommend", "99"]
