"""What follows on hand-written fakes where the model server goes away, loses versions, or cannot load them again."""

import pytest
from gyre_deployer.domain.loading import MAX_FAILURES, MAX_MARKS, LoadRecord
from gyre_deployer.domain.rollouts import Kind, RolloutState
from gyre_runtime import Precondition, Unavailable

from .fakes import WAY_UP, Process, World, canary, looks, told


async def test_a_candidate_that_cannot_be_restored_is_rolled_back(world: World) -> None:
    """Live is back at the first look; the candidate is tried three times with pauses, and two changes say the end."""
    process = await canary(world)
    before = len(world.log)
    world.files["v2"] = b"broken"
    world.lost_artifacts.add("v2")
    world.served.clear()
    world.loads.clear()
    await process.look()
    assert world.served == {f"{world.spec.loop}--v1"}
    await looks(process, 200, pause_s=0.05)
    assert world.loads == ["v1", "v2", "v2", "v2"]
    assert told(world, "v2")[-2:] == [("ROLLED_BACK", 0.0), ("UNLOADED", 0.0)]
    assert len(world.log) - before <= 3
    world.register("v3")
    await looks(process, 6)
    assert told(world, "v3")[-1] == ("SHIFTED", 0.1)


async def test_a_candidate_that_ends_triton_at_load_is_loaded_once(world: World) -> None:
    """It is rolled back as soon as Triton is back, before anything else is loaded, also by a restarted deployer."""
    process = await canary(world)
    world.register("v3")
    await process.commands.roll_back(process.ledger.state.current, "")
    world.ending.add("v3")
    await looks(process, 3)
    world.loads.clear()
    process = Process.begin(world)
    await looks(process, 50)
    assert told(world, "v3") == [("STARTED", 0.0), ("ROLLED_BACK", 0.0)]
    assert "the model server ended while it was loading" in str([change.reason for change in world.log])
    assert "v3" not in world.loads
    assert world.served == {f"{world.spec.loop}--v1"}
    assert {name: each.ended_server for name, each in world.load_records.items()} == {world.model("v3"): True}


async def promoted_twice(world: World) -> Process:
    """A process with v2 live and v1 last good."""
    process = await canary(world)
    await process.commands.promote(process.ledger.state.current, "")
    await process.look()
    assert (process.ledger.state.live, process.ledger.state.last_good) == ("v2", "v1")
    return process


async def test_an_unloadable_live_model_falls_back_to_the_last_good_one(world: World) -> None:
    """Traffic goes to what loads, an alert fires until the next promotion, and the log grows by two changes."""
    process = await promoted_twice(world)
    before = len(world.log)
    world.files["v2"] = b"broken"
    world.lost_artifacts.add("v2")
    world.served.clear()
    world.loads.clear()
    await looks(process, 100, pause_s=0.05)
    assert world.loads[:2] == ["v2", "v1"]
    assert world.loads.count("v2") == 3
    assert [change.kind for change in world.log[before:]] == [Kind.FELL_BACK, Kind.UNLOADED]
    state = process.ledger.state
    assert (state.live, state.last_good, state.loaded) == ("v1", "", ("v1",))
    assert [each.end_time for each in world.alerts] == [None]
    world.register("v3")
    await looks(process, 6)
    await process.commands.promote(process.ledger.state.current, "")
    await looks(process, 3)
    assert [each.end_time is None for each in world.alerts] == [True, False]
    assert len({each.alert_id for each in world.alerts}) == 1


async def test_a_candidate_beside_a_live_model_that_falls_back_goes_on(world: World) -> None:
    """A rollout under way is then compared with, and rolled back to, what is live by now."""
    process = await promoted_twice(world)
    world.register("v3")
    await looks(process, 6)
    assert told(world, "v3")[-1] == ("SHIFTED", 0.1)
    world.files["v2"] = b"broken"
    world.lost_artifacts.add("v2")
    world.served.clear()
    await looks(process, 20)
    rollout = process.ledger.state.under_way
    assert rollout is not None
    assert (rollout.version, rollout.live_version) == ("v3", "v1")
    await process.commands.promote(rollout.id, "")
    await process.commands.roll_back(rollout.id, "")
    assert process.ledger.state.live == "v1"


