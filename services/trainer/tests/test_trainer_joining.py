"""Training sets beyond memory: the file that DuckDB writes holds what the trainer's own join finds."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from gyre_core.features import Layout
from gyre_runtime.settings import WarehouseSettings
from gyre_trainer.adapters.joining import Joined, attach, bounded
from gyre_trainer.adapters.tables import LoopTables
from gyre_trainer.joined import join_to_file
from gyre_trainer.settings import TrainerSettings
from gyre_trainer.training_set import build
from gyre_warehouse.tables import IMPRESSIONS, ensure_table, open_catalog
from pyiceberg.table import Table

BEGIN = 1_370_000_000
MEMORY_BYTES = 256 * 1024 * 1024


@pytest.fixture(scope="module")
def warehouse(tmp_path_factory: pytest.TempPathFactory, learnt) -> Path:
    """A warehouse with a history to learn from."""
    folder = tmp_path_factory.mktemp("joining")
    learnt.archive(folder, "shop")
    return folder


@pytest.mark.parametrize("credit", ["all", "last", "linear", "decay"])
def test_the_file_holds_what_the_trainer_would_train_on(warehouse, tmp_path, make_spec, learnt, credit) -> None:
    """Impressions in the same order, with the same relevance of every item, and as many left out for each reason."""
    spec = make_spec(history=200)
    label = spec.training.label.model_copy(update={"credit": credit, "combine": "sum"})
    spec = spec.model_copy(update={"training": spec.training.model_copy(update={"label": label})})
    layout, tables = Layout.compile(spec), LoopTables(WarehouseSettings(warehouse=str(warehouse)), "shop")
    pins = tables.pin(None)
    done = tables.join(spec, pins, path=tmp_path / "set.parquet", memory_bytes=MEMORY_BYTES)
    made = build(spec, layout, learnt.tables(), now=pins.now)
    assert done == Joined(len(made), made.unlabelled, made.open_windows, made.late)
    found = pq.read_table(tmp_path / "set.parquet")
    assert found["event_id"].to_pylist() == made.rows["event_id"].to_pylist()
    assert found["item_ids"].to_pylist() == made.rows["item_ids"].to_pylist()
    for own, row in zip(found["relevance"].to_pylist(), made.relevance, strict=True):
        np.testing.assert_allclose(own, row[row >= 0], rtol=1e-6)
    assert [each.name for each in tmp_path.iterdir()] == ["set.parquet"]


def test_packed_features_go_along(tmp_path, spec, layout, new_history) -> None:
    """What was served is in the file as it was packed, with its layout."""
    history, served = new_history(), np.arange(2 * len(layout.columns), dtype="<f4").tobytes()
    history.show("u0", ["a", "b"], time=BEGIN, layout=layout.hash, features=served)
    history.act("u0", "b", time=BEGIN + 1)
    history.act("u1", "b", time=BEGIN + 7200)
    history.archive(tmp_path, "shop")
    tables = LoopTables(WarehouseSettings(warehouse=str(tmp_path)), "shop")
    tables.join(spec, tables.pin(None), path=tmp_path / "set.parquet", memory_bytes=MEMORY_BYTES)
    (row,) = pq.read_table(tmp_path / "set.parquet").to_pylist()
    assert (row["features"], row["layout"], row["relevance"]) == (served, layout.hash, [0.0, 1.0])


def test_impressions_that_name_no_request_are_each_their_own(tmp_path, spec, new_history) -> None:
    """Of a user's impressions of one request the first counts; rows from before requests were required all do."""
    history = new_history()
    for number, request_id in enumerate([None, None, "", "", "r", "r"]):
        history.show("u0", ["a", "b"], time=BEGIN + number)
        history.impressions[-1]["request_id"] = request_id
    history.act("u0", "b", time=BEGIN + 9)
    history.act("u1", "b", time=BEGIN + 7200)
    history.archive(tmp_path, "shop")
    tables = LoopTables(WarehouseSettings(warehouse=str(tmp_path)), "shop")
    done = tables.join(spec, tables.pin(None), path=tmp_path / "set.parquet", memory_bytes=MEMORY_BYTES)
    assert done == Joined(5, 0, 0, 0)


def test_empty_tables_make_an_empty_file(tmp_path, spec) -> None:
    """Nothing is written as a file without rows that has its columns."""
    tables = LoopTables(WarehouseSettings(warehouse=str(tmp_path)), "shop")
    done = tables.join(spec, tables.pin(None), path=tmp_path / "set.parquet", memory_bytes=MEMORY_BYTES)
    assert done == Joined(0, 0, 0, 0)
    assert "relevance" in pq.read_table(tmp_path / "set.parquet").column_names


def test_what_does_not_lie_here_is_streamed(warehouse, monkeypatch) -> None:
    """Files in an object store come through the table's own reader and are the same rows."""
    table: Table = ensure_table(open_catalog(WarehouseSettings(warehouse=str(warehouse))), "shop", IMPRESSIONS)
    columns = ("event_id", "item_ids", "labels")
    found = []
    for scheme in ("file", "s3"):
        monkeypatch.setattr("gyre_trainer.adapters.joining._LOCAL", scheme)
        with bounded(memory_bytes=MEMORY_BYTES) as db:
            attach(db, table, table.current_snapshot().snapshot_id, columns)
            kind = "select table_type from information_schema.tables where table_name = $name"
            (kind,) = db.execute(kind, {"name": IMPRESSIONS}).fetchone()
            found.append((kind, sorted(db.execute(f"select * from {IMPRESSIONS}").fetchall())))
    (view, here), (copied, there) = found
    assert (view, copied) == ("VIEW", "LOCAL TEMPORARY")
    assert here == there
    assert len(here) > 200


def test_the_command_says_what_it_left_out(warehouse, tmp_path, make_spec, capsys) -> None:
    """`join LOOP FILE` writes the file and prints counts and snapshots; a loop that it does not know is an error."""
    (tmp_path / "gyre.yaml").write_text(make_spec().model_dump_json())
    settings = TrainerSettings(warehouse=str(warehouse), loops=(tmp_path / "gyre.yaml",))
    assert join_to_file(settings, "shop", str(tmp_path / "new" / "set.parquet")) == 0
    said = capsys.readouterr().out
    assert re.search(
        r"shop: 300 impressions in .*set.parquet; left out: 0 without a label, 1 with an open window", said
    )
    assert f"{IMPRESSIONS} " in said
    assert join_to_file(settings, "other", "x.parquet") == 1
    assert "loop = 'other': is not served here" in capsys.readouterr().err
