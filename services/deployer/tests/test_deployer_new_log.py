"""A rollout log that was made anew while Triton serves what the log before it rolled out, on hand-written fakes."""

from dataclasses import replace

import pytest
from gyre_core.spec import LoopSpec
from gyre_deployer.domain.observation import ObservedGateway, VersionRequests

from .fakes import Process, World, told


@pytest.fixture
def served(spec: LoopSpec) -> World:
    """An empty log, and a version on Triton that a gateway asks, which follows the log before."""
    world = World(spec)
    world.files["old"] = b"/old"
    world.served.add(world.model("old"))
    world.reports["g1"] = ObservedGateway("g1", 57, world.now, 5.0, counts={"old": VersionRequests(10)})
    return world


async def look(process: Process, count: int) -> None:
    """Look so many times, while the gateway reports."""
    for _ in range(count):
        await process.look()
        process.world.now += 0.5
        process.world.reports["g1"] = replace(process.world.reports["g1"], time=process.world.now)


async def test_the_first_rollout_unloads_nothing_that_serves(served: World) -> None:
    """What gateways ask stays through the first rollout of the new log, and goes once they follow that log."""
    process = Process.begin(served)
    served.register("v1")
    await look(process, 2)
    assert told(served, "v1")[0] == ("STARTED", 0.0)
    assert served.model("old") in served.served, "it was unloaded at the first change of the new log"
    await look(process, 8)
    assert told(served, "v1")[-1] == ("PROMOTED", 1.0)
    assert served.model("old") in served.served, "it was unloaded while a gateway asks it"
    served.reports["g1"] = ObservedGateway("g1", len(served.log), served.now, 5.0, counts={"v1": VersionRequests(10)})
    await look(process, 2)
    assert served.served == {served.model("v1")}
    assert sorted(served.files) == ["v1"]


async def test_what_nobody_answers_for_stays_until_a_model_is_live(served: World) -> None:
    """Gateways that do not report yet may ask it all the same: it goes no sooner than the first promotion."""
    served.reports.clear()
    process = Process.begin(served)
    served.register("v1", artifact_uri="/broken")
    for _ in range(4):
        await process.look()
    assert told(served, "v1") == [("STARTED", 0.0), ("REFUSED", 0.0)]
    assert served.model("old") in served.served
    served.register("v2")
    for _ in range(6):
        await process.look()
    assert served.served == {served.model("v2")}