async def test_an_unloadable_last_good_model_is_dropped(world: World) -> None:
    """The log says so once, live is untouched, and nothing is fallen back to any more."""
    process = await promoted_twice(world)
    before = len(world.log)
    world.files["v1"] = b"broken"
    world.lost_artifacts.add("v1")
    world.served.clear()
    await looks(process, 100)
    assert [(each.kind, each.version) for each in world.log[before:]] == [(Kind.DROPPED, "v1"), (Kind.UNLOADED, "v1")]
    assert (process.ledger.state.live, process.ledger.state.last_good) == ("v2", "")
    assert world.alerts == []
    with pytest.raises(Precondition):
        await process.commands.roll_back(process.ledger.state.rollouts[process.ledger.state.current].id, "")


@pytest.mark.parametrize("is_guilty", [True, False])
async def test_a_last_good_model_is_not_blamed_at_once_for_the_end_of_triton(world: World, is_guilty: bool) -> None:
    """Requests of the live model may have ended it: one end counts for nothing, the third ends the last good one."""
    process = await promoted_twice(world)

    def end(version: str) -> None:
        if version == "v1" and (is_guilty or world.loads.count("v1") == 1):
            world.restart_triton()
            raise Unavailable("AWAY", "the connection broke")

    world.restart_triton()
    world.loads.clear()
    world.at_load = end
    await looks(process, 40)
    assert process.ledger.state.last_good == ("" if is_guilty else "v1")
    assert world.loads.count("v1") == (MAX_FAILURES if is_guilty else 2)
    assert world.model("v2") in world.served
    assert (world.model("v1") in world.served) == (not is_guilty)


async def test_a_version_whose_removal_was_killed_is_offered_again_without_its_past(world: World) -> None:
    """What Triton refused of it goes with it, also where the deployer ended between the two."""
    process = await canary(world)
    await process.commands.roll_back(process.ledger.state.current, "")
    world.register("v3")
    world.lost_artifacts.add("v3")
    await looks(process, 6)
    assert [kind for kind, _ in told(world, "v3")] == ["STARTED", "REFUSED"]
    assert "v3" not in world.files
    left = LoadRecord(world.now, (world.model("v1"),), refusals=MAX_FAILURES, is_open=False)
    world.load_records[world.model("v3")] = left  # as a deployer leaves it that ends after it has removed the files
    world.lost_artifacts.clear()
    process = Process.begin(world)
    await looks(process, 3)
    before = len(world.log)
    await process.commands.start("v3", "again")
    await looks(process, 6)
    assert [(each.kind.value, each.share) for each in world.log[before:]] == WAY_UP[:5]


async def test_a_version_that_ended_triton_is_not_loaded_again_where_it_is_offered(world: World) -> None:
    """Each offer is rolled back at once with the reason, also after a restart, and from a log that was made anew."""
    process = Process.begin(world)
    world.register("v1")
    await looks(process, 8)
    world.register("v2")
    world.ending.add("v2")
    await looks(process, 40)
    loads = world.loads.count("v2")
    assert loads == 1
    for number in range(3):
        await process.commands.start("v2", f"again-{number}")
        await looks(process, 10)
        assert [kind for kind, _ in told(world, "v2")[-2:]] == ["STARTED", "ROLLED_BACK"]
        assert "the model server ended while it was loading" in world.log[-1].reason
        process = Process.begin(world)
        await looks(process, 1)
    world.log.clear()
    world.snapshots.clear()
    world.registered.clear()
    process = Process.begin(world)
    for version in ("v1", "v2"):
        world.register(version)
        await looks(process, 12)
    assert [kind for kind, _ in told(world, "v2")] == ["STARTED", "ROLLED_BACK"]
    assert world.loads.count("v2") == loads
    assert world.model("v1") in world.served


