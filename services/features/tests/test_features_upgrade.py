"""A store of an earlier format beside the present one: it is neither read nor renewed, and people are deleted there."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from gyre.features.v1 import features_pb2 as pb
from gyre.features.v1.features_pb2_grpc import FeaturesServiceStub
from gyre_core.features import Layout, Replay, RequestContext
from gyre_core.keys import former_duplicates_key
from gyre_core.spec import LoopSpec
from gyre_core.topics import declared
from gyre_features.online import OnlineStore
from gyre_features.processes.serve import serve
from gyre_features.settings import FeaturesSettings
from gyre_features.stream.loop_stream import LoopStream, feature_event
from gyre_features.stream.repeats import identity
from gyre_local.testing import eventually
from gyre_local.timeouts import scaled
from gyre_runtime import Lifespan, ServiceSettings, channel
from gyre_runtime.checkpoints import Checkpoint
from gyre_runtime.kafka import create_topics
from redis.asyncio import Redis

pytestmark = pytest.mark.adapter
BEGIN = 1_370_000_000
ITEMS = [f"i{number}" for number in range(12)]


@pytest.fixture
async def features(loop_file: Path, kafka: str, redis_url: str) -> AsyncIterator[FeaturesServiceStub]:
    """The read side, in the test's own process, once it knows the layouts."""
    settings = FeaturesSettings(loops=(loop_file,), kafka=kafka, redis=redis_url, drain_s=1)
    async with Lifespan(drain_s=1) as lifespan:
        running = await serve(lifespan, settings)
        await lifespan.health.start()
        await lifespan.health.wait_serving(scaled(30))
        opened = await lifespan.enter(channel(running.server.address, ServiceSettings(), name="features"))
        yield FeaturesServiceStub(opened)


async def test_a_store_of_the_former_format_is_filled_again(  # noqa: PLR0917 (fixtures)
    former_store: dict[str, bytes],
    features: FeaturesServiceStub,
    spec: LoopSpec,
    layout: Layout,
    kafka: str,
    redis: Redis,
    history: Any,
    produce: Any,
    start_process: Any,
) -> None:
    """A new version reads Kafka from its beginning, answers the layout's own hash, and the former keys stay."""
    await create_topics(kafka, declared(spec))
    events = [*history.catalogue(), *history.ratings(60)]
    await produce(events)
    start_process("stream")
    replay, context = Replay(layout), RequestContext(BEGIN + 3600.0)
    replay.apply(feature_event(event) for event in events)

    async def assert_served() -> bool:
        time = Timestamp(seconds=BEGIN + 3600)
        request = pb.GetFeaturesRequest(loop=spec.loop, user_id="u1", item_ids=ITEMS, request_time=time)
        answer = (await features.GetFeatures(request, timeout=5)).features
        assert answer.layout == layout.hash
        found = np.frombuffer(answer.values, "<f4").reshape(answer.rows, answer.columns)
        assert found == pytest.approx(replay.matrix("u1", ITEMS, context)[0], rel=1e-5)
        return True

    await eventually(assert_served, timeout_s=60, message="all events are read from the new keys")
    assert dict(zip(former_store, await redis.mget(former_store), strict=True)) == former_store
    assert all([0 < await redis.ttl(name) <= 10_000 for name in former_store])


async def test_a_user_is_deleted_in_the_former_format_too(
    former_store: dict[str, bytes], redis: Redis, spec: LoopSpec, layout: Layout
) -> None:
    """What an upgrade left of a forgotten user goes at once, not only with its time to live."""
    (name,) = [each for each in former_store if each.endswith(":user:u1")]
    store = OnlineStore(redis, spec, layout)
    assert await store.delete("user", "u1") == 1
    assert await redis.exists(name) == 0


async def _ignore(*_: object) -> None:
    pass


async def test_what_an_earlier_version_applied_is_no_second_time(
    redis: Redis, spec: LoopSpec, history: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an upgrade the identities that the version before kept by wall time are looked into, too."""
    store, ratings = OnlineStore(redis, spec, Layout.compile(spec), duplicates_s=10), history.ratings(3)
    await LoopStream(store, on_batch=_ignore).apply(ratings[:1])
    place = (ratings[0].topic, 0)
    # As the version before left it: a checkpoint without a window, and identities under the number of a wall window.
    await redis.set(store.names.applied_offset(0, place), Checkpoint(1).encoded())
    await redis.delete(*store.names.duplicates(0, place))
    former = store.names.former_duplicates(0, 1_370_000_000.0)
    monkeypatch.setattr("gyre_features.online.store.time.time", lambda: 1_370_000_000.0)
    assert former[-1] == former_duplicates_key(spec.loop, store.layout.hash, shard=0, window=137_000_000)
    await redis.sadd(former[-1], identity(ratings[0].source, ratings[0].id))
    before = await store.values([("item", ratings[0].message.item_id)])
    stream = LoopStream(store, on_batch=_ignore)
    assert await stream.assigned([place]) == {place: 1}
    await stream.apply([ratings[0]._replace(offset=1)])
    assert await store.values([("item", ratings[0].message.item_id)]) == before
    assert await store.applied_offsets([place]) == [{place: 2}]
