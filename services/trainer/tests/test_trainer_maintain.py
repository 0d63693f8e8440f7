"""Old models go, step by step; what serves, may serve or is being trained stays, wherever the job is killed."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from gyre.events.v1 import models_pb2 as models
from gyre_core.models import MANIFEST_FILE, PINS_FOLDER
from gyre_core.spec.operations import RetentionSpec
from gyre_core.topics import topic
from gyre_local.testing import eventually
from gyre_runtime.kafka import Producer
from gyre_trainer.adapters.mlflow import Entry, record
from gyre_trainer.adapters.store import SqliteRuns
from gyre_trainer.adapters.warehouse import ArchivedWarehouse
from gyre_trainer.domain import Pins, Run, RunState
from gyre_trainer.maintain import Maintenance
from gyre_trainer.retention import StoredModel, plan
from gyre_trainer.settings import TrainerSettings
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient

DAY_S = 86_400.0
NOW = 1_800_000_000.0
MODELS = st.lists(
    st.builds(
        StoredModel,
        run_id=st.uuids().map(str),
        version=st.sampled_from([f"v{number}" for number in range(30)]),
        time=st.floats(NOW - 100 * DAY_S, NOW),
        is_final=st.booleans(),
        has_folder=st.booleans(),
        is_marked=st.booleans(),
    ),
    max_size=30,
    unique_by=lambda model: model.version,
)


@given(MODELS, st.sets(st.sampled_from([f"v{number}" for number in range(30)])), st.integers(0, 10))
def test_only_what_nothing_names_is_removed(found: list[StoredModel], named: set[str], newest: int) -> None:
    """Named models, runs under way, the newest and the young stay; all others go, and each is counted once."""
    retention = RetentionSpec(min_models=newest)
    decided = plan(found, named, retention, now=NOW)
    gone = {model.run_id for model in decided.remove}
    order = sorted(found, key=lambda model: model.time, reverse=True)
    for rank, model in enumerate(order):
        spared = rank < newest or NOW - model.time < retention.models_s
        stays = model.version in named or not model.is_final or (spared and not model.is_marked)
        assert (model.run_id in gone) != stays
    assert len(gone) + sum(decided.retained.values()) == len(found)


class Crash(BaseException):
    """The job is killed here."""


class Killed:
    """Lets the n-th of some calls kill the job, before or after it happened."""

    def __init__(self, at: int) -> None:
        self.calls, self.at = 0, at

    def around(self, call):
        """The call, which may kill."""

        def wrapped(*args, **options):
            self.step()
            result = call(*args, **options)
            self.step()
            return result

        return wrapped

    def step(self) -> None:
        """One place to be killed at."""
        self.calls += 1
        if self.calls == self.at:
            raise Crash


def run_of(version: str, state: RunState = RunState.REGISTERED) -> Run:
    """A run that ended a hundred days ago."""
    at = NOW - 100 * DAY_S
    return Run(f"run-{version}", "shop", f"t-{version}", "", state, at, at, version=version, mlflow_run_id="m")


def put(folder: Path, version: str) -> None:
    """An artefact folder."""
    (folder / version).mkdir(parents=True)
    for name in ("model.onnx", MANIFEST_FILE, "golden.npz"):
        (folder / version / name).write_text('{"snapshots": {}}')


def test_a_job_killed_at_any_step_leaves_no_dangling_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is not marked has its artefact and its record, whole; the next job finishes what was begun."""
    at = 0
    while True:
        at += 1
        place = tmp_path / str(at)
        store, folder, records = SqliteRuns(place / "state"), place / "artifacts" / "shop", {"run-v1", "run-v2"}
        for version in ("v1", "v2"):
            store.save(run_of(version))
            put(folder, version)
        killed = Killed(at)

        def remove_record(_loop: str, run_id: str, records: set[str] = records) -> bool:
            records.discard(run_id)
            return True

        job = Maintenance("shop", store, folder, killed.around(remove_record))
        was_killed = False
        with monkeypatch.context() as patched:
            patched.setattr(Path, "rename", killed.around(Path.rename))
            patched.setattr(Path, "unlink", killed.around(Path.unlink))
            patched.setattr(os, "unlink", killed.around(os.unlink))
            patched.setattr(os, "rmdir", killed.around(os.rmdir))
            patched.setattr(store, "mark_removed", killed.around(store.mark_removed))
            try:
                job.carry_out(plan(job.stored(), {"v2"}, RetentionSpec(min_models=0), now=NOW))
            except Crash:
                was_killed = True
        one, two = store.get("run-v1"), store.get("run-v2")
        assert one is not None
        assert one.removed_time is not None or ((folder / "v1" / MANIFEST_FILE).exists() and "run-v1" in records)
        assert not (folder / "v1").exists() or len(list((folder / "v1").iterdir())) == 3
        again = Maintenance("shop", store, folder, remove_record)
        assert again.carry_out(plan(again.stored(), {"v2"}, RetentionSpec(min_models=0), now=NOW))
        finished = store.get("run-v1")
        assert finished is not None
        assert finished.is_removed
        assert [path.name for path in folder.iterdir()] == ["v2"]
        assert (records, two) == ({"run-v2"}, run_of("v2"))
        store.close()
        if not was_killed:
            break
    assert at > 10