async def test_versions_that_ended_triton_are_remembered_up_to_a_bound(world: World) -> None:
    """Of more than a thousand the oldest are forgotten, and none of them is given up anew."""
    marks = [LoadRecord(float(at), losses=1, is_open=False, ended_server=True) for at in range(MAX_MARKS + 3)]
    world.load_records = {world.model(f"old-{at}"): mark for at, mark in enumerate(marks)}
    process = Process.begin(world)
    world.register("v1")
    await looks(process, 8)
    assert len(world.load_records) == MAX_MARKS
    assert min(mark.start_time for mark in world.load_records.values()) == 3.0
    assert {change.version for change in world.log} == {"v1"}


async def test_a_live_model_without_a_successor_is_tried_for_ever_and_holds_nobody_back(world: World) -> None:
    """Pauses grow to a minute, an alert fires, the log stands still, a fix is rolled out; once it loads, that ends."""
    process = await canary(world)
    await process.commands.roll_back(process.ledger.state.current, "")
    await looks(process, 5)
    before = len(world.log)
    world.files["v1"] = b"broken"
    world.lost_artifacts.add("v1")
    world.served.clear()
    world.loads.clear()
    await looks(process, 600)
    assert len(world.log) == before
    assert 5 < len(world.loads) < 20
    assert [each.end_time for each in world.alerts] == [None]
    world.register("v3")
    await looks(process, 6)
    assert told(world, "v3")[-1] == ("SHIFTED", 0.1)
    world.lost_artifacts.clear()
    await looks(process, 200)
    assert f"{world.spec.loop}--v1" in world.served
    assert [each.end_time is None for each in world.alerts] == [True, False]


def changes(world: World, before: int) -> list[tuple[str, float]]:
    """Kind and share of each change since the log was so long."""
    return [(each.kind.value, each.share) for each in world.log[before:]]


async def test_outages_that_come_with_and_without_traffic_never_end_a_rollout(world: World) -> None:
    """Through 40 outages one second apart the log grows by a few changes; after them the candidate is promoted."""
    process = await canary(world)
    before = len(world.log)
    for _ in range(40):
        world.served.clear()
        await looks(process, 2)
    assert len(world.log) - before <= 8
    assert {kind for kind, _ in changes(world, before)} == {"SHIFTED"}
    for _ in range(60):
        world.serve("v2", 100)
        await looks(process, 1)
    assert told(world, "v2")[-1] == ("PROMOTED", 1.0)


