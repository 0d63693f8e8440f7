"""Loops that share a Triton, on hand-written fakes: nobody is blamed for what another one may have done."""

import asyncio
from dataclasses import dataclass

import pytest
from gyre_core.spec import LoopSpec
from gyre_deployer.domain.loading import MAX_FAILURES, LoadRecord
from gyre_deployer.ports import TRITON_TIMED_OUT
from gyre_local.testing import eventually
from gyre_runtime import Unavailable

from .fakes import WAY_UP, Process, World, load_attempts, looks, told


@dataclass
class Neighbours:
    """Two loops with a live model each, in one deployer and on one Triton, and what either of them sees as on trial."""

    worlds: tuple[World, World]
    processes: tuple[Process, Process]

    @classmethod
    async def begin(cls, spec: LoopSpec) -> "Neighbours":
        """Both with v1 live."""
        first = World(spec)
        shared = {
            "served": first.served,
            "unavailable": first.unavailable,
            "loading": first.loading,
            "load_records": first.load_records,
        }
        second = World(spec.model_copy(update={"loop": "neighbour"}), neighbours=[first], **shared)
        first.neighbours.append(second)
        both = cls((first, second), ())  # type: ignore[arg-type]
        both.restart()
        for world in both.worlds:
            world.register("v1")
        await both.look(6)
        return both

    def restart(self) -> None:
        """A new deployer."""
        attempts = load_attempts(self.worlds[0], self._on_trial)
        self.processes = tuple(Process.begin(world, attempts) for world in self.worlds)  # type: ignore[assignment]

    def _on_trial(self) -> list[str]:
        under_way = [(each.world, each.ledger.state.under_way) for each in self.processes]
        return [world.model(each.version) for world, each in under_way if each is not None and each.is_on_traffic]

    async def look(self, count: int) -> None:
        """Look at both, one after the other."""
        for _ in range(count):
            for process in self.processes:
                await looks(process, 1)

    def kinds(self, loop: int, version: str) -> list[str]:
        """What happened to a version of one loop."""
        return [kind for kind, _ in told(self.worlds[loop], version)]


async def test_loops_that_share_a_triton_load_one_at_a_time(spec: LoopSpec) -> None:
    """While one loop loads the other waits; where Triton ends meanwhile, the first is blamed, the other goes on."""
    both = await Neighbours.begin(spec)
    first, second = both.worlds
    first.holds = asyncio.Event()
    first.register("v2")
    second.register("v2")
    first.ending.add("v2")
    loading = asyncio.create_task(looks(both.processes[0], 1))
    await eventually(lambda: first.load_records, message="the first loop loads")
    await looks(both.processes[1], 3)
    assert "v2" not in second.loads
    assert first.model("v2") in both.processes[1].ledger.waiting_for
    first.holds.set()
    await loading
    await both.look(20)
    assert both.kinds(0, "v2") == ["STARTED", "ROLLED_BACK"]
    assert first.loads.count("v2") == 1
    assert told(second, "v2") == WAY_UP[:5]
    assert {first.model("v1"), second.model("v1"), second.model("v2")} == first.served


async def test_of_two_loads_during_which_triton_ended_none_is_blamed_at_once(spec: LoopSpec) -> None:
    """Both are loaded again, one after the other: the one that ends Triton again is blamed, the other goes on."""
    both = await Neighbours.begin(spec)
    first, second = both.worlds
    for world in both.worlds:
        world.register("v2")
        world.files["v2"] = b"/v2"
        world.load_records[world.model("v2")] = LoadRecord(world.now, tuple(sorted(world.served)))
    second.ending.add("v2")
    first.restart_triton()
    both.restart()
    await both.look(30)
    assert told(first, "v2")[-1] == ("SHIFTED", 0.1)
    assert both.kinds(1, "v2") == ["STARTED", "ROLLED_BACK"]
    assert second.loads.count("v2") == 1


@pytest.mark.parametrize("is_guilty", [True, False])
async def test_a_load_beside_traffic_on_trial_is_not_blamed_at_once(spec: LoopSpec, is_guilty: bool) -> None:
    """Where another loop's canary may have ended Triton the version is loaded again, without that one's traffic."""
    both = await Neighbours.begin(spec)
    first, second = both.worlds
    first.register("v2")
    await both.look(6)
    assert told(first, "v2")[-1] == ("SHIFTED", 0.1)

    def end(version: str) -> None:
        if version == "v2" and (is_guilty or second.loads.count("v2") == 1):
            second.restart_triton()
            raise Unavailable("AWAY", "the connection broke")

    second.at_load = end
    second.register("v2")
    await both.look(30)
    assert told(first, "v2")[-1] == ("SHIFTED", 0.1)
    if is_guilty:
        assert both.kinds(1, "v2") == ["STARTED", "ROLLED_BACK"]
        assert second.loads.count("v2") <= MAX_FAILURES
    else:
        assert told(second, "v2") == WAY_UP[:5]
    assert {first.model("v1"), first.model("v2"), second.model("v1")} <= first.served


async def timed_out(both: Neighbours) -> None:
    """The first loop's v2 takes too long to load, and Triton goes on with it; the second loop registers its own."""
    first, second = both.worlds

    def late(version: str) -> None:
        if version == "v2":
            first.loading.add(first.model("v2"))
            raise Unavailable(TRITON_TIMED_OUT, "no answer within 5 s")

    first.at_load = late
    first.register("v2")
    await looks(both.processes[0], 1)
    assert first.loads[-1] == "v2"
    second.register("v2")


async def test_no_load_begins_before_triton_has_finished_another(spec: LoopSpec) -> None:
    """The other loop waits for a load that timed out and goes on; that ends Triton later, and the other goes on."""
    both = await Neighbours.begin(spec)
    first, second = both.worlds
    await timed_out(both)
    await looks(both.processes[1], 3)
    assert "v2" not in second.loads
    assert first.model("v2") in both.processes[1].ledger.waiting_for
    first.restart_triton()
    first.at_load = lambda _: None
    first.ending.add("v2")
    await both.look(30)
    assert both.kinds(0, "v2") == ["STARTED", "ROLLED_BACK"]
    assert told(second, "v2") == WAY_UP[:5]


async def test_a_load_that_triton_never_finishes_holds_others_back_no_longer_than_its_attempts(spec: LoopSpec) -> None:
    """Its candidate is rolled back after three attempts; then the other's is loaded, and is not blamed at once."""
    both = await Neighbours.begin(spec)
    first, second = both.worlds
    await timed_out(both)

    def end_once(version: str) -> None:
        if version == "v2" and second.loads.count("v2") == 1:
            second.restart_triton()
            raise Unavailable("AWAY", "the connection broke")

    second.at_load = end_once
    await both.look(40)
    assert both.kinds(0, "v2") == ["STARTED", "ROLLED_BACK"]
    assert first.loads.count("v2") == MAX_FAILURES
    assert told(second, "v2") == WAY_UP[:5]


async def test_a_live_model_that_ended_triton_is_tried_again_after_an_hour(spec: LoopSpec) -> None:
    """While another loop is served it ends Triton three times at most, and once what was wrong is mended it is back."""
    both = await Neighbours.begin(spec)
    first, second = both.worlds
    first.ending.add("v1")
    first.restart_triton()
    first.loads.clear()
    await both.look(60)
    assert 1 <= len(first.loads) <= MAX_FAILURES
    assert second.model("v1") in first.served
    assert [each.end_time for each in first.alerts] == [None]
    first.ending.clear()
    for world in both.worlds:
        world.now += 3600.0
    await both.look(5)
    assert first.served == {first.model("v1"), second.model("v1")}
