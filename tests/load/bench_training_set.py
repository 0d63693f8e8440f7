"""Joins a training set out of Iceberg tables with bounded memory, beside pandas and Feast: time and peak memory.

Each join runs in a process of its own, whose greatest resident set the kernel tells. The tables are made first, by the
archive's own append. `--full` takes 10,000,000 impressions; pandas and Feast then join the newest million of them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from bench_report import Row, show, timed, write
from gyre_core.spec import LoopSpec, parse_loop
from gyre_runtime.checkpoints import Checkpoint
from gyre_runtime.settings import WarehouseSettings
from gyre_warehouse.tables import IMPRESSIONS, INTERACTIONS, append, arrow_schema, ensure_table, open_catalog

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
BEGIN_US, SECONDS = 1_700_000_000_000_000, 20 * 86_400
ITEMS, CHUNK_FLOATS = 100_000, 10_000_000
WINDOW_S = 1800
PANDAS_MOST, FEAST_MOST = 1_000_000, 1_000_000
MEMORY_BYTES = 1 << 30
SPEC = f"""
version: 1
loop: bench
events: {{interactions: {{click: {{}}, cart: {{}}, purchase: {{}}}}}}
features: [{{name: popular, kind: decayed_count, scope: item, events: [click], half_lives: [7d]}}]
training:
  label: {{attribution_window: {WINDOW_S}s, weights: {{click: 1, cart: 2, purchase: 5}}, credit: CREDIT, combine: sum}}
  history: {{impressions: 100000000}}
