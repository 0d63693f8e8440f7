"""Whole rollouts on the real Kafka and Triton, with gateways that report: the way up, and the way back."""

import pytest
from gyre.events.v1.models_pb2 import RolloutEventKind
from gyre_local.testing import eventually

pytestmark = pytest.mark.adapter


def kinds(events) -> list[str]:
    """The kinds of changes, without their prefix."""
    return [RolloutEventKind.Name(each.kind).removeprefix("ROLLOUT_EVENT_KIND_") for each in events]


async def test_the_first_model_takes_all_traffic_after_its_warm_up(start, models, place) -> None:
    """Without a live model a candidate is validated, loaded, warmed and promoted at once, also without any gateway."""
    await models.register("v1")
    deployer = await start()
    rollout = await deployer.reaches("v1", "PROMOTED")
    assert kinds(rollout.events) == ["STARTED", "VALIDATED", "LOADED", "WARMED", "PROMOTED"]
    assert await place.is_served("v1")
    view = (await deployer.listed()).view
    (arm,) = view.arms
    assert (arm.name, arm.version, arm.share, arm.run_id) == ("live", "v1", 1.0, "run-v1")
    assert (arm.layout, list(arm.columns)) == (models.layout.hash, list(models.layout.columns))
    assert (view.epoch, view.last_good_version, list(view.loaded_versions)) == (5, "", ["v1"])


async def test_a_second_model_goes_10_50_100(start, models, place, gateway) -> None:
    """A candidate beside a live model takes each step's share, is promoted, and the one before the last is unloaded."""
    deployer = await start()
    for version in ("v1", "v2", "v3"):
        await models.register(version)
        rollout = await deployer.reaches(version, "PROMOTED")
        assert rollout.events[0].candidate.run_id == f"run-{version}"
    assert kinds(rollout.events) == ["STARTED", "VALIDATED", "LOADED", "WARMED", *["SHIFTED"] * 3, "PROMOTED"]
    assert [each.share for each in rollout.events] == [0, 0, 0, 0, 0.1, 0.5, 1.0, 1.0]
    assert [each.step for each in rollout.events if each.share][:3] == [0, 1, 2]
    await eventually(lambda: deployer.is_logged("UNLOADED", "v1"), message="v1 is unloaded")
    assert not await place.is_served("v1")
    await eventually(lambda: not place.holds("v1"), message="v1 has left the repository")
    view = (await deployer.listed()).view
    assert (view.arms[0].version, view.last_good_version) == ("v3", "v2")
    assert list(view.loaded_versions) == ["v2", "v3"]
    assert [each.epoch for each in await deployer.log()] == list(range(1, view.epoch + 1))
