"""The warehouse's declarations are what its tables are, also those that an older version made."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest
from gyre_runtime import Precondition
from gyre_runtime.checkpoints import Checkpoint
from gyre_runtime.settings import WarehouseSettings
from gyre_warehouse.rows import first_copies
from gyre_warehouse.tables import (
    IMPRESSIONS,
    TABLE_OF,
    append,
    arrow_schema,
    catalog_properties,
    ensure_table,
    offsets_of,
    open_catalog,
    read_columns,
    schema_of,
)
from pyiceberg.catalog import Catalog
from pyiceberg.schema import Schema
from pyiceberg.table import Table
from pyiceberg.types import ListType, NestedField, StringType

LATER = ("context", "global_batch", "labels", "positions", "thinning", "clock_time")
"""What the first version of the table of impressions did not have."""
NOW = datetime(2026, 1, 1, tzinfo=UTC)
ROW = {"event_id": "e1", "event_time": NOW, "item_ids": ["a", "b"], "kafka_partition": 0, "kafka_offset": 0}
FULL = {
    **ROW,
    "context": [("hour", 7.0)],
    "labels": [("device", "tv")],
    "positions": [1, 0],
    "global_batch": 9,
    "thinning": "features",
    "clock_time": NOW,
}


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    """A warehouse of the test's own."""
    return open_catalog(WarehouseSettings(warehouse=str(tmp_path)))


def _old_schema() -> pa.Schema:
    """Rows as the version before wrote them: with the ids of its own declaration, which an older table has, too."""
    return _first_version().as_arrow()


def _first_version() -> Schema:
    """The first version's schema; a catalogue gives ids to columns first and then to what they hold."""
    kept = [each for each in schema_of(IMPRESSIONS).fields if each.name not in LATER]
    elements = iter(range(len(kept) + 1, 99))
    fields = []
    for each in kept:
        kind = each.field_type
        if isinstance(kind, ListType):
            kind = ListType(element_id=next(elements), element_type=kind.element_type, element_required=False)
        fields.append(NestedField(each.field_id, each.name, kind, required=False))
    return Schema(*fields)


def _last_columns(table: Table) -> tuple[str, ...]:
    return tuple(each.name for each in table.schema().fields[-len(LATER) :])


def _old_table(catalog: Catalog) -> Table:
    catalog.create_namespace("shop")
    return catalog.create_table(
        ("shop", IMPRESSIONS), schema=_first_version(), properties={"commit.retry.num-retries": "0"}
    )


@pytest.mark.parametrize("table", TABLE_OF.values())
def test_a_new_table_is_as_declared(catalog: Catalog, table: str) -> None:
    """A catalogue gives a new table the ids of the declaration, and asking for it again changes nothing."""
    assert ensure_table(catalog, "shop", table).schema() == schema_of(table)
    again = ensure_table(catalog, "shop", table)
    assert again.schema().highest_field_id == schema_of(table).highest_field_id
    assert len(again.metadata.schemas) == 1


def test_a_new_writer_appends_to_an_old_table(catalog: Catalog) -> None:
    """A table of the version before gets its new columns at the end; its rows stay, its new rows hold all columns."""
    old = _old_table(catalog)
    append(old, pa.Table.from_pylist([ROW], _old_schema()), {0: Checkpoint(1)})
    table = ensure_table(catalog, "shop", IMPRESSIONS)
    assert _last_columns(table) == LATER
    append(table, pa.Table.from_pylist([FULL], arrow_schema(IMPRESSIONS)), {0: Checkpoint(2)})
    rows = read_columns(table, [*ROW, *LATER]).to_pylist()
    newer, older = rows if rows[0]["positions"] else reversed(rows)
    assert older == {**ROW, **dict.fromkeys(LATER)}
    assert newer == FULL
    assert offsets_of(table) == {0: 2}


def test_an_old_writer_appends_to_a_new_table(catalog: Catalog) -> None:
    """An archiver of the version before, with its ids and without the new columns, goes on writing an evolved table."""
    _old_table(catalog)
    ensure_table(catalog, "shop", IMPRESSIONS)
    found = catalog.load_table(("shop", IMPRESSIONS))
    append(found, pa.Table.from_pylist([ROW], _old_schema()), {0: Checkpoint(1)})
    assert read_columns(found, [*ROW, *LATER]).to_pylist() == [{**ROW, **dict.fromkeys(LATER)}]


def test_an_old_reader_reads_a_new_table(catalog: Catalog) -> None:
    """Who selects the columns of before by name gets them, and no others."""
    table = ensure_table(catalog, "shop", IMPRESSIONS)
    append(table, pa.Table.from_pylist([FULL], arrow_schema(IMPRESSIONS)), {0: Checkpoint(1)})
    assert table.scan(selected_fields=tuple(ROW)).to_arrow().select(list(ROW)).to_pylist() == [ROW]


def test_a_snapshot_older_than_a_column_reads_as_null(catalog: Catalog) -> None:
    """A training run that pinned a snapshot before the evolution can be repeated after it."""
    old = _old_table(catalog)
    append(old, pa.Table.from_pylist([ROW], _old_schema()), {0: Checkpoint(1)})
    pinned = old.current_snapshot().snapshot_id
    table = ensure_table(catalog, "shop", IMPRESSIONS)
    append(table, pa.Table.from_pylist([FULL], arrow_schema(IMPRESSIONS)), {0: Checkpoint(2)})
    found = read_columns(table, ["event_id", "labels"], snapshot_id=pinned)
    assert found.to_pylist() == [{"event_id": "e1", "labels": None}]
    assert found.schema.field("labels").type == pa.map_(pa.large_string(), pa.large_string())


