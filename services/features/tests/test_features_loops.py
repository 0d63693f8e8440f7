"""Several loops and more partitions: no loop stops another, and what Kafka has is read, whatever was declared."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions
from grpc_health.v1 import health_pb2, health_pb2_grpc
from gyre_core.features import Layout
from gyre_core.spec import LoopSpec, load_loop, parse_loop
from gyre_core.topics import declared, stream_group, topic
from gyre_features.online.store import OnlineStore
from gyre_features.processes.stream import TOPICS
from gyre_features.settings import FeaturesSettings
from gyre_local.reserve import free_ports
from gyre_local.testing import eventually
from gyre_runtime.events import encode
from gyre_runtime.kafka import create_topics
from gyre_warehouse.tables import INTERACTIONS, ensure_table, open_catalog
from pyiceberg.schema import Schema
from pyiceberg.types import LongType, NestedField
from redis.asyncio import Redis

pytestmark = pytest.mark.adapter
CLICKS = "behavior.interactions"
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
Start = Callable[..., Any]


async def _send(kafka: str, spec: LoopSpec, history: Any, count: int, *, partition: int) -> None:
    """Send clicks to one partition; their ids say which."""
    producer = AIOKafkaProducer(bootstrap_servers=kafka)
    await producer.start()
    try:
        for number in range(count):
            event = history.event(CLICKS, history.rating(1, 1), number)
            record = encode(event.message, source="shop", id=f"{partition}-{number}", time=event.time)
            name = topic(spec.loop, CLICKS)
            await producer.send(name, record.value, key=b"u1", headers=record.headers, partition=partition)
        await producer.flush()
    finally:
        await producer.stop()


def _catalog(tmp_path: Path) -> Any:
    return open_catalog(FeaturesSettings(warehouse=str(tmp_path / "warehouse")))


def _rows(tmp_path: Path, loop: str) -> int:
    return int(ensure_table(_catalog(tmp_path), loop, INTERACTIONS).scan().to_arrow().num_rows)


async def _health(address: str, service: str) -> int:
    async with grpc.aio.insecure_channel(address) as channel:
        request = health_pb2.HealthCheckRequest(service=service)
        try:
            return int((await health_pb2_grpc.HealthStub(channel).Check(request, timeout=5)).status)
        except grpc.aio.AioRpcError:
            return int(health_pb2.HealthCheckResponse.UNKNOWN)


def _changed(loop_file: Path) -> Layout:
    """Another layout of the loop, which its file then says, too."""
    loop_file.write_text(loop_file.read_text().replace("[1d, 7d]", "[1d, 7d, 14d]"))
    return Layout.compile(load_loop(loop_file))


@pytest.fixture
def broken(tmp_path: Path, spec: LoopSpec, loop_file: Path) -> tuple[LoopSpec, Path]:
    """A second loop, whose table of clicks holds other types than this version writes, and its file."""
    other = parse_loop(loop_file.read_text().replace(spec.loop, f"x{spec.loop[1:]}"), source="test")
    path = tmp_path / "broken.yaml"
    path.write_text(loop_file.read_text().replace(spec.loop, other.loop))
    (tmp_path / "warehouse").mkdir()
    catalog = _catalog(tmp_path)
    catalog.create_namespace(other.loop)
    column = NestedField(field_id=1, name="event_id", field_type=LongType(), required=False)
    catalog.create_table((other.loop, INTERACTIONS), schema=Schema(column))
    return other, path


async def test_a_loop_whose_archive_fails_does_not_stop_another(  # noqa: PLR0917 - fixtures
    kafka: str, tmp_path: Path, spec: LoopSpec, loop_file: Path, broken: tuple[LoopSpec, Path], history: Any,
    start_process: Start,
) -> None:  # fmt: skip
    """Rows of a loop are appended beside one whose table takes none; health says which loop does not get on."""
    other, other_file = broken
    for each in (other, spec):
        await create_topics(kafka, declared(each))
        await _send(kafka, each, history, 10, partition=0)
    (port,) = free_ports(1)
    files = f"{other_file}:{loop_file}"
    archive = start_process("archive", GYRE_LOOPS=files, GYRE_LISTEN=f"127.0.0.1:{port}", GYRE_FEATURES_ARCHIVE_S="0.2")
    await eventually(lambda: _rows(tmp_path, spec.loop) == 10, timeout_s=60, message="the rows are appended")

    async def published() -> bool:
        services = ("", f"features-archive/{spec.loop}", f"features-archive/{other.loop}")
        return [await _health(f"127.0.0.1:{port}", each) for each in services] == [SERVING, SERVING, NOT_SERVING]

    await eventually(published, timeout_s=30, message="health tells the loops apart")
    assert archive.poll() is None
    assert "WAREHOUSE_SCHEMA_CONFLICT" in archive.log.read_text()


async def test_added_partitions_are_read_archived_and_backfilled(  # noqa: PLR0917 - fixtures
    kafka: str, redis: Redis, tmp_path: Path, spec: LoopSpec, loop_file: Path, history: Any, start_process: Start
) -> None:
    """Partitions that a live topic gets count within seconds, and a backfill takes them, undeclared as they are."""
    await create_topics(kafka, declared(spec))
    await _send(kafka, spec, history, 10, partition=0)
    stream, archive = start_process("stream"), start_process("archive", GYRE_FEATURES_ARCHIVE_S="0.2")

    async def applied(layout: Layout, ends: dict[int, int]) -> bool:
        store = OnlineStore(redis, spec, layout)
        (applied_offsets,) = await store.applied_offsets([(topic(spec.loop, CLICKS), each) for each in ends])
        return [applied_offsets[topic(spec.loop, CLICKS), each] for each in ends] == list(ends.values())

    layout = Layout.compile(spec)
    await eventually(lambda: applied(layout, {0: 10}), timeout_s=60, message="the stream reads")
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    try:
        names = [topic(spec.loop, each) for each in (CLICKS, "catalog.items")]
        await admin.create_partitions({name: NewPartitions(total_count=5) for name in names})
    finally:
        await admin.close()
    await _send(kafka, spec, history, 7, partition=4)
    await eventually(lambda: applied(layout, {0: 10, 4: 7}), timeout_s=60, message="the new partition is read")
    await eventually(lambda: _rows(tmp_path, spec.loop) == 17, timeout_s=60, message="the new partition is archived")
    assert "gyre.yaml says shards.kafka_partitions: 2" in stream.log.read_text()
    for process in (stream, archive):
        process.terminate()
        assert await asyncio.to_thread(process.wait, 20) == 0
    newer = _changed(loop_file)
    assert await asyncio.to_thread(start_process("backfill").wait, 90) == 0
    assert await applied(newer, {0: 10, 4: 7})


@asynccontextmanager
async def _member_that_does_nothing(kafka: str, group: str, topics: list[str]) -> AsyncIterator[AIOKafkaConsumer]:
    """A member of a group that takes its share of partitions, the first of each topic, and applies nothing."""
    member = AIOKafkaConsumer(bootstrap_servers=kafka, group_id=group, client_id="a", enable_auto_commit=False)
    member.subscribe(topics)
    await member.start()
    try:
        yield member
    finally:
        await member.stop()


async def test_behaviour_is_not_held_for_ever_by_a_failed_wait(
    kafka: str, redis: Redis, spec: LoopSpec, layout: Layout, history: Any, start_process: Start
) -> None:
    """Where the wait for the catalogue fails, the loop's work fails and starts again, and then applies behaviour."""
    await create_topics(kafka, declared(spec))
    store, clicks, items = OnlineStore(redis, spec, layout), topic(spec.loop, CLICKS), topic(spec.loop, "catalog.items")
    await _send(kafka, spec, history, 1, partition=1)
    topics = [topic(spec.loop, each) for each in TOPICS]
    broken = store.names.applied_offset(0, (items, 0))
    async with _member_that_does_nothing(kafka, stream_group(spec.loop, layout.hash), topics) as member:
        await eventually(lambda: len(member.assignment()) == 2 * len(topics), message="the member has all partitions")
        await redis.set(broken, "no checkpoint")
        worker = start_process("stream")
        message = "the failure ends the loop's work"
        await eventually(lambda: "a loop's work failed" in worker.log.read_text(), timeout_s=60, message=message)
        assert TopicPartition(items, 0) in member.assignment()
        await redis.delete(broken)

        async def applied() -> bool:
            return (await store.applied_offsets([(clicks, 1)]))[0][clicks, 1] == 1

        await eventually(applied, timeout_s=60, message="behaviour is applied")
