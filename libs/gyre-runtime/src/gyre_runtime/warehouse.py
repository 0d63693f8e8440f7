"""The warehouse: Iceberg tables of every loop, their schemas, and the offsets that say what they hold.

Needs the extra `gyre-runtime[warehouse]`; only the processes that read or write tables import this module. A table's
Kafka offsets are table properties, set in the transaction of the append itself
(https://iceberg.apache.org/spec/#table-metadata-fields), so a row and the position after it are written together.
"""

import contextlib
from collections.abc import Mapping
from itertools import count
from pathlib import Path

import pyarrow as pa
from pyiceberg.catalog import Catalog, load_catalog
from pyiceberg.exceptions import NamespaceAlreadyExistsError, NoSuchTableError, TableAlreadyExistsError
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
    NestedField,
    StringType,
    TimestamptzType,
)

from gyre_runtime.settings import ServiceSettings

INTERACTIONS, IMPRESSIONS, ITEMS = "behavior_interactions", "behavior_impressions", "catalog_items"
TABLE_OF = {
    "behavior.interactions": INTERACTIONS,
    "behavior.impressions": IMPRESSIONS,
    "catalog.items": ITEMS,
}
"""The table behind each archived topic."""

_OFFSET = "gyre.offset."
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
    },
    ITEMS: {**_ORIGIN, "item_id": _TEXT, "fields": _TEXT, **_PLACE},
}
_ELEMENTS: dict[str, IcebergType] = {
    "list<string>": _TEXT,
    "list<float>": FloatType(),
    "list<double>": _DOUBLE,
    "list<long>": _LONG,
}


def schema_of(table: str) -> Schema:
    """The Iceberg schema of one of the tables, with the ids that a catalogue gives it: columns first, then elements."""
    fields = []
    columns = _COLUMNS[table]
    elements = count(len(columns) + 1)
    for number, (name, kind) in enumerate(columns.items(), start=1):
        made: IcebergType
        if isinstance(kind, str):
            made = ListType(element_id=next(elements), element_type=_ELEMENTS[kind], element_required=False)
        else:
            made = kind
        fields.append(NestedField(field_id=number, name=name, field_type=made, required=False))
    return Schema(*fields)


def open_catalog(settings: ServiceSettings) -> Catalog:
    """Open the catalogue: SQLite beside the files by default."""
    root = Path(settings.warehouse).absolute()
    (root / "data").mkdir(parents=True, exist_ok=True)
    return load_catalog("gyre", type="sql", uri=f"sqlite:///{root / 'catalog.db'}", warehouse=f"file://{root / 'data'}")


def ensure_table(catalog: Catalog, loop: str, table: str) -> Table:
    """Load a table of a loop, creating it where it is missing; rows are partitioned by the day of their event."""
    # Asked first: an attempt to create a table that exists leaves a metadata file behind.
    with contextlib.suppress(NoSuchTableError):
        return catalog.load_table((loop, table))
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
        return catalog.create_table(
            (loop, table),
            schema=schema,
            partition_spec=day,
            properties=_PROPERTIES,
        )
    except TableAlreadyExistsError:
        return catalog.load_table((loop, table))


def offsets_of(table: Table) -> dict[int, int]:
    """The next Kafka offset of each partition that a table holds everything before."""
    return {
        int(name.removeprefix(_OFFSET)): int(value)
        for name, value in table.properties.items()
        if name.startswith(_OFFSET)
    }


def append(table: Table, rows: pa.Table, offsets: Mapping[int, int]) -> None:
    """Append rows and move the offsets in one transaction.

    Raises:
        pyiceberg.exceptions.CommitFailedException: somebody else committed meanwhile; read the offsets again.
    """
    with table.transaction() as transaction:
        transaction.append(rows)
        transaction.set_properties({f"{_OFFSET}{partition}": str(offset) for partition, offset in offsets.items()})
