"""Another log in Kafka than the one that was applied: nothing is read until it is accepted; what is gone is said."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from grpc_health.v1 import health_pb2, health_pb2_grpc
from gyre.events.v1.features_pb2 import QualityWindow
from gyre_core.features import Layout, Reader, RequestContext
from gyre_core.spec import LoopSpec
from gyre_core.topics import declared, topic
from gyre_features.online.store import OnlineStore
from gyre_features.settings import FeaturesSettings
from gyre_local.reserve import free_ports
from gyre_local.testing import eventually
from gyre_runtime.events import encode, message_types
from gyre_runtime.kafka import create_topics, read_log
from gyre_warehouse.tables import INTERACTIONS, ensure_table, open_catalog
from redis.asyncio import Redis

pytestmark = pytest.mark.adapter
CLICKS = "behavior.interactions"
QUICK = {"GYRE_FEATURES_ARCHIVE_S": "0.2"}
Start = Callable[..., Any]


@asynccontextmanager
async def _admin(kafka: str) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    try:
        yield admin
    finally:
        await admin.close()


class Clicks:
    """Clicks of one user on one item, in the first partition of the loop's topic."""

    def __init__(self, kafka: str, spec: LoopSpec, history: Any) -> None:
        self.name, self._kafka, self._spec, self._history = topic(spec.loop, CLICKS), kafka, spec, history
        self.loop = spec.loop

    async def send(self, first: int, end: int) -> None:
        """Send the clicks of some numbers, which are their ids and the seconds of their times."""
        producer = AIOKafkaProducer(bootstrap_servers=self._kafka)
        await producer.start()
        try:
            for number in range(first, end):
                event = self._history.event(CLICKS, self._history.rating(1, 1), number)
                record = encode(event.message, source="shop", id=event.id, time=event.time)
                await producer.send(self.name, record.value, key=b"u1", headers=record.headers, partition=0)
            await producer.flush()
        finally:
            await producer.stop()

    async def delete_topic(self) -> None:
        """Delete the topic, and create it again as it was declared."""
        async with _admin(self._kafka) as admin:
            await admin.delete_topics([self.name])

            async def gone() -> bool:
                return self.name not in await admin.list_topics()

            await eventually(gone, timeout_s=20, message="the topic is deleted")
        await create_topics(self._kafka, [each for each in declared(self._spec) if each.name == self.name])

    def accept(self, beginning: str) -> None:
        """Run the command that the log names."""
        clean = {key: value for key, value in os.environ.items() if not key.startswith("GYRE_")}
        gyre = str(Path(sys.executable).parent / "gyre")
        command = [gyre, "log", "accept", self.loop, CLICKS, "--from", beginning]
        env = {**clean, "GYRE_KAFKA": self._kafka}
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    async def delete_records(self, before: int) -> None:
        """Let Kafka forget the records before an offset, as retention does."""
        async with _admin(self._kafka) as admin:
            await admin.delete_records({TopicPartition(self.name, 0): RecordsToDelete(before_offset=before)})


@pytest.fixture
async def clicks(kafka: str, spec: LoopSpec, history: Any) -> Clicks:
    """The topics of the loop, and its clicks."""
    await create_topics(kafka, declared(spec))
    return Clicks(kafka, spec, history)


@pytest.fixture
def counted(redis: Redis, spec: LoopSpec, layout: Layout) -> Callable[[], Any]:
    """Reads how many clicks of the user the online store has counted, undecayed within their few minutes."""
    store = OnlineStore(redis, spec, layout)
    slot = layout.columns.index("popular_7d")

    async def read() -> float:
        values = await store.read("u1", ["i1"])
        context = RequestContext(1_370_000_000.0 + 700)
        matrix, _ = Reader(layout).matrix(values.user, values.everyone, values.items, ["i1"], context)
        return float(matrix[0][slot])

    return read


def _rows(tmp_path: Path, spec: LoopSpec) -> int:
    catalog = open_catalog(FeaturesSettings(warehouse=str(tmp_path / "warehouse")))
    return len(set(ensure_table(catalog, spec.loop, INTERACTIONS).scan().to_arrow()["event_id"].to_pylist()))


async def _health(address: str, service: str) -> int:
    async with grpc.aio.insecure_channel(address) as channel:
        try:
            answer = await health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(service=service), timeout=5
            )
        except grpc.aio.AioRpcError:
            return health_pb2.HealthCheckResponse.UNKNOWN
        return int(answer.status)


async def test_a_topic_made_anew_with_more_records_is_read_once_it_is_accepted(
    kafka: str, tmp_path: Path, spec: LoopSpec, clicks: Clicks, counted: Any, start_process: Start
) -> None:
    """Another log behind the same name is read by stream and archive, which say so, only once it is accepted."""
    await clicks.send(0, 20)
    (port,) = free_ports(1)
    first = [start_process(name, **QUICK) for name in ("stream", "archive")]

    async def stand(count: int) -> bool:
        return _rows(tmp_path, spec) == count and abs(await counted() - count) < 0.5

    await eventually(lambda: stand(20), timeout_s=60, message="the first log is applied")
    for process in first:
        process.terminate()
    for process in first:
        assert await asyncio.to_thread(process.wait, 20) == 0
    await clicks.delete_topic()
    await clicks.send(100, 160)
    second = [start_process("stream", GYRE_LISTEN=f"127.0.0.1:{port}", **QUICK), start_process("archive", **QUICK)]
    for process in second:
        await eventually(
            lambda process=process: "LOG_REPLACED" in process.log.read_text(), timeout_s=60, message="it is said"
        )
        said = process.log.read_text()
        assert f"gyre log accept {spec.loop} {CLICKS} --from" in said
        assert "partition 0: the record at offset 19 was" in said
    assert await stand(20)
    address, loop_service = f"127.0.0.1:{port}", f"features-stream/{spec.loop}"

    async def not_serving() -> bool:
        return await _health(address, loop_service) == health_pb2.HealthCheckResponse.NOT_SERVING

    await eventually(not_serving, timeout_s=20, message="the loop does not serve")
    clicks.accept("start")
    await eventually(lambda: stand(80), timeout_s=60, message="the new log is counted beside the old one")

    async def serving() -> bool:
        return await _health(address, loop_service) == health_pb2.HealthCheckResponse.SERVING

    await eventually(serving, timeout_s=20, message="the loop serves")
    for process in second:
        process.terminate()
    for process in second:
        assert await asyncio.to_thread(process.wait, 20) == 0
    third = [start_process(name, **QUICK) for name in ("stream", "archive")]
    await clicks.send(160, 170)
    await eventually(lambda: stand(90), timeout_s=60, message="the accepted log is known again")
    assert not any("LOG_REPLACED" in process.log.read_text() for process in third)