"""


@dataclass(frozen=True, slots=True)
class Shape:
    """How many impressions, of how many items each, with how many feature columns."""

    impressions: int
    items: int
    columns: int

    @property
    def chunk(self) -> int:
        """Impressions in one append."""
        return max(1, CHUNK_FLOATS // (self.items * self.columns))


def main() -> None:
    """Make the tables, run each join in a child, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--impressions", type=int, default=1_000_000)
    parser.add_argument("--items", type=int, default=5, help="of each impression")
    parser.add_argument("--columns", type=int, default=8, help="features of each item")
    parser.add_argument("--full", action="store_true", help="10,000,000 impressions")
    parser.add_argument("--child", choices=CHILDREN, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        sys.stdout.write(json.dumps(CHILDREN[given.child](given.folder)) + "\n")
        return
    shape = Shape(10_000_000 if given.full else given.impressions, given.items, given.columns)
    with tempfile.TemporaryDirectory(prefix="gyre-bench-", dir=given.folder) as folder:
        rows = list(measure(Path(folder), shape))
    show("Training sets by attribution join", rows)
    write("training_set", rows)


def measure(folder: Path, shape: Shape) -> Iterator[Row]:
    """The figures of each join over the same tables."""
    _, making = timed(lambda: make(folder, shape))
    made = f"{shape.impressions:,} impressions of {shape.items} items, {shape.columns} features"
    size = sum(each.stat().st_size for each in folder.rglob("*.parquet"))
    yield Row("tables", made, "written", shape.impressions / making, "rows/s")
    yield Row("tables", made, "size", size / 1e9, "GB")
    for name in CHILDREN:
        found = _child(name, folder)
        case = f"{found['impressions']:,} impressions, {name.partition(' ')[2]}"
        system = name.partition(" ")[0]
        yield Row(system, case, "time", found["seconds"], "s")
        yield Row(system, case, "rate", found["impressions"] / found["seconds"], "impressions/s")
        yield Row(system, case, "peak memory of the process", found["peak_bytes"] / 1e9, "GB")
        yield Row(system, case, "labelled", found["labelled"], "impressions")


def _child(name: str, folder: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", name, "--folder", str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def spec_of(credit: str) -> LoopSpec:
    """The bench's loop."""
    return parse_loop(SPEC.replace("CREDIT", credit), source="bench")


def make(folder: Path, shape: Shape) -> None:
    """Impressions in the order of time, a fifth of them followed by a click, some of those by a cart and a purchase."""
    catalog = open_catalog(WarehouseSettings(warehouse=str(folder)))
    shown, acted = (ensure_table(catalog, "bench", name) for name in (IMPRESSIONS, INTERACTIONS))
    offset = 0
    for start in range(0, shape.impressions, shape.chunk):
        impressions, interactions = _chunk(shape, start, offset)
        offset += len(interactions)
        append(shown, impressions, {0: Checkpoint(start + len(impressions))})
        append(acted, interactions, {0: Checkpoint(offset)})


def _chunk(shape: Shape, start: int, offset: int) -> tuple[pa.Table, pa.Table]:
    count, shown = shape.impressions, shape.items
    size = min(shape.chunk, count - start)
    random = np.random.default_rng(start)
    numbers = np.arange(start, start + size)
    times = BEGIN_US + numbers * (SECONDS * 1_000_000 // count)
    users = random.integers(0, max(count // 20, 1), size)
    items = random.integers(0, ITEMS, (size, shown))
    features = random.integers(0, 64, (size, shown * shape.columns)).astype("<f4")
    impressions = {
        **_origin("i", numbers, times),
        "request_id": _texts("r", numbers),
        "user_id": _texts("u", users),
        "item_ids": pa.ListArray.from_arrays(np.arange(0, size * shown + 1, shown), _texts("t", items)),
        "shown": pa.array(np.full(size, shown, np.int32)),
        "layout": pa.array(["bench"] * size),
        "features": pa.array([each.tobytes() for each in features], pa.binary()),
    }
    followed = np.flatnonzero(random.random(size) < 0.2)
    followed = np.concatenate([followed, followed[: len(followed) // 4], followed[: len(followed) // 10]])
    kinds = np.array(["click", "cart", "purchase"])[
        np.repeat([0, 1, 2], _kind_counts(len(np.unique(followed)), len(followed)))
    ]
    acted_at = times[followed] + random.integers(1, WINDOW_S, len(followed)) * 1_000_000
    named = np.where(random.random(len(followed)) < 0.5, numbers[followed], -1)
    interactions = {
        **_origin("a", offset + np.arange(len(followed)), acted_at),
        "user_id": _texts("u", users[followed]),
        "item_id": _texts("t", items[followed, random.integers(0, shown, len(followed))]),
        "type": pa.array(kinds),
        "request_id": pa.array([f"r{each}" if each >= 0 else "" for each in named]),
    }
    return _table(IMPRESSIONS, impressions), _table(INTERACTIONS, interactions)


def _kind_counts(clicks: int, all_of_them: int) -> tuple[int, int, int]:
    carts = clicks // 4
    return clicks, carts, all_of_them - clicks - carts


def _origin(prefix: str, numbers: np.ndarray, times: np.ndarray) -> dict[str, pa.Array]:
    moments = pa.array(times, pa.timestamp("us", "UTC"))
    return {
        "event_id": _texts(prefix, numbers),
        "source": pa.array(["bench"] * len(numbers)),
        "event_time": moments,
        "kafka_partition": pa.array(np.zeros(len(numbers), np.int32)),
        "kafka_offset": pa.array(numbers),
        "ingest_time": moments,
    }


def _texts(prefix: str, numbers: np.ndarray) -> pa.Array:
    return pa.array([f"{prefix}{each}" for each in numbers.ravel().tolist()])


def _table(name: str, columns: dict[str, pa.Array]) -> pa.Table:
    schema, size = arrow_schema(name), len(columns["event_id"])
    given = [columns.get(field.name, pa.nulls(size)).cast(field.type) for field in schema]
    return pa.Table.from_arrays(given, schema=schema)


# What runs in a child -------------------------------------------------------------------------------------------------


def gyre(folder: Path, credit: str) -> dict[str, float]:
    """The trainer's own join into a Parquet file."""
    from gyre_trainer.adapters.joining import bounded, join

    catalog = open_catalog(WarehouseSettings(warehouse=str(folder)))
    tables = {}
    for name in (IMPRESSIONS, INTERACTIONS):
        table = catalog.load_table(("bench", name))
        tables[name] = (table, table.current_snapshot().snapshot_id)
    now = BEGIN_US / 1e6 + SECONDS
    with bounded(memory_bytes=MEMORY_BYTES, folder=folder) as db:
        done, seconds = timed(
            lambda: join(db, spec_of(credit), tables, now=now, path=folder / f"joined-{credit}.parquet")
        )
    whole = done.impressions + done.unlabelled + done.open_windows
    return _told(whole, done.impressions, seconds)


def pandas_asof(folder: Path) -> dict[str, float]:
    """What one writes first: shown items exploded, `merge_asof` back to the last impression; keys only, no features."""
    import pandas as pd

    def work() -> tuple[int, int]:
        count, held, acted = _exploded(folder, PANDAS_MOST)
        window = pd.Timedelta(seconds=WINDOW_S)
        found = pd.merge_asof(acted, held, on="event_time", by=["user_id", "item_id"], tolerance=window)
        return count, int(found["event_id"].nunique())

    (count, labelled), seconds = timed(work)
    return _told(count, labelled, seconds)


def feast_historical(folder: Path) -> dict[str, float]:
    """Feast's point-in-time join of its file store, of the same keys; the time is that of `get_historical_features`."""
    from bench_features import feast_environment  # here, since what it imports would count for every join

    python = feast_environment()
    directory = folder / "feast"
    directory.mkdir()
    count, held, acted = _exploded(folder, FEAST_MOST)
    held["impression"] = held["event_id"].str.slice(1).astype("int64")
    for name, rows, also in (("shown", held, ["impression"]), ("acted", acted, [])):
        writes = rows["user_id"].astype(str) + "|" + rows["item_id"].astype(str)
        given = rows.assign(touch_id=writes).rename(columns={"event_time": "event_timestamp"})
        given[["touch_id", "event_timestamp", *also]].to_parquet(directory / f"{name}.parquet")
    command = [str(python), str(Path(__file__).with_name("feast_historical.py")), str(directory), str(WINDOW_S)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return {"impressions": count, **json.loads(done.stdout.splitlines()[-1])}


def _exploded(folder: Path, most: int) -> tuple[int, Any, Any]:
    """How many impressions the newest are, their shown items by row, and what was done since, as data frames."""
    catalog = open_catalog(WarehouseSettings(warehouse=str(folder)))
    impressions = catalog.load_table(("bench", IMPRESSIONS))
    count = int(impressions.current_snapshot().summary["total-records"])
    first = BEGIN_US + max(0, count - most) * (SECONDS * 1_000_000 // count)
    newest = f"event_time >= '{(EPOCH + timedelta(microseconds=first)).isoformat()}'"
    columns = ("event_id", "event_time", "user_id", "item_ids")
    shown = impressions.scan(newest, selected_fields=columns).to_arrow().sort_by("event_time").to_pandas()
    columns = ("event_id", "event_time", "user_id", "item_id", "type")
    interactions = catalog.load_table(("bench", INTERACTIONS))
    acted = interactions.scan(newest, selected_fields=columns).to_arrow().sort_by("event_time").to_pandas()
    held = shown.explode("item_ids").rename(columns={"item_ids": "item_id"})
    held["item_id"] = held["item_id"].astype(acted["item_id"].dtype)
    return len(shown), held, acted.rename(columns={"event_id": "act_id"})


def _told(impressions: int, labelled: int, seconds: float) -> dict[str, float]:
    # VmHWM belongs to this program; getrusage's figure is handed on from the process that started it.
    (high,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    peak = int(high.split()[1]) * 1024
    return {"impressions": impressions, "labelled": labelled, "seconds": seconds, "peak_bytes": peak}


CHILDREN = {
    "gyre all": lambda folder: gyre(folder, "all"),
    "gyre decay": lambda folder: gyre(folder, "decay"),
    "pandas merge_asof, last touch": pandas_asof,
    "feast point-in-time join, last touch": feast_historical,
}


if __name__ == "__main__":
    main()
