"""Runs in a real MLflow, and runs without one."""

from __future__ import annotations

from pathlib import Path

import pytest
from gyre_local.reserve import free_ports
from gyre_trainer.adapters.mlflow import Entry, record, tag
from mlflow import MlflowClient

pytestmark = pytest.mark.adapter


@pytest.fixture
def entry(tmp_path: Path) -> Entry:
    """What is written down of a run."""
    folder = tmp_path / "v1"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(b"graph")
    (folder / "model.json").write_text("{}")
    return Entry(
        loop="shop",
        run_id=f"run-{tmp_path.name}",
        version="20130710-120000-ab12cd",
        tags={"gyre.trigger_id": "t1", "gyre.snapshot.catalog_items": "12"},
        params={"epochs": "6", "hidden": "(16,)"},
        metrics={"ndcg_at_10": 0.5, "training_s": 1.25},
        folder=folder,
    )


def test_a_run_is_written_down_once(mlflow_uri: str, entry: Entry) -> None:
    """MLflow holds parameters, metrics, lineage and the artefact; writing the same run again makes no second record."""
    first = record(mlflow_uri, entry, wait_s=30)
    assert first
    assert record(mlflow_uri, entry, wait_s=30) == first
    client = MlflowClient(tracking_uri=mlflow_uri)
    experiment = client.get_experiment_by_name("gyre/shop")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.data.params == entry.params
    assert found.data.metrics == entry.metrics
    assert (
        found.data.tags.items()
        >= {
            "gyre.loop": "shop",
            "gyre.run_id": entry.run_id,
            "gyre.version": entry.version,
            "gyre.trigger_id": "t1",
            "gyre.snapshot.catalog_items": "12",
        }.items()
    )
    assert {each.path for each in client.list_artifacts(first)} == {"model.onnx", "model.json"}
    assert found.info.status == "FINISHED"


def test_a_run_goes_on_without_mlflow(
    entry: Entry, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no MLflow answers, the wait is bounded, said in the log, and there is no record."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    (port,) = free_ports(1)
    assert record(f"http://127.0.0.1:{port}", entry, wait_s=1) == ""
    assert "goes on without its record" in caplog.text


def test_a_record_is_tagged(mlflow_uri: str, entry: Entry) -> None:
    """A tag stands in the record; one for a record that is gone has nothing to wait for."""
    found = record(mlflow_uri, entry, wait_s=30)
    assert tag(mlflow_uri, found, {"gyre.rows_erased": "2026-01-02"}, wait_s=30)
    assert MlflowClient(tracking_uri=mlflow_uri).get_run(found).data.tags["gyre.rows_erased"] == "2026-01-02"
    assert tag(mlflow_uri, "0" * 32, {"gyre.rows_erased": "2026-01-02"}, wait_s=30)
    assert not tag("http://127.0.0.1:9", found, {"gyre.rows_erased": "2026-01-02"}, wait_s=0.2)
