"""The job that cleans Triton's repository, killed at each of its steps: no version is there in part, none is lost."""

import asyncio
import shutil

import pytest
from gyre_core.models import triton_model
from gyre_local.killing import KILLED, KillableJob
from tritonclient.grpc.aio import InferenceServerClient

STEPS = ("gyre_deployer.adapters.triton:TritonControl.unload", "os:rename", "os:unlink", "os:rmdir")
SPARE = "spare"
pytestmark = [pytest.mark.adapter, pytest.mark.timeout(300)]


async def _leave(place) -> None:
    """Leave a version behind that no rollout needs, loaded, as a killed deployer does."""
    repository, live, name = place.triton.repository, *(triton_model(place.loop, each) for each in ("v1", SPARE))
    shutil.copytree(repository / live, repository / name)
    config = repository / name / "config.pbtxt"
    config.write_text(config.read_text().replace(live, name))
    async with InferenceServerClient(place.triton.grpc) as client:
        await client.load_model(name)


def _files(place, version: str) -> int:
    return sum(each.is_file() for each in (place.triton.repository / triton_model(place.loop, version)).rglob("*"))


async def test_a_job_killed_at_any_step_leaves_every_version_whole(running, models, place) -> None:
    """What serves stays and serves; what goes is there as a whole or not at all; the next run leaves nothing behind."""
    async with running() as deployer:
        await models.register("v1", manifest={"snapshots": {}})
        await deployer.reaches("v1", "PROMOTED", timeout_s=60)
    whole = _files(place, "v1")
    maintain = KillableJob("gyre_deployer.__main__:main", ("gyre_deployer", "maintain"), place.environ(), STEPS)
    kill_at = 0
    while True:
        kill_at += 1
        await _leave(place)
        ended = await asyncio.to_thread(maintain.run, kill_at=kill_at)
        assert _files(place, "v1") == whole
        assert await place.is_served("v1")
        assert _files(place, SPARE) in (0, whole), f"it is there in part after step {kill_at}"
        assert place.holds(SPARE) or not await place.is_served(SPARE), f"it is served from nothing after step {kill_at}"
        assert await asyncio.to_thread(maintain.run) == 0
        assert not place.holds(SPARE)
        assert not await place.is_served(SPARE)
        assert place.leftovers() == [], f"after step {kill_at}"
        assert place.holds("v1")
        if ended != KILLED:
            assert ended == 0
            break
    assert kill_at > 10
