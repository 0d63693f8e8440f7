"""The steps of a rollout on hand-written fakes: a crash or an outage at every single call loses and repeats nothing."""

import asyncio

import pytest
from gyre_core.spec import LoopSpec
from gyre_deployer.domain.observation import ObservedGateway
from gyre_deployer.domain.rollouts import Kind, RolloutState
from gyre_deployer.handlers.ledger import ConcurrentChange
from gyre_deployer.ports import FencedByPeer
from gyre_local.testing import eventually
from gyre_runtime import Precondition, Unavailable

from .fakes import (
    WAY_UP,
    Crash,
    Process,
    World,
    canary,
    told,
)

FIRST = [*WAY_UP[:4], ("PROMOTED", 1.0)]


async def live_through(world: World, looks: int = 60) -> None:
    """Three candidates in turn, with traffic, over a crash or an outage where the world wants one."""
    process = Process.begin(world)
    for version in ("v1", "v2", "v3"):
        world.register(version)
        for _ in range(looks):
            try:
                await process.look()
            except Crash:
                process = Process.begin(world)
            world.now += 0.2
            for served in {each.version for each in world.registered}:
                world.serve(served, 30)
            state = process.ledger.state
            if state.live == version and state.under_way is None and sorted(world.files) == sorted(state.named):
                break
    assert world.served == {f"{world.spec.loop}--{version}" for version in ("v2", "v3")}
    assert sorted(world.files) == ["v2", "v3"]
    assert [each.epoch for each in world.log] == list(range(1, len(world.log) + 1))


async def calls_of_an_undisturbed_life(spec: LoopSpec) -> int:
    """How many calls to the outside there are."""
    world = World(spec)
    await live_through(world)
    assert told(world, "v1") == [*FIRST, ("UNLOADED", 0.0)]
    assert told(world, "v2") == told(world, "v3") == WAY_UP
    return world.calls


async def test_a_crash_at_any_call_loses_and_repeats_nothing(spec: LoopSpec) -> None:
    """Wherever the process dies, before or after a write, the next one ends with the same log and the same models."""
    for failing_call in range(1, await calls_of_an_undisturbed_life(spec) + 1):
        world = World(spec, failing_call=failing_call)
        await live_through(world)
        assert told(world, "v1") == [*FIRST, ("UNLOADED", 0.0)], failing_call
        assert told(world, "v2") == told(world, "v3") == WAY_UP, failing_call


async def test_an_outage_at_any_call_fails_no_rollout(spec: LoopSpec) -> None:
    """Whichever call finds nobody, also a write that happened all the same, every candidate is promoted."""
    for failing_call in range(1, await calls_of_an_undisturbed_life(spec) + 1):
        world = World(spec, failing_call=failing_call, failure=Unavailable)
        await live_through(world)
        for version in ("v2", "v3"):
            steps = [step for step in told(world, version) if step != ("SHIFTED", 0.0)]
            assert list(dict.fromkeys(steps)) == WAY_UP, failing_call
            assert len(steps) <= len(WAY_UP) + 1, failing_call  # a step that is observed anew is written once more


async def test_a_version_is_unloaded_only_after_the_last_deadline(world: World) -> None:
    """Acknowledged by all live gateways is not enough: calls under way get the longest deadline."""
    process = await canary(world)
    await process.commands.roll_back(process.ledger.state.current, "")
    await process.look()
    assert told(world, "v2")[-1][0] == "ROLLED_BACK"
    world.serve("v1", 0, instance="g1")
    world.reports["g2"] = ObservedGateway("g2", epoch=1, time=world.now, lease_s=5.0)
    world.now += 4.9
    world.serve("v1", 0, instance="g1")
    await process.look()
    world.now += 0.2  # the lease of g2 is over
    await process.look()
    world.now += 0.19  # the deadline is not over
    await process.look()
    assert told(world, "v2")[-1][0] == "ROLLED_BACK"
    world.now += 0.02
    await process.look()
    await process.look()
    assert told(world, "v2")[-1][0] == "UNLOADED"
    assert world.served == {f"{world.spec.loop}--v1"}
    assert sorted(world.files) == ["v1"]


async def test_a_paused_canary_goes_nowhere_but_back(world: World) -> None:
    """It is held however long it is well, and rolled back all the same when it breaks a guardrail."""
    process = await canary(world)
    await process.commands.pause(process.ledger.state.current, "", resume=False)
    for _ in range(5):
        world.now += 10
        world.serve("v2", 1000)
        await process.look()
    assert told(world, "v2")[-1] == ("PAUSED", 0.1)
    for failures in (900, 0):
        world.serve("v1", 1000)
        world.serve("v2", 1000, failures=failures)
        await process.look()
    assert told(world, "v2")[-1] == ("ROLLED_BACK", 0.0)


