"""The store on a Redis Cluster: each virtual shard of a loop has a hash slot, and no command crosses two."""

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gyre_core.features import Layout, Reader, Replay, RequestContext
from gyre_core.keys import pattern as store_keys
from gyre_core.spec import LoopSpec
from gyre_features.online import OnlineStore
from gyre_features.stream.loop_stream import LoopStream, feature_event
from gyre_local.components import redis as redis_component
from gyre_local.process import running
from gyre_local.reserve import free_ports
from gyre_local.testing import eventually
from redis.asyncio import Redis

pytestmark = pytest.mark.adapter
ITEMS = [f"i{number}" for number in range(12)]
SLOTS = 16_384


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Redis]:
    """A cluster of one node, which refuses keys of several slots in one command as any other does."""
    port, bus = free_ports(2)
    recipe = redis_component.prepare(tmp_path / "cluster", host="127.0.0.1", port=port, durable=False)
    options = ("--cluster-enabled", "yes", "--cluster-port", str(bus))
    with running(replace(recipe, command=(*recipe.command, *options)), log=tmp_path / "cluster.log"):
        async with Redis.from_url(f"redis://127.0.0.1:{port}") as client:
            await client.execute_command("CLUSTER ADDSLOTSRANGE", 0, SLOTS - 1)

            async def ready() -> bool:
                return (await client.execute_command("CLUSTER INFO"))["cluster_state"] == "ok"

            await eventually(ready, timeout_s=30, message="the cluster is up")
            yield client


async def _ignore(batch: object, events: object) -> None:
    pass


async def test_loops_and_shards_spread_over_a_cluster(
    cluster: Redis, sharded: Callable[[int], LoopSpec], history_of: Any
) -> None:
    """Two loops of two shards fill, read, rank, renew and delete on a cluster, in four hash slots."""
    first, tags = sharded(2), dict[str, set[int]]()
    for spec in (first, first.model_copy(update={"loop": f"b{first.loop[1:]}"})):
        store, history = OnlineStore(cluster, spec, Layout.compile(spec)), history_of(spec)
        events, stream = [*history.catalogue(), *history.ratings(80)], LoopStream(store, on_batch=_ignore)
        await stream.assigned({(event.topic, event.partition) for event in events})
        await stream.apply(events)
        replay, context = Replay(store.layout), RequestContext(max(event.time for event in events) + 60)
        replay.apply(feature_event(event) for event in events)
        values = await store.read("u1", ITEMS)
        found, _ = Reader(store.layout).matrix(values.user, values.everyone, values.items, ITEMS, context)
        assert found == pytest.approx(replay.matrix("u1", ITEMS, context)[0], rel=1e-5)
        assert await store.renew_leases() > 0
        assert len(await store.popular(5)) == 5
        assert await store.delete("item", "i3") == 1
        async for key in cluster.scan_iter(store_keys(spec.loop), count=1000):
            slot = await cluster.execute_command("CLUSTER KEYSLOT", key)
            tags.setdefault(key[key.index(b"{") : key.index(b"}")].decode(), set()).add(slot)
    assert sorted(map(len, tags.values())) == [1, 1, 1, 1]
    assert len(set.union(*tags.values())) == 4