async def test_a_candidate_whose_requests_end_triton_is_rolled_back(world: World) -> None:
    """Where Triton goes away each time that the candidate has traffic, and never without it, that is the end."""
    process = await canary(world)
    before = len(world.log)
    for _ in range(200):
        rollout = process.ledger.state.under_way
        if rollout is not None and rollout.is_on_traffic:
            world.served.clear()
        await looks(process, 1)
    *shifts, back, unloaded = changes(world, before)
    assert (back, unloaded) == (("ROLLED_BACK", 0.0), ("UNLOADED", 0.0))
    assert shifts == [("SHIFTED", 0.0), ("SHIFTED", 0.1)] * (len(shifts) // 2)
    assert len(shifts) <= 14
    assert "5 times in a row soon after the candidate had traffic" in world.log[-2].reason
    assert world.served == {f"{world.spec.loop}--v1"}


async def test_an_outage_without_traffic_acquits_a_candidate(world: World) -> None:
    """One while it has none begins the count anew, also for a deployer that was started again since."""
    process = await canary(world)
    ended_under_traffic = 0
    for _ in range(400):
        rollout = process.ledger.state.under_way
        assert rollout is not None
        if rollout.is_on_traffic:
            world.served.clear()
            ended_under_traffic += 1
        elif ended_under_traffic == 4 and "outage" not in world.filling:
            world.served.clear()
            world.filling["outage"] = "was"
            await looks(process, 1)
            process = Process.begin(world)
        if ended_under_traffic == 8:
            break
        await looks(process, 1)
    assert ended_under_traffic == 8
    assert told(world, "v2")[-1] != ("ROLLED_BACK", 0.0)


async def test_outages_before_a_candidate_has_traffic_say_nothing_of_it(world: World) -> None:
    """Through 30 outages a paused candidate waits; then it goes on."""
    process = Process.begin(world)
    world.register("v1")
    await looks(process, 6)
    world.register("v2")
    while told(world, "v2")[-1:] != [("LOADED", 0.0)]:
        await process.look()
    paused = process.ledger.state.current
    await process.commands.pause(paused, "", resume=False)
    for _ in range(30):
        world.served.clear()
        await looks(process, 2)
    await process.commands.pause(paused, "", resume=True)
    await looks(process, 3)
    assert [kind for kind, _ in told(world, "v2")[3:]] == ["PAUSED", "RESUMED", "WARMED", "SHIFTED"]


async def test_lost_files_of_a_loaded_version_are_installed_again(world: World) -> None:
    """A repository that lost its files gets them back from the artefacts."""
    process = await canary(world)
    world.files.clear()
    world.served.clear()
    await process.look()
    assert sorted(world.files) == ["v1", "v2"]
    assert len(world.served) == 2
    await looks(process, 3)
    assert told(world, "v2")[-2:] == [("SHIFTED", 0.0), ("SHIFTED", 0.1)]
    assert "anew" in world.log[-1].reason


async def test_a_paused_candidate_that_triton_lost_has_no_traffic(world: World) -> None:
    """It gets its share back once Triton has answered for a while, and is still paused; at its end it is resumed."""
    process = await canary(world)
    paused = process.ledger.state.current
    await process.commands.pause(paused, "lunch", resume=False)
    shares: list[float] = []
    world.restart_triton()
    world.at_load = lambda _: shares.append(process.ledger.state.rollouts[paused].share)
    await looks(process, 1)
    assert shares == [0.0, 0.0], "it is withdrawn before anything is loaded again"
    assert process.ledger.state.rollouts[paused].state == RolloutState.PAUSED
    await looks(process, 10)
    rollout = process.ledger.state.rollouts[paused]
    assert (rollout.state, rollout.share) == (RolloutState.PAUSED, 0.1)
    assert told(world, "v2")[5:] == [("PAUSED", 0.1), ("SHIFTED", 0.0), ("SHIFTED", 0.1)]
    await process.commands.pause(paused, "", resume=True)
    assert process.ledger.state.rollouts[paused].state == RolloutState.CANARY


async def test_a_candidate_that_is_paused_without_traffic_has_none_until_it_is_resumed(world: World) -> None:
    """Whoever pauses it during an outage sees no users go to it, however long Triton has answered since."""
    process = await canary(world)
    world.restart_triton()
    await process.look()
    assert told(world, "v2")[-1] == ("SHIFTED", 0.0)
    await process.commands.pause(process.ledger.state.current, "lunch", resume=False)
    await looks(process, 20)
    assert told(world, "v2")[-1] == ("PAUSED", 0.0)
    await process.commands.pause(process.ledger.state.current, "", resume=True)
    await looks(process, 3)
    assert told(world, "v2")[-2:] == [("RESUMED", 0.0), ("SHIFTED", 0.1)]


@pytest.mark.parametrize("is_paused", [True, False])
async def test_a_candidate_that_was_lost_while_the_deployer_was_away_has_no_traffic(
    world: World, is_paused: bool
) -> None:
    """A new process finds it gone and unloadable: its first look withdraws the traffic, the third attempt ends it."""
    process = await canary(world)
    if is_paused:
        await process.commands.pause(process.ledger.state.current, "lunch", resume=False)
    world.restart_triton()
    world.files["v2"] = b"broken"
    world.lost_artifacts.add("v2")
    process = Process.begin(world)
    await looks(process, 1, pause_s=0.01)
    rollout = process.ledger.state.under_way
    assert rollout is not None
    assert (rollout.share, rollout.state == RolloutState.PAUSED) == (0.0, is_paused)
    await looks(process, 20)
    assert told(world, "v2")[-3:] == [("SHIFTED", 0.0), ("ROLLED_BACK", 0.0), ("UNLOADED", 0.0)]