async def test_snapshots_of_a_run_under_way_stay_named(tmp_path: Path) -> None:
    """What a run reads stands beside the artefacts until it is over; what a killed trainer left goes with the job."""
    settings = TrainerSettings(artifacts=tmp_path / "artifacts", state_dir=tmp_path / "state")
    warehouse = ArchivedWarehouse(settings, {})
    store, folder = SqliteRuns(settings.state_dir), settings.artifacts / "shop"
    pins = Pins({"behavior_impressions": 11}, NOW)
    ended, running, released = (
        replace(run_of(version, state), pins=pins)
        for version, state in (("v1", RunState.FAILED), ("v2", RunState.TRAINING), ("v3", RunState.TRAINING))
    )
    for run in (ended, running, released):
        store.save(run)
        await warehouse.hold(run)
    await warehouse.release(released)
    manifests = sorted(folder.glob(f"{PINS_FOLDER}/*/{MANIFEST_FILE}"))
    assert [path.parent.name for path in manifests] == ["run-v1", "run-v2"]
    assert json.loads(manifests[0].read_text())["snapshots"] == {"behavior_impressions": 11}
    job = Maintenance("shop", store, folder, lambda _loop, _run_id: True)
    assert job.carry_out(plan([], set(), RetentionSpec(), now=NOW))
    assert [path.parent.name for path in folder.glob(f"{PINS_FOLDER}/*/{MANIFEST_FILE}")] == ["run-v2"]
    store.close()