async def test_a_tail_that_is_lost_while_running_stops_the_loop(
    kafka: str, spec: LoopSpec, clicks: Clicks, counted: Any, start_process: Start
) -> None:
    """A topic that becomes shorter than what was applied is not read again from its start by a running stream."""
    await clicks.send(0, 20)
    stream = start_process("stream")

    async def stand(count: int) -> bool:
        return abs(await counted() - count) < 0.5

    await eventually(lambda: stand(20), timeout_s=60, message="the log is applied")
    await clicks.delete_topic()
    await clicks.send(0, 5)
    await eventually(
        lambda: "LOG_REPLACED" in stream.log.read_text(), timeout_s=60, message="the stream says what it found"
    )
    assert "20 records were applied, and the log ends at 5" in stream.log.read_text()
    assert await stand(20)
    clicks.accept("end")
    await eventually(lambda: "a log was accepted" in stream.log.read_text(), timeout_s=30)
    await clicks.send(20, 30)
    await eventually(lambda: stand(30), timeout_s=60, message="what comes after counts")


async def test_deleted_records_are_said_and_passed_over(
    spec: LoopSpec, clicks: Clicks, counted: Any, start_process: Start
) -> None:
    """What Kafka deleted before it was read is named by its offsets; the records behind it count."""
    await clicks.send(0, 10)
    first = start_process("stream")

    async def stand(count: int) -> bool:
        return abs(await counted() - count) < 0.5

    await eventually(lambda: stand(10), timeout_s=60, message="the log is applied")
    first.terminate()
    assert await asyncio.to_thread(first.wait, 20) == 0
    await clicks.send(10, 315)
    await clicks.delete_records(310)
    second = start_process("stream")
    await eventually(lambda: stand(15), timeout_s=60, message="what is left counts")
    said = [json.loads(line)["message"] for line in second.log.read_text().splitlines()]
    assert "partition 0: offsets 10–310 were gone" in said


@pytest.fixture
def quality_counts(kafka: str, spec: LoopSpec) -> Callable[[int], Any]:
    """Whether the newest windows of live quality hold so many clicks together."""
    types = message_types(QualityWindow)

    async def read(count: int) -> bool:
        published = [event.message async for event in read_log(kafka, topic(spec.loop, "features.quality"), types)]
        latest = {(each.topic, each.partition, each.window_start_time.ToSeconds()): each for each in published}
        return sum(each.events for each in latest.values()) == count

    return read


async def test_live_quality_counts_another_log_once_it_is_accepted(
    clicks: Clicks, quality_counts: Any, start_process: Start
) -> None:
    """A topic made anew with more records is told from the one that was counted, and counted once it is accepted."""
    await clicks.send(0, 20)
    first = start_process("quality", GYRE_FEATURES_QUALITY_IDLE_S="1")
    await eventually(lambda: quality_counts(20), timeout_s=60, message="the first log is counted")
    first.terminate()
    assert await asyncio.to_thread(first.wait, 20) == 0
    await clicks.delete_topic()
    await clicks.send(100, 160)
    second = start_process("quality", GYRE_FEATURES_QUALITY_IDLE_S="1")
    await eventually(lambda: "LOG_REPLACED" in second.log.read_text(), timeout_s=60, message="another log is said")
    assert f"gyre log accept {clicks.loop} {CLICKS} --from" in second.log.read_text()
    assert "partition 0: the record at offset 19 was" in second.log.read_text()
    assert await quality_counts(20)
    clicks.accept("start")
    await eventually(lambda: quality_counts(80), timeout_s=60, message="the accepted log is counted from its start")
    assert second.poll() is None


async def test_live_quality_notices_a_tail_that_is_lost_while_it_runs(
    clicks: Clicks, quality_counts: Any, start_process: Start
) -> None:
    """A topic that becomes shorter than what was counted is not counted on before it is accepted."""
    await clicks.send(0, 20)
    worker = start_process("quality", GYRE_FEATURES_QUALITY_IDLE_S="1")
    await eventually(lambda: quality_counts(20), timeout_s=60, message="the log is counted")
    await clicks.delete_topic()
    await clicks.send(0, 5)
    await eventually(lambda: "LOG_REPLACED" in worker.log.read_text(), timeout_s=60, message="another log is said")
    assert "offset 19 was read, and the log ends at 5" in worker.log.read_text()
    assert await quality_counts(20)
    clicks.accept("end")
    await eventually(lambda: "a log was accepted" in worker.log.read_text(), timeout_s=60, message="it is accepted")
    await clicks.send(200, 210)
    await eventually(lambda: quality_counts(30), timeout_s=60, message="what comes after is counted")
    assert worker.poll() is None
