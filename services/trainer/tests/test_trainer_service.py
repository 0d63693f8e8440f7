"""The trainer on the real Kafka and a real warehouse: from a trigger to a candidate, and what the caller is told."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from gyre.events.v1 import models_pb2 as models
from gyre.events.v1 import monitor_pb2 as monitor
from gyre.trainer.v1 import trainer_pb2 as pb
from gyre_core.features import Layout
from gyre_core.layouts import KnownLayout, LayoutDefinition, LayoutState
from gyre_core.spec import parse_loop
from gyre_core.topics import dead_letter_topic, topic
from gyre_local.testing import eventually
from gyre_runtime import Invalid, NotFound, Unavailable
from gyre_runtime.events import Event, message_types
from gyre_runtime.kafka import Producer, read_log
from gyre_runtime.layouts import layout_message
from gyre_runtime.tracing import is_sampled
from mlflow import MlflowClient

pytestmark = pytest.mark.adapter

TYPES = message_types(models.CandidateRegistered, models.TrainingTrigger, monitor.Alert)
FINAL = (pb.RUN_STATE_REGISTERED, pb.RUN_STATE_REFUSED, pb.RUN_STATE_FAILED)


async def events(stack: Any, suffix: str) -> list[Event]:
    """Everything in a topic of the loop."""
    return [event async for event in read_log(stack.kafka, topic(stack.loop, suffix), TYPES)]


async def begin(stack: Any, stub: Any, request_id: str = "q1") -> pb.Run:
    """Start a run."""
    return (await stub.StartRun(pb.StartRunRequest(loop=stack.loop, request_id=request_id), timeout=30)).run


async def ended(stub: Any, run_id: str, *, timeout_s: float = 100) -> list[pb.Run]:
    """Every change of a run until its end."""
    watched = stub.WatchRun(pb.WatchRunRequest(run_id=run_id), timeout=timeout_s)
    return [answer.run async for answer in watched]


async def test_a_trigger_waits_until_runs_can_be_kept(stack, start, monkeypatch) -> None:
    """While the runs' file does not answer calls are UNAVAILABLE and a trigger waits; after that it gets its run."""
    service = await start()
    met, queue = asyncio.Event(), service.running.runs.queue
    monkeypatch.setattr(service.running.runs, "queue", lambda trigger: (met.set(), queue(trigger))[1])

    def rename(old: str, new: str) -> None:
        with closing(sqlite3.connect(stack.settings().state_dir / "trainer.db", timeout=30)) as database:
            database.execute(f"alter table {old} rename to {new}")

    rename("runs", "runs_away")
    with pytest.raises(Unavailable, match="no such table"):
        await service.stub.ListRuns(pb.ListRunsRequest(loop=stack.loop), timeout=30)
    async with Producer(stack.kafka, source="test") as producer:
        trigger = models.TrainingTrigger(trigger_id="t1", loop=stack.loop, reason=models.TRIGGER_REASON_VOLUME)
        await producer.send(topic(stack.loop, "training.triggers"), trigger, key=stack.loop)
    await eventually(met.is_set, timeout_s=60, message="the trigger has come")
    rename("runs_away", "runs")

    async def queued() -> bool:
        runs = (await service.stub.ListRuns(pb.ListRunsRequest(loop=stack.loop), timeout=30)).runs
        return [run.trigger_id for run in runs] == ["t1"]

    await eventually(queued, timeout_s=60, message="the trigger has its run")
    assert not service.lifespan.failed


async def test_a_run_of_a_refused_layout_is_refused(stack, start) -> None:
    """Where a maintained layout has a field of another kind than gyre.yaml a run ends with that reason at once."""
    text = (stack.folder / "gyre.yaml").read_text()
    before = parse_loop(text.replace("kind: category", "kind: categories"), source="before")
    hash_, definition, now = Layout.compile(before).hash, LayoutDefinition.of(before), time.time()
    known = KnownLayout(hash_, definition, LayoutState.READY, now, now, wanted_by=("live v1",))
    async with Producer(stack.kafka, source="test") as producer:
        message = layout_message(stack.loop, known)
        await producer.send(topic(stack.loop, "features.layouts"), message, key=known.hash)
    service = await start()
    last = (await ended(service.stub, (await begin(stack, service.stub)).run_id))[-1]
    assert last.state == pb.RUN_STATE_REFUSED
    assert last.reason.startswith("KIND_CHANGED: items.fields.genre: kind is category in gyre.yaml, and categories in")
    assert "which is maintained for live v1" in last.reason


