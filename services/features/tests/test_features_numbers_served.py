"""Numbers as a caller reads them: what producers send to Kafka comes out of GetFeatures without what rounding took."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from gyre.events.v1 import behavior_pb2 as behavior
from gyre.features.v1 import features_pb2 as pb
from gyre.features.v1.features_pb2_grpc import FeaturesServiceStub
from gyre_core.features import Layout
from gyre_core.spec import LoopSpec, parse_loop
from gyre_core.topics import declared, topic
from gyre_features.processes.serve import serve
from gyre_features.settings import FeaturesSettings
from gyre_local.testing import eventually
from gyre_local.timeouts import scaled
from gyre_runtime import Lifespan, ServiceSettings, channel
from gyre_runtime.events import Event
from gyre_runtime.kafka import create_topics

pytestmark = pytest.mark.adapter
BEGIN = 1_370_000_000
SPEC = """
version: 1
loop: {loop}
clock: replay
events: {{interactions: {{paid: {{value: {{min: -1000000000, max: 1000000000}}}}}}}}
features:
  - {{name: payments, kind: decayed_count, scope: user, events: [paid], half_lives: [7d]}}
  - {{name: amount, kind: decayed_mean, scope: user, events: [paid], half_lives: [7d], prior: {{mean: 0, weight: 1}}}}
training: {{label: {{events: [paid], attribution_window: 30m}}}}
shards: {{kafka_partitions: 1, online_shards: 1}}
"""


@pytest.fixture
def spec(loop_name: str) -> LoopSpec:
    """A loop of payments, and of refunds as payments below zero."""
    return parse_loop(SPEC.format(loop=loop_name), source="test")


@pytest.fixture
def loop_file(tmp_path: Path, spec: LoopSpec) -> Path:
    """Its gyre.yaml."""
    path = tmp_path / "gyre.yaml"
    path.write_text(SPEC.format(loop=spec.loop))
    return path


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


async def test_what_cancels_out_leaves_the_rest(
    spec: LoopSpec, layout: Layout, features: FeaturesServiceStub, kafka: str, produce: Any, start_process: Any
) -> None:
    """A payment of 100,000,000, one of 1 and a refund of the first, merged one by one, leave exactly the 1."""
    await create_topics(kafka, declared(spec))
    start_process("stream")

    async def read() -> dict[str, float]:
        time = Timestamp(seconds=BEGIN)
        request = pb.GetFeaturesRequest(loop=spec.loop, user_id="ann", item_ids=["i1"], request_time=time)
        answer = (await features.GetFeatures(request, timeout=10)).features
        return dict(zip(layout.columns, np.frombuffer(answer.values, "<f4").tolist(), strict=True))

    for number, amount in enumerate((1e8, 1.0, -1e8)):
        paid = behavior.Interaction(user_id="ann", item_id="i1", type="paid", value=amount)
        name = topic(spec.loop, "behavior.interactions")
        await produce([Event(f"paid-{number}", "test", "", BEGIN, paid, None, name, 0, number, "ann", BEGIN)])

        async def merged(wanted: int = number + 1) -> bool:
            return (await read())["payments_7d"] == wanted

        await eventually(merged, timeout_s=90, message=f"payment {number} is merged")
    assert (await read())["amount_7d"] == 1 / (3 + 1)
