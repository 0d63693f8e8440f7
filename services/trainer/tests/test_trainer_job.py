"""The job: a task becomes an artefact, is measured beside the live model, and is done once however often it starts."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from mmap import mmap
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
import uvloop
from gyre.events.v1.models_pb2 import RolloutArm, RolloutView
from gyre_core.spec import PositionFeature
from gyre_core.topics import topic
from gyre_local.testing import eventually
from gyre_runtime.kafka import Producer
from gyre_trainer.adapters.kafka import LiveModels
from gyre_trainer.adapters.process import JobProcess
from gyre_trainer.adapters.tables import LoopTables
from gyre_trainer.artifact import Manifest
from gyre_trainer.domain import JobFailed, RunState, Task, TrainingRefused
from gyre_trainer.settings import TrainerSettings
from gyre_trainer.work import execute

REPORT = ("quality.json", "quality.html", "quarantine.jsonl", "reference.bin", "classifier.bin")


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, learnt) -> TrainerSettings:
    """A warehouse with a history to learn from, and no MLflow."""
    folder = tmp_path_factory.mktemp("job")
    learnt.archive(folder / "warehouse", "shop")
    return TrainerSettings(
        warehouse=str(folder / "warehouse"),
        artifacts=folder / "artifacts",
        state_dir=folder / "state",
        mlflow="http://127.0.0.1:9",
        trainer_mlflow_wait_s=0.05,
    )


@pytest.fixture(autouse=True)
def _one_try(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let MLflow's client give up at once, as in the process of a job."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


@pytest.fixture
def task(settings: TrainerSettings, make_spec) -> Task:
    """A task on the present snapshots."""
    pins = LoopTables(settings, "shop").pin(None)
    spec = make_spec().model_dump_json()
    return Task("run-1", "t1", "v1", spec, pins.snapshots, pins.now, "")


@pytest.fixture
def told() -> list[RunState]:
    """The states that the job told."""
    return []


def test_a_task_is_done_once(settings: TrainerSettings, task: Task, told: list[RunState]) -> None:
    """A second start of a run takes the artefact that the first one finished, without training again."""
    first = execute(task, settings, lambda state, _progress: told.append(state))
    assert list(dict.fromkeys(told)) == [RunState.SNAPSHOT, RunState.GATE, RunState.TRAINING, RunState.EVALUATING]
    folder = Path(first["folder"])
    written = {each.name: each.stat().st_mtime_ns for each in folder.iterdir()}
    assert written.keys() == {"model.onnx", "golden.npz", "model.json", *REPORT}
    told.clear()
    assert execute(task, settings, lambda state, _progress: told.append(state)) == first
    assert told == [RunState.EVALUATING]
    assert {each.name: each.stat().st_mtime_ns for each in folder.iterdir()} == written
    assert [each.name for each in folder.parent.iterdir()] == [folder.name]
    manifest = Manifest.read(folder)
    assert (manifest.run_id, manifest.trigger_id, manifest.snapshots) == ("run-1", "t1", task.snapshots)
    assert manifest.sha256 == first["sha256"]
    left_out = ("open_impressions", "unlabelled_impressions", "late_interactions")
    assert [manifest.measurements[name] for name in left_out] == [1, 0, 0]


def test_the_live_model_is_the_measure(settings: TrainerSettings, task: Task, make_spec) -> None:
    """A model is measured beside the live one on the same impressions, and refused where it does not gain enough."""
    first = execute(task, settings, lambda _state, _progress: None)
    second = replace(task, version="v2", run_id="run-2", incumbent=first["folder"])
    measured = execute(second, settings, lambda _state, _progress: None)["measurements"]
    assert measured["incumbent_ndcg_at_10"] == pytest.approx(first["measurements"]["ndcg_at_10"])
    spec = make_spec()
    evaluation = spec.training.evaluation.model_copy(update={"min_relative_ndcg": 0.5})
    strict = spec.model_copy(update={"training": spec.training.model_copy(update={"evaluation": evaluation})})
    third = replace(second, version="v3", spec=strict.model_dump_json())
    with pytest.raises(TrainingRefused, match="min_relative_ndcg"):
        execute(third, settings, lambda _state, _progress: None)
    assert {each.name for each in (settings.artifacts / "shop" / "v3").iterdir()} == {*REPORT} - {
        "reference.bin",
        "classifier.bin",
    }


def test_a_live_model_of_another_layout_is_the_measure(settings: TrainerSettings, task: Task, make_spec) -> None:
    """After a feature was added the live model is asked the features of its own layout, and measures as it did."""
    first = execute(replace(task, version="w1"), settings, lambda _state, _progress: None)
    spec = make_spec()
    place = PositionFeature(name="place_again", kind="position")
    more = spec.model_copy(update={"features": (*spec.features, place)})
    second = replace(task, version="w2", run_id="run-2", incumbent=first["folder"], spec=more.model_dump_json())
    found = execute(second, settings, lambda _state, _progress: None)
    assert found["layout"] != first["layout"]
    measured = found["measurements"]
    assert measured.get("incumbent_ndcg_at_10") == pytest.approx(first["measurements"]["ndcg_at_10"])


async def test_a_job_that_is_killed_has_failed(settings: TrainerSettings, task: Task) -> None:
    """The reason says how the job ended."""
    own = _children()

    def kill(_state: RunState, _progress: float) -> None:
        (job,) = _children() - own
        os.kill(job, signal.SIGKILL)

    with pytest.raises(JobFailed, match="ended with code -9"):
        await JobProcess(settings).run(replace(task, version="v4"), kill)


async def test_a_job_whose_rows_were_erased_says_so(settings: TrainerSettings, task: Task) -> None:
    """A run cannot be repeated on snapshots that an erasure took, and its reason says that and what to do."""
    gone = replace(task, version="v5", snapshots={**task.snapshots, "behavior_impressions": 1})
    with pytest.raises(JobFailed, match=r"SNAPSHOT_GONE.*snapshot 1 of behavior_impressions is gone.*start another"):
        await JobProcess(settings).run(gone, lambda _state, _progress: None)


async def test_a_job_that_breaks_says_why(settings: TrainerSettings, task: Task) -> None:
    """An error within the job, with its place in Gyre's code, is the reason of its failure."""
    broken = replace(task, version="v5", incumbent="/nowhere")
    with pytest.raises(JobFailed, match=r"FileNotFoundError at gyre_trainer\.artifact:\d+: .*/nowhere"):
        await JobProcess(settings).run(broken, lambda _state, _progress: None)


