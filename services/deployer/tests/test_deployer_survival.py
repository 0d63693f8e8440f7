"""What the deployer survives: its own death at any step, a twin, a Triton that forgets, a Kafka that goes away."""

import asyncio
import signal

import pytest
from gyre.deployer.v1.deployer_pb2 import PromoteRequest
from gyre.events.v1.models_pb2 import RolloutEventKind, RolloutView
from gyre_core.models import triton_model
from gyre_core.topics import topic
from gyre_deployer.adapters.kafka_log import KafkaRolloutLog
from gyre_deployer.adapters.repository import LOAD_RECORDS
from gyre_deployer.domain.rollouts import Candidate, Change, Kind, LoopState, apply
from gyre_deployer.ports import FencedByPeer
from gyre_local.testing import eventually
from gyre_runtime import DeadlineExceeded, Unavailable
from gyre_runtime.events import message_types
from gyre_runtime.kafka import read_compacted

from .fakes import WAY_UP

pytestmark = [pytest.mark.adapter, pytest.mark.timeout(300)]  # processes start slowly on a busy machine


async def told(place, version: str) -> list[tuple[str, float]]:
    """Kind and share of each change of a version in the log."""
    changes = [each for each in await place.log() if each.version == version]
    return [(RolloutEventKind.Name(each.kind).removeprefix("ROLLOUT_EVENT_KIND_"), each.share) for each in changes]


async def is_told(place, version: str, change: tuple[str, float]) -> bool:
    """Whether the log holds a change of a version."""
    return change in await told(place, version)


async def test_a_killed_deployer_goes_on_where_it_was(spawn, models, place, gateway) -> None:
    """Killed with SIGKILL between steps and started again, it takes each remaining step once and promotes."""
    program = await spawn()
    await models.register("v1")
    await eventually(lambda: place.is_logged("PROMOTED", "v1"), timeout_s=40, message="v1 is promoted")
    await models.register("v2")
    for victim in (("STARTED", 0.0), ("SHIFTED", 0.1), ("SHIFTED", 0.5)):
        await eventually(lambda victim=victim: is_told(place, "v2", victim), timeout_s=40, message=str(victim))
        await program.kill()
        program = await spawn()
    await eventually(lambda: place.is_logged("PROMOTED", "v2"), timeout_s=40, message="v2 is promoted")
    assert await told(place, "v2") == WAY_UP
    epochs = [each.epoch for each in await place.log()]
    assert epochs == list(range(1, len(epochs) + 1))
    views = await read_compacted(place.kafka, topic(place.loop, "models.rollouts"), message_types(RolloutView))
    view = views[place.loop].message
    assert (view.epoch, [arm.version for arm in view.arms]) == (len(epochs), ["v2"])
    program.process.send_signal(signal.SIGTERM)
    assert await program.ended() == 0


async def test_a_second_deployer_fences_the_first(spawn, start, models, place, gateway) -> None:
    """The older of two deployers exits with code 1 once the newer has written, and the log has each epoch once."""
    older = await spawn()
    await older.is_ready()
    newer = await start()
    await models.register("v1")
    await newer.reaches("v1", "PROMOTED")
    assert await older.ended() == 1
    epochs = [each.epoch for each in await place.log()]
    assert epochs == list(range(1, len(epochs) + 1))
    assert [kind for kind, _ in await told(place, "v1")] == ["STARTED", "VALIDATED", "LOADED", "WARMED", "PROMOTED"]


def candidate(loop: str, version: str) -> Candidate:
    """A candidate that is never loaded."""
    return Candidate(loop, version, "run", "layout", ("a", "b"), "/nowhere", "0" * 64, "trigger", {"t": 1}, {"m": 0.5})


