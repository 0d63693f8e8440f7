"""The warehouse: Iceberg tables of every loop, their schemas, and the offsets that say what they hold.

A table's Kafka offsets are table properties, set in the transaction of the append itself
(https://iceberg.apache.org/spec/#table-metadata-fields), so a row and the position after it are written together.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path

import pyarrow as pa
from gyre_runtime.checkpoints import Checkpoint
from gyre_runtime.errors import Misconfigured, Precondition
from gyre_runtime.settings import WarehouseSettings, variable_of
from pyiceberg.catalog import Catalog, load_catalog
from pyiceberg.exceptions import (
    CommitFailedException,
    NamespaceAlreadyExistsError,
    NoSuchTableError,
    TableAlreadyExistsError,
)
from pyiceberg.expressions import AlwaysTrue, BooleanExpression
from pyiceberg.io.pyarrow import schema_to_pyarrow
from pyiceberg.partitioning import PartitionField, PartitionSpec
from pyiceberg.schema import Schema
from pyiceberg.table import Table
from pyiceberg.transforms import DayTransform
from pyiceberg.types import (
    BinaryType,
    BooleanType,
    DoubleType,
    FloatType,
    IcebergType,
    IntegerType,
    ListType,
    LongType,
    MapType,
    NestedField,
    StringType,
    TimestamptzType,
)

INTERACTIONS, IMPRESSIONS, ITEMS = "behavior_interactions", "behavior_impressions", "catalog_items"
USERS = "catalog_users"
APPLIED = "features_applied"
REFUSED = "refused_rows"
"""Events that their table cannot hold: where they stand in Kafka, and why."""
TRAINING_TABLE_OF = {
    "behavior.interactions": INTERACTIONS,
    "behavior.impressions": IMPRESSIONS,
    "catalog.items": ITEMS,
    "catalog.users": USERS,
}
"""The table behind each topic that training sets are made from."""
TABLE_OF = {**TRAINING_TABLE_OF, "features.applied": APPLIED}
"""The table behind each archived topic."""

_OFFSET = "gyre.offset."
_CHECKPOINT = "gyre.checkpoint."
_PROPERTIES = {
    "commit.retry.num-retries": "0",
    "write.parquet.compression-codec": "zstd",
    # A stream commits often: old metadata files go, and small manifests are merged.
    "write.metadata.delete-after-commit.enabled": "true",
    "write.metadata.previous-versions-max": "20",
    "commit.manifest-merge.enabled": "true",
}
_TEXT, _LONG, _INT, _DOUBLE = StringType(), LongType(), IntegerType(), DoubleType()
_ORIGIN: dict[str, IcebergType] = {
    "event_id": _TEXT,
    "source": _TEXT,
    "event_time": TimestamptzType(),
}
_PLACE: dict[str, IcebergType] = {"kafka_partition": _INT, "kafka_offset": _LONG, "ingest_time": TimestamptzType()}
_CLOCK: dict[str, IcebergType] = {"clock_time": TimestamptzType()}
"""The replay clock of a row's topic partition after it; null on the wall clock, and in rows from before the column."""
_COLUMNS: dict[str, dict[str, IcebergType | str]] = {
    INTERACTIONS: {
        **_ORIGIN,
        "user_id": _TEXT,
        "item_id": _TEXT,
        "type": _TEXT,
        "value": _DOUBLE,
        "request_id": _TEXT,
        "simulated": BooleanType(),
        **_PLACE,
        **_CLOCK,
    },
    IMPRESSIONS: {
        **_ORIGIN,
        "request_id": _TEXT,
        "user_id": _TEXT,
        "item_ids": "list<string>",
        "shown": _INT,
        "rest": _INT,
        "scores": "list<float>",
        "item_propensities": "list<double>",
        "explored": BooleanType(),
        "model_version": _TEXT,
        "epoch": _LONG,
        "arm": _TEXT,
        "arm_propensity": _DOUBLE,
        "layout": _TEXT,
        "feature_columns": _INT,
        "features": BinaryType(),
        "item_batches": "list<long>",
        "user_batch": _LONG,
        "feature_age_s": _DOUBLE,
        "degraded_reason": _TEXT,
        "latency_s": _DOUBLE,
        "method": _TEXT,
        "simulated": BooleanType(),
        **_PLACE,
        "context": "map<string,double>",
        "global_batch": _LONG,
        "labels": "map<string,string>",
        "positions": "list<int>",
        "thinning": _TEXT,
        **_CLOCK,
    },
    ITEMS: {**_ORIGIN, "item_id": _TEXT, "fields": _TEXT, **_PLACE},
    USERS: {**_ORIGIN, "user_id": _TEXT, "fields": _TEXT, **_PLACE},
    REFUSED: {**_ORIGIN, "topic": _TEXT, "reason": _TEXT, **_PLACE},
    APPLIED: {
        **_ORIGIN,
        "layout": _TEXT,
        "shard": _INT,
        "batch": _LONG,
        "events": _LONG,
        "newest_event_time": TimestamptzType(),
        "applied_time": TimestamptzType(),
        # One range of offsets for each topic partition of the batch, in four lists of one length.
        "range_topics": "list<string>",
        "range_partitions": "list<int>",
        "range_firsts": "list<long>",
        "range_ends": "list<long>",
        **_PLACE,
    },
}
"""What a table of today holds. Columns that came later stand at the end, where an older table gets them, too."""
_ELEMENTS: dict[str, IcebergType] = {
    "list<string>": _TEXT,
    "list<float>": FloatType(),
    "list<double>": _DOUBLE,
    "list<long>": _LONG,
    "list<int>": _INT,
}
_MAP_VALUES: dict[str, IcebergType] = {"map<string,double>": _DOUBLE, "map<string,string>": _TEXT}


