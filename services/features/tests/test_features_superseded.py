"""A change of fields that is older than what the online store holds changes nothing, and is counted."""

import asyncio
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from gyre.events.v1 import behavior_pb2 as behavior
from gyre_core.features import Layout
from gyre_core.spec import LoopSpec
from gyre_core.topics import declared, topic
from gyre_local.reserve import free_ports
from gyre_local.testing import eventually
from gyre_runtime.kafka import Producer, create_topics

pytestmark = pytest.mark.adapter
BEGIN = 1_370_000_000.0
ITEM_CHANGES = {"i1": (10, 5, 10, 20, 7, 15), "i2": (5, 6)}
"""Seconds after BEGIN, in the order of the log: 5, 7 and 15 lose; of one time the later corrects."""
USER_CHANGES = {"u1": (10, 9, 10), "u2": (1,)}


@pytest.fixture(params=[1, 3], ids=["one shard", "three shards"])
def spec(request: pytest.FixtureRequest, with_users: Callable[[int], LoopSpec]) -> LoopSpec:
    """The loop of these tests has fields of items and users."""
    return with_users(request.param)


async def samples(port: int, name: str) -> set[str]:
    """What a process's metrics page says of a metric, line by line; nothing while there is no page."""
    try:
        page = await asyncio.to_thread(urllib.request.urlopen, f"http://127.0.0.1:{port}/metrics", timeout=5)
    except OSError:
        return set()
    with page:
        return {line for line in page.read().decode().splitlines() if line.startswith(name + "{")}


def item_changed(item_id: str, second: int) -> behavior.ItemChanged:
    """A change of an item's genre."""
    genre = ("action", "drama", "comedy")[second % 3]
    return behavior.ItemChanged(
        item_id=item_id, fields={"genres": behavior.FieldValue(categories=behavior.Categories(values=[genre]))}
    )


def user_changed(user_id: str, second: int) -> behavior.UserChanged:
    """A change of whether a user is a member."""
    return behavior.UserChanged(user_id=user_id, fields={"member": behavior.FieldValue(boolean=second % 2 == 0)})


async def send(kafka: str, name: str, make: Callable[[str, int], Any], changes: Mapping[str, tuple[int, ...]]) -> None:
    """Changes by key, each key's in its order."""
    async with Producer(kafka, source="shop") as producer:
        for key, seconds in changes.items():
            for number, second in enumerate(seconds):
                id_ = f"{key}-{number}"
                await producer.send(name, make(key, second), key=key, id=id_, time=BEGIN + second)


@pytest.mark.parametrize("batch_events", ["1", "1000"])
async def test_changes_that_lose_are_counted_by_topic(
    kafka: str, spec: LoopSpec, start_process: Callable[..., Any], batch_events: str
) -> None:
    """In batches of any size, on any number of shards, each change that is older than one before it counts once."""
    await create_topics(kafka, declared(spec))
    loop, layout = spec.loop, Layout.compile(spec).hash
    (port,) = free_ports(1)
    start_process("stream", GYRE_METRICS_LISTEN=f"127.0.0.1:{port}", GYRE_FEATURES_BATCH_EVENTS=batch_events)
    rating = behavior.Interaction(user_id="u1", item_id="i1", type="rating", value=7)
    async with Producer(kafka, source="shop") as producer:
        # So that the user's value is written whole with the item's fields, which come later.
        await producer.send(topic(loop, "behavior.interactions"), rating, key="u1", time=BEGIN + 11)

    async def waiting() -> bool:
        return bool(await samples(port, "gyre_features_late_fields_total"))

    await eventually(waiting, timeout_s=60, message="the rating waits for its item's fields")
    await send(kafka, topic(loop, "catalog.items"), item_changed, ITEM_CHANGES)
    await send(kafka, topic(loop, "catalog.users"), user_changed, USER_CHANGES)
    name = "gyre_features_superseded_total"
    wanted = {
        f'{name}{{layout="{layout}",loop="{loop}",topic="{loop}.catalog.items"}} 3.0',
        f'{name}{{layout="{layout}",loop="{loop}",topic="{loop}.catalog.users"}} 1.0',
    }

    async def counted() -> bool:
        assert await samples(port, name) == wanted
        return True

    await eventually(counted, timeout_s=60, message="each change that lost is counted")