@pytest.mark.timeout(300)
async def test_a_run_ends_in_a_candidate(stack, start, learnt, spec, mlflow_uri) -> None:
    """StartRun leads through every state, in order, to one announced candidate whose artefact answers as golden."""
    learnt.archive(stack.folder / "warehouse", stack.loop)
    service = await start(mlflow=mlflow_uri, trainer_mlflow_wait_s=30)
    run = await begin(stack, service.stub)
    changes = await ended(service.stub, run.run_id)
    states = [change.state for change in changes]
    assert list(dict.fromkeys(states))[-5:] == [
        pb.RUN_STATE_SNAPSHOT,
        pb.RUN_STATE_GATE,
        pb.RUN_STATE_TRAINING,
        pb.RUN_STATE_EVALUATING,
        pb.RUN_STATE_REGISTERED,
    ], changes[-1].reason
    progress = [change.progress for change in changes]
    assert progress == sorted(progress)
    (announced,) = await events(stack, "models.candidates")
    candidate, last = announced.message, changes[-1]
    assert (candidate.version, candidate.run_id, candidate.loop) == (last.version, run.run_id, stack.loop)
    assert candidate.trigger_id == run.trigger_id
    assert dict(candidate.snapshots) == dict(last.snapshots)
    assert len(candidate.snapshots) == 3
    layout = Layout.compile(spec)
    assert (candidate.layout, tuple(candidate.columns)) == (layout.hash, layout.columns)
    _check_artifact(Path(candidate.artifact_uri), candidate)
    measured = {each.name: each.value for each in last.measurements}
    assert measured["ndcg_at_10"] > 1.2 * measured["popularity_ndcg_at_10"]
    record = MlflowClient(tracking_uri=mlflow_uri).get_run(last.mlflow_run_id)
    assert record.data.metrics["ndcg_at_10"] == measured["ndcg_at_10"]
    assert record.data.tags["gyre.run_id"] == run.run_id
    assert is_sampled(announced.traceparent)


@pytest.mark.timeout(300)
async def test_spoilt_data_leaves_the_live_model(stack, start, learnt) -> None:
    """Events that came twice refuse a run that blocks on them: an alert fires, no candidate, the model stays."""
    rules = "quality: {actions: {completeness.duplicates: block}, checks: {duplicates: {max_share: 0.4}}}\n"
    (stack.folder / "gyre.yaml").write_text((stack.folder / "gyre.yaml").read_text() + rules)
    warehouse = stack.folder / "warehouse"
    learnt.archive(warehouse, stack.loop)
    stub = (await start()).stub
    first = (await ended(stub, (await begin(stack, stub, "q1")).run_id))[-1]
    assert first.state == pb.RUN_STATE_REGISTERED, first.reason
    (candidate,) = await events(stack, "models.candidates")
    before = _files(candidate.message.artifact_uri)

    learnt.archive(warehouse, stack.loop)
    second = (await ended(stub, (await begin(stack, stub, "q2")).run_id))[-1]
    assert second.state == pb.RUN_STATE_REFUSED
    assert second.reason.startswith("quality: completeness.duplicates of impressions.event_id = 0.5: must be at most")
    assert {each.name: each.value for each in second.measurements}["quality_failed"] == 1
    assert len(await events(stack, "models.candidates")) == 1
    assert _files(candidate.message.artifact_uri) == before
    (alert,) = [event.message for event in await events(stack, "alerts")]
    assert (alert.name, alert.severity) == ("quality completeness.duplicates", monitor.ALERT_SEVERITY_CRITICAL)
    assert not alert.HasField("end_time")


def _files(folder: str) -> dict[str, bytes]:
    return {each.name: each.read_bytes() for each in Path(folder).iterdir()}


def _check_artifact(folder: Path, candidate: models.CandidateRegistered) -> None:
    manifest = json.loads((folder / "model.json").read_text())
    assert manifest["sha256"] == candidate.sha256
    assert manifest["snapshots"] == dict(candidate.snapshots)
    golden = np.load(folder / "golden.npz")
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    (scores,) = session.run(["scores"], {"features": golden["features"]})
    np.testing.assert_allclose(scores[:, 0], golden["scores"], rtol=1e-5)


