"""The wall clock is put a day ahead and back, on hand-written fakes: nothing waits for it or comes too soon."""

import pytest
from gyre_deployer.domain.observation import ObservedGateway
from gyre_deployer.domain.outages import OutageTrial
from gyre_runtime import Unavailable

from .fakes import WAY_UP, Process, World, canary, looks, told

DAY_S = 86_400.0


def restarted(world: World, process: Process, *, wanted: bool) -> Process:
    """A new process if it is wanted, which knows of the past what was written down."""
    return Process.begin(world) if wanted else process


@pytest.mark.parametrize("is_restarted", [False, True])
async def test_a_load_is_tried_again_after_its_pause(world: World, is_restarted: bool) -> None:
    """An attempt that failed while the clock was ahead holds the next one back for a pause, not for a day."""
    process = Process.begin(world)
    world.register("v1")
    await looks(process, 6)

    def away(_: str) -> None:
        raise Unavailable("AWAY", "nobody is there")

    world.at_load, world.ahead_s = away, DAY_S
    world.register("v2")
    await looks(process, 1)
    world.at_load, world.ahead_s = lambda _: None, 0.0
    process = restarted(world, process, wanted=is_restarted)
    await looks(process, 10)
    assert told(world, "v2") == WAY_UP[:5]


@pytest.mark.parametrize("is_restarted", [False, True])
async def test_traffic_returns_after_its_pause(world: World, is_restarted: bool) -> None:
    """Traffic that was withdrawn while the clock was ahead comes back once Triton has answered for the pause."""
    world.ahead_s = DAY_S
    process = await canary(world)
    world.restart_triton()
    await looks(process, 1)
    assert told(world, "v2")[-1] == ("SHIFTED", 0.0)
    world.ahead_s = 0.0
    process = restarted(world, process, wanted=is_restarted)
    await looks(process, 10)
    assert told(world, "v2")[-1] == ("SHIFTED", 0.1)


async def test_the_log_has_the_time_of_day(world: World) -> None:
    """A change that is written once the clock is right again has the right time, whatever the one before it has."""
    world.ahead_s = DAY_S
    process = await canary(world)
    world.ahead_s = 0.0
    await process.commands.pause(process.ledger.state.current, "", resume=False)
    assert world.log[-2].time > world.wall
    assert world.log[-1].time == world.wall


async def test_a_step_lasts_its_time(world: World) -> None:
    """A clock that is put ahead during a step does not end it."""
    process = await canary(world)
    for ahead_s in (0.0, 0.0, DAY_S, DAY_S):
        world.ahead_s = ahead_s
        world.serve("v1", 9)
        world.serve("v2", 30)
        await process.look()
    assert told(world, "v2") == WAY_UP[:5]


async def test_a_lease_lasts_its_time(world: World) -> None:
    """A clock that is put ahead does not unload what a gateway that reports still uses."""
    process = await canary(world)
    await process.commands.roll_back(process.ledger.state.current, "")
    world.ahead_s = DAY_S
    for _ in range(4):
        world.reports["g2"] = ObservedGateway("g2", epoch=1, time=world.now, lease_s=5.0)
        await looks(process, 1)
    assert world.model("v2") in world.served


async def test_a_candidate_waits_for_its_layout_as_long_as_it_may(world: World) -> None:
    """A clock that is put ahead refuses no candidate that waits."""
    process = Process.begin(world)
    world.filling["f" * 16] = "layout ffff is being filled: 43 %"
    world.register("v1", layout="f" * 16)
    await process.look()
    world.ahead_s = DAY_S
    await process.look()
    assert told(world, "v1") == []


def test_an_outage_before_its_traffic_is_no_evidence() -> None:
    """Where the clock was put back meanwhile, nobody knows how soon after traffic the outage came."""
    trial = OutageTrial(1.0, outages=1, suspicious=2, pause_s=600.0, traffic_since=1000.0)
    assert trial.with_outage(1001.0).suspicious == 3
    assert trial.with_outage(999.0).suspicious == 2
