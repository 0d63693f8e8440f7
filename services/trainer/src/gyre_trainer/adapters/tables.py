"""The loop's Iceberg tables: fixing what a run reads, and reading just that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
from gyre_core.features import Layout
from gyre_core.spec import LoopSpec
from gyre_runtime import Precondition, Unavailable
from gyre_runtime.settings import WarehouseSettings
from gyre_warehouse.rows import counts_impressions, readable_rows
from gyre_warehouse.tables import (
    IMPRESSIONS,
    INTERACTIONS,
    ITEMS,
    TRAINING_TABLE_OF,
    USERS,
    arrow_schema,
    checkpoints_of,
    ensure_table,
    open_catalog,
    read_columns,
)
from pyiceberg.catalog import Catalog
from pyiceberg.conversions import from_bytes
from pyiceberg.exceptions import RESTError
from pyiceberg.table import Table
from pyiceberg.types import TimestamptzType
from sqlalchemy.exc import OperationalError

from gyre_trainer.adapters.joining import ACTED, SHOWN, Joined, attach, bounded, join, plan
from gyre_trainer.domain import Pins
from gyre_trainer.training_set import Tables, are_served

_US = 1_000_000
_KEYS = ("source", "event_id", "event_time", "kafka_partition", "kafka_offset")
_COLUMNS = {
    IMPRESSIONS: (*SHOWN, "shown", "ingest_time"),
    INTERACTIONS: (*ACTED, "value"),
    ITEMS: (*_KEYS, "item_id", "fields"),
    USERS: (*_KEYS, "user_id", "fields"),
}
_SHOWN = (*_KEYS, "request_id", "user_id", "item_ids", "shown", "ingest_time")
_MEMORY_BYTES = 512 * 1024 * 1024
_OLDEST = f"""
select begin_us from (
  select epoch_us(min(event_time)) as begin_us from {IMPRESSIONS} group by source, event_id
) where begin_us <= $latest_us order by begin_us desc limit 1 offset $before
"""  # noqa: S608 - constants of this module


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (OperationalError, RESTError, OSError) as error:
        raise Unavailable("CATALOG_UNAVAILABLE", "the warehouse's catalogue does not answer") from error


class LoopTables:
    """The tables of a loop that training sets are made from."""

    def __init__(self, settings: WarehouseSettings, loop: str) -> None:
        self._settings = settings
        self._loop = loop

    @cached_property
    def _catalog(self) -> Catalog:
        return open_catalog(self._settings)

    def _open(self) -> dict[str, Table]:
        with _translated():
            return {name: ensure_table(self._catalog, self._loop, name) for name in TRAINING_TABLE_OF.values()}

    def offsets(self) -> dict[str, dict[int, int]]:
        """For each table, the next offset in Kafka of each partition that it does not hold yet.

        Raises:
            Unavailable: the catalogue does not answer.
        """
        return {
            name: {partition: each.kafka_offset for partition, each in checkpoints_of(table).items()}
            for name, table in self._open().items()
        }

    def pin(self, now: float | None) -> Pins:
        """Fix the present snapshots; `now` None takes the newest event's time, as on the replay clock.

        Raises:
            Unavailable: the catalogue does not answer.
        """
        tables = self._open()
        current = {name: table.current_snapshot() for name, table in tables.items()}
        snapshots = {name: snapshot.snapshot_id for name, snapshot in current.items() if snapshot is not None}
        if now is None:
            behaviour = [name for name in (IMPRESSIONS, INTERACTIONS) if name in snapshots]
            now = max((_newest_event_time(tables[name], snapshots[name]) for name in behaviour), default=0.0)
        return Pins(snapshots, now)

    def read(self, spec: LoopSpec, layout: Layout, pins: Pins, *, beside: Layout | None = None) -> Tables:
        """Read what a training set needs of pinned snapshots, no column and no row more.

        The past before the oldest impression is read only where features must be computed again: with served ones,
        what is read is bounded by `training.history`.

        Args:
            spec: of the loop.
            layout: that is trained on.
            pins: the snapshots.
            beside: the layout of the model that is compared, where it is another one.

        Raises:
            Precondition: a snapshot is gone, as after an erasure (SNAPSHOT_GONE).
            Unavailable: the catalogue does not answer.
        """
        with self._present(pins):
            return self._read(spec, layout, pins, beside=beside)

    @contextmanager
    def _present(self, pins: Pins) -> Iterator[None]:
        """Say of whatever fails within the block that a pinned snapshot is gone, where one is, or files of it."""
        try:
            yield
        except (ValueError, OSError, duckdb.Error) as error:
            tables = self._open()
            gone = {name: each for name, each in pins.snapshots.items() if tables[name].snapshot_by_id(each) is None}
            if not gone and not isinstance(error, FileNotFoundError | duckdb.IOException):
                raise
            named = ", ".join(f"{each} of {name}" for name, each in (gone or pins.snapshots).items())
            message = f"{self._loop}: snapshot {named} is gone, as after a user was forgotten; start another run"
            raise Precondition("SNAPSHOT_GONE", message) from error

    def _read(self, spec: LoopSpec, layout: Layout, pins: Pins, *, beside: Layout | None) -> Tables:
        tables = self._open()
        begin = _begin(tables, pins, spec)
        newer = None if begin is None else f"event_time >= '{begin.isoformat()}'"
        impressions = _scan(tables, pins.snapshots, IMPRESSIONS, _COLUMNS[IMPRESSIONS], newer)
        layouts = [layout] if beside is None else [layout, beside]
        replayed = [each for each in layouts if not are_served(each, impressions).all()]
        replays, counted = bool(replayed), any(counts_impressions(each) for each in replayed)
        past, unreadable = None if replays else newer, dict[str, tuple[int, int]]()

        def readable(name: str, rows: pa.Table) -> pa.Table:
            found = readable_rows(name, rows, layout)
            unreadable[name.partition("_")[2]] = len(rows) - len(found), len(rows)
            return found

        shown = readable(IMPRESSIONS, _scan(tables, pins.snapshots, IMPRESSIONS, _SHOWN)) if counted else None
        return Tables(
            impressions=readable(IMPRESSIONS, impressions),
            interactions=readable(
                INTERACTIONS, _scan(tables, pins.snapshots, INTERACTIONS, _COLUMNS[INTERACTIONS], past)
            ),
            items=readable(ITEMS, _scan(tables, pins.snapshots, ITEMS, _COLUMNS[ITEMS])),
            shown=shown,
            users=readable(USERS, _scan(tables, pins.snapshots, USERS, _COLUMNS[USERS])),
            unreadable=unreadable,
        )

    def join(self, spec: LoopSpec, pins: Pins, *, path: Path, memory_bytes: int) -> Joined:
        """Export pinned snapshots' labelled impressions to a Parquet file, in bounded memory, for training elsewhere.

        Raises:
            Precondition: a snapshot is gone, as after an erasure (SNAPSHOT_GONE).
            Unavailable: the catalogue does not answer.
        """
        found = {name: (table, pins.snapshots.get(name)) for name, table in self._open().items()}
        with self._present(pins), bounded(memory_bytes=memory_bytes, folder=path.parent) as db:
            return join(db, spec, found, now=pins.now, path=path)

    def plan(self, spec: LoopSpec, pins: Pins) -> dict[str, Any]:
        """The same join for Spark; see `plan`.

        Raises:
            Precondition: there are no impressions or no interactions yet (WAREHOUSE_EMPTY).
            Unavailable: the catalogue does not answer.
        """
        if not pins.snapshots.keys() >= {IMPRESSIONS, INTERACTIONS}:
            raise Precondition("WAREHOUSE_EMPTY", f"{self._loop}: impressions or interactions have no snapshot yet")
        found = {name: (table, pins.snapshots[name]) for name, table in self._open().items() if name in pins.snapshots}
        return plan(spec, found, now=pins.now)


def _scan(
    tables: Mapping[str, Table],
    snapshots: Mapping[str, int],
    name: str,
    columns: tuple[str, ...],
    rows: str | None = None,
) -> pa.Table:
    if name not in snapshots:
        return arrow_schema(name).empty_table().select(list(columns))
    return read_columns(tables[name], columns, rows=rows, snapshot_id=snapshots[name])


def _begin(tables: Mapping[str, Table], pins: Pins, spec: LoopSpec) -> datetime | None:
    """The event time of the oldest impression that is needed; None when all are.

    It is the oldest of the history, or the oldest that may share an interaction with that one.
    """
    label = spec.training.label
    with bounded(memory_bytes=_MEMORY_BYTES) as db:
        snapshot = pins.snapshots.get(IMPRESSIONS)
        attach(db, tables[IMPRESSIONS], snapshot, ("source", "event_id", "event_time"))
        at = {
            "latest_us": round((pins.now - label.attribution_window_s) * _US),
            "before": spec.training.history.impressions - 1,
        }
        oldest = db.execute(_OLDEST, at).fetchone()
    if oldest is None:
        return None
    moment = datetime.fromtimestamp(0, UTC) + timedelta(microseconds=oldest[0])
    shared = label.credit in ("linear", "decay")
    return moment - timedelta(seconds=label.attribution_window_s) if shared else moment


def _newest_event_time(table: Table, snapshot_id: int) -> float:
    """The newest event time of a snapshot, unix seconds, from the bounds that Iceberg keeps of each file."""
    field, newest = table.schema().find_field("event_time"), 0
    for task in table.scan(snapshot_id=snapshot_id).plan_files():
        bound: Any = (task.file.upper_bounds or {}).get(field.field_id)
        if bound is not None:
            newest = max(newest, int(from_bytes(TimestamptzType(), bound)))
    return newest / _US