async def test_start_run_is_idempotent(stack, start) -> None:
    """Two calls with one request id start one run, announced as one manual trigger; another id starts another."""
    stub = (await start()).stub
    first, second = await begin(stack, stub), await begin(stack, stub)
    other = await begin(stack, stub, "q2")
    assert first.run_id == second.run_id != other.run_id
    assert (await ended(stub, other.run_id))[-1].state == pb.RUN_STATE_REFUSED
    listed = await stub.ListRuns(pb.ListRunsRequest(loop=stack.loop), timeout=30)
    assert [run.run_id for run in listed.runs] == [other.run_id, first.run_id]
    triggers = [event.message for event in await events(stack, "training.triggers")]
    assert [each.trigger_id for each in triggers] == [first.trigger_id, other.trigger_id]
    assert {each.reason for each in triggers} == {models.TRIGGER_REASON_MANUAL}


async def test_too_little_data_is_refused(stack, start) -> None:
    """Without data a run is refused, its reason names field, value and rule, and nothing is announced."""
    stub = (await start()).stub
    last = (await ended(stub, (await begin(stack, stub)).run_id))[-1]
    assert last.state == pb.RUN_STATE_REFUSED
    assert last.reason.startswith("training.gate.min_impressions: 0 labelled impressions")
    assert last.reason.endswith("must be at least 20")
    assert not last.version
    assert await events(stack, "models.candidates") == []


async def test_a_trigger_starts_one_run(stack, start) -> None:
    """A trigger that comes twice starts one run; one of another loop or without a reason is dead-lettered."""
    stub = (await start()).stub
    name = topic(stack.loop, "training.triggers")
    async with Producer(stack.kafka, source="test") as producer:
        for trigger_id, reason, loop in (
            ("t1", models.TRIGGER_REASON_VOLUME, stack.loop),
            ("t1", models.TRIGGER_REASON_VOLUME, stack.loop),
            ("t2", models.TRIGGER_REASON_UNSPECIFIED, stack.loop),
            ("t3", models.TRIGGER_REASON_VOLUME, "elsewhere"),
        ):
            message = models.TrainingTrigger(trigger_id=trigger_id, loop=loop, reason=reason)
            await producer.send(name, message, key=loop)

    async def both_refused() -> bool:
        read = read_log(stack.kafka, dead_letter_topic(name), TYPES)
        return [event.message.trigger_id async for event in read] == ["t2", "t3"]

    await eventually(both_refused, timeout_s=60, message="t2 and t3 are dead-lettered")
    listed = await stub.ListRuns(pb.ListRunsRequest(loop=stack.loop), timeout=30)
    assert [run.trigger_id for run in listed.runs] == ["t1"]


async def test_every_status(stack, start) -> None:
    """An unknown loop or run is NOT_FOUND, a malformed request INVALID_ARGUMENT with its field."""
    stub = (await start()).stub
    for call, reason in (
        (stub.StartRun(pb.StartRunRequest(loop="elsewhere", request_id="q1"), timeout=30), "UNKNOWN_LOOP"),
        (stub.ListRuns(pb.ListRunsRequest(loop="elsewhere"), timeout=30), "UNKNOWN_LOOP"),
        (stub.GetRun(pb.GetRunRequest(run_id="run-0"), timeout=30), "UNKNOWN_RUN"),
    ):
        with pytest.raises(NotFound) as caught:
            await call
        assert caught.value.reason == reason
    with pytest.raises(NotFound):
        await ended(stub, "run-0")
    for call, field in (
        (stub.StartRun(pb.StartRunRequest(loop=stack.loop), timeout=30), "request_id"),
        (stub.StartRun(pb.StartRunRequest(loop=stack.loop, request_id="no spaces"), timeout=30), "request_id"),
        (stub.ListRuns(pb.ListRunsRequest(loop=stack.loop, limit=1001), timeout=30), "limit"),
        (stub.GetRun(pb.GetRunRequest(), timeout=30), "run_id"),
    ):
        with pytest.raises(Invalid) as refused:
            await call
        assert refused.value.violations[0].field == field
