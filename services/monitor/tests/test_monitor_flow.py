"""The flow of models: when a trigger is decided, what holds it back, rollouts folded, and the ids behind an answer."""

import json

import pytest
from gyre.events.v1 import models_pb2 as models
from gyre_monitor.domain.triggers import Reason
from gyre_monitor.ports import RunOfTrigger
from gyre_monitor.store import flow, reports

VOLUME = "{volume: {events: 10}}"


def clicks(log, make, count: int, *, at: float = 0.0, **changes):
    """Live clicks of one user."""
    return [log.acted(make.interaction(), at=make.begin + at, **changes) for _ in range(count)]


def foreign(log, loop: str, trigger_id: str, *, at: float):
    """A trigger by a person, as it stands in the topic."""
    message = models.TrainingTrigger(trigger_id=trigger_id, loop=loop, reason=models.TRIGGER_REASON_MANUAL)
    return log.add("training.triggers", message, at=at)


async def since(database, loop: str) -> int:
    """Interactions since the last trigger."""
    return (await database.read(reports.status, loop, now=0.0)).interactions_since_trigger


async def test_the_volume_decides_once_and_counts_anew(projection, database, log, make, loop) -> None:
    """The batch that reaches the threshold writes one trigger with the count; the next batch begins from zero."""
    assert (await projection.apply(clicks(log, make, 9))).triggers == []
    (trigger_id,) = (await projection.apply(clicks(log, make, 3))).triggers
    (row,) = await database.read(flow.unsent)
    assert (row["trigger_id"], row["reason"], row["value"], row["threshold"]) == (trigger_id, Reason.VOLUME, 12, 10)
    assert await since(database, loop) == 0


async def test_a_trigger_names_the_sampled_traces_that_tipped_it(projection, database, log, make, loop) -> None:
    """The newest sampled traceparents since the last trigger are its links; unsampled ones are not."""
    traces = [f"00-{n + 1:032x}-{n + 1:016x}-01" for n in range(20)]
    await projection.apply([each for n in range(9) for each in clicks(log, make, 1, traceparent=traces[n])])
    unsampled = f"00-{99:032x}-{99:016x}-00"
    await projection.apply([*clicks(log, make, 1, traceparent=unsampled), *clicks(log, make, 1, traceparent=traces[9])])
    (row,) = await database.read(flow.unsent)
    assert json.loads(row["links"]) == traces[:10]


async def test_nothing_fires_while_a_run_or_a_rollout_is_under_way(projection, database, log, make, loop) -> None:
    """Trigger, candidate and rollout each hold the next trigger back, which then fires on all that came meanwhile."""
    (first,) = (await projection.apply(clicks(log, make, 10))).triggers
    assert (await projection.apply(clicks(log, make, 10))).triggers == []
    await projection.apply([log.add("models.candidates", make.candidate(loop, "v1", trigger_id=first))])
    assert (await projection.apply(clicks(log, make, 1))).triggers == []
    for epoch, kind in enumerate(["STARTED", "VALIDATED", "LOADED", "WARMED", "SHIFTED", "PAUSED", "RESUMED"]):
        event = make.rollout(loop, "ro1", kind, epoch=epoch + 1, share=0.1)
        assert (await projection.apply([log.add("models.rollout-events", event)])).triggers == []
    promoted = make.rollout(loop, "ro1", "PROMOTED", epoch=9, share=1.0)
    assert len((await projection.apply([log.add("models.rollout-events", promoted)])).triggers) == 1
    assert (await database.read(flow.unsent))[-1]["value"] == 11


@pytest.mark.parametrize("kind", ["PROMOTED", "ROLLED_BACK", "REFUSED"])
async def test_every_end_of_a_rollout_lets_the_next_trigger_go(kind, projection, log, make, loop) -> None:
    """Promotion, rollback and refusal end a rollout; unloading the old version afterwards begins none."""
    await projection.apply([log.add("models.candidates", make.candidate(loop, "v1"))])
    assert (await projection.apply(clicks(log, make, 10))).triggers == []
    events = [make.rollout(loop, "ro1", each, epoch=n + 1) for n, each in enumerate(["STARTED", kind, "UNLOADED"])]
    found = await projection.apply([log.add("models.rollout-events", each) for each in events])
    assert len(found.triggers) == 1


