"""Versions that the real Triton cannot load again, or does not survive: bounded attempts, few changes, live first."""

import asyncio
import contextlib
import os
import shutil
import signal

import pytest
from gyre.events.v1.models_pb2 import RolloutEventKind
from gyre.events.v1.monitor_pb2 import Alert
from gyre_core.models import triton_model
from gyre_core.topics import topic
from gyre_deployer.adapters.repository import LOAD_RECORDS
from gyre_local.testing import eventually
from gyre_runtime.events import message_types
from gyre_runtime.kafka import read_log
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException

pytestmark = [pytest.mark.adapter, pytest.mark.timeout(300)]  # Triton is started several times


async def kinds(place, version: str) -> list[str]:
    """The kinds of the changes of a version in the log."""
    prefix = "ROLLOUT_EVENT_KIND_"
    return [
        RolloutEventKind.Name(each.kind).removeprefix(prefix) for each in await place.log() if each.version == version
    ]


def lose(place, models, version: str, *, artefact: bool) -> None:
    """Corrupt the model of a version in Triton's repository, and remove its artefact, from which it could be mended."""
    (place.triton.repository / triton_model(place.loop, version) / "1" / "model.onnx").write_bytes(b"this is no graph")
    if artefact:
        shutil.rmtree(models.folder / place.loop / version)


async def restart(triton) -> None:
    """Kill Triton and start it again, empty."""
    os.kill(triton.process.pid, signal.SIGKILL)
    await asyncio.to_thread(triton.process.stop)
    await asyncio.to_thread(triton.process.start)


async def canary_beside_live(start, models, gateway):
    """A deployer with v1 live and v2 at its first step, which nobody's requests let pass."""
    deployer = await start(deployer_load_backoff_s=0.2)
    await models.register("v1")
    await deployer.reaches("v1", "PROMOTED", timeout_s=60)
    gateway.requests = 0
    await models.register("v2")
    await deployer.reaches("v2", "CANARY", timeout_s=60)
    return deployer


async def test_a_corrupted_repository_is_mended_from_the_artefact(start, models, place, gateway, triton) -> None:
    """What lies broken in Triton's repository at its restart is installed again, and the canary goes on."""
    await canary_beside_live(start, models, gateway)
    lose(place, models, "v2", artefact=False)
    await restart(triton)
    await eventually(lambda: place.is_served("v2"), timeout_s=60, message="v2 is loaded again")
    assert "ROLLED_BACK" not in await kinds(place, "v2")


async def test_outages_of_triton_cost_no_candidate_its_rollout(start, models, place, gateway, triton) -> None:
    """Killed six times during a canary, Triton gets its models back each time; after that the candidate is promoted."""
    deployer = await canary_beside_live(start, models, gateway)
    record = triton.repository / LOAD_RECORDS / f"{triton_model(place.loop, 'v2')}.json"

    async def is_loaded_again() -> bool:
        return await place.is_served("v2") and not record.exists()  # the load is over, for the deployer too

    for _ in range(6):
        await restart(triton)
        await eventually(is_loaded_again, timeout_s=60, message="v2 is loaded again")
    gateway.requests = 100
    await deployer.reaches("v2", "PROMOTED", timeout_s=60)
    assert len(await kinds(place, "v2")) <= 16


async def test_a_candidate_that_triton_cannot_load_again_is_rolled_back(start, models, place, gateway, triton) -> None:
    """Live serves, the candidate ends with a bounded number of changes, and a newer one is rolled out."""
    deployer = await canary_beside_live(start, models, gateway)
    before = len(await place.log())
    lose(place, models, "v2", artefact=True)
    await restart(triton)
    await eventually(lambda: place.is_served("v1"), timeout_s=60, message="v1 is loaded again")
    rollout = await deployer.reaches("v2", "ROLLED_BACK", timeout_s=60)
    assert "cannot be loaded, after attempt 3" in [each.reason for each in rollout.events if each.share == 0][-2]
    gateway.requests = 100
    await models.register("v3")
    await deployer.reaches("v3", "PROMOTED", timeout_s=60)
    async with InferenceServerClient(triton.grpc) as client:
        assert await client.is_server_ready(), "one version that cannot be loaded takes Triton out of service"
    changes = [each for each in await place.log() if each.version == "v2"][-4:]
    assert [RolloutEventKind.Name(each.kind)[19:] for each in changes][-2:] == ["ROLLED_BACK", "UNLOADED"]
    about_v2 = [each for each in (await place.log())[before:] if each.version == "v2"]
    assert len(about_v2) <= 3


