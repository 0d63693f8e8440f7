"""The gateways' scoring and the deployer's judgement on a clock that jumps: a stall of what all share, at any traffic.

Everything is the product's own but time, the models and Kafka: requests go through `Scorer`, its `Router` reports, and
the deployer's `Observation` is judged once a second, as in a rollout's step.
"""

from __future__ import annotations

import asyncio
import random
import selectors
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from gyre_core.features import Layout
from gyre_core.spec import LoopSpec, parse_loop
from gyre_deployer.domain.guardrails import Outcome, is_breach, judge
from gyre_deployer.domain.observation import Observation, ObservedGateway
from gyre_deployer.wire import report_of as read_report
from gyre_gateway.adapters.reports import report_of
from gyre_gateway.domain.requests import Features, Request
from gyre_gateway.domain.routing import RolloutArm, Router, Target, TrafficSplit
from gyre_gateway.handlers import scoring
from gyre_runtime import DeadlineExceeded, GyreError

LIVE, CANDIDATE = "v1", "v2"
FIRST_S, AFTER_S = 10.0, 20.0
"""Seconds before the trouble, in which all is well, and after it."""
ANSWER_S, RESERVE_S = 0.01, 0.01
LOOP = """
version: 1
loop: tiny
events: {interactions: {click: {}}}
features: [{name: clicks, kind: decayed_count, scope: item, events: [click], half_lives: [1d]}]
"""
EXAMPLES = """
rollout: {guardrails: {max_error_rate: 0.02, max_latency_ratio: 3.0, max_latency_p99: 2s}}
serving: {deadline: 3s, feature_timeout: 1s, inference_timeout: 1500ms}
"""
"""As in the examples: the fallback of a request that timed out has less time than the loop grants a version."""
SPECS = {"defaults": parse_loop(LOOP, source="test"), "examples": parse_loop(LOOP + EXAMPLES, source="test")}


class JumpingSelector(selectors.SelectSelector):
    """Waits for nothing: the clock jumps to when the wait would be over."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Let the time pass at once."""
        self.now += timeout or 0.0
        return []


class JumpingLoop(asyncio.SelectorEventLoop):
    """An event loop whose time passes as fast as its callbacks run."""

    def __init__(self) -> None:
        self.jumping = JumpingSelector()
        super().__init__(self.jumping)

    def time(self) -> float:
        """Seconds since the start, on the clock that jumps."""
        return self.jumping.now


class AtOnce:
    """The features service: answers at once."""

    def __init__(self, layout: Layout) -> None:
        values = np.ones((1, len(layout.columns)), "<f4").tobytes()
        self._features = Features("", 1, len(layout.columns), values, [0], 0, 0, 1.0)

    async def read(self, request: Request, *, layout: str, timeout_s: float) -> Features:
        """Ones for every item."""
        return replace(self._features, layout=layout)

    async def popular(self, request: Request, *, limit: int, timeout_s: float) -> Sequence[str]:
        """No items."""
        return []


@dataclass
class Models:
    """The inference service: stands still from a time to another, and has a candidate that may be bad.

    Attributes:
        stall: from when to when, seconds.
        trouble: what is wrong with the candidate from `FIRST_S` on.
        share: of its requests that have the trouble.
    """

    stall: tuple[float, float]
    rng: random.Random
    trouble: str = ""
    share: float = 0.0

    async def score(
        self, request: Request, features: Features, *, version: str, epoch: int, timeout_s: float
    ) -> np.ndarray:
        """One score, after the stall or as bad as the candidate is."""
        now = asyncio.get_running_loop().time()
        is_bad = version == CANDIDATE and now >= FIRST_S and self.rng.random() < self.share
        if is_bad and self.trouble == "error":
            raise GyreError("MODEL_FAILED", "it failed")
        wait_s = ANSWER_S + (self.stall[1] - now if self.stall[0] <= now < self.stall[1] else 0.0)
        if is_bad and self.trouble == "hang":
            wait_s = timeout_s + 1
        await asyncio.sleep(min(wait_s, timeout_s))
        if wait_s > timeout_s:
            raise DeadlineExceeded("DEADLINE_EXCEEDED", "it took too long")
        return np.ones(1, np.float32)