def schema_of(table: str) -> Schema:
    """The Iceberg schema of one of the declared tables (KeyError for another), with the ids that a new one gets.

    Ids number the columns first, then what these hold; every column may be null.
    A table that was made before some of the columns gives those other ids, so rows are written and read by name.
    """
    columns = _COLUMNS[table]
    numbers = count(len(columns) + 1)
    return Schema(
        *(
            NestedField(field_id=number, name=name, field_type=_type_of(kind, numbers), required=False)
            for number, (name, kind) in enumerate(columns.items(), start=1)
        )
    )


def _type_of(kind: IcebergType | str, numbers: Iterator[int]) -> IcebergType:
    if not isinstance(kind, str):
        return kind
    if kind in _ELEMENTS:
        return ListType(element_id=next(numbers), element_type=_ELEMENTS[kind], element_required=False)
    key, value = next(numbers), next(numbers)
    return MapType(key_id=key, key_type=_TEXT, value_id=value, value_type=_MAP_VALUES[kind], value_required=False)


def arrow_schema(table: str) -> pa.Schema:
    """How rows of one of the tables are written: by name, without ids."""
    return schema_to_pyarrow(schema_of(table), include_field_ids=False)


def open_catalog(settings: WarehouseSettings) -> Catalog:
    """Open the catalogue: SQLite beside the files by default, a REST catalogue and files in S3 by setting.

    A local warehouse's folder is created where it is missing; tables are not (`ensure_table`).

    Raises:
        Misconfigured: files are remote, and no catalogue is set (WAREHOUSE_CATALOG_MISSING).
        Misconfigured: a file of a secret cannot be read, is blank, or does not hold `id:secret`; the message names its
            setting (WAREHOUSE_SECRET_UNREADABLE).
    """
    return load_catalog("gyre", **catalog_properties(settings))


def catalog_properties(settings: WarehouseSettings) -> dict[str, str]:
    """How pyiceberg is configured for the catalogue and the files (https://py.iceberg.apache.org/configuration/).

    Secrets included; errors and effects are those of `open_catalog`.
    """
    given, uri = settings.warehouse, settings.warehouse_catalog
    if "://" in given or uri.startswith("http"):
        files = given  # a REST catalogue may know its warehouses by name
    else:
        root = Path(given).absolute()
        (root / "data").mkdir(parents=True, exist_ok=True)
        files = f"file://{root / 'data'}"
        uri = uri or f"sqlite:///{root / 'catalog.db'}"
    if not uri:
        raise Misconfigured(
            "WAREHOUSE_CATALOG_MISSING", f"GYRE_WAREHOUSE={given!r}: must be a folder, or GYRE_WAREHOUSE_CATALOG be set"
        )
    properties = {"type": "rest" if uri.startswith("http") else "sql", "uri": uri, "warehouse": files}
    if settings.warehouse_s3_endpoint:
        properties["s3.endpoint"] = settings.warehouse_s3_endpoint
    if settings.warehouse_s3_region:
        properties["s3.region"] = settings.warehouse_s3_region
    return properties | _secrets(settings)


def _secrets(settings: WarehouseSettings) -> dict[str, str]:
    properties = {}
    if settings.warehouse_catalog_token_file:
        properties["token"] = _read("warehouse_catalog_token_file", settings.warehouse_catalog_token_file)
    if settings.warehouse_catalog_credential_file:
        pair = _pair("warehouse_catalog_credential_file", settings.warehouse_catalog_credential_file)
        properties["credential"] = ":".join(pair)
    if settings.warehouse_s3_credential_file:
        pair = _pair("warehouse_s3_credential_file", settings.warehouse_s3_credential_file)
        properties["s3.access-key-id"], properties["s3.secret-access-key"] = pair
    return properties


def _pair(field: str, path: Path) -> tuple[str, str]:
    name, separator, secret = _read(field, path).partition(":")
    if not (name and separator and secret):
        raise _unreadable(field, path, "must hold id:secret")
    return name, secret


