"""Views and whole reads of a topic against the real broker."""

import asyncio
import gc
import warnings
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest
from aiokafka import TopicPartition
from aiokafka.admin import RecordsToDelete
from gyre.events.v1.behavior_pb2 import Interaction
from gyre_local.records import send_undecodable
from gyre_local.timeouts import scaled
from gyre_runtime.events import Event, Record, Unreadable, message_types
from gyre_runtime.kafka import Producer, View, read_compacted, read_log
from gyre_runtime.kafka._names import started_admin

pytestmark = [pytest.mark.adapter, pytest.mark.timeout(30)]

MakeTopic = Callable[..., Awaitable[str]]
TYPES = message_types(Interaction)


def interaction(number: int = 0) -> Interaction:
    """Return a valid payload."""
    return Interaction(user_id=f"u{number}", item_id="i1", type="click")


async def test_a_view_catches_up_then_follows(kafka: str, make_topic: MakeTopic) -> None:
    """A view is ready with the newest of every key, follows changes and removals, keeps out the unreadable."""
    topic, changes = await make_topic("tests.view", compacted=True, partitions=2), []
    async with Producer(kafka, source="test") as producer:
        for number in range(6):
            await producer.send(topic, interaction(number), key=f"k{number % 2}", id=f"e{number}")
        async with View(kafka, topic, TYPES, on_change=lambda key, event: changes.append((key, event))) as view:
            await view.ready()
            assert {key: event.id for key, event in view.events().items()} == {"k0": "e4", "k1": "e5"}
            await producer.send_record(topic, Record(b"k0", b"\xff", []))
            await producer.send(topic, interaction(), key="k0", id="e6")
            async with asyncio.timeout(scaled(5)):
                await view.wait_for(lambda view: view.get("k0") is not None and view.get("k0").id == "e6")
            await producer.send_record(topic, Record(b"k1", None, []))  # type: ignore[arg-type]
            async with asyncio.timeout(scaled(5)):
                await view.wait_for(lambda view: view.get("k1") is None)
            assert changes[-1] == ("k1", None)
    assert list(await read_compacted(kafka, topic, TYPES)) == ["k0"]


async def test_a_view_passes_a_record_that_cannot_be_decoded(kafka: str, make_topic: MakeTopic) -> None:
    """A header's name that is no UTF-8 text stops no view; a log that is read whole refuses such a record."""
    topic = await make_topic("tests.view", compacted=True)
    async with Producer(kafka, source="test") as producer:
        await producer.send(topic, interaction(), key="k0", id="before")
        await send_undecodable(kafka, topic)
        await producer.send(topic, interaction(), key="k1", id="behind")
        async with View(kafka, topic, TYPES) as view:
            async with asyncio.timeout(scaled(20)):
                await view.ready()
            assert {key: event.id for key, event in view.events().items()} == {"k0": "before", "k1": "behind"}
            await send_undecodable(kafka, topic)
            await producer.send(topic, interaction(), key="k1", id="later")
            async with asyncio.timeout(scaled(20)):
                await view.wait_for(lambda view: view.get("k1").id == "later")
    with pytest.raises(Unreadable) as caught:
        [event async for event in read_log(kafka, topic, TYPES)]
    assert caught.value.reason == "BAD_RECORD"


async def test_a_view_catches_up_with_what_came_since(kafka: str, make_topic: MakeTopic) -> None:
    """After `catch_up` the view holds whatever was acknowledged before the call."""
    topic = await make_topic()
    async with Producer(kafka, source="test") as producer, View(kafka, topic, TYPES) as view:
        await view.ready()
        for number in range(20):
            await producer.send(topic, interaction(), key="k", id=f"e{number}")
            await view.catch_up()
            found = view.get("k")
            assert found is not None
            assert found.id == f"e{number}"


async def test_an_empty_view_is_ready(kafka: str, make_topic: MakeTopic) -> None:
    """A topic without records makes an empty view that is ready."""
    assert await read_compacted(kafka, await make_topic("tests.view", compacted=True), TYPES) == {}


async def test_a_log_does_not_skip_what_it_cannot_read(kafka: str, make_topic: MakeTopic) -> None:
    """Reading a log with an unreadable record raises."""
    topic = await make_topic("tests.log")
    async with Producer(kafka, source="test") as producer:
        await producer.send_record(topic, Record(None, b"x", []))
    with pytest.raises(Unreadable):
        [event async for event in read_log(kafka, topic, TYPES)]


async def test_a_view_that_is_read_again_holds_what_it_held(kafka: str, make_topic: MakeTopic) -> None:
    """After an error the events of before are answered until the topic was read again; what is gone by then is not."""
    topic = await make_topic("tests.view")
    failed, seen = asyncio.Event(), []

    def changed(key: str, _: Event | None) -> None:
        if failed.is_set():
            seen.append((key, view.is_ready, set(view.events())))
        elif key == "error":
            failed.set()
            raise ValueError("of one record, once")

    async with Producer(kafka, source="test") as producer, View(kafka, topic, TYPES, on_change=changed) as view:
        await producer.send(topic, interaction(), key="gone")
        for key in ("k0", "k1"):
            await producer.send(topic, interaction(), key=key)
        await view.catch_up()
        admin = await started_admin(kafka)
        await admin.delete_records({TopicPartition(topic, 0): RecordsToDelete(before_offset=1)})
        await admin.close()
        await producer.send(topic, interaction(), key="error")
        async with asyncio.timeout(scaled(20)):
            await failed.wait()
            await view.wait_for(lambda _: bool(seen))
            assert seen[0] == ("k0", False, {"gone", "k0", "k1", "error"})
            await view.wait_for(lambda _: ("gone", False, {"k0", "k1", "error"}) in seen)
            await view.ready()
        assert set(view.events()) == {"k0", "k1", "error"}


async def test_a_start_that_is_cut_short_leaves_no_connection_open(kafka: str, make_topic: MakeTopic) -> None:
    """A view that ends at whatever moment of its start closes what it opened; the garbage collector finds nothing."""
    topic = await make_topic("tests.view", compacted=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(60):
            async with View(kafka, topic, TYPES) as view:
                with suppress(TimeoutError):
                    async with asyncio.timeout(step * 0.0005):
                        await view.ready()
        gc.collect()
    assert [str(each.message) for each in caught if "nclosed" in str(each.message)] == []
