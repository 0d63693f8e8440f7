"""The newest impressions of the warehouse as what was served, a bounded number of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from gyre_core.features import Layout, RequestContext
from gyre_warehouse.rows import are_complete, seconds_of
from gyre_warehouse.tables import read_columns
from pyiceberg.table import Table

from gyre_features.parity.checking import Served

_COLUMNS = (
    "request_id",
    "user_id",
    "item_ids",
    "shown",
    "rest",
    "features",
    "user_batch",
    "global_batch",
    "item_batches",
    "context",
    "labels",
    "positions",
    "event_time",
    "ingest_time",
)


_REQUIRED = (
    "request_id",
    "user_id",
    "item_ids",
    "shown",
    "rest",
    "features",
    "user_batch",
    "item_batches",
    "event_time",
)
UNREADABLE = "its row cannot be read"
UNNAMED = "it does not name the batches that it was made from"


@dataclass(frozen=True, slots=True)
class CheckWindow:
    """Which impressions are checked: the newest `max_impressions` that arrived since `start` (unix seconds)."""

    max_impressions: int
    start: float


@dataclass(frozen=True)
class ServedRows:
    """What was read of the impressions.

    Attributes:
        served: the reads of the online store, the newest arrival first; rows without features are left out uncounted.
        read: how many rows were looked at, those that are left out among them.
        reasons: count of the rows that nothing can be said about, by why; reasons without a row are missing.
    """

    served: list[Served]
    read: int
    reasons: Counter[str]


def read_served(table: Table, layout: Layout, window: CheckWindow) -> ServedRows:
    """The newest impressions that arrived in a window with features of a layout; empty where there are none.

    Reads that were logged before the loop-wide batch number was are left out where the layout needs it.
    """
    start = _oldest_arrival(table, layout, window)
    if start is None:
        return ServedRows([], 0, Counter())
    stored = read_columns(table, _COLUMNS, rows=_since(layout, start))
    stored = stored.sort_by([("ingest_time", "descending")]).slice(0, window.max_impressions)
    readable = _readable(stored)
    rows = readable.filter(_names_batches(readable))
    counts_all = any(layout.plan("global", event) for event in layout.events)
    reasons = Counter({UNREADABLE: len(stored) - len(readable), UNNAMED: len(readable) - len(rows)})
    return ServedRows(list(_served(rows, layout, needs_global=counts_all)), len(stored), +reasons)


def _readable(rows: pa.Table) -> pa.Table:
    """The rows that say who asked, for which items, and what they were shown."""
    given = are_complete(rows, _REQUIRED, lists=("item_ids", "item_batches"))
    return rows if given.all() else rows.filter(pa.array(given))


def _names_batches(rows: pa.Table) -> Any:
    """Which rows name a batch for each item, as the gateway's do where they hold features; other producers need not."""
    items, batches = (pc.list_value_length(rows[name]) for name in ("item_ids", "item_batches"))
    sizes = pc.binary_length(rows["features"])
    return pc.or_(pc.equal(items, batches), pc.equal(sizes, pa.scalar(0)))


def _oldest_arrival(table: Table, layout: Layout, window: CheckWindow) -> str | None:
    """The arrival of the oldest impression that is checked, ISO 8601; None when there is none."""
    since = datetime.fromtimestamp(window.start, UTC).isoformat()
    times = read_columns(table, ["ingest_time"], rows=_since(layout, since))["ingest_time"]
    if not len(times):
        return None
    count = min(window.max_impressions, len(times))
    oldest: Any = times.take(pc.select_k_unstable(times, count, sort_keys=[("", "descending")]))[-1].as_py()
    return str(oldest.isoformat())


def _since(layout: Layout, start: str) -> str:
    return f"layout = '{layout.hash}' and ingest_time >= '{start}'"


def _served(rows: pa.Table, layout: Layout, *, needs_global: bool) -> Iterator[Served]:
    times, arrivals = seconds_of(rows["event_time"]).tolist(), seconds_of(rows["ingest_time"]).tolist()
    columns = len(layout.columns)
    for index, row in enumerate(rows.drop_columns(["event_time", "ingest_time"]).to_pylist()):
        count = len(row["item_ids"])
        known = row["global_batch"] is not None or not needs_global
        if not known or not row["features"] or len(row["features"]) != 4 * count * columns:
            continue
        positions = row["positions"] if len(row["positions"] or ()) == count else None
        numbers, labels = dict(row["context"] or ()), dict(row["labels"] or ())
        yield Served(
            request_id=row["request_id"],
            user_id=row["user_id"],
            item_ids=row["item_ids"],
            context=RequestContext(times[index], numbers, labels, positions),
            matrix=np.frombuffer(row["features"], dtype="<f4").reshape(count, columns),
            user_batch=row["user_batch"],
            global_batch=-1 if row["global_batch"] is None else row["global_batch"],
            item_batches=row["item_batches"],
            is_whole=count == row["shown"] + row["rest"],
            arrival_time=arrivals[index],
        )