async def maintain(stack, *options: str, **env: str) -> tuple[int, str]:
    """Run the job; its exit code and output."""
    command = [sys.executable, "-m", "gyre_trainer", "maintain", *options]
    given = stack.env("127.0.0.1:0") | env
    process = await asyncio.create_subprocess_exec(*command, env=given, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()


def old_models(stack, *versions: str) -> Path:
    """Registered models that are old enough to go; answers the folder of their artefacts."""
    folder, store = stack.settings().artifacts / stack.loop, SqliteRuns(stack.settings().state_dir)
    for version in versions:
        put(folder, version)
        store.save(replace(run_of(version), loop=stack.loop, update_time=1000.0, mlflow_run_id=""))
    store.close()
    file = stack.folder / "gyre.yaml"
    file.write_text(file.read_text() + "retention: {min_models: 0}\n")
    return folder


@pytest.mark.adapter
async def test_a_kafka_that_is_new_removes_no_model(stack) -> None:
    """Where models are stored and models.rollouts names none, as in a Kafka made anew, all stay, and it is said."""
    folder = old_models(stack, "v0", "v1")
    for options in (("--dry-run",), ()):
        code, printed = await maintain(stack, *options)
        assert sorted(path.name for path in folder.iterdir()) == ["v0", "v1"]
        assert f"{stack.loop}: nothing is removed: models are stored and none is named" in printed
        assert code == 1
    async with Producer(stack.kafka, source="tests") as producer:
        view = models.RolloutView(loop=stack.loop, epoch=9)
        view.arms.add(name="live", version="v1", share=1.0)
        await producer.send(topic(stack.loop, "models.rollouts"), view, key=stack.loop)
    assert (await maintain(stack))[0] == 0
    assert [path.name for path in folder.iterdir()] == ["v1"]


@pytest.mark.adapter
async def test_a_folder_that_cannot_be_removed_holds_back_no_other(stack) -> None:
    """A model that the file system does not let go waits; the others of the plan go, and the job answers 1."""
    folder = old_models(stack, "v0", "v1", "v2")
    # A file in the place of the folder that v0 is moved to stands for whatever keeps it from going.
    (folder / ".v0.removed").write_text("in the way")
    async with Producer(stack.kafka, source="tests") as producer:
        view = models.RolloutView(loop=stack.loop, epoch=9)
        view.arms.add(name="live", version="v2", share=1.0)
        await producer.send(topic(stack.loop, "models.rollouts"), view, key=stack.loop)
    code, _ = await maintain(stack)
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["v0", "v2"]
    assert code == 1


@pytest.mark.adapter
async def test_a_changed_file_ends_no_trainer(stack, start) -> None:
    """A gyre.yaml that is being edited, wrongly for now, ends no trainer that runs: it tidies up as before."""
    folder = old_models(stack, "v0", "v1")
    async with Producer(stack.kafka, source="tests") as producer:
        view = models.RolloutView(loop=stack.loop, epoch=9)
        view.arms.add(name="live", version="v1", share=1.0)
        await producer.send(topic(stack.loop, "models.rollouts"), view, key=stack.loop)
    service = await start(trainer_maintain_every_s=0.2)
    (stack.folder / "gyre.yaml").write_text("loop: [")

    def tidied() -> bool:
        return service.lifespan.failed or [path.name for path in folder.iterdir()] == ["v1"]

    await eventually(tidied, timeout_s=60, message="the old model is gone")
    put(folder, "v2")
    os.utime(folder / "v2", (1000.0, 1000.0))
    await eventually(tidied, timeout_s=60, message="another old model is gone")
    assert not service.lifespan.failed, "the file ended the trainer"


@pytest.mark.adapter
async def test_the_job_prints_its_plan_and_removes_what_nothing_names(stack, loop, mlflow_uri, tmp_path) -> None:
    """A dry run touches nothing; then old artefacts and records go, but not of live, last good and waiting models."""
    versions = [f"v{number}" for number in range(6)]
    folder = stack.settings().artifacts / loop
    store = SqliteRuns(stack.settings().state_dir)
    for version in versions:
        put(folder, version)
        entry = Entry(loop, f"run-{version}", version, {}, {}, {}, folder / version)
        recorded = await asyncio.to_thread(record, mlflow_uri, entry, wait_s=120)
        run = Run(f"run-{version}", loop, f"t-{version}", "", RunState.REGISTERED, 1000.0, 1000.0, version=version)
        store.save(Run(**{**run.__dict__, "mlflow_run_id": recorded}))
    underway = Run("run-v5", loop, "t-v5", "", RunState.TRAINING, 1000.0, 1000.0, version="v5")
    store.save(underway)
    store.close()
    async with Producer(stack.kafka, source="tests") as producer:
        for version in ("v0", "v1", "v2", "v4"):
            candidate = models.CandidateRegistered(
                loop=loop, version=version, run_id=f"run-{version}", layout="a" * 16, columns=["c"], artifact_uri="/x",
                sha256="0" * 64,
            )  # fmt: skip
            await producer.send(topic(loop, "models.candidates"), candidate, key=loop)
        view = models.RolloutView(loop=loop, epoch=9, last_good_version="v1", candidates_offset=3)
        view.arms.add(name="live", version="v2", share=1.0)
        await producer.send(topic(loop, "models.rollouts"), view, key=loop)

    async def job(*options: str) -> str:
        command = [sys.executable, "-m", "gyre_trainer", "maintain", *options]
        env = stack.env("127.0.0.1:0") | {"GYRE_MLFLOW": mlflow_uri, "GYRE_TRAINER_MLFLOW_WAIT_S": "120"}
        process = await asyncio.create_subprocess_exec(*command, env=env, stdout=asyncio.subprocess.PIPE)
        output, _ = await process.communicate()
        assert process.returncode == 0
        return output.decode()

    text = (tmp_path / "gyre.yaml").read_text()
    (tmp_path / "gyre.yaml").write_text(text + "retention: {min_models: 0}\n")
    printed = await job("--dry-run")
    assert f"{loop}: 2 models to remove" in printed
    assert "3 named" in printed
    assert sorted(path.name for path in folder.iterdir()) == versions
    await job()
    assert sorted(path.name for path in folder.iterdir()) == ["v1", "v2", "v4", "v5"]
    client = MlflowClient(tracking_uri=mlflow_uri)
    experiment = client.get_experiment_by_name(f"gyre/{loop}")
    left = client.search_runs([experiment.experiment_id])
    assert sorted(each.info.run_name for each in left) == ["v1", "v2", "v4", "v5"]
    assert {each.path for each in client.list_artifacts(left[0].info.run_id)} == {
        "model.onnx", MANIFEST_FILE, "golden.npz"
    }  # fmt: skip
    assert f"{loop}: 0 models to remove" in await job("--dry-run")