def _read(field: str, path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise _unreadable(field, path, f"cannot be read: {reason}") from None
    if not text:
        raise _unreadable(field, path, "the file is blank")
    return text


def _unreadable(field: str, path: Path, rule: str) -> Misconfigured:
    return Misconfigured("WAREHOUSE_SECRET_UNREADABLE", f"{variable_of(field)}={str(path)!r}: {rule}")


def ensure_table(catalog: Catalog, loop: str, table: str) -> Table:
    """Load a table of a loop, creating it where it is missing; rows are partitioned by the day of their event.

    A table of an older schema gets the columns that it lacks, at its end; one of a newer schema stays as it is.

    Raises:
        Precondition: a column holds another type than this version writes (WAREHOUSE_SCHEMA_CONFLICT).
    """
    # Asked first: an attempt to create a table that exists leaves a metadata file behind.
    with contextlib.suppress(NoSuchTableError):
        return _evolved(catalog.load_table((loop, table)), table)
    with contextlib.suppress(NamespaceAlreadyExistsError):
        catalog.create_namespace(loop)
    schema = schema_of(table)
    day = PartitionSpec(
        PartitionField(
            source_id=schema.find_field("event_time").field_id,
            field_id=1000,
            transform=DayTransform(),
            name="event_day",
        )
    )
    try:
        return catalog.create_table((loop, table), schema=schema, partition_spec=day, properties=_PROPERTIES)
    except TableAlreadyExistsError:
        return _evolved(catalog.load_table((loop, table)), table)


def _evolved(found: Table, table: str) -> Table:
    """The table with every declared column."""
    while _lacks_columns(found, table):
        try:
            with found.update_schema() as update:
                update.union_by_name(schema_of(table))
        except CommitFailedException:
            found.refresh()  # somebody else committed: a row, or the same columns
    return found


def _lacks_columns(found: Table, table: str) -> bool:
    stored = {column.name: column.field_type for column in found.schema().fields}
    for name, kind in _COLUMNS[table].items():
        wanted = str(kind).replace(",", ", ")
        if name in stored and str(stored[name]) != wanted:
            raise Precondition(
                "WAREHOUSE_SCHEMA_CONFLICT",
                f"{'.'.join(found.name())}: column {name} is {stored[name]}, and must be {wanted}",
            )
    return any(name not in stored for name in _COLUMNS[table])


def read_columns(
    table: Table,
    columns: Sequence[str],
    *,
    rows: str | BooleanExpression | None = None,
    snapshot_id: int | None = None,
) -> pa.Table:
    """Columns of a table by name, in the order asked for; null throughout where a snapshot is older than a column.

    Rows come in no promised order, and as of when `table` was loaded.

    Args:
        table: as `ensure_table` gives it.
        columns: names of declared columns.
        rows: a filter of rows, as pyiceberg reads it; all without it.
        snapshot_id: as of which snapshot; the newest without it.
    """
    scan = table.scan(row_filter=AlwaysTrue() if rows is None else rows, snapshot_id=snapshot_id)
    held = {column.name for column in scan.projection().fields}
    found = scan.select(*(name for name in columns if name in held)).to_arrow()
    for name in columns:
        if name not in held:
            kind = schema_to_pyarrow(table.schema().select(name), include_field_ids=False).field(name).type
            found = found.append_column(name, pa.nulls(len(found), kind))
    return found.select(list(columns))


def offsets_of(table: Table) -> dict[int, int]:
    """By partition the next offset that a table does not hold yet; see `Checkpoint.offset`.

    As of when `table` was loaded; empty, or without a partition, where nothing was appended from it.
    """
    return {
        int(name.removeprefix(_OFFSET)): int(value)
        for name, value in table.properties.items()
        if name.startswith(_OFFSET)
    }


def checkpoints_of(table: Table) -> dict[int, Checkpoint]:
    """By partition up to where a table holds its topic, as of when `table` was loaded; without those never appended."""
    found = {}
    for partition, offset in offsets_of(table).items():
        known = Checkpoint.decoded(table.properties.get(f"{_CHECKPOINT}{partition}", str(offset)))
        # A version that knows no checkpoints may have moved the offset on.
        found[partition] = known if known.offset == offset else Checkpoint(offset, known.base)
    return found


def append(table: Table, rows: pa.Table | None, checkpoints: Mapping[int, Checkpoint]) -> None:
    """Append rows, if any, and set the checkpoints of partitions in one transaction: all of it or nothing.

    Checkpoints of other partitions stay. A checkpoint may go back: that is not checked here.

    Raises:
        pyiceberg.exceptions.CommitFailedException: somebody else committed meanwhile; read the checkpoints again.
    """
    with table.transaction() as transaction:
        if rows is not None and rows.num_rows:
            transaction.append(rows)
        moved = {f"{_OFFSET}{partition}": str(each.offset) for partition, each in checkpoints.items()}
        known = {f"{_CHECKPOINT}{partition}": each.encoded() for partition, each in checkpoints.items()}
        transaction.set_properties(moved | known)


def columns_of_tables() -> dict[str, tuple[str, ...]]:
    """The names of the declared columns of each table, by the table's name."""
    return {table: tuple(columns) for table, columns in _COLUMNS.items()}
