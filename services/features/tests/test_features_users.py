"""What is known of users: newest fields stand whatever the order, and go with the user who is forgotten."""

import itertools
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from gyre.features.v1 import features_pb2 as pb
from gyre.features.v1.features_pb2_grpc import FeaturesServiceStub
from gyre_core.features import Layout, Reader, RequestContext
from gyre_core.keys import pattern as store_keys
from gyre_core.spec import LoopSpec
from gyre_core.topics import dead_letter_topic, declared, topic
from gyre_features.online.store import OnlineStore
from gyre_features.processes.serve import serve
from gyre_features.settings import FeaturesSettings
from gyre_features.stream.loop_stream import LoopStream
from gyre_local.testing import eventually
from gyre_runtime import Lifespan, ServiceSettings, channel
from gyre_runtime.events import Event
from gyre_runtime.kafka import create_topics, read_records
from gyre_warehouse.tables import USERS, ensure_table, open_catalog, read_columns
from redis.asyncio import Redis

pytestmark = pytest.mark.adapter
BEGIN = 1_370_000_000.0
Produce = Callable[[Sequence[Event]], Awaitable[None]]


@pytest.fixture
def spec(with_users: Callable[[int], LoopSpec]) -> LoopSpec:
    """The loop of these tests has fields of users."""
    return with_users(1)


def change(history: Any, user_id: str, number: int, *, offset: int) -> Event:
    """The number-th version of what is known of a user, a second after the one before."""
    made: Event = history.event("catalog.users", history.person(user_id, number), offset, time=BEGIN + number)
    return made._replace(id=f"{user_id}-{number}")


async def _ignore(batch: object, events: Sequence[Event]) -> None:
    pass


async def served(store: OnlineStore, user_id: str) -> list[float]:
    """The user's columns, as they are read for any item."""
    values = await store.read(user_id, ["i1"])
    reader = Reader(store.layout)
    matrix, _ = reader.matrix(values.user, values.everyone, values.items, ["i1"], RequestContext(BEGIN + 100))
    columns = [store.layout.index[name] for name in ("member", "likes_0", "likes_1")]
    return [float(number) for number in matrix[0, columns]]


@pytest.mark.parametrize("order", list(itertools.permutations((1, 2, 3))))
async def test_the_newest_fields_stand_in_any_order(
    redis: Redis, spec: LoopSpec, history: Any, order: tuple[int, ...]
) -> None:
    """Versions in any order and batches, one of them sent again, leave the newest; others keep their defaults."""
    store = OnlineStore(redis, spec, Layout.compile(spec))
    worker, again = (LoopStream(store, on_batch=_ignore) for _ in range(2))
    events = [change(history, "ann", number, offset=offset) for offset, number in enumerate(order)]
    await worker.apply(events[:1])
    await worker.apply(events[1:])
    await again.apply(events)
    assert await served(store, "ann") == [1.0, 3.0, 3.5]
    assert await served(store, "bob") == [0.0, 0.0, 0.0]


async def test_a_forgotten_users_fields_are_gone_everywhere(  # noqa: PLR0917 (fixtures)
    tmp_path: Path,
    spec: LoopSpec,
    history: Any,
    kafka: str,
    redis: Redis,
    redis_url: str,
    loop_file: Path,
    start_process: Callable[..., Any],
    produce: Produce,
    privacy_key_file: Path,
) -> None:
    """Store, warehouse and, once compacted, Kafka lose them; a lost Redis that reads everything again stays without."""
    await create_topics(kafka, declared(spec))
    await produce([change(history, user_id, 1, offset=0) for user_id in ("ann", "bob")])
    stream = start_process("stream")
    start_process("archive", GYRE_FEATURES_ARCHIVE_S="0.2")
    store, warehouse = OnlineStore(redis, spec, Layout.compile(spec)), tmp_path / "warehouse"
    await eventually(lambda: _stands(store, "ann", 1.0), timeout_s=60, message="the fields are served")
    await eventually(lambda: _archived(warehouse, spec) == ["ann", "bob"], timeout_s=60, message="rows are stored")

    settings = FeaturesSettings(
        loops=(loop_file,),
        kafka=kafka,
        redis=redis_url,
        drain_s=1,
        features_forget_wait_s=25,
        privacy_key_file=privacy_key_file,
    )
    async with Lifespan(drain_s=1) as lifespan:
        running = await serve(lifespan, settings)
        opened = await lifespan.enter(channel(running.server.address, ServiceSettings(), name="features"))
        request = pb.DeleteEntityRequest(loop=spec.loop, kind=pb.ENTITY_KIND_USER, id="ann")
        answer = await FeaturesServiceStub(opened).DeleteEntity(request, timeout=40)
    assert (answer.found_keys, answer.erased_rows[USERS], answer.found_rows) == (0, 1, 0)
    last = {record.key: record.value async for record in read_records(kafka, topic(spec.loop, "catalog.users"))}
    assert last[b"ann"] is None
    assert last[b"bob"]

    stream.kill()
    stream.wait()
    for each in [key async for key in redis.scan_iter(store_keys(spec.loop))]:
        await redis.delete(each)
    start_process("stream")
    await produce([change(history, "bob", 3, offset=0)])
    await eventually(lambda: _stands(store, "bob", 3.0), timeout_s=30, message="the next change is served")
    assert await served(store, "ann") == [0.0, 0.0, 0.0]
    await eventually(lambda: _archived(warehouse, spec) == ["bob", "bob"], timeout_s=30, message="rows are stored")
    letters = read_records(kafka, dead_letter_topic(topic(spec.loop, "catalog.users")))
    assert [record async for record in letters] == []


async def _stands(store: OnlineStore, user_id: str, likes: float) -> bool:
    return (await served(store, user_id))[1] == likes


def _archived(warehouse: Path, spec: LoopSpec) -> list[str]:
    table = ensure_table(open_catalog(FeaturesSettings(warehouse=str(warehouse))), spec.loop, USERS)
    return sorted(read_columns(table, ["user_id"])["user_id"].to_pylist())
