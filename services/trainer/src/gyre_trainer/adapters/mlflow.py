"""Writes runs down in MLflow: parameters, measurements, lineage and the artefact; a run without MLflow goes on."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from gyre_core.models import QUARANTINE_FILE
from mlflow import MlflowClient
from mlflow.entities import LifecycleStage, Metric, Param, RunTag, ViewType
from mlflow.entities import Run as MlflowRun
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

_LOG = logging.getLogger(__name__)
_RETRY_S = 0.5
_RUN_TAG = "gyre.run_id"


@dataclass(frozen=True, slots=True)
class Entry:
    """What is written down of a run.

    Attributes:
        loop: names the experiment, `gyre/<loop>`.
        run_id: of our run; a second entry of the same run goes into the first one's record.
        version: names the record.
        tags: further lineage.
        params: what the run was given.
        metrics: what it measured.
        folder: its artefact, uploaded as a whole.
    """

    loop: str
    run_id: str
    version: str
    tags: Mapping[str, str]
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    folder: Path


def record(uri: str, entry: Entry, *, wait_s: float) -> str:
    """Write an entry; answer the id of its record, or an empty string when MLflow did not take it within `wait_s`."""
    found: list[str] = []

    def work() -> None:
        deadline = time.monotonic() + wait_s
        while not found:
            try:
                found.append(_write(MlflowClient(tracking_uri=uri), entry))
            except (MlflowException, OSError) as error:
                if time.monotonic() + _RETRY_S > deadline:
                    _LOG.warning("MLflow did not take the run", extra={"problem": type(error).__name__})
                    return
                time.sleep(_RETRY_S)

    _within(wait_s, work)
    if not found:
        _LOG.warning("the run goes on without its record in MLflow", extra={"mlflow": uri, "waited_s": wait_s})
    return found[0] if found else ""


def erase(uri: str, loop: str, run_id: str, tags: Mapping[str, str], *, wait_s: float) -> bool:
    """Delete what the records of one of our runs name events by, and tag them; whether MLflow did within `wait_s`.

    A record that is gone has nothing to wait for.
    """

    def work(client: MlflowClient) -> None:
        for run in _records(client, loop, run_id):
            artifacts = get_artifact_repository(run.info.artifact_uri, tracking_uri=uri)
            if any(each.path == QUARANTINE_FILE for each in artifacts.list_artifacts()):
                artifacts.delete_artifacts(QUARANTINE_FILE)  # type: ignore[no-untyped-call]
            if run.info.lifecycle_stage == LifecycleStage.ACTIVE:
                for name, value in tags.items():
                    client.set_tag(run.info.run_id, name, value)

    return _done(uri, work, run_id, wait_s=wait_s)


def remove(uri: str, loop: str, run_id: str, *, wait_s: float) -> bool:
    """Delete the records of one of our runs and their artefacts; answer whether MLflow did so within `wait_s`.

    A record is deleted before its artefacts, so that none that is shown lacks them; a second call ends what was begun.
    MLflow holds deleted records without their artefacts until `mlflow gc`.
    """

    def work(client: MlflowClient) -> None:
        for run in _records(client, loop, run_id):
            if run.info.lifecycle_stage == LifecycleStage.ACTIVE:
                client.delete_run(run.info.run_id)
            artifacts = get_artifact_repository(run.info.artifact_uri, tracking_uri=uri)
            artifacts.delete_artifacts()  # type: ignore[no-untyped-call]

    return _done(uri, work, run_id, wait_s=wait_s)


def _records(client: MlflowClient, loop: str, run_id: str) -> list[MlflowRun]:
    """The records of one of our runs, deleted ones, too."""
    experiment = client.get_experiment_by_name(f"gyre/{loop}")
    if experiment is None:
        return []
    return list(client.search_runs([experiment.experiment_id], f"tags.`{_RUN_TAG}` = '{run_id}'", ViewType.ALL))


def _done(uri: str, work: Callable[[MlflowClient], None], run_id: str, *, wait_s: float) -> bool:
    """Whether some work on the records of a run was done within `wait_s`."""
    done: list[bool] = []

    def tried() -> None:
        try:
            work(MlflowClient(tracking_uri=uri))
        except (MlflowException, OSError) as error:
            _LOG.warning("MLflow did not change a run", extra={"run_id": run_id, "problem": type(error).__name__})
            return
        done.append(True)

    _within(wait_s, tried)
    return bool(done)


def _within(wait_s: float, work: Callable[[], None]) -> None:
    """Wait so long for some work, and leave it behind then.

    Nothing bounds a request to MLflow as a whole, so it happens in a thread that does not outlive the process.
    """
    thread = threading.Thread(target=work, name="mlflow", daemon=True)
    thread.start()
    thread.join(wait_s)


def _write(client: MlflowClient, entry: Entry) -> str:
    experiment_id = _experiment(client, f"gyre/{entry.loop}")
    known = client.search_runs([experiment_id], f"tags.`{_RUN_TAG}` = '{entry.run_id}'", max_results=1)
    tags = {_RUN_TAG: entry.run_id, "gyre.loop": entry.loop, "gyre.version": entry.version, **entry.tags}
    run = known[0] if known else client.create_run(experiment_id, run_name=entry.version, tags=tags)
    record_id: str = run.info.run_id
    now_ms = round(time.time() * 1000)
    client.log_batch(
        record_id,
        metrics=[Metric(name, value, now_ms, 0) for name, value in entry.metrics.items()],
        params=[Param(name, value) for name, value in entry.params.items()],
        tags=[RunTag(name, value) for name, value in tags.items()],
    )
    client.log_artifacts(record_id, str(entry.folder))
    client.set_terminated(record_id)
    return record_id


def _experiment(client: MlflowClient, name: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        made: str = client.create_experiment(name)
        return made
    known: str = found.experiment_id
    return known
