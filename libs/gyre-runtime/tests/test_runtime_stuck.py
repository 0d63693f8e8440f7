"""A topic partition that takes nothing holds up no other: what is enqueued of the others reaches Kafka."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from gyre.events.v1.behavior_pb2 import Interaction
from gyre_local.testing import eventually
from gyre_local.timeouts import scaled
from gyre_runtime.events import message_types
from gyre_runtime.kafka import Producer, read_log

pytestmark = [pytest.mark.adapter, pytest.mark.timeout(120)]
MakeTopic = Callable[..., Awaitable[str]]
TYPES = message_types(Interaction)
LARGE = Interaction(user_id="u", item_id="x" * 100, type="y" * 8000)
MEDIUM = Interaction(user_id="u", item_id="i", type="y" * 1000)
SMALL = Interaction(user_id="u", item_id="i", type="click")


async def delete(kafka: str, topic: str) -> None:
    """Delete a topic, and wait until the broker knows it no more."""
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    try:
        await admin.delete_topics([topic])
        async with asyncio.timeout(scaled(20)):
            while topic in await admin.list_topics():
                pass
    finally:
        await admin.close()


@pytest.mark.parametrize("is_known", [True, False])
async def test_a_topic_that_takes_nothing_holds_up_no_other(kafka: str, make_topic: MakeTopic, is_known: bool) -> None:
    """While records of a topic that was deleted, or never was, wait, those of others arrive, in order and all."""
    sick, well = await make_topic(), await make_topic("other.events", partitions=2)
    arrived: list[str] = []
    sick_settled: list[bool] = []
    async with Producer(kafka, source="test") as producer:
        for topic in (sick, well) if is_known else (well,):
            await producer.send(topic, SMALL, key="u", id="first")
        await delete(kafka, sick)
        for number in range(100):
            producer.enqueue(sick, LARGE, key="u", id=f"s{number}", on_settled=sick_settled.append)
        for number in range(200):
            key, name = f"k{number % 4}", f"w{number}"
            producer.enqueue(
                well, SMALL, key=key, id=name, on_settled=lambda ok, n=name: arrived.append(n) if ok else None
            )
        await eventually(lambda: len(arrived) == 200, timeout_s=60, message="the well topic's records arrive")
        assert len(sick_settled) < 100, "some of the sick topic's still wait"
    assert True not in sick_settled
    assert len(sick_settled) == 100
    read = [(event.key, event.id) async for event in read_log(kafka, well, TYPES) if event.id != "first"]
    for key in range(4):
        assert [name for of, name in read if of == f"k{key}"] == [f"w{number}" for number in range(key, 200, 4)]


@pytest.mark.parametrize("bound", [{"max_queue_records": 300}, {"max_queue_bytes": 1_000_000}])
async def test_a_topic_that_takes_nothing_leaves_room_to_others(
    kafka: str, make_topic: MakeTopic, bound: dict[str, int]
) -> None:
    """Where a stuck topic has filled the queue, its newest records give way to those of others, which arrive."""
    sick, well = await make_topic(), await make_topic("other.events")
    dropped, arrived = Counter[tuple[str, str]](), list[bool]()
    async with Producer(
        kafka, source="test", on_drop=lambda topic, reason: dropped.update([(topic, reason)]), **bound
    ) as producer:
        await producer.send(sick, SMALL, key="u", id="first")
        await producer.send(well, SMALL, key="u", id="first")
        await delete(kafka, sick)
        taken = [producer.enqueue(sick, LARGE, key="u") for _ in range(400)]
        assert not all(taken)
        full = dropped[sick, "QUEUE_FULL"]
        for _ in range(20):
            assert producer.enqueue(well, MEDIUM, key="u", on_settled=arrived.append)
        await eventually(lambda: arrived == [True] * 20, timeout_s=60, message="the well topic's records arrive")
        assert producer.queued[0] <= bound.get("max_queue_records", 400)
        assert producer.queued[1] <= bound.get("max_queue_bytes", 10**9)
        assert dropped[sick, "QUEUE_FULL"] > full
    assert not any(topic == well for topic, _ in dropped)
    assert producer.queued == (0, 0)
    assert dropped.total() == 400


async def test_what_goes_again_of_a_stuck_topic_holds_up_no_other(kafka: str, make_topic: MakeTopic) -> None:
    """A producer that is replaced sends again by partitions: one that takes nothing delays nothing of the others."""
    sick, well = await make_topic(), await make_topic("other.events", max_bytes=2_000)
    arrived, refused = list[str](), list[bool]()
    async with Producer(kafka, source="test") as producer:
        await producer.send(sick, SMALL, key="u", id="first")
        await producer.send(well, SMALL, key="u", id="first")
        await delete(kafka, sick)
        for number in range(60):
            producer.enqueue(sick, LARGE, key="u", id=f"s{number}")
        too_large = Interaction(user_id="u", item_id="i", type="z" * 3_000)
        for number in range(60):
            if number % 20 == 10:
                producer.enqueue(well, too_large, key="u", on_settled=refused.append)
            name = f"w{number}"
            producer.enqueue(
                well, SMALL, key="u", id=name, on_settled=lambda ok, n=name: arrived.append(n) if ok else None
            )
        await eventually(
            lambda: len(arrived) == 60 and len(refused) == 3, timeout_s=90, message="the well topic's records arrive"
        )
        assert refused == [False] * 3
    assert [event.id async for event in read_log(kafka, well, TYPES)] == [
        "first",
        *(f"w{number}" for number in range(60)),
    ]
