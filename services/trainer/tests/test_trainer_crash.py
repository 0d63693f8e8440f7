"""What a killed trainer leaves behind: a run that goes on after the restart, and no job without its service."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from gyre.events.v1 import models_pb2 as models
from gyre.trainer.v1 import trainer_pb2 as pb
from gyre_core.topics import topic
from gyre_local.testing import eventually
from gyre_runtime.events import Event, message_types
from gyre_runtime.kafka import read_log
from gyre_trainer.adapters.store import SqliteRuns

pytestmark = pytest.mark.adapter

TYPES = message_types(models.CandidateRegistered, models.TrainingTrigger)


async def announced(stack: Any) -> list[Event]:
    """Every candidate of the loop."""
    return [event async for event in read_log(stack.kafka, topic(stack.loop, "models.candidates"), TYPES)]


def jobs_of(pid: int) -> list[int]:
    """The processes that a process started."""
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_gone(pid: int) -> bool:
    """Whether a process has ended, or only waits to be reaped by init."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


async def state_of(stub: Any, run_id: str) -> pb.Run:
    """A run as it is."""
    return (await stub.GetRun(pb.GetRunRequest(run_id=run_id), timeout=30)).run


@pytest.mark.timeout(300)
async def test_a_killed_trainer_goes_on(stack, start_process, learnt) -> None:
    """SIGKILL in the middle of a run ends its job, and after a restart the same run makes its one candidate."""
    learnt.archive(stack.folder / "warehouse", stack.loop)
    first = await start_process()
    asked = pb.StartRunRequest(loop=stack.loop, request_id="q1")
    begun = (await first.stub.StartRun(asked, timeout=30)).run

    async def at_work() -> bool:
        now = await state_of(first.stub, begun.run_id)
        assert now.state < pb.RUN_STATE_EVALUATING
        return now.state >= pb.RUN_STATE_SNAPSHOT and len(now.snapshots) == 3 and bool(jobs_of(first.popen.pid))

    await eventually(at_work, timeout_s=60, message="the job runs")
    pinned = (await state_of(first.stub, begun.run_id)).snapshots
    (job,) = jobs_of(first.popen.pid)
    os.kill(first.popen.pid, signal.SIGKILL)
    first.popen.wait()
    await eventually(lambda: is_gone(job), timeout_s=10, message="the job ended with its service")
    assert await announced(stack) == []

    second = await start_process()
    watched = second.stub.WatchRun(pb.WatchRunRequest(run_id=begun.run_id), timeout=150)
    last = [answer.run async for answer in watched][-1]
    assert last.state == pb.RUN_STATE_REGISTERED, f"{last.reason}\n{(stack.folder / 'trainer.log').read_text()[-4000:]}"
    assert last.snapshots == pinned
    again = (await second.stub.StartRun(asked, timeout=30)).run
    assert again.run_id == begun.run_id
    (event,) = await announced(stack)
    assert (event.message.run_id, event.message.version) == (begun.run_id, last.version)
    second.popen.terminate()
    assert second.popen.wait(15) == 0


async def test_a_drained_trainer_leaves_its_run_for_the_next(stack, start, learnt) -> None:
    """A trainer that is told to end in the middle of a run ends its job, and the run stays due for the next one."""
    learnt.archive(stack.folder / "warehouse", stack.loop)
    service = await start()
    asked = pb.StartRunRequest(loop=stack.loop, request_id="q1")
    begun = (await service.stub.StartRun(asked, timeout=30)).run
    own = set(jobs_of(os.getpid()))

    async def at_work() -> bool:
        return bool(set(jobs_of(os.getpid())) - own) and len((await state_of(service.stub, begun.run_id)).snapshots) > 0

    await eventually(at_work, timeout_s=60, message="the job runs")
    started = set(jobs_of(os.getpid())) - own
    await service.lifespan.__aexit__(None, None, None)
    assert all(is_gone(job) for job in started)
    async with SqliteRuns(stack.folder / "state") as store:
        due = store.next_due()
    assert due is not None
    assert due.run_id == begun.run_id
