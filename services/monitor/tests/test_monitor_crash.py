"""The monitor as a process, killed at any moment: exact counts, and one trigger, from the real Kafka."""

import asyncio
import sqlite3
from pathlib import Path

import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from gyre.events.v1 import models_pb2 as models
from gyre.monitor.v1 import monitor_pb2 as pb
from gyre.monitor.v1.monitor_pb2_grpc import MonitorServiceStub
from gyre_core.topics import topic
from gyre_local.reserve import free_ports
from gyre_local.testing import eventually
from gyre_local.timeouts import scaled
from gyre_monitor.store import flow
from gyre_runtime import ServiceSettings, channel
from gyre_runtime.kafka import Producer

pytestmark = pytest.mark.adapter
ANSWERS = 3000
CLICKS = 2000


def counts(state_dir: Path) -> tuple[int, int, int]:
    """Impressions and clicked answers of all arms, and events handled, straight from the file."""
    file = state_dir / "monitor.db"
    if not file.exists():
        return 0, 0, 0
    connection = sqlite3.connect(f"file:{file}?mode=ro", uri=True)
    try:
        sums = connection.execute(
            "select coalesce(sum(impressions), 0), coalesce(sum(clicked), 0) from arms"
        ).fetchone()
        seen = connection.execute("select coalesce(sum(events), 0) from stages where stage = 'events'").fetchone()
    except sqlite3.OperationalError:
        return 0, 0, 0
    finally:
        connection.close()
    return (*sums, *seen)


async def produce(kafka: str, loop: str, make) -> None:
    """Answers to many users, and clicks of two thirds of them."""
    async with Producer(kafka, source="test") as producer:
        shown, acted = topic(loop, "behavior.impressions"), topic(loop, "behavior.interactions")
        for n in range(ANSWERS):
            producer.enqueue(shown, make.impression(f"r{n}", f"u{n}"), key=f"u{n}", time=make.begin, id=f"r{n}")
            if n < CLICKS:
                click = make.interaction(f"u{n}")
                producer.enqueue(acted, click, key=f"u{n}", time=make.begin + 1, id=f"e{n}")


async def test_kills_leave_every_count_exact(kafka, loop, make, settings, *, start_process, tail) -> None:
    """SIGKILL in the middle of the stream, twice: each answer and click counts once, and one trigger is sent."""
    triggers = await tail("training.triggers", models.TrainingTrigger)
    await produce(kafka, loop, make)
    env = {"GYRE_MONITOR_BATCH_EVENTS": "100"}
    last = 0
    for _ in range(2):
        victim = start_process(**env)

        def went_on(last: int = last) -> int:
            seen = counts(settings.state_dir)[2]
            return seen if seen > last else 0

        last = await eventually(went_on, timeout_s=40, message="the monitor goes on")
        victim.kill()
        victim.wait()
    last = counts(settings.state_dir)[2]
    assert last < ANSWERS + CLICKS, "the kills hit the stream in its middle"
    survivor = start_process()
    done = (ANSWERS, CLICKS, ANSWERS + CLICKS)
    await eventually(lambda: counts(settings.state_dir)[2] >= done[2], timeout_s=40, message="everything is handled")
    assert counts(settings.state_dir) == done
    found = await eventually(triggers, message="the volume has triggered")
    assert len({event.message.trigger_id for event in found}) == 1, "its run is under way to the end"
    survivor.terminate()
    assert survivor.wait(15) == 0


async def test_a_trigger_that_was_decided_before_a_crash_is_sent_after_it(
    settings, start, log, make, *, projection, database, tail
) -> None:
    """What the transaction decided is sent by the next start under the same id, and once more at most."""
    settings.state_dir.mkdir(parents=True)
    (trigger_id,) = (await projection.apply([log.acted(make.interaction()) for _ in range(12)])).triggers
    service = await start(monitor_database=f"sqlite:///{settings.state_dir.parent / 'monitor.db'}")
    triggers = await tail("training.triggers", models.TrainingTrigger)
    found = await eventually(triggers, timeout_s=20, message="the trigger is sent")
    assert [(event.message.trigger_id, event.message.value) for event in found] == [(trigger_id, 12)]

    async def marked() -> bool:
        return await database.read(flow.unsent) == []

    await eventually(marked, timeout_s=20, message="it is marked as sent")
    assert service.lifespan.health.serving


async def test_without_kafka_it_starts_answers_and_ends(loop, settings, start_process) -> None:
    """Where Kafka is away the monitor takes spans, answers and is ready to, and still ends cleanly on SIGTERM."""
    own, otlp, kafka = (f"127.0.0.1:{port}" for port in free_ports(3))
    process = start_process(GYRE_LISTEN=own, GYRE_OTLP_LISTEN=otlp, GYRE_KAFKA=kafka)
    async with channel(own, ServiceSettings(), name="monitor") as connected:
        await asyncio.wait_for(connected.channel_ready(), scaled(30))
        request = pb.GetLoopStatusRequest(loop=loop)
        assert len((await MonitorServiceStub(connected).GetLoopStatus(request, timeout=30)).stages) == 6

        async def serves() -> bool:
            health = await HealthStub(connected).Check(HealthCheckRequest(), timeout=30)
            return bool(health.status == HealthCheckResponse.SERVING)

        await eventually(serves, timeout_s=20, message="the monitor is ready")
    process.terminate()
    await eventually(lambda: process.poll() is not None, timeout_s=30, message="it ends, though Kafka is away")
    assert process.returncode == 0
