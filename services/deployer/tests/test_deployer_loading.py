"""Whose fault a load without an answer is, on hand-written fakes: at each step, whoever ends there."""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product

import pytest
from gyre_core.spec import LoopSpec
from gyre_deployer.domain.loading import (
    MAX_FAILURES,
    CallEnd,
    Evidence,
    LoadRecord,
    ModelState,
    concluded,
)
from gyre_deployer.domain.rollouts import RolloutState
from gyre_deployer.ports import REPOSITORY_UNAVAILABLE, TRITON_TIMED_OUT
from gyre_runtime import Unavailable

from .fakes import WAY_UP, Crash, Process, World, canary, looks, told

OWN, OTHER = "shop--v2", "shop--v1"


def evidence(own: ModelState | None, other: ModelState | None, call: CallEnd, **traits: bool) -> Evidence:
    """What is known of the load of `OWN`, beside the state of `OTHER`."""
    models = {name: state for name, state in ((OWN, own), (OTHER, other)) if state is not None}
    known = {"is_only_suspect": True, "is_overdue": False} | traits
    return Evidence(models, call, timeout_s=5.0, **known)


def verdict(record: LoadRecord, known: Evidence) -> str:
    """What follows for the version, in a word."""
    after = concluded(record, OWN, known)
    if after is None:
        return "loaded"
    if after.is_open:
        return "loading"
    if after.ended_server:
        return "blamed"
    return {(0, 0): "nothing", (1, 0): "refused", (0, 1): "suspected"}[(after.refusals, after.losses)]


R, L, U, N = ModelState.READY, ModelState.LOADING, ModelState.UNAVAILABLE, ModelState.UNASKED
UNSEEN, BROKEN, TIMED_OUT = CallEnd.UNSEEN, CallEnd.BROKEN, CallEnd.TIMED_OUT
VERDICTS = {
    # what Triton says of the version, and of what it held before: how the deployer saw the call end, and what follows
    (R, R): {UNSEEN: "loaded", BROKEN: "loaded", TIMED_OUT: "loaded"},
    (L, R): {UNSEEN: "loading", BROKEN: "loading", TIMED_OUT: "refused"},
    (U, R): {UNSEEN: "nothing", BROKEN: "nothing", TIMED_OUT: "refused"},
    (N, R): {UNSEEN: "nothing", BROKEN: "nothing", TIMED_OUT: "nothing"},
    (N, N): {UNSEEN: "suspected", BROKEN: "blamed", TIMED_OUT: "blamed"},
    (N, U): {UNSEEN: "nothing", BROKEN: "nothing", TIMED_OUT: "nothing"},  # unloaded, which is no loss
    (N, None): {UNSEEN: "nothing", BROKEN: "suspected", TIMED_OUT: "suspected"},  # it held nothing before
    (R, None): {UNSEEN: "loaded", BROKEN: "loaded", TIMED_OUT: "loaded"},
    (U, None): {UNSEEN: "nothing", BROKEN: "nothing", TIMED_OUT: "refused"},
    (L, None): {UNSEEN: "loading", BROKEN: "loading", TIMED_OUT: "refused"},
}


@pytest.mark.parametrize(("states", "call"), list(product(VERDICTS, CallEnd)))
def test_only_what_the_server_did_counts(states: tuple[ModelState, ModelState | None], call: CallEnd) -> None:
    """A load without an answer counts where the server ended or did not finish, and not where nobody was there."""
    own, other = states
    record = LoadRecord(0.0, (OTHER,) if other is not None else ())
    assert verdict(record, evidence(own, other, call)) == VERDICTS[states][call]


def test_an_overdue_load_counts_and_a_doubtful_end_is_no_proof() -> None:
    """A load has its time and no more; where something else may have ended the server, three times are proof."""
    record = LoadRecord(0.0, (OTHER,))
    assert verdict(record, evidence(L, R, UNSEEN, is_overdue=True)) == "refused"
    doubtful = evidence(N, N, BROKEN, is_only_suspect=False)
    assert verdict(record, doubtful) == "suspected"
    assert verdict(replace(record, losses=MAX_FAILURES - 1), doubtful) == "blamed"
    asked = replace(record, ready_before=(OWN, OTHER))  # it was loaded, and does not answer its first requests
    assert verdict(asked, evidence(R, R, TIMED_OUT)) == "refused"
    assert verdict(asked, evidence(R, R, BROKEN)) == "loaded"


