"""Runs whose rows were erased for a forgotten user: marked once, told to callers and to MLflow, whatever is away."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gyre.events.v1 import privacy_pb2 as privacy
from gyre.trainer.v1 import trainer_pb2 as pb
from gyre_core.topics import topic
from gyre_local.testing import eventually
from gyre_runtime.kafka import Producer
from gyre_trainer.adapters.store import SqliteRuns
from gyre_trainer.domain import Pins, Run, RunState, Trigger
from gyre_trainer.handlers import RunRegistry
from gyre_trainer.transport.erasures import TAG, ErasureConsumer

LOOP = "shop"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteRuns]:
    """Where runs are kept."""
    with closing(SqliteRuns(tmp_path)) as opened:
        yield opened


def _run(name: str, *snapshots: int, loop: str = LOOP, ended: float = 1.0) -> Run:
    pins = Pins({"behavior_interactions": snapshots[0], "behavior_impressions": snapshots[1]}, 0.0)
    made = Run.queued(Trigger(name, loop), now=1.0).pinned(pins)
    return replace(made, state=RunState.REGISTERED, update_time=ended)


def _erased(at_s: int, **snapshots: int) -> privacy.UserErased:
    message = privacy.UserErased(user_id="u")
    message.erased_time.FromSeconds(at_s)
    for table, snapshot in snapshots.items():
        message.expired[table].ids.append(snapshot)
    return message


async def test_runs_that_read_what_is_gone_are_marked(store: SqliteRuns) -> None:
    """A snapshot of the right table and loop marks its runs with the first such erasure; others stay repeatable."""
    runs = RunRegistry(store, [LOOP, "other"])
    hit, missed, elsewhere = _run("a", 1, 2, ended=95), _run("b", 3, 4, ended=95), _run("c", 1, 2, loop="other")
    queued = Run.queued(Trigger("d", LOOP), now=1.0)
    for each in (hit, missed, elsewhere, queued):
        store.save(each)
    erasures = ErasureConsumer(runs, lambda *_: True)
    erasures.note(LOOP, _erased(50, behavior_interactions=1, behavior_impressions=9))
    erasures.note(LOOP, _erased(90, behavior_impressions=2))
    await erasures.mark()
    assert runs.get(hit.run_id) == replace(hit, erased_time=50.0)
    for each in (missed, elsewhere, queued):
        assert runs.get(each.run_id).erased_time is None


@pytest.mark.parametrize("state", [RunState.REGISTERED, RunState.REFUSED, RunState.FAILED])
async def test_a_run_whose_snapshot_had_expired_is_marked(store: SqliteRuns, state: RunState) -> None:
    """A run that ended before an erasure read the user's rows, too, though retention took its snapshot before."""
    runs, run = RunRegistry(store, [LOOP]), replace(_run("a", 1, 2, ended=40), state=state)
    store.save(run)
    erasures = ErasureConsumer(runs, lambda *_: True)
    erasures.note(LOOP, _erased(30, behavior_interactions=7))
    erasures.note(LOOP, _erased(50, catalog_users=7))
    await erasures.mark()
    assert runs.get(run.run_id).erased_time is None
    erasures.note(LOOP, _erased(60, behavior_interactions=8))
    await erasures.mark()
    assert runs.get(run.run_id).erased_time == 60.0


async def test_a_mark_survives_whoever_holds_an_older_copy(store: SqliteRuns) -> None:
    """A run that is marked while it is under way stays marked when its progress is kept."""
    runs, run = RunRegistry(store, [LOOP]), _run("a", 1, 2)
    store.save(run)
    erasures = ErasureConsumer(runs, lambda *_: True)
    erasures.note(LOOP, _erased(50, behavior_interactions=1))
    await erasures.mark()
    assert runs.change(run, progress=0.5).erased_time == 50.0
    assert runs.get(run.run_id).erased_time == 50.0


async def test_what_a_run_left_is_erased_once_it_is_over_and_mlflow_is_there(store: SqliteRuns) -> None:
    """While MLflow takes nothing, or the run goes on, the erasure waits, also over a restart; then it is done once."""
    runs, run = RunRegistry(store, [LOOP]), replace(_run("a", 1, 2), state=RunState.TRAINING)
    store.save(run)
    sent: list[Any] = []
    away = ErasureConsumer(runs, lambda *_: False)
    away.note(LOOP, _erased(0, behavior_interactions=1))
    await away.mark()
    assert not runs.unrecorded()
    runs.change(run, RunState.REFUSED)
    await away.tell()
    assert runs.unrecorded()
    back = ErasureConsumer(runs, lambda *given: sent.append(given) or True)
    await back.tell()
    await back.tell()
    ((erased, tags),) = sent
    assert (erased.run_id, tags) == (run.run_id, {TAG: "1970-01-01T00:00:00+00:00"})
    assert not runs.unrecorded()