async def test_what_was_seen_before_a_restart_is_seen_anew(world: World) -> None:
    """A restarted process holds the step's whole time, and counts requests, from its own start on."""
    await canary(world)
    world.serve("v2", 1000)
    world.now += 100
    process = Process.begin(world)
    await process.look()
    world.now += 0.4
    for requests, reached in ((19, 5), (1, 5), (0, 6)):  # what a second saw counts once the next one is known
        world.serve("v1", 9)
        world.serve("v2", requests)
        await process.look()
        assert told(world, "v2") == WAY_UP[:reached]


async def test_a_person_overtakes_a_step_under_way(world: World) -> None:
    """A rollback during a long load counts at once; what the load brought is cleaned up, and no more is written."""
    process = Process.begin(world)
    world.holds = asyncio.Event()
    world.register("v1")
    looking = asyncio.create_task(process.look())
    await eventually(lambda: world.files, message="the load is under way")
    await process.commands.roll_back(process.ledger.state.current, "no")
    world.holds.set()
    with pytest.raises(ConcurrentChange):
        await looking
    await process.look()
    assert told(world, "v1") == [("STARTED", 0.0), ("ROLLED_BACK", 0.0)]
    assert (world.served, world.files) == (set(), {})
    with pytest.raises(Precondition):
        await process.commands.promote(process.ledger.state.current, "")


async def test_an_epoch_of_somebody_else_ends_the_process(world: World) -> None:
    """A deployer that sees a newer epoch than its own knows that it was replaced, and writes nothing more."""
    process = await canary(world)
    process.ledger.note_epoch(process.ledger.state.epoch)
    await process.look()
    process.ledger.note_epoch(process.ledger.state.epoch + 1)
    with pytest.raises(FencedByPeer):
        await process.look()


async def test_a_bad_candidate_does_not_reach_the_log_as_loaded(world: World) -> None:
    """What Triton cannot load is refused, and its files go."""
    process = Process.begin(world)
    world.register("v1", artifact_uri="/broken")
    await process.look()
    await process.look()
    assert told(world, "v1") == [("STARTED", 0.0), ("REFUSED", 0.0)]
    assert world.files == {}
    rollout = process.ledger.state.of_version("v1")
    assert rollout is not None
    assert (rollout.state, rollout.reason) == (RolloutState.REFUSED, "cannot be loaded")


async def test_a_write_is_not_cut_in_two_by_a_cancelled_caller(world: World) -> None:
    """A caller that goes away in the middle of a write leaves log and state in agreement."""
    process = await canary(world)
    pausing = asyncio.create_task(process.commands.pause(process.ledger.state.current, "", resume=False))
    await asyncio.sleep(0)
    pausing.cancel()
    await asyncio.gather(pausing, return_exceptions=True)
    async with process.ledger:
        await process.look()
    assert len(world.log) == process.ledger.state.epoch
    assert [each.kind for each in world.log if each.kind == Kind.PAUSED] in ([], [Kind.PAUSED])


async def test_a_candidate_whose_layout_is_filled_holds_nobody_back(world: World) -> None:
    """It waits, named in the projection, while others are rolled out; filled, it is next; too late, it is refused."""
    process = Process.begin(world)
    world.filling |= {"e" * 16: "eeee is being filled: 98 %", "f" * 16: "ffff is being filled: 43 %"}
    world.register("v0", layout="e" * 16)
    world.register("v1", layout="f" * 16)
    await process.look()
    named = [(each.version, each.role, each.layout) for each in world.views[-1].models]
    assert named == [("v0", 4, "e" * 16), ("v1", 4, "f" * 16)]
    assert process.ledger.waiting_for == "v0: eeee is being filled: 98 %; v1: ffff is being filled: 43 %"
    written = len(world.views)
    await process.look()
    assert len(world.views) == written
    world.filling["e" * 16] = ""
    for _ in range(8):
        await process.look()
    assert told(world, "v0") == FIRST
    assert told(world, "v1") == []
    world.filling["f" * 16] = ""
    await process.look()
    assert told(world, "v1")[0] == ("STARTED", 0.0)
    world.filling["e" * 16] = "eeee is being filled again: 99 %"
    world.register("v2", layout="e" * 16)
    await process.look()
    world.now += 601
    await process.look()
    assert told(world, "v2") == [("REFUSED", 0.0)]
