"""Whose fault it is, on the real Triton: killed deployers, two loops on one Triton, a paused candidate that it lost."""

import asyncio
import contextlib
import os
import signal
from dataclasses import replace

import pytest
from gyre.deployer.v1.deployer_pb2 import PauseRequest
from gyre.events.v1.models_pb2 import RolloutEventKind
from gyre_core.features import Layout
from gyre_core.models import triton_model
from gyre_core.spec import load_loop
from gyre_core.topics import declared
from gyre_deployer.adapters.repository import LOAD_RECORDS
from gyre_local.testing import eventually
from gyre_runtime.kafka import create_topics
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException

from .conftest import LOOP, WEIGHTS, weighted_sum

pytestmark = [pytest.mark.adapter, pytest.mark.timeout(300)]  # processes and Triton are started several times
SLOW = weighted_sum(WEIGHTS, additions=20_000)
"""A graph that takes Triton a second or two to load."""


async def kinds(place, version: str) -> list[str]:
    """The kinds of the changes of a version in the log."""
    prefix = "ROLLOUT_EVENT_KIND_"
    return [
        RolloutEventKind.Name(each.kind).removeprefix(prefix) for each in await place.log() if each.version == version
    ]


async def states(triton) -> dict[str, str]:
    """The state of each model on Triton; none while it is away."""
    async with InferenceServerClient(triton.grpc) as client:
        with contextlib.suppress(InferenceServerException):
            return {each.name: each.state for each in (await client.get_model_repository_index()).models}
    return {}


async def restart(triton) -> None:
    """Kill Triton and start it again, empty."""
    os.kill(triton.process.pid, signal.SIGKILL)
    await asyncio.to_thread(triton.process.stop)
    await asyncio.to_thread(triton.process.start)


async def test_deployers_killed_during_three_loads_count_for_nothing(spawn, models, place, triton) -> None:
    """Killed three times after Triton has loaded a version and before that is noted, the deployer promotes it."""
    name = triton_model(place.loop, "v1")
    record = triton.repository / LOAD_RECORDS / f"{name}.json"

    def is_open() -> bool:
        with contextlib.suppress(FileNotFoundError):
            return '"is_open": true' in record.read_text()
        return False

    async def is_in(state: str) -> bool:
        return (await states(triton)).get(name) == state

    await models.register("v1", graph=SLOW)
    for attempt in range(3):
        program = await spawn()
        await eventually(lambda: is_in("LOADING"), timeout_s=30, message="Triton loads it")
        program.process.send_signal(signal.SIGSTOP)
        await eventually(lambda: is_in("READY"), timeout_s=30, message="Triton has loaded it")
        await program.kill()
        assert is_open(), "the attempt was over already"
        if attempt < 2:  # so that the next load takes a while, too
            async with InferenceServerClient(triton.grpc) as client:
                await client.unload_model(name)
    await spawn()

    async def ended() -> list[str]:
        found = await kinds(place, "v1")
        return found if {"PROMOTED", "ROLLED_BACK", "REFUSED"} & set(found) else []

    found = await eventually(ended, timeout_s=90, message="the rollout ends")
    assert found == ["STARTED", "VALIDATED", "LOADED", "WARMED", "PROMOTED"]
    assert not record.exists()


@pytest.fixture
async def neighbour(place, models, tmp_path):
    """A second loop on the same Kafka and Triton: its place and what makes its candidates."""
    loop_file = tmp_path / "neighbour.yaml"
    loop_file.write_text(LOOP.format(loop=f"{place.loop}-b"))
    spec = load_loop(loop_file)
    await create_topics(place.kafka, declared(spec))
    other = replace(models, layout=Layout.compile(spec), folder=tmp_path / "neighbour")
    return replace(place, loop=spec.loop, loop_file=loop_file), other


async def test_of_two_loops_that_load_only_one_is_blamed(start, models, place, neighbour, triton) -> None:
    """Where Triton is killed while two loops want to load, one candidate is rolled back and the other gets traffic."""
    other_place, other_models = neighbour
    deployer = await start(loops=(place.loop_file, other_place.loop_file), deployer_load_backoff_s=0.2)
    other = replace(deployer, loop=other_place.loop)
    await eventually(other.answers, timeout_s=60, message="the deployer answers for the other loop")
    for each, its_models in ((deployer, models), (other, other_models)):
        await its_models.register("v1")
        await each.reaches("v1", "PROMOTED", timeout_s=60)
    names = [triton_model(each.loop, "v2") for each in (place, other_place)]

    async def loading(count: int) -> bool:
        found = await states(triton)
        return sum(found.get(name) == "LOADING" for name in names) >= count

    await asyncio.gather(models.register("v2", graph=SLOW), other_models.register("v2", graph=SLOW))
    await eventually(lambda: loading(1), timeout_s=60, message="Triton loads a candidate")
    with contextlib.suppress(AssertionError):  # the other one starts to load, too, where nothing hinders it
        await eventually(lambda: loading(2), timeout_s=0.5)
    assert await loading(1), "the load was over before Triton was killed"
    await restart(triton)

    async def settled() -> list[list[str]]:
        found = [await kinds(each, "v2") for each in (place, other_place)]
        assert all({"SHIFTED", "ROLLED_BACK"} & set(each) for each in found), found
        return found

    found = await eventually(settled, timeout_s=90, message="both candidates have traffic or have ended")
    assert sorted(found) == [["STARTED", "ROLLED_BACK"], ["STARTED", "VALIDATED", "LOADED", "WARMED", "SHIFTED"]]


async def test_a_paused_candidate_that_triton_lost_has_no_traffic(start, models, place, gateway, triton) -> None:
    """Triton is restarted: the candidate's traffic is withdrawn and comes back, and it is paused all the while."""
    deployer = await start(deployer_outage_pause_s=0.2)
    await models.register("v1")
    await deployer.reaches("v1", "PROMOTED", timeout_s=60)
    gateway.requests = 0
    await models.register("v2")
    rollout = await deployer.reaches("v2", "CANARY", timeout_s=60)
    await deployer.stub.Pause(PauseRequest(loop=place.loop, rollout_id=rollout.rollout_id, reason="lunch"), timeout=30)
    await restart(triton)
    for version in ("v1", "v2"):
        await eventually(lambda version=version: place.is_served(version), timeout_s=60, message=f"{version} is back")

    async def shares() -> list[float]:
        paused = await deployer.reaches("v2", "PAUSED")
        found = [round(each.share, 3) for each in paused.events]
        assert found[-3:] == [0.1, 0.0, 0.1], found
        return found

    await eventually(shares, timeout_s=30, message="the traffic was withdrawn and is back")