@pytest.mark.adapter
async def test_a_file_that_cannot_be_deleted_holds_nobody_else_back(start: Any, stack: Any) -> None:
    """A run whose list of events the file system does not delete is told and waits; what other runs left goes."""
    service = await start()
    held, free = (_run(name, 1, 2, loop=stack.loop) for name in ("held", "free"))
    folder = stack.settings().artifacts / stack.loop
    # A folder in the place of the file stands for whatever keeps a file system from deleting it.
    (folder / held.version / "quarantine.jsonl").mkdir(parents=True)
    (folder / free.version).mkdir()
    (folder / free.version / "quarantine.jsonl").write_text("of-somebody")
    for run in (held, free):
        service.running.runs.change(run)
    async with Producer(stack.kafka, source="test") as producer:
        message = _erased(1_700_000_000, behavior_interactions=1)
        await producer.send(topic(stack.loop, "privacy.erasures"), message, key="u")

    def gone() -> bool:
        return service.lifespan.failed or not (folder / free.version / "quarantine.jsonl").exists()

    await eventually(gone, timeout_s=60, message="the list of the other run is deleted")
    assert not service.lifespan.failed, "one file ended the trainer"
    assert (folder / held.version / "quarantine.jsonl").exists()
    assert held.run_id in {run.run_id for run in service.running.runs.unrecorded()}


async def test_what_fails_is_tried_again_with_a_back_off(store: SqliteRuns) -> None:
    """A run that cannot be erased is tried a bounded number of times, however often somebody is forgotten."""
    runs, now, tried = RunRegistry(store, [LOOP]), [0.0], []
    for name in ("a", "b"):
        store.save(replace(_run(name, 1, 2), erased_time=1.0))

    def erase(run: Run, _tags: dict[str, str]) -> bool:
        tried.append(run.trigger_id)
        if run.trigger_id == "a":
            raise OSError("the device is away")
        return True

    erasures = ErasureConsumer(runs, erase, clock=lambda: now[0])
    for _ in range(1000):
        await erasures.tell()
        now[0] += 1.0
    assert tried.count("b") == 1
    assert 3 <= tried.count("a") <= 10
    now[0] += 3600
    await erasures.tell()
    assert tried[-1] == "a"


async def test_erasures_are_let_go_once_no_run_can_have_read_what_they_took(store: SqliteRuns) -> None:
    """However many users are forgotten, only the newest erasures stay in memory; those mark runs for some minutes."""
    runs, now = RunRegistry(store, [LOOP]), [0.0]
    erasures = ErasureConsumer(runs, lambda *_: True, clock=lambda: now[0])
    for number in range(2000):
        erasures.note(LOOP, _erased(number, behavior_interactions=number))
        now[0] += 10.0
        await erasures.mark()
    assert erasures.held < 200
    late = replace(_run("late", 1999, 2), state=RunState.TRAINING)
    store.save(late)
    await erasures.mark()
    assert runs.get(late.run_id).erased_time == 1999.0


@pytest.mark.adapter
async def test_callers_see_that_rows_were_erased(start: Any, stack: Any, mlflow_uri: str) -> None:
    """What the archive says of an erasure marks the run for GetRun, and takes what names events from its artefact."""
    service = await start(mlflow=mlflow_uri, trainer_mlflow_wait_s=60)
    run = _run("a", 1, 2, loop=stack.loop)
    folder = stack.settings().artifacts / stack.loop
    for name in (run.version, f".{run.version}"):
        (folder / name).mkdir(parents=True)
        for file in ("model.onnx", "quarantine.jsonl"):
            (folder / name / file).write_text("of-somebody")
    service.running.runs.change(run)
    async with Producer(stack.kafka, source="test") as producer:
        message = _erased(1_700_000_000, behavior_interactions=1)
        await producer.send(topic(stack.loop, "privacy.erasures"), message, key="u")

    async def marked() -> bool:
        answer = await service.stub.GetRun(pb.GetRunRequest(run_id=run.run_id), timeout=30)
        left = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
        assert left == [f"{run.version}/model.onnx"]
        return answer.run.erased_time.seconds == 1_700_000_000

    await eventually(marked, timeout_s=30, message="the run is marked, and its artefact names no event")
