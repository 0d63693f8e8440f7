"""The replay clock of the quality worker's partitions: a successor begins with what it showed at its first offset."""

import random
import subprocess
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import GroupCoordinatorNotAvailableError
from gyre.events.v1 import behavior_pb2 as behavior
from gyre.events.v1 import features_pb2 as pb
from gyre_core.spec import Duration, LoopSpec
from gyre_core.topics import declared, topic
from gyre_features.processes.stream import TYPES
from gyre_features.quality.watch import QualityWatch
from gyre_local.testing import eventually
from gyre_runtime.admission import Admission
from gyre_runtime.checkpoints import Checkpoint
from gyre_runtime.events import Record, encode, message_types
from gyre_runtime.kafka import Producer, create_topics
from gyre_runtime.kafka.view import read_log, read_records

Start = Callable[..., "subprocess.Popen[bytes]"]
BEGIN = 1_370_000_040.0
"""The start of a minute; the test loop's windows are of a minute."""


def _rating(value: float) -> behavior.Interaction:
    return behavior.Interaction(user_id="u", item_id="i", type="rating", value=value)


def _received(name: str, offset: int, record: Record) -> Any:
    """A record as a consumer hands it over."""
    now = {"timestamp": round(time.time() * 1000), "timestamp_type": 0}
    return SimpleNamespace(topic=name, partition=0, offset=offset, **record._asdict(), **now)


async def test_what_is_committed_has_the_clock_of_its_offset(spec: LoopSpec) -> None:
    """A successor may begin at any committed offset and decides as the stream does: it is told the clock there."""
    told: list[Checkpoint] = []
    spec = spec.model_copy(update={"events": spec.events.model_copy(update={"max_future": Duration.parse("1h")})})

    async def nothing(_: Any) -> dict[Any, float]:
        return {}

    async def commit(offsets: Any) -> None:
        told.extend(offsets.values())

    watch = QualityWatch({spec.loop: spec}, TYPES, closed_until=nothing, publish=nothing, commit=commit, idle_s=60)  # type: ignore[arg-type]
    name, draw = topic(spec.loop, "behavior.interactions"), random.Random(7)
    stream, clocks = Admission({spec.loop: spec}, TYPES), []
    for offset in range(400):
        far = 10**7 * (draw.random() < 0.05)
        record = encode(_rating(1.0), source="test", time=BEGIN + 60 * offset + draw.uniform(-900, 900) + far)
        received = _received(name, offset, record)
        clocks.append(stream.clock(name, 0))
        stream.decide(received)
        await watch.observe([received])
    assert len(told) > 20
    assert [each.clock for each in told] == [clocks[each.offset] for each in told]


@pytest.mark.adapter
async def test_a_successor_begins_with_the_replay_clock(kafka: str, spec: LoopSpec, start_process: Start) -> None:
    """An event far ahead that a restarted worker reads first is refused as before: the clock of its offset is kept."""
    await create_topics(kafka, declared(spec))
    name, env = topic(spec.loop, "behavior.interactions"), {"GYRE_FEATURES_QUALITY_IDLE_S": "1"}
    later, far = BEGIN + 2 * 86_400, BEGIN + 10**8
    async with Producer(kafka, source="test") as producer:
        for number in range(50):
            await producer.send(name, _rating(1.0), key="u", id=f"e{number}", time=BEGIN + number)
        mark = behavior.ClockMark()
        mark.clock_time.FromSeconds(int(later))
        await producer.send(name, mark, key="u")
        (place,) = {record.partition async for record in read_records(kafka, name)}
        worker = start_process("quality", **env)

        async def committed() -> bool:
            return await _committed(kafka, name, place) == 51

        await eventually(committed, timeout_s=60, message="the mark is passed")
        worker.kill()
        worker.wait()
        await producer.send(name, _rating(1.0), key="u", time=far)
        for number in range(20):
            await producer.send(name, _rating(1.0), key="u", id=f"l{number}", time=later + number)
    start_process("quality", **env)

    async def counted() -> list[int]:
        types, latest = message_types(pb.QualityWindow), {}
        async for event in read_log(kafka, topic(spec.loop, "features.quality"), types):
            latest[event.message.window_start_time.ToSeconds()] = event.message.events
        return [sum(events for start, events in latest.items() if start >= at) for at in (later, far)]

    async def some() -> bool:
        return max(await counted()) >= 20 or (await counted())[1] > 0

    await eventually(some, timeout_s=60, message="the successor counts")
    assert await counted() == [20, 0]


async def _committed(kafka: str, name: str, partition: int) -> int:
    """The offset that the worker's group has committed; -1 for none."""
    admin, place = AIOKafkaAdminClient(bootstrap_servers=kafka), TopicPartition(name, partition)
    await admin.start()
    try:
        found = (await admin.list_consumer_group_offsets("features-quality", partitions=[place])).get(place)
        return -1 if found is None else int(found.offset)
    except GroupCoordinatorNotAvailableError:
        return -1
    finally:
        await admin.close()
