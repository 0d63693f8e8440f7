"""Partitions move while a batch waits to be handed over, and what a record with odd headers is known by."""

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from gyre.events.v1 import behavior_pb2 as behavior
from gyre_local.testing import eventually
from gyre_local.timeouts import scaled
from gyre_runtime.checkpoints import Batch, Checkpoint, Place, checkpoints_after, witness_of
from gyre_runtime.events import decode, message_types
from gyre_runtime.kafka import Consumer, ConsumerOptions, Producer

TYPES = message_types(behavior.Interaction)


@pytest.mark.adapter
async def test_no_batch_is_handed_over_after_its_partitions_went(
    kafka: str, make_topic: Callable[..., Awaitable[str]]
) -> None:
    """While the log is looked at, another member takes partitions over: the records in hand are not handled here."""
    name, ends, handled = await make_topic(partitions=2), dict[Place, Checkpoint](), list[tuple[str, int, int]]()

    async def stored(places: Any) -> dict[Place, list[Checkpoint]]:
        return {place: [ends.get(place, Checkpoint())] for place in places}

    def handler(member: str) -> Callable[[Batch], Awaitable[None]]:
        async def handle(batch: Batch) -> None:
            handled.extend((member, event.partition, event.offset) for event in batch.events)
            ends.update(batch.ends)

        return handle

    async def send(first: int) -> None:
        async with Producer(kafka, source="test") as producer:
            for number in range(first, first + 20):
                message = behavior.Interaction(user_id=f"u{number}", item_id="i", type="view")
                await producer.send(name, message, key=f"u{number}", id=f"e{number}")

    options = ConsumerOptions(stored=stored)
    first, second = (Consumer(kafka, group=name, topics=[name], types=TYPES, options=options) for _ in range(2))
    looking, moved = asyncio.Event(), asyncio.Event()
    looks = first._positions.is_same_log  # the moment between fetch and handling, which a test cannot else hold

    async def look(fetched: Any) -> bool:
        answer = await looks(fetched)
        if any(fetched.values()) and len(handled) == 20:
            looking.set()
            await moved.wait()
        return answer

    async def all_handled(count: int) -> bool:
        return len({each[1:] for each in handled}) == count

    async with first, asyncio.TaskGroup() as group:
        group.create_task(first.run_batches(handler("first")))
        await send(0)
        await eventually(lambda: all_handled(20), timeout_s=60, message="the first member handles")
        first._positions.is_same_log = look  # type: ignore[method-assign]
        await send(20)
        await asyncio.wait_for(looking.wait(), scaled(60))
        async with second:
            group.create_task(second.run_batches(handler("second")))
            await eventually(lambda: _handles(handled, "second"), timeout_s=60, message="the second member handles")
            moved.set()
            await eventually(lambda: all_handled(40), timeout_s=60, message="everything is handled")
            second.stop()
        first.stop()
    twice = len(handled) - len({each[1:] for each in handled})
    assert twice == 0


async def _handles(handled: list[tuple[str, int, int]], member: str) -> bool:
    return any(each[0] == member for each in handled)


def test_an_id_that_is_given_twice_makes_one_witness() -> None:
    """What is stored of an event is what is read back from its record, so that its log is known as the same."""
    value = behavior.Interaction(user_id="u", item_id="i", type="view").SerializeToString()
    given = {"ce_source": "s", "ce_type": "gyre.events.v1.Interaction", "ce_time": "2023-11-14T22:13:20Z"}
    ids = [("ce_id", b"one"), ("ce_id", b"other")]
    record: Any = SimpleNamespace(
        topic="shop.behavior.interactions", partition=0, offset=0, key=b"u", value=value, timestamp=1_700_000_000_123,
        timestamp_type=1, headers=[*ids, *((header, text.encode()) for header, text in given.items())],
    )  # fmt: skip
    event = decode(record, TYPES)
    (stored,) = checkpoints_after([event]).values()
    assert stored.witness == witness_of(record)