@dataclass
class Fault:
    """What happens at one call to the outside: who ends there, and what becomes of Triton."""

    world: World
    failure: type[BaseException]
    triton: str
    is_at_load: bool = False

    def arm(self, call: int) -> None:
        """Let it happen at that call from now on."""
        self.world.failing_call, self.world.failure = self.world.calls + call, self.failure
        self.world.asking, self.world.on_failure = "", self._strike

    def is_over(self, _: Process) -> bool:
        """Whether it happened."""
        return self.world.calls >= self.world.failing_call

    def _strike(self) -> None:
        record = self.world.load_records.get(self.world.asking)
        self.is_at_load = (
            self.world.asking == self.world.model("v2") and record is not None and bool(record.ready_before)
        )
        if self.triton != "stays":
            self.world.restart_triton()
        if self.triton == "refuses":
            self.world.files["v2"] = b"broken"
            self.world.lost_artifacts.add("v2")


async def lives(world: World, process: Process, count: int, until: Callable[[Process], bool]) -> Process:
    """Look so many times at most, each crash followed by a new process."""
    for _ in range(count):
        try:
            await looks(process, 1)
        except Crash:
            process = Process.begin(world)
            await process.ledger.sync()
        if until(process):
            break
    return process


def is_at_rest(process: Process) -> bool:
    """Whether v2 has traffic, or has ended and is gone."""
    rollout = process.ledger.state.of_version("v2")
    if rollout is None:
        return False
    return rollout.is_on_traffic if rollout.is_under_way else "v2" not in process.ledger.state.loaded


async def before_the_load(world: World) -> Process:
    """A process with v1 live, and v2 registered."""
    process = Process.begin(world)
    world.register("v1")
    await looks(process, 6)
    world.register("v2")
    return process


async def after_a_restart(world: World) -> Process:
    """A process with v1 live and v2 in its canary, whose Triton holds nothing any more."""
    process = await canary(world)
    world.restart_triton()
    return process


SCENES = {"first load": before_the_load, "reload": after_a_restart}


async def calls_of(spec: LoopSpec, scene: str) -> int:
    """How many calls to the outside there are from a scene until v2 has traffic."""
    world = World(spec)
    process = await SCENES[scene](world)
    before = world.calls
    await lives(world, process, 40, is_at_rest)
    return world.calls - before


@pytest.mark.parametrize(
    ("scene", "failure", "triton"), list(product(SCENES, (Crash, Unavailable), ("stays", "restarts", "refuses")))
)
async def test_at_each_step_of_a_load_the_right_one_is_blamed(
    spec: LoopSpec, scene: str, failure: type[BaseException], triton: str
) -> None:
    """The version goes on unless Triton ended at its load or refuses it; live is served, a newer one is rolled out."""
    for call in range(1, await calls_of(spec, scene) + 1):
        world = World(spec)
        process = await SCENES[scene](world)
        fault = Fault(world, failure, triton)
        fault.arm(call)
        before = len(world.log)
        process = await lives(world, process, 60, is_at_rest)
        await lives(world, process, 4, lambda _: False)
        state = process.ledger.state.of_version("v2")
        assert state is not None
        is_blamed = failure is Unavailable and fault.is_at_load
        if triton == "stays" or (triton == "restarts" and not is_blamed):
            assert state.is_on_traffic, (call, state.reason)
        elif triton == "refuses":
            assert state.state in (RolloutState.ROLLED_BACK, RolloutState.REFUSED), (call, state.reason)
        else:
            assert "ended while it was loading" in state.reason, (call, state.reason)
        assert world.model("v1") in world.served, call
        assert not [record for record in world.load_records.values() if record.is_open], call
        assert len(world.log) - before <= 10, call


@pytest.mark.parametrize(("scene", "failure"), list(product(SCENES, (Crash, Unavailable))))
async def test_outages_at_the_same_step_again_and_again_count_for_nothing(
    spec: LoopSpec, scene: str, failure: type[BaseException]
) -> None:
    """Six times in a row nobody answers, or the deployer ends, and Triton stands: the version gets its traffic."""
    for call in range(1, await calls_of(spec, scene) + 1):
        world = World(spec)
        process = await SCENES[scene](world)
        for _ in range(6):
            fault = Fault(world, failure, "stays")
            fault.arm(call)
            process = await lives(world, process, 8, fault.is_over)
            await lives(world, process, 2, is_at_rest)
        world.failing_call = -1
        process = await lives(world, Process.begin(world), 60, is_at_rest)
        rollout = process.ledger.state.of_version("v2")
        assert rollout is not None
        assert rollout.is_on_traffic, (call, rollout.reason)
        assert world.load_records == {}, call


@pytest.mark.parametrize("reason", ["AWAY", REPOSITORY_UNAVAILABLE])
async def test_a_load_that_nobody_answers_is_tried_without_end(world: World, reason: str) -> None:
    """Forty broken calls cost no change of the log and a short pause each; then the version is loaded."""
    process = await before_the_load(world)

    def away(version: str) -> None:
        if world.loads.count(version) <= 40:
            raise Unavailable(reason, "nobody is there")

    world.loads.clear()
    world.at_load = away
    await looks(process, 50)
    assert world.loads.count("v2") > 40
    assert told(world, "v2") == WAY_UP[:5]


