"""A live model that is itself past the limits of the guardrails: what is good replaces it, and nothing else does."""

from dataclasses import replace

import pytest
from gyre_core.spec import Duration, LoopSpec
from gyre_deployer.domain.observation import ObservedGateway, VersionRequests

from .fakes import WAY_UP, Process, World, canary, told

LIMIT_S = 0.1
SECONDS = 400
WAIT_S = 600
"""How long the process of the fakes lets others wait."""
STALLED = {"paced": 10, "stalled": 5}
"""What live is seen to do a second where half of the fallbacks are late and its own requests are well."""


def serve(
    world: World, version: str, requests: int, *, failures: int = 0, slow: int = 0, paced: int = 0, stalled: int = 0
) -> None:
    """Let a gateway have seen further requests, some of which failed or took longer than the limit."""
    before = world.reports.get("g1", ObservedGateway("g1", 0, 0.0, 5.0))
    fast = requests - failures - slow
    bounds = (LIMIT_S, 2 * LIMIT_S)
    more = VersionRequests(requests, failures, bounds, (fast, slow, 0), paced=paced, stalled=stalled)
    counts = {**before.counts, version: before.counts.get(version, VersionRequests()).plus(more)}
    world.reports["g1"] = replace(before, epoch=world.log[-1].epoch, time=world.now, counts=counts)


async def watched(
    world: World, process: Process, *, live: dict[str, int], candidate: dict[str, int], seconds: int = SECONDS
) -> list[str]:
    """The kinds of the candidate's changes after some minutes of traffic."""
    for _ in range(seconds):
        world.now += 1.0
        serve(world, "v1", 100, **live)
        serve(world, "v2", 20, **candidate)
        await process.look()
        if told(world, "v2")[-1][0] not in ("SHIFTED", "WARMED"):
            break
    return [kind for kind, _ in told(world, "v2")]


@pytest.mark.parametrize("live", [{"failures": 10}, {"slow": 10}, {"failures": 100}])
async def test_a_good_candidate_replaces_a_live_model_that_is_past_its_limits(
    world: World, live: dict[str, int]
) -> None:
    """Though every interval is spoiled, v2 goes up all its steps, and the next candidate follows."""
    process = await canary(world)
    world.register("v3")
    assert await watched(world, process, live=live, candidate={}) == [kind for kind, _ in WAY_UP]
    await process.look()
    assert told(world, "v3")[0] == ("STARTED", 0.0)


@pytest.mark.parametrize("bad", [{"failures": 10}, {"slow": 10}])
async def test_a_candidate_that_suffers_alike_neither_rises_nor_falls(world: World, bad: dict[str, int]) -> None:
    """Where both are past the limits v2 stays at its step: nobody knows whose fault it is, and it is no better."""
    process = await canary(world)
    kinds = await watched(world, process, live=bad, candidate={name: count // 2 for name, count in bad.items()})
    assert kinds == [kind for kind, _ in WAY_UP[:5]]
    assert "intervals spoiled: live suffered" in process.ledger.waiting_for


async def test_a_stall_of_both_promotes_no_bad_candidate(world: World) -> None:
    """After a stall in which all failed, a candidate that fails on its own is rolled back."""
    process = await canary(world)
    for _ in range(20):
        world.now += 1.0
        serve(world, "v1", 100, failures=100, slow=0)
        serve(world, "v2", 20, failures=20, slow=0)
        await process.look()
    assert told(world, "v2") == WAY_UP[:5]
    assert (await watched(world, process, live={}, candidate={"failures": 4}))[-1] == "ROLLED_BACK"


@pytest.mark.parametrize("live", [{"failures": 5}, STALLED], ids=["live is bad", "fallbacks are late"])
async def test_a_bad_candidate_that_no_interval_counts_against_ends(world: World, live: dict[str, int]) -> None:
    """It fails every request, and all intervals are spoiled: after the time that others wait it goes, and v3 begins."""
    process = await canary(world)
    world.register("v3")
    held = await watched(world, process, live=live, candidate={"failures": 20}, seconds=WAIT_S)
    assert held == [kind for kind, _ in WAY_UP[:5]]
    ended = await watched(world, process, live=live, candidate={"failures": 20}, seconds=60)
    assert ended[-1] == "ROLLED_BACK"
    assert "100.00%" in world.log[-1].reason
    assert "offered again" not in world.log[-1].reason
    await process.look()
    assert told(world, "v3")[0] == ("STARTED", 0.0)


async def test_a_candidate_that_suffers_alike_for_too_long_makes_way(world: World) -> None:
    """Nobody knows whose fault it is: it is rolled back without blame, and may be offered again."""
    process = await canary(world)
    world.register("v3")
    bad = {"live": {"failures": 50}, "candidate": {"failures": 10}}
    ended = await watched(world, process, **bad, seconds=WAIT_S + 60)
    assert ended[-1] == "ROLLED_BACK"
    assert world.log[-1].reason.endswith("It may be offered again")
    await process.look()
    assert told(world, "v3")[0] == ("STARTED", 0.0)


async def test_a_tripped_candidate_is_not_kept_by_the_seconds_in_which_nobody_asks_it(world: World) -> None:
    """A gateway asks it once in 16 s, and its fallback is late each time: live's good seconds prolong nothing."""
    process = await canary(world)
    for second in range(2 * WAIT_S):
        world.now += 1.0
        is_asked = second % 16 == 0
        serve(world, "v1", 100, **({"paced": 1, "stalled": 1} if is_asked else {}))
        serve(world, "v2", int(is_asked), failures=int(is_asked))
        await process.look()
    assert "ROLLED_BACK" in [kind for kind, _ in told(world, "v2")]


async def test_a_long_stall_of_both_takes_no_good_candidate_back(world: World) -> None:
    """A stall that ends before others have waited too long is forgiven: the candidate goes up all its steps."""
    process = await canary(world)
    stall = {"live": {"failures": 100}, "candidate": {"failures": 20}}
    assert (await watched(world, process, **stall, seconds=WAIT_S - 60))[-1] == "SHIFTED"
    assert (await watched(world, process, live={}, candidate={}))[-1] == "PROMOTED"


async def test_a_stall_before_a_quiet_hour_is_as_long_as_it_was(world: World) -> None:
    """Where nobody asks the candidate after a stall, time that goes by is not held against it."""
    process = await canary(world)
    await watched(world, process, live=STALLED, candidate={"failures": 20}, seconds=10)
    for _ in range(2 * WAIT_S):
        world.now += 1.0
        serve(world, "v1", 100)
        await process.look()
    assert told(world, "v2") == WAY_UP[:5]
    assert (await watched(world, process, live={}, candidate={}))[-1] == "PROMOTED"


async def test_a_step_that_wants_no_requests_promotes_no_candidate_of_which_none_counts(spec: LoopSpec) -> None:
    """Without `min_requests`, one that fails every request beside a live model that is bad stays at its first step."""
    changed = {"min_requests": 0, "hold": Duration.parse("10s")}
    steps = [step.model_copy(update=changed) for step in spec.rollout.steps]
    rollout = spec.rollout.model_copy(update={"steps": steps})
    world = World(spec.model_copy(update={"rollout": rollout}))
    process = await canary(world)
    kinds = await watched(world, process, live={"failures": 5}, candidate={"failures": 20})
    assert kinds == [kind for kind, _ in WAY_UP[:5]]