def test_a_job_that_ends_before_it_has_its_task_has_failed(
    settings: TrainerSettings, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reason says how the job ended, whatever the event loop; nothing that is for forked children runs before it.

    Threads that gRPC starts in a forked child of a busy server crash now and then, and the job with them.
    """
    forked = mmap(-1, 1)
    os.register_at_fork(after_in_child=lambda: forked.write_byte(1))
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        for _ in range(20):
            with pytest.raises(JobFailed, match="ended with code 1"):
                runner.run(JobProcess(settings).run(task, lambda _state, _progress: None))
    assert forked[0] == 0


async def test_a_killed_job_leaves_no_rows_in_temporary_files(settings: TrainerSettings, task: Task) -> None:
    """Whatever a job spills lies in a folder of its own, which goes when the job is killed, and with the next one."""
    seen: list[Path] = []
    own = _children()

    def spill(_state: RunState, _progress: float) -> None:
        (job,) = _children() - own
        variables = Path(f"/proc/{job}/environ").read_bytes().split(b"\0")
        seen.extend(Path(each[7:].decode()) for each in variables if each.startswith(b"TMPDIR="))
        (seen[-1] / "spilled").write_text("of-somebody")
        os.kill(job, signal.SIGKILL)

    with pytest.raises(JobFailed):
        await JobProcess(settings).run(replace(task, version="v7"), spill)
    (folder,) = set(seen)
    assert not folder.exists()
    folder.mkdir(parents=True)
    (folder / "of-a-killed-trainer").write_text("of-somebody")
    await JobProcess(settings).run(replace(task, version="v8"), lambda _state, _progress: None)
    assert not folder.exists()


async def test_a_cancelled_job_is_gone(settings: TrainerSettings, task: Task) -> None:
    """Cancelling ends the process before the call returns."""
    own = _children()
    running = asyncio.create_task(JobProcess(settings).run(replace(task, version="v6"), lambda _state, _progress: None))
    await eventually(lambda: _children() - own, timeout_s=10)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert _children() == own


def _children() -> set[int]:
    pid = os.getpid()
    return {
        int(each) for task in Path(f"/proc/{pid}/task").iterdir() for each in (task / "children").read_text().split()
    }


@pytest.mark.adapter
async def test_the_live_arm_is_the_incumbent(stack) -> None:
    """The live arm's version counts where its artefact is there; a candidate's never does."""
    artifacts = stack.folder / "artifacts"
    async with Producer(stack.kafka, source="test") as producer:
        for arms in ([("candidate", "v1")], [("live", "v1"), ("candidate", "v2")]):
            async with LiveModels(stack.kafka, [stack.loop], artifacts) as models:
                assert await models.folder(stack.loop) is None
            named = [RolloutArm(name=name, version=version) for name, version in arms]
            await producer.send(
                topic(stack.loop, "models.rollouts"), RolloutView(loop=stack.loop, arms=named), key=stack.loop
            )
    for version in ("v1", "v2"):
        folder = artifacts / stack.loop / version
        folder.mkdir(parents=True)
        (folder / "model.onnx").touch()
        (folder / "model.json").touch()
    async with LiveModels(stack.kafka, [stack.loop], artifacts) as models:
        assert await models.folder(stack.loop) == artifacts / stack.loop / "v1"


@pytest.fixture
def rest_catalogue() -> Iterator[tuple[str, list[str]]]:
    """The URL of a catalogue that refuses every call, and the warehouses that it was asked for."""
    asked: list[str] = []

    class Refuse(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.extend(parse_qs(urlsplit(self.path).query).get("warehouse", []))
            self.send_error(403)

    server = HTTPServer(("127.0.0.1", 0), Refuse)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("warehouse", ["s3://bucket/path", "analytics"])
async def test_the_job_asks_for_the_warehouse_that_is_set(
    settings, task, rest_catalogue, monkeypatch, tmp_path, warehouse: str
) -> None:
    """A warehouse in S3, or one that a REST catalogue knows by name, is the training job's, too: no local folder."""
    url, asked = rest_catalogue
    monkeypatch.setenv("GYRE_WAREHOUSE_CATALOG", url)
    # Artefacts of its own: a run whose model is there already reads no table.
    own = settings.model_copy(update={"warehouse": warehouse, "warehouse_catalog": url, "artifacts": tmp_path})
    with pytest.raises(JobFailed):
        await JobProcess(own).run(task, lambda _state, _progress: None)
    assert set(asked) == {warehouse}
