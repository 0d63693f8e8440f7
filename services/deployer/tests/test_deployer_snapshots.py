"""A deployer starts from a snapshot, remembers a bounded number of rollouts, and forgets nothing that it needs."""

import time
from dataclasses import replace
from statistics import median

import pytest
from gyre.events.v1.models_pb2 import (
    CandidateRegistered,
    RolloutEvent,
    RolloutEventKind,
    RolloutSnapshot,
    RolloutView,
)
from gyre_core.spec import load_loop
from gyre_core.topics import declared, topic
from gyre_local.testing import eventually
from gyre_runtime.events import message_types
from gyre_runtime.kafka import Producer, create_topics, read_compacted, read_newest

from .conftest import deployer_at

pytestmark = [pytest.mark.adapter, pytest.mark.timeout(300)]
REFUSED_WAY = ("STARTED", "VALIDATED", "LOADED", "WARMED", "ROLLED_BACK", "UNLOADED")
REMEMBERED = 100


async def write_history(place, models, rollouts: int, *, first: int = 0) -> None:
    """Write candidates and log of rollouts that were rolled back, as deployers of any release have written them."""
    epoch = first * len(REFUSED_WAY)
    async with Producer(place.kafka, source="tests", max_queue_records=100_000) as producer:
        for number in range(first, rollouts):
            version = f"old-{number:05d}"
            candidate = CandidateRegistered(
                loop=place.loop,
                version=version,
                run_id=f"run-{version}",
                layout=models.layout.hash,
                columns=models.layout.columns,
                artifact_uri="/nowhere",
                sha256="0" * 64,
            )
            producer.enqueue(topic(place.loop, "models.candidates"), candidate, key=place.loop)
            for kind in REFUSED_WAY:
                epoch += 1
                change = RolloutEvent(
                    loop=place.loop,
                    rollout_id=f"rollout-{version}",
                    kind=RolloutEventKind.Value(f"ROLLOUT_EVENT_KIND_{kind}"),
                    epoch=epoch,
                    version=version,
                    candidate=candidate if kind == "STARTED" else None,
                )
                change.change_time.GetCurrentTime()
                producer.enqueue(topic(place.loop, "models.rollout-events"), change, key=place.loop)
        await producer.flush()


async def test_a_deployer_remembers_a_bounded_number_of_rollouts(running, models, place, gateway) -> None:
    """After 300 rollouts of an older log it lists the newest, starts none of the others again, and goes on counting."""
    await write_history(place, models, 300)
    async with running() as deployer:
        await models.register("v1")
        await deployer.reaches("v1", "PROMOTED", timeout_s=60)
        listed = await deployer.listed()
        assert [each.version for each in listed.rollouts[:2]] == ["v1", "old-00299"]
        assert len(listed.rollouts) <= REMEMBERED + 1
        assert [each.epoch for each in await place.log()] == list(range(1, listed.view.epoch + 1))
    async with running() as newer:
        again = await newer.listed()
        assert [each.version for each in again.rollouts] == [each.version for each in listed.rollouts]
        assert list(again.rollouts[0].events[0].candidate.columns) == list(models.layout.columns)
        assert again.view == listed.view
        await models.register("v2")
        await newer.reaches("v2", "PROMOTED", timeout_s=60)


async def test_a_candidate_that_waited_through_a_restart_is_rolled_out(running, models, place, gateway) -> None:
    """What arrived during a rollout is named in the projection, and begun by the deployer that comes next."""
    gateway.requests = 0
    async with running() as deployer:
        await models.register("v1")
        await deployer.reaches("v1", "PROMOTED", timeout_s=60)
        await models.register("v2")
        await deployer.reaches("v2", "CANARY", timeout_s=60)
        await models.register("v3")
    async with running():
        gateway.requests = 100
        await eventually(lambda: place.is_logged("PROMOTED", "v3"), timeout_s=60, message="v3 is promoted")

    async def named() -> list[str]:
        views = await read_compacted(place.kafka, topic(place.loop, "models.rollouts"), message_types(RolloutView))
        return [each.version for each in views[place.loop].message.models]

    assert await named() == ["v3", "v2"]


async def is_snapshotted(place) -> bool:
    """Whether a snapshot holds the whole log."""
    name = topic(place.loop, "models.rollout-snapshots")
    snapshot = await read_newest(place.kafka, name, message_types(RolloutSnapshot))
    return snapshot is not None and snapshot.message.epoch == len(await place.log())


async def start_s(place) -> float:
    """How long a deployer takes from its start until it answers for the loop, seconds."""
    began = time.perf_counter()
    async with deployer_at(place):
        return time.perf_counter() - began


async def with_history(place, models, name: str, rollouts: int):
    """The place of a loop of its own with so many rollouts, of which an earlier start wrote a snapshot."""
    path = place.loop_file.with_name(f"{name}.yaml")
    path.write_text(place.loop_file.read_text().replace(f"loop: {place.loop}", f"loop: {name}"))
    other = replace(place, loop=name, loop_file=path)
    await create_topics(place.kafka, declared(load_loop(path)))
    await write_history(other, models, rollouts)
    async with deployer_at(other):
        await eventually(lambda: is_snapshotted(other), timeout_s=120, message="the snapshot is written")
    return other


@pytest.mark.slow
async def test_a_start_after_2000_rollouts_is_as_fast_as_one_after_20(models, place) -> None:
    """From the snapshot that an earlier start wrote, it takes at most 1.2 times as long: medians of starts in turn."""
    few = await with_history(place, models, f"{place.loop}-few", 20)
    many = await with_history(place, models, f"{place.loop}-many", 2000)
    times: dict[str, list[float]] = {few.loop: [], many.loop: []}
    for number in range(15):
        for each in (few, many) if number % 2 else (many, few):  # what else uses the machine slows both alike
            times[each.loop].append(await start_s(each))
    after_few, after_many = (median(times[each.loop]) for each in (few, many))
    assert after_many <= 1.2 * after_few, times