async def test_a_version_that_never_answers_in_time_ends(world: World) -> None:
    """Where Triton answers all else, three loads that time out end the rollout; a stall of Triton ends none."""
    process = await before_the_load(world)

    def late(_: str) -> None:
        world.loading.add(world.model("v2"))
        if len(world.loads) <= 10:
            world.failing_call, world.failure = world.calls + 1, Unavailable  # the next question has no answer either
        raise Unavailable(TRITON_TIMED_OUT, "no answer within 5 s")

    world.loads.clear()
    world.at_load = late
    for _ in range(60):
        if len(world.loads) < 10:
            await looks(process, 1)
            world.loading.clear()
    assert told(world, "v2") == WAY_UP[:1]
    await looks(process, 20)
    assert told(world, "v2")[-1] == ("ROLLED_BACK", 0.0)
    assert "not answered within 5 s" in world.log[-1].reason
    assert len(world.loads) == 13


async def test_a_load_is_waited_for_and_then_counts(world: World) -> None:
    """What Triton still loads when the deployer is started again is not asked for again, nor given up too early."""
    process = await before_the_load(world)

    def crash(_: str) -> None:
        world.loading.add(world.model("v2"))
        raise Crash

    world.loads.clear()
    world.at_load = crash
    with pytest.raises(Crash):
        await looks(process, 1)
    process = Process.begin(world)
    await looks(process, 8)
    assert world.loads == ["v2"]
    assert "must end first" in process.ledger.waiting_for
    world.at_load = lambda _: None
    world.loading.clear()
    world.served.add(world.model("v2"))
    await looks(process, 4)
    assert told(world, "v2") == WAY_UP[:5]
    assert world.load_records == {}


async def test_a_triton_that_ends_at_every_load_takes_no_model_away(world: World) -> None:
    """Where each load of any version finds it ended, as in a crash loop of its own, live and last good stay."""
    process = await canary(world)
    await process.commands.promote(process.ledger.state.current, "")
    await looks(process, 2)
    before = len(world.log)
    world.restart_triton()
    world.ending |= {"v1", "v2"}
    await looks(process, 40)
    assert len(world.log) == before
    world.ending.clear()
    await looks(process, 10)
    assert world.served == {world.model("v1"), world.model("v2")}
    assert (process.ledger.state.live, process.ledger.state.last_good) == ("v2", "v1")


async def test_a_version_that_ends_triton_and_deployer_ends_within_three_loads(world: World) -> None:
    """Where nobody saw the end, three in a row are proof; live serves after that."""
    process = await before_the_load(world)

    def crash(version: str) -> None:
        if version == "v2":
            world.restart_triton()
            raise Crash

    world.at_load = crash
    process = await lives(world, process, 40, is_at_rest)
    await looks(process, 4)
    assert [kind for kind, _ in told(world, "v2")] == ["STARTED", "ROLLED_BACK"]
    assert world.loads.count("v2") == MAX_FAILURES
    assert world.served == {world.model("v1")}


async def test_a_first_model_that_ends_an_empty_triton_is_tried_three_times(world: World) -> None:
    """There is nothing to lose, so that one end is no proof; the third is."""
    process = Process.begin(world)
    world.ending.add("v1")
    world.register("v1")
    await looks(process, 30)
    assert [kind for kind, _ in told(world, "v1")] == ["STARTED", "ROLLED_BACK"]
    assert world.loads == ["v1"] * MAX_FAILURES


@pytest.mark.parametrize("seed", range(40))
async def test_whatever_ends_in_whatever_order_nobody_is_stuck(world: World, seed: int) -> None:
    """After a dozen faults at random calls live serves, the candidate has traffic or has ended, a newer one goes on."""
    chance = random.Random(seed)
    process = await SCENES[chance.choice(list(SCENES))](world)
    before, has_harmed = len(world.log), False
    for _ in range(12):
        fault = Fault(world, chance.choice((Crash, Unavailable)), chance.choice(("stays", "restarts")))
        fault.arm(chance.randint(1, 30))
        process = await lives(world, process, 30, fault.is_over)
        has_harmed |= fault.triton == "restarts"
        process = await lives(world, process, chance.randint(0, 3), lambda _: False)
    world.failing_call = -1
    process = await lives(world, process, 200, is_at_rest)
    rollout = process.ledger.state.of_version("v2")
    assert rollout is not None
    assert rollout.is_on_traffic or (has_harmed and "ended while it was loading" in rollout.reason), rollout.reason
    assert world.model("v1") in world.served
    assert not [record for record in world.load_records.values() if record.is_open]
    assert len(world.log) - before <= 40
    if rollout.is_under_way:
        await process.commands.roll_back(rollout.id, "")
    world.register("v3")
    await looks(process, 10)
    assert told(world, "v3")[-1] == ("SHIFTED", 0.1)
