"""A live model that is itself past the limits of the guardrails: what is good replaces it, and nothing else does."""

from dataclasses import replace

import pytest
from gyre_deployer.domain.observation import ObservedGateway, VersionRequests

from .fakes import WAY_UP, Process, World, canary, told

LIMIT_S = 0.1
SECONDS = 400


def serve(world: World, version: str, requests: int, *, failures: int, slow: int) -> None:
    """Let a gateway have seen further requests, some of which failed or took longer than the limit."""
    before = world.reports.get("g1", ObservedGateway("g1", 0, 0.0, 5.0))
    fast = requests - failures - slow
    more = VersionRequests(requests, failures, (LIMIT_S, 2 * LIMIT_S), (fast, slow, 0))
    counts = {**before.counts, version: before.counts.get(version, VersionRequests()).plus(more)}
    world.reports["g1"] = replace(before, epoch=world.log[-1].epoch, time=world.now, counts=counts)


async def watched(world: World, process: Process, *, live: dict[str, int], candidate: dict[str, int]) -> list[str]:
    """The kinds of the candidate's changes after some minutes of traffic."""
    for _ in range(SECONDS):
        world.now += 1.0
        serve(world, "v1", 100, **{"failures": 0, "slow": 0} | live)
        serve(world, "v2", 20, **{"failures": 0, "slow": 0} | candidate)
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