def test_an_impression_that_names_no_request_repeats_none() -> None:
    """Of those of one (user, request) the first counts; rows from before requests were required all do."""
    requests = ["r", None, "", "r", None, ""]
    rows = {
        "source": ["s"] * 6,
        "event_id": [f"e{number}" for number in range(6)],
        "user_id": ["u"] * 6,
        "request_id": requests,
        "kafka_partition": [0] * 6,
        "kafka_offset": list(range(6)),
    }
    assert first_copies(IMPRESSIONS, pa.table(rows)).tolist() == [0, 1, 2, 4, 5]


def test_processes_that_evolve_a_table_at_once_do_it_once(catalog: Catalog, tmp_path: Path) -> None:
    """Of several processes that start on an old table one adds the columns, and the others take them as they are."""
    _old_table(catalog)
    together = threading.Barrier(4)

    def start(_number: int) -> Table:
        own = open_catalog(WarehouseSettings(warehouse=str(tmp_path)))
        together.wait()
        return ensure_table(own, "shop", IMPRESSIONS)

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(start, range(4)))
    assert {_last_columns(each) for each in found} == {LATER}
    assert len(catalog.load_table(("shop", IMPRESSIONS)).metadata.schemas) == 2


def test_a_column_of_another_type_is_refused(catalog: Catalog) -> None:
    """Where a table holds something else under a declared name, the error names table, column and both types."""
    catalog.create_namespace("shop")
    other = Schema(NestedField(1, "positions", StringType(), required=False))
    catalog.create_table(("shop", IMPRESSIONS), schema=other)
    with pytest.raises(Precondition, match="column positions is string") as caught:
        ensure_table(catalog, "shop", IMPRESSIONS)
    assert caught.value.reason == "WAREHOUSE_SCHEMA_CONFLICT"


def test_a_folder_is_a_sqlite_catalogue_beside_its_files(tmp_path: Path) -> None:
    """Without settings the catalogue and the files lie in one folder."""
    found = catalog_properties(WarehouseSettings(warehouse=str(tmp_path)))
    assert found == {
        "type": "sql",
        "uri": f"sqlite:///{tmp_path / 'catalog.db'}",
        "warehouse": f"file://{tmp_path / 'data'}",
    }


def test_secrets_come_from_files(tmp_path: Path) -> None:
    """A REST catalogue and S3 are told their secrets, which only files hold."""
    for name, text in (("token", "t0\n"), ("client", "id:secret\n"), ("key", "AK:S/K=\n")):
        (tmp_path / name).write_text(text)
    settings = WarehouseSettings(
        warehouse="s3://bucket/path",
        warehouse_catalog="https://catalogue:8181",
        warehouse_catalog_token_file=tmp_path / "token",
        warehouse_catalog_credential_file=tmp_path / "client",
        warehouse_s3_endpoint="https://store",
        warehouse_s3_region="eu-1",
        warehouse_s3_credential_file=tmp_path / "key",
    )
    assert catalog_properties(settings) == {
        "type": "rest",
        "uri": "https://catalogue:8181",
        "warehouse": "s3://bucket/path",
        "s3.endpoint": "https://store",
        "s3.region": "eu-1",
        "token": "t0",
        "credential": "id:secret",
        "s3.access-key-id": "AK",
        "s3.secret-access-key": "S/K=",
    }


@pytest.mark.parametrize(("text", "rule"), [(None, "No such file"), ("only-an-id", "id:secret"), (":x", "id:secret")])
def test_a_secret_that_cannot_be_read_is_named(tmp_path: Path, text: str | None, rule: str) -> None:
    """The error names the file and the rule, and nothing of what the file holds."""
    key = tmp_path / "key"
    if text is not None:
        key.write_text(text)
    settings = WarehouseSettings(warehouse=str(tmp_path), warehouse_s3_credential_file=key)
    with pytest.raises(Precondition, match=f"key': .*{rule}") as error:
        catalog_properties(settings)
    assert "only-an-id" not in str(error.value)


@pytest.mark.parametrize(
    "field", ["warehouse_catalog_token_file", "warehouse_catalog_credential_file", "warehouse_s3_credential_file"]
)
def test_a_blank_secret_stops_the_start(tmp_path: Path, field: str) -> None:
    """No catalogue or store is asked without the secret that a setting promises: the setting is named."""
    blank = tmp_path / "blank"
    blank.write_text(" \n")
    settings = WarehouseSettings(warehouse=str(tmp_path), **{field: blank})
    with pytest.raises(Precondition, match=f"GYRE_{field.upper()}=.*blank"):
        catalog_properties(settings)


def test_files_elsewhere_need_a_catalogue() -> None:
    """A SQLite catalogue cannot lie in a bucket, so it must be named."""
    with pytest.raises(Precondition, match=r"GYRE_WAREHOUSE='s3://bucket': .* GYRE_WAREHOUSE_CATALOG"):
        catalog_properties(WarehouseSettings(warehouse="s3://bucket"))
