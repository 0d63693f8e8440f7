"""What can be seen of an answer from outside: its span, its links, its metrics."""

import pytest
from gyre_runtime.telemetry import Telemetry
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from .conftest import Mesh

pytestmark = pytest.mark.adapter
CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
ROLLOUT = "00-1af7651916cd43dd8448eb211c80319c-c7ad6b7169203331-01"


@pytest.fixture
def spans(telemetry: Telemetry) -> InMemorySpanExporter:
    """The sampled spans from now on."""
    exporter = InMemorySpanExporter()
    telemetry.tracer_provider.add_span_processor(SimpleSpanProcessor(exporter))
    return exporter


async def test_a_sampled_answer_links_its_rollout_and_tells_how_it_came_about(
    mesh: Mesh, spans: InMemorySpanExporter
) -> None:
    """The span of a sampled Rank has the causal ids and links the rollout; user and items stand nowhere in it."""
    epoch = await mesh.roll_out(("live", "v1", 1.0), traceparent=ROLLOUT)
    await mesh.rank(user="secret-user", request_id="request-1", metadata=(("traceparent", CALLER),))
    names = {span.name for span in spans.get_finished_spans()}
    (rank,) = [span for span in spans.get_finished_spans() if span.name.endswith("GatewayService/Rank")]
    attributes = dict(rank.attributes or {})
    assert f"{rank.context.trace_id:032x}" == CALLER[3:35]
    assert [f"{link.context.trace_id:032x}" for link in rank.links] == [ROLLOUT[3:35]]
    assert attributes["gyre.loop"] == mesh.loop
    assert attributes["gyre.request_id"] == "request-1"
    assert (attributes["gyre.version"], attributes["gyre.arm"]) == ("v1", "live")
    assert attributes["gyre.rollout_id"] == "rollout-1"
    assert {"gyre.features.v1.FeaturesService/GetFeatures", "gyre.inference.v1.InferenceService/Predict"} <= names
    assert not any("secret-user" in str(span.attributes) for span in spans.get_finished_spans())
    assert epoch == 1


async def test_answers_are_counted_by_version_arm_and_reason(mesh: Mesh, telemetry: Telemetry) -> None:
    """Each answer adds one to the counter of its version, arm and degraded reason, and one to the latencies."""
    await mesh.rank()
    await mesh.roll_out(("live", "v1", 1.0))
    for _ in range(3):
        await mesh.rank()
    value = telemetry.registry.get_sample_value
    live = {"loop": mesh.loop, "method": "rank", "version": "v1", "arm": "live"}
    none = {"loop": mesh.loop, "method": "rank", "version": "", "arm": ""}
    assert value("gyre_gateway_requests_total", {**live, "degraded": ""}) == 3
    assert value("gyre_gateway_requests_total", {**none, "degraded": "NO_MODEL"}) == 1
    assert value("gyre_gateway_latency_seconds_count", live) == 3