@dataclass(frozen=True, slots=True)
class Trial:
    """What happens to a candidate.

    Attributes:
        share: of users that get the candidate.
        rate: requests a second, over all gateways.
        stall_s: how long inference stands still; 0 for never.
        trouble: what is wrong with the candidate: `error`, `hang` or nothing.
        bad_share: of its requests that have the trouble.
    """

    spec: LoopSpec
    share: float
    rate: float
    stall_s: float = 0.0
    trouble: str = ""
    bad_share: float = 0.0
    gateways: int = 2

    def run(self, seed: int) -> tuple[float, str] | None:
        """When the candidate is rolled back, seconds after the trouble began, and why; None where it is not."""
        with pytest.MonkeyPatch.context() as patch:
            loop = JumpingLoop()
            patch.setattr(scoring, "time", SimpleNamespace(monotonic=loop.time, perf_counter=loop.time))
            with asyncio.Runner(loop_factory=lambda: loop) as runner:
                return runner.run(self._watch(random.Random(seed)))

    async def _watch(self, rng: random.Random) -> tuple[float, str] | None:
        clock = asyncio.get_running_loop().time
        routers = [Router(self.spec.loop, str(each), monotonic=clock) for each in range(self.gateways)]
        for router in routers:
            router.adopt(TrafficSplit(1, (RolloutArm("live", Target(LIVE), 1.0),)))
        begin = FIRST_S + rng.random()
        models = Models((begin, begin + self.stall_s), rng, self.trouble, self.bad_share)
        callers = asyncio.create_task(self._call(routers, models, rng))
        await asyncio.sleep(FIRST_S / 2)
        arms = RolloutArm("live", Target(LIVE), 1 - self.share), RolloutArm("candidate", Target(CANDIDATE), self.share)
        for router in routers:
            router.adopt(TrafficSplit(2, arms))
        await asyncio.sleep(rng.random())
        breached = partial(is_breach, guardrails=self.spec.rollout.guardrails)
        seen = Observation.begin(_reports(routers), (CANDIDATE, LIVE), breached)
        try:
            while clock() < begin + self.stall_s + AFTER_S:
                await asyncio.sleep(1)
                seen = seen.advanced(_reports(routers), clock())
                verdict = judge(seen.candidate, seen.live, self.spec.rollout.guardrails)
                if verdict.outcome == Outcome.FAILED:
                    return clock() - begin, verdict.reason
            return None
        finally:
            callers.cancel()
            with suppress(asyncio.CancelledError):
                await callers

    async def _call(self, routers: Sequence[Router], models: Models, rng: random.Random) -> None:
        features = AtOnce(Layout.compile(self.spec))
        scorers = [scoring.Scorer(self.spec, router, features, models) for router in routers]
        async with asyncio.TaskGroup() as group:
            while True:
                now = asyncio.get_running_loop().time()
                request = Request(
                    loop=self.spec.loop,
                    user_id=f"u{rng.random()}",
                    item_ids=("a",),
                    request_id="r",
                    now=now,
                    numbers={},
                    labels={},
                    method="rank",
                    started=now,
                    deadline=now + self.spec.serving.deadline_s - RESERVE_S,
                )
                group.create_task(rng.choice(scorers).score(request))
                await asyncio.sleep(rng.expovariate(self.rate))


def _reports(routers: Sequence[Router]) -> list[ObservedGateway]:
    """What each gateway says by now, through the messages that it would send."""
    now = asyncio.get_running_loop().time()
    sent = [report_of(each, f"g{at}", lease_s=5, leaving=False) for at, each in enumerate(routers)]
    return [read_report(each, time=now) for each in sent]


CELLS: Mapping[str, Trial] = {
    f"{name}, {share:.0%}, {rate:g}/s, {stall_s:g} s": Trial(SPECS[name], share, rate, stall_s)
    for name in SPECS
    for share in (0.1, 0.5, 0.9, 1.0)
    for rate, stall_s in ((1, 2), (1, 20), (5, 2), (5, 20), (30, 2))
}


@pytest.mark.parametrize("cell", CELLS)
def test_a_stall_of_what_all_share_rolls_no_candidate_back(cell: str) -> None:
    """Whatever the traffic, the candidate's share and the length of a stall, a candidate that is well stays."""
    rolled_back = {seed: CELLS[cell].run(seed) for seed in range(10)}
    assert {seed: why for seed, why in rolled_back.items() if why} == {}


BAD: Mapping[str, Trial] = {
    f"{name}, {share:.0%}, {rate}/s, {bad_share:.0%} {trouble}": Trial(
        SPECS[name], share, rate, trouble=trouble, bad_share=bad_share
    )
    for name in SPECS
    for share, rate in ((0.1, 30), (0.5, 5), (1.0, 5))
    for trouble, bad_share in (("error", 0.5), ("hang", 0.5), ("error", 1.0), ("hang", 1.0))
}


@pytest.mark.parametrize("cell", BAD)
def test_a_bad_candidate_is_rolled_back(cell: str) -> None:
    """A candidate that fails half of its requests or all, at once or by time, is rolled back beside a live one."""
    assert all(BAD[cell].run(seed) for seed in range(5))