@pytest.mark.parametrize("known", ["a canary", "a candidate that waits"])
async def test_a_candidate_of_an_older_layout_holds_no_run_of_the_newest_back(
    known, projection, log, make, loop
) -> None:
    """Where gyre.yaml declares another layout than that of the candidate under way, the next trigger goes at once."""
    await projection.apply([log.add("models.candidates", make.candidate(loop, "v1", layout="0123456789abcdef"))])
    for epoch, kind in enumerate(["STARTED", "SHIFTED"] if known == "a canary" else [], start=1):
        event = make.rollout(loop, "ro1", kind, epoch=epoch, share=0.1)
        await projection.apply([log.add("models.rollout-events", event)])
    (own,) = (await projection.apply(clicks(log, make, 10))).triggers
    assert (await projection.apply(clicks(log, make, 10))).triggers == []
    await projection.apply([log.add("models.candidates", make.candidate(loop, "v2", trigger_id=own))])
    assert (await projection.apply(clicks(log, make, 10))).triggers == []


async def test_a_run_that_failed_holds_nothing_back(projection, database, log, make, loop) -> None:
    """Once the trainer says that a run was refused, the volume counts for the next trigger."""
    (first,) = (await projection.apply(clicks(log, make, 10))).triggers
    await projection.apply(clicks(log, make, 10))
    await database.write(flow.mark_sent, loop, first)
    assert await database.read(flow.open_triggers, now=make.begin, timeout_s=600) == {loop: {first}}
    await database.write(flow.note_run, loop, RunOfTrigger(first, "run-1", "training", failed=False))
    assert await projection.decide() == []
    await database.write(flow.note_run, loop, RunOfTrigger(first, "run-1", "refused", failed=True))
    assert len(await projection.decide()) == 1
    training = (await database.read(reports.status, loop, now=0.0)).stages[2]
    assert (training.stage, training.state) == ("training", "triggered")


async def test_a_run_that_nothing_is_heard_of_holds_nothing_back_for_ever(projection, log, make, wall) -> None:
    """After the timeout a trigger without a candidate, and a candidate without a rollout, count as over."""
    await projection.apply(clicks(log, make, 10))
    await projection.apply(clicks(log, make, 10))
    wall.now += 599
    assert await projection.decide() == []
    wall.now += 2
    assert len(await projection.decide()) == 1


async def test_a_persons_trigger_counts_anew_and_holds_back(projection, database, log, make, loop) -> None:
    """Whoever triggers: the count begins again, and nothing fires until that run is over."""
    await projection.apply(clicks(log, make, 8))
    await projection.apply([foreign(log, loop, "manual-1", at=make.begin)])
    assert await since(database, loop) == 0
    assert (await projection.apply(clicks(log, make, 12))).triggers == []
    assert await since(database, loop) == 12
    await projection.apply([foreign(log, loop, "manual-1", at=make.begin)])
    assert await since(database, loop) == 12, "the same trigger again counts nothing anew"


async def test_our_own_trigger_coming_back_counts_nothing_anew(projection, database, log, make, loop) -> None:
    """A trigger that is read from the topic after it was decided here keeps what was counted since."""
    (own,) = (await projection.apply(clicks(log, make, 10))).triggers
    await projection.apply(clicks(log, make, 4))
    await projection.apply([foreign(log, loop, own, at=make.begin)])
    assert await since(database, loop) == 4
    assert await database.read(flow.unsent) == []


async def test_nothing_is_decided_before_the_flow_of_models_is_known(projection, log, make, loop) -> None:
    """A monitor that has not read yet what is under way waits, and decides as soon as it knows."""
    projection.decides.discard(loop)
    assert (await projection.apply(clicks(log, make, 20))).triggers == []
    projection.decides.add(loop)
    assert len(await projection.decide()) == 1


async def test_a_new_database_does_not_count_the_past_again(projection, database, log, make, loop) -> None:
    """Where the topic holds triggers already, what stands before the present ends counts for no volume."""
    await projection.apply([foreign(log, loop, "old", at=make.begin - 1e6)])
    await projection.begin({(f"{loop}.behavior.interactions", 0): 15})
    await projection.apply(clicks(log, make, 15))
    assert await since(database, loop) == 0
    await projection.apply(clicks(log, make, 3))
    assert await since(database, loop) == 3


async def test_a_loop_without_triggers_counts_from_its_first_interaction(projection, database, log, make, loop) -> None:
    """Where nobody ever triggered, everything counts."""
    await projection.begin({(f"{loop}.behavior.interactions", 0): 15})
    await projection.apply(clicks(log, make, 5))
    assert await since(database, loop) == 5


