"""Runs in a real MLflow, and runs without one."""

from __future__ import annotations

from pathlib import Path

import pytest
from gyre_local.reserve import free_ports
from gyre_trainer.adapters.mlflow import Entry, erase, record
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


def test_a_record_names_no_event_after_an_erasure(mlflow_uri: str, entry: Entry) -> None:
    """The list of what was set aside goes, and the rest stays, tagged; without a record nothing is waited for."""
    (entry.folder / "quarantine.jsonl").write_text('{"rows": "interactions", "event_id": "of-somebody"}')
    found = record(mlflow_uri, entry, wait_s=30)
    tags, client = {"gyre.rows_erased": "2026-01-02"}, MlflowClient(tracking_uri=mlflow_uri)
    for _ in range(2):
        assert erase(mlflow_uri, entry.loop, entry.run_id, tags, wait_s=30)
        assert {each.path for each in client.list_artifacts(found)} == {"model.onnx", "model.json"}
        assert client.get_run(found).data.tags["gyre.rows_erased"] == "2026-01-02"
    assert erase(mlflow_uri, entry.loop, "run-without-a-record", tags, wait_s=30)
    assert erase(mlflow_uri, "loop-without-a-record", entry.run_id, tags, wait_s=30)
    assert not erase("http://127.0.0.1:9", entry.loop, entry.run_id, tags, wait_s=0.2)
