"""Training sets larger than memory: DuckDB over a snapshot's Parquet files, with a bound, into one Parquet file."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import duckdb
from gyre_core.spec import LoopSpec
from gyre_warehouse.tables import IMPRESSIONS, INTERACTIONS, arrow_schema
from pyiceberg.expressions import AlwaysTrue
from pyiceberg.io.pyarrow import PyArrowFileIO
from pyiceberg.table import Table

from gyre_trainer.attribution import Attribution

PLACE = "(kafka_partition::bigint << 48) + kafka_offset"
"""One number for each row of a table, in the order of its Kafka partitions and offsets."""
_LOCAL = "file"
_VIEWS = f"""
create view impressions as select {PLACE} as place, source, event_id, kafka_partition, kafka_offset,
  epoch_us(event_time) as event_us, request_id, user_id, item_ids, len(item_ids) as items from {IMPRESSIONS};
create view interactions as select source, event_id, kafka_partition, kafka_offset, epoch_us(event_time) as event_us,
  epoch_us(ingest_time) as ingest_us, request_id, user_id, item_id, type from {INTERACTIONS};
"""  # noqa: S608 - constants of this module
_KEYS = ("source", "event_id", "event_time", "kafka_partition", "kafka_offset", "request_id", "user_id")
SHOWN = (*_KEYS, "item_ids", "layout", "features", "item_batches", "context", "labels", "positions", "method")
ACTED = (*_KEYS, "item_id", "type", "ingest_time")
"""What a training set takes of impressions, and of interactions."""
_JOINED = f"""
copy (
  select {", ".join(SHOWN)},
    list_transform(item_ids, lambda item: coalesce(relevance_of[item], 0)::float) as relevance
  from {IMPRESSIONS} join (
    select place as label_place, map(list(item_id), list(relevance)) as relevance_of from labels group by place
  ) as labelled on {PLACE} = label_place
  order by event_time, label_place
) to '{{path}}' (format parquet, compression zstd, row_group_size 20000)
"""  # noqa: S608 - constants of this module


@dataclass(frozen=True, slots=True)
class Joined:
    """What a joined training set holds, and what was left out of it.

    Attributes:
        impressions: count of rows: impressions with a label.
        unlabelled: count of impressions left out because nothing followed.
        open_windows: count of impressions left out because their window is open.
        late: count of the interactions behind the labels that were taken in after the impression's window, once for
            each impression that they count for.
    """

    impressions: int
    unlabelled: int
    open_windows: int
    late: int


def plan(spec: LoopSpec, tables: Mapping[str, tuple[Table, int]], *, now: float) -> dict[str, Any]:
    """What `gyre_trainer.spark` needs to do the same join on a cluster, as JSON values."""
    rules = Attribution(spec.training.label, now=now, most=spec.training.history.impressions)
    return {
        "labels": rules.labels,
        "columns": list(SHOWN),
        "tables": {
            view: {"metadata": tables[name][0].metadata_location, "snapshot": tables[name][1]}
            for view, name in (("impressions", IMPRESSIONS), ("interactions", INTERACTIONS))
        },
    }


@contextmanager
def bounded(*, memory_bytes: int, folder: Path | None = None) -> Iterator[duckdb.DuckDBPyConnection]:
    """A DuckDB that keeps at most so much in memory and the rest in a folder that goes with it.

    Args:
        memory_bytes: its own bound; Python and what is read at once come on top.
        folder: where the rest goes; the system's folder for such without it.
    """
    spill = mkdtemp(prefix="gyre-join-", dir=folder)
    config: dict[str, str | bool | int | float | list[str]] = {
        # One thread: a training run shares its machine with the services that answer requests.
        "threads": 1,
        "memory_limit": f"{memory_bytes}B",
        "temp_directory": spill,
        "preserve_insertion_order": False,
    }
    try:
        with duckdb.connect(config=config) as db:
            yield db
    finally:
        shutil.rmtree(spill, ignore_errors=True)


def attach(db: duckdb.DuckDBPyConnection, table: Table, snapshot_id: int | None, columns: Sequence[str]) -> None:
    """Make columns of a snapshot a relation with the table's name; None is an empty snapshot.

    Local files are read where they lie. What lies elsewhere is streamed into a table of DuckDB's own, which it may
    spill, since its reader for object stores is a separate download.
    """
    name = table.name()[-1]
    lacking = arrow_schema(name).empty_table().select(list(columns))
    db.register(f"{name}_declared", lacking)
    scan = table.scan(snapshot_id=snapshot_id, row_filter=AlwaysTrue())
    uris = [task.file.file_path for task in scan.plan_files()] if snapshot_id is not None else []
    places = [PyArrowFileIO.parse_location(uri) for uri in uris]
    if all(scheme == _LOCAL for scheme, _, _ in places):
        read = _declared(name, columns, [path for _, _, path in places])
        db.execute(f"create view {name} as {read}")
        return
    held = {column.name for column in scan.projection().fields}
    db.register(f"{name}_remote", scan.select(*(each for each in columns if each in held)).to_arrow_batch_reader())
    both = f"select * from {name}_declared union all by name select * from {name}_remote"  # noqa: S608 - table's name
    db.execute(f"create temp table {name} as {both}")


def _declared(name: str, columns: Sequence[str], paths: Sequence[str]) -> str:
    """The columns of some files by name, null where a file is older than a column."""
    wanted = ", ".join(columns)
    empty = f"select {wanted} from {name}_declared"  # noqa: S608 - declared names
    if not paths:
        return empty
    listed = ", ".join("'" + path.replace("'", "''") + "'" for path in paths)
    found = f"select * from read_parquet([{listed}], union_by_name = true)"  # noqa: S608 - the catalogue's paths
    return f"select {wanted} from ({empty} union all by name {found})"  # noqa: S608 - declared names


def join(
    db: duckdb.DuckDBPyConnection,
    spec: LoopSpec,
    tables: Mapping[str, tuple[Table, int | None]],
    *,
    now: float,
    path: Path,
) -> Joined:
    """Write the labelled impressions of snapshots with their served features, in the order of time, to a Parquet file.

    Columns are those of the impressions, features packed as they were served, and `relevance`: a float for each item.

    Args:
        db: as `bounded` gives it.
        spec: the loop; `training.label` and `training.history` rule.
        tables: the tables of impressions and interactions, each with a snapshot; None for an empty one.
        now: unix seconds, which decides which windows are open.
        path: of the file, which is replaced.
    """
    attach(db, *tables[IMPRESSIONS], SHOWN)
    attach(db, *tables[INTERACTIONS], ACTED)
    rules = Attribution(spec.training.label, now=now, most=spec.training.history.impressions)
    db.execute(_VIEWS)
    db.execute(f"create temp table labels as {rules.labels}")
    ((chosen, open_windows),) = db.execute(rules.counts).fetchall()
    totals = "select count(distinct place), coalesce(sum(late), 0) from labels"
    ((labelled, late),) = db.execute(totals).fetchall()
    db.execute(_JOINED.format(path=str(path).replace("'", "''")))
    return Joined(labelled, chosen - labelled, open_windows, int(late) if spec.clock == "wall" else 0)