async def test_a_schedule_follows_the_replay_clock(project, log, make, wall) -> None:
    """On the replay clock event times decide, and imported history moves no schedule."""
    projection = await project(triggers="{schedule: 1h}")
    await projection.apply(clicks(log, make, 1, at=-1e6, source="gyre/import"))
    wall.now += 1e6
    await projection.apply(clicks(log, make, 1))
    assert (await projection.apply(clicks(log, make, 1, at=3599))).triggers == []
    assert len((await projection.apply(clicks(log, make, 1, at=3600))).triggers) == 1


async def test_a_schedule_follows_the_wall_clock(project, database, log, make, loop, wall) -> None:
    """On the wall clock it fires an hour after the loop began, and an hour after each trigger, events or not."""
    projection = await project(triggers="{schedule: 1h}", clock="wall")
    wall.now += 3599
    assert await projection.decide() == []
    wall.now += 1
    (first,) = await projection.decide()
    await database.write(flow.note_run, loop, RunOfTrigger(first, "run-1", "failed", failed=True))
    wall.now += 3599
    assert await projection.decide() == []
    wall.now += 1
    assert len(await projection.decide()) == 1


async def test_the_loop_time_is_from_the_trigger_to_all_traffic(projection, database, log, make, loop) -> None:
    """Wall time from the trigger to the first event at share 1 of the version it led to; 0 before."""
    await projection.apply([foreign(log, loop, "t1", at=make.begin)])
    await projection.apply([log.add("models.candidates", make.candidate(loop, "v1"), at=make.begin + 20)])
    steps = [("STARTED", 0.0, 21), ("SHIFTED", 0.5, 30), ("SHIFTED", 1.0, 42), ("PROMOTED", 1.0, 50)]
    for epoch, (kind, share, at) in enumerate(steps, start=1):
        assert (await database.read(reports.status, loop, now=0.0)).loop_time_s == (42 if at > 42 else 0)
        event = make.rollout(loop, "ro1", kind, epoch=epoch, share=share)
        event.change_time.FromSeconds(int(make.begin) + at)
        await projection.apply([log.add("models.rollout-events", event)])
    status = await database.read(reports.status, loop, now=0.0)
    assert status.loop_time_s == 42
    assert [(each.stage, each.state, each.subject, each.count) for each in status.stages[2:4]] == [
        ("training", "registered", "v1", 2),
        ("rollout", "promoted", "ro1", 4),
    ]


async def test_an_experiment_of_a_rollout_counts_only_its_time(projection, database, log, make, loop) -> None:
    """Answers before the rollout began and after it ended belong to no arm of it."""
    for epoch, kind in ((3, "STARTED"), (4, "SHIFTED"), (5, "PROMOTED")):
        await projection.apply([log.add("models.rollout-events", make.rollout(loop, "ro1", kind, epoch=epoch))])
    arms = {2: "live", 4: "candidate", 5: "live"}
    for epoch, arm in arms.items():
        await projection.apply([log.shown(make.impression(f"r{epoch}", epoch=epoch, arm=arm))])
    found = await database.read(reports.experiment, loop, "ro1")
    assert {key: totals.impressions for key, totals in found.items()} == {("candidate", "v1"): 1}
    everything = await database.read(reports.experiment, loop, "")
    assert sum(each.impressions for each in everything.values()) == 3
    assert sum(sum(each.latencies.values()) for each in everything.values()) == 3
    assert await database.read(reports.experiment, loop, "unknown") is None


async def test_the_ids_behind_an_answer_are_known_without_any_trace(projection, database, log, make, loop) -> None:
    """Request, version, rollout, run, trigger, snapshots and interactions, in whatever order they were read."""
    later = [log.acted(make.interaction(), at=make.begin + at) for at in (9, 5, 4000)]
    named = log.acted(make.interaction(item="z", request_id="r1"), at=make.begin + 7000)
    await projection.apply([*later, named, log.shown(make.impression("r1", epoch=7))])
    begun = make.rollout(loop, "ro1", "STARTED", epoch=2)
    begun.candidate.CopyFrom(make.candidate(loop, "v1", trigger_id="t7"))
    again = make.rollout(loop, "ro2", "STARTED", epoch=8)
    await projection.apply([log.add("models.rollout-events", each) for each in (begun, again)])
    found = await database.read(reports.chain, loop, "r1", window_s=1800)
    assert found == reports.Chain(
        "r1",
        "v1",
        "ro1",
        "run-v1",
        "t7",
        {"behavior_impressions": 11, "behavior_interactions": 12},
        (later[1].id, later[0].id, named.id),
    )
    assert await database.read(reports.chain, loop, "r2", window_s=1800) is None
