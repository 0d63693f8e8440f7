"""Records of every size and content: a producer goes on after a refusal, and no record stops a consumer."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import pytest
from gyre.events.v1.behavior_pb2 import Interaction
from gyre_local.testing import eventually
from gyre_runtime import Invalid
from gyre_runtime.events import encode, message_types
from gyre_runtime.kafka import Producer, read_log

pytestmark = [pytest.mark.adapter, pytest.mark.timeout(60)]

MakeTopic = Callable[..., Awaitable[str]]
TYPES = message_types(Interaction)


def interaction(number: int = 0) -> Interaction:
    """Return a valid payload."""
    return Interaction(user_id=f"u{number}", item_id="i1", type="click")


async def ids_in(kafka: str, topic: str) -> list[str]:
    """The ids of a topic's events, in order."""
    return [event.id async for event in read_log(kafka, topic, TYPES)]


async def test_a_record_over_the_limit_is_refused_and_the_next_arrive(kafka: str, make_topic: MakeTopic) -> None:
    """What is larger than its topic takes is refused before it is sent, and every later record arrives."""
    topic = await make_topic()
    large = Interaction(user_id="u", item_id="i", type="x" * 1_100_000)
    async with Producer(kafka, source="test") as producer:
        outcomes = []
        for name in ("before", "large", "after0", "after1"):
            payload = large if name == "large" else interaction()
            outcomes += await asyncio.gather(producer.send(topic, payload, key="k", id=name), return_exceptions=True)
    assert [getattr(each, "reason", each) for each in outcomes] == [None, "RECORD_TOO_LARGE", None, None]
    assert await ids_in(kafka, topic) == ["before", "after0", "after1"]


async def test_what_stands_beside_a_refused_record_arrives(kafka: str, make_topic: MakeTopic) -> None:
    """Of a batch that the broker refuses, only the record at fault is given up: all others arrive, in order, once."""
    topic, dropped = await make_topic(compacted=True), []
    settled: dict[str, bool] = {}
    async with Producer(kafka, source="test", gather_s=0.2, on_drop=lambda *facts: dropped.append(facts)) as producer:
        for number in range(20):
            name = f"e{number}"
            # A compacted topic takes no record without a key, and the broker refuses the whole batch for it.
            key = None if number == 10 else "k"
            producer.enqueue(
                topic, interaction(), key=key, id=name, on_settled=lambda ok, n=name: settled.update({n: ok})
            )
        await producer.flush()
        await producer.send(topic, interaction(), key="k", id="last")
    assert await ids_in(kafka, topic) == [*(f"e{number}" for number in range(20) if number != 10), "last"]
    assert [name for name, arrived in settled.items() if not arrived] == ["e10"]
    assert [where for where, _ in dropped] == [topic]


async def test_records_too_large_for_the_broker_alone_do_not_stop_the_others(kafka: str, make_topic: MakeTopic) -> None:
    """A record that the broker refuses raises; those sent before, beside and after it arrive."""
    topic = await make_topic("alerts", max_bytes=2_000)
    async with Producer(kafka, source="test") as producer:
        for number in range(3):
            large = encode(Interaction(user_id="u", item_id="i", type="x" * 3_000), source="test", key="k")
            outcomes = await asyncio.gather(
                producer.send(topic, interaction(), key="k", id=f"a{number}"),
                producer.send_record(topic, large),
                producer.send(topic, interaction(), key="k", id=f"b{number}"),
                return_exceptions=True,
            )
            assert [type(each) for each in outcomes] == [type(None), Invalid, type(None)]
    assert sorted(await ids_in(kafka, topic)) == sorted(f"{name}{number}" for name in "ab" for number in range(3))


async def test_a_failing_callback_stops_no_record(kafka: str, make_topic: MakeTopic) -> None:
    """The queue goes on when who is told of a record's arrival, or of its loss, fails."""
    topic = await make_topic()

    def fail(*_: object) -> None:
        raise ValueError("told")

    too_large = Interaction(user_id="u", item_id="i", type="x" * 9_000_000)
    async with Producer(kafka, source="test", on_drop=fail) as producer:
        producer.enqueue(topic, interaction(), key="k", id="e0", on_settled=fail)
        with contextlib.suppress(ValueError):
            producer.enqueue(topic, too_large, key="k", on_settled=fail)
        producer.enqueue(topic, interaction(), key="k", id="e1")
        await eventually(lambda: producer.queued == (0, 0), timeout_s=20, message="the queue is sent")
    assert await ids_in(kafka, topic) == ["e0", "e1"]