async def test_the_log_reads_what_it_wrote_and_fences_its_twin(kafka, loop, topics) -> None:
    """Changes come back field by field, with and without a snapshot; a fenced log writes nothing."""
    started = Change("r1", Kind.STARTED, "v1", reason="why", epoch=1, time=12.5, candidate=candidate(loop, "v1"))
    validated = Change("r1", Kind.VALIDATED, "v1", live_version="v0", share=0.25, step=2, epoch=2, time=13.25)
    loaded = Change("r1", Kind.LOADED, "v1", epoch=3, time=13.5)
    first_state = apply(LoopState(loop), started)
    second_state = apply(first_state, validated)
    third_state = apply(second_state, loaded)
    async with KafkaRolloutLog(kafka, loop) as first:
        assert await first.read() == (LoopState(loop), 0)
        await first.append([started], first_state, waiting=[], is_snapshot=False)
        async with KafkaRolloutLog(kafka, loop) as second:
            with pytest.raises(FencedByPeer):
                await first.append([validated], second_state, waiting=[], is_snapshot=True)
            assert await second.read() == (first_state, 0)
            await second.append([validated], second_state, waiting=[], is_snapshot=True)
            await second.reopen()
            assert await second.read() == (second_state, 2)
            await second.append([loaded], third_state, waiting=[], is_snapshot=False)
            assert await second.read() == (third_state, 2)
            await second.append([], third_state, waiting=[], is_snapshot=True)
            assert await second.read() == (third_state, 3)


async def test_a_restarted_triton_gets_its_models_back(start, models, place, gateway, triton) -> None:
    """All loaded versions are loaded again within seconds, and the canary that was under way goes on to its end."""
    deployer = await start(deployer_outage_pause_s=0.2)
    await models.register("v1")
    await deployer.reaches("v1", "PROMOTED")
    gateway.requests = 0
    await models.register("v2")
    await deployer.reaches("v2", "CANARY")
    triton.process.stop()

    async def says_so() -> bool:
        rollout = await deployer.rollout("v2")
        return rollout is not None and "Triton" in rollout.reason

    try:
        gateway.tripped.add("v2")
        await eventually(says_so, message="the rollout says that it waits for Triton")
    finally:
        triton.process.start()
    gateway.tripped.clear()
    for version in ("v1", "v2"):
        await eventually(lambda version=version: place.is_served(version), message=f"{version} is loaded again")
    gateway.requests = 100
    rollout = await deployer.reaches("v2", "PROMOTED")
    assert "observed anew" in [each.reason for each in rollout.events if each.share == 0.1][-1]


async def test_without_triton_a_rollout_waits(start, models, place, triton) -> None:
    """A candidate that arrives while Triton is down waits, says why, and is rolled out once Triton is back."""
    deployer = await start()
    triton.process.stop()
    try:
        await models.register("v1")

        async def says_so() -> bool:
            rollout = await deployer.rollout("v1")
            return rollout is not None and "Triton does not answer" in rollout.reason

        await eventually(says_so, message="the rollout says that it waits for Triton")
        assert await told(place, "v1") == [("STARTED", 0.0)]
    finally:
        triton.process.start()
    await deployer.reaches("v1", "PROMOTED")


async def test_a_kafka_that_comes_back_is_written_again(start, models, place, kafka_process) -> None:
    """Kafka is restarted in the middle of a rollout, which then goes on with no change lost or repeated."""
    deployer = await start()
    await models.register("v1")
    await deployer.reaches("v1", "PROMOTED")
    await models.register("v2")
    rollout = await deployer.reaches("v2", "CANARY")
    await asyncio.to_thread(kafka_process.stop)
    await asyncio.to_thread(kafka_process.start)
    request = PromoteRequest(loop=place.loop, rollout_id=rollout.rollout_id)

    async def promoted() -> bool:
        try:
            await deployer.stub.Promote(request, timeout=30)
        except (Unavailable, DeadlineExceeded):
            return False
        return True

    await eventually(promoted, timeout_s=60, message="the log can be written again")
    assert await told(place, "v2") == [*WAY_UP[:5], ("PROMOTED", 1.0)]
    await models.register("v3")
    await deployer.reaches("v3", "CANARY", timeout_s=40)


async def test_a_file_system_that_takes_nothing_ends_nothing(running, models, place, gateway) -> None:
    """While Triton's repository cannot be written the rollout waits and says why; then it goes on to its promotion."""
    # A folder in the place of a file stands for a disk that is full, read-only or away.
    obstacle = place.triton.repository / LOAD_RECORDS / f".{triton_model(place.loop, 'v1')}.json"
    obstacle.mkdir(parents=True)
    async with running() as deployer:
        await models.register("v1")

        async def waits() -> bool:
            rollout = await deployer.rollout("v1")
            return deployer.lifespan.failed or (rollout is not None and "Triton's repository" in rollout.reason)

        await eventually(waits, timeout_s=60, message="the rollout waits for the repository")
        assert not deployer.lifespan.failed, "the file system ended the deployer"
        obstacle.rmdir()
        await deployer.reaches("v1", "PROMOTED", timeout_s=90)