async def test_a_candidate_that_ends_triton_is_never_loaded_again(start, models, place, gateway, triton) -> None:
    """Killed each time that it loads one model, Triton is killed once: that model is rolled back, and live serves."""
    deployer = await start(deployer_load_backoff_s=0.2)
    await models.register("v1")
    await deployer.reaches("v1", "PROMOTED", timeout_s=60)
    kills = 0

    async def kill_at_each_load() -> None:
        nonlocal kills
        async with InferenceServerClient(triton.grpc) as client:
            while True:
                index = None
                with contextlib.suppress(InferenceServerException):
                    index = await client.get_model_repository_index()
                if index and any(each.name.endswith("--v2") and each.state == "LOADING" for each in index.models):
                    kills += 1
                    await restart(triton)
                await asyncio.sleep(0.005)  # the fault is to hit a load that takes a second

    fault = asyncio.create_task(kill_at_each_load())
    try:
        await models.register("v2")
        rollout = await deployer.reaches("v2", "ROLLED_BACK", timeout_s=60)
        assert "ended while it was loading" in rollout.reason
        await eventually(lambda: place.is_served("v1"), timeout_s=60, message="v1 is loaded again")
        await models.register("v3")
        gateway.requests = 100
        await deployer.reaches("v3", "PROMOTED", timeout_s=60)
        assert kills == 1
    finally:
        fault.cancel()
        await asyncio.gather(fault, return_exceptions=True)
    assert await kinds(place, "v2") == ["STARTED", "ROLLED_BACK"]
    assert not place.holds("v2")


async def alerts(place) -> list[Alert]:
    """What the loop's alerts say."""
    return [event.message async for event in read_log(place.kafka, topic(place.loop, "alerts"), message_types(Alert))]


async def test_an_unloadable_live_model_falls_back_and_alerts(start, models, place, gateway, triton) -> None:
    """After a restart of Triton the last good model is live again, an alert says why until the next promotion."""
    deployer = await start(deployer_load_backoff_s=0.2)
    for version in ("v1", "v2"):
        await models.register(version)
        await deployer.reaches(version, "PROMOTED", timeout_s=60)
    lose(place, models, "v2", artefact=True)
    await restart(triton)
    await deployer.reaches("v2", "ROLLED_BACK", timeout_s=60)
    view = (await deployer.listed()).view
    assert [(arm.version, arm.share) for arm in view.arms] == [("v1", 1.0)]
    assert await place.is_served("v1")
    assert (await kinds(place, "v2"))[-2:] == ["FELL_BACK", "UNLOADED"]

    async def told() -> bool:
        firing = [each for each in await alerts(place) if not each.HasField("end_time")]
        return len(firing) == 1 and "v2 was live: cannot be loaded" in firing[0].message

    await eventually(told, message="the alert fires")
    await models.register("v3")
    await deployer.reaches("v3", "PROMOTED", timeout_s=60)

    async def ended() -> bool:
        said = await alerts(place)
        return len(said) == 2 and said[1].HasField("end_time") and said[1].alert_id == said[0].alert_id

    await eventually(ended, message="the alert ends")


async def test_an_unloadable_last_good_model_is_dropped(start, models, place, gateway, triton) -> None:
    """The log says so once; live is loaded again and serves on."""
    deployer = await start(deployer_load_backoff_s=0.2)
    for version in ("v1", "v2"):
        await models.register(version)
        await deployer.reaches(version, "PROMOTED", timeout_s=60)
    lose(place, models, "v1", artefact=True)
    await restart(triton)
    await eventually(lambda: place.is_logged("DROPPED", "v1"), timeout_s=60, message="v1 is dropped")
    await eventually(lambda: place.is_served("v2"), message="v2 is loaded again")
    view = (await deployer.listed()).view
    assert (view.arms[0].version, view.last_good_version) == ("v2", "")
    assert (await kinds(place, "v1"))[-2:] == ["DROPPED", "UNLOADED"]
