"""Telemetry as a process of its own shows it: spans over OTLP, metrics over HTTP, logs with trace ids."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from gyre_local.testing import eventually
from gyre_runtime.metrics import instrument
from gyre_runtime.series import VersionSeries
from gyre_runtime.telemetry import Telemetry
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as otlp
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as otlp_rpc

PROGRAM = Path(__file__).parent / "data" / "traced_program.py"


class Collector(otlp_rpc.TraceServiceServicer):
    """An OTLP receiver that keeps what it is sent."""

    def __init__(self) -> None:
        self.requests: list[otlp.ExportTraceServiceRequest] = []

    async def Export(self, request: Any, context: object) -> otlp.ExportTraceServiceResponse:  # noqa: N802
        """Keep a request."""
        self.requests.append(request)
        return otlp.ExportTraceServiceResponse()

    def spans(self) -> dict[str, Any]:
        """Return the received spans by name."""
        scopes = [scope for request in self.requests for each in request.resource_spans for scope in each.scope_spans]
        return {span.name: span for scope in scopes for span in scope.spans}


@asynccontextmanager
async def collecting() -> AsyncIterator[tuple[Collector, str]]:
    """Run a collector; yield it and its address."""
    collector, server = Collector(), grpc.aio.server()
    otlp_rpc.add_TraceServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield collector, f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


async def traced(**variables: str) -> tuple[int, list[dict[str, Any]], str]:
    """Run the program to its end; return exit code, log lines and what it printed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "error", str(PROGRAM), env=variables, stdout=-1, stderr=-1
    )
    stdout, stderr = await process.communicate()
    assert process.returncode is not None
    return process.returncode, [json.loads(line) for line in stderr.splitlines()], stdout.decode()


@pytest.mark.timeout(30)
async def test_spans_reach_the_collector_before_exit() -> None:
    """A process that ends at once has exported its model spans, with service name and links; unsampled ones are not."""
    async with collecting() as (collector, address):
        code, _, _ = await traced(GYRE_OTLP=address, GYRE_TRACE_RATIO="0")
        await eventually(lambda: collector.requests)
    assert code == 0
    assert set(collector.spans()) == {"train", "read snapshot"}
    assert collector.spans()["train"].links[0].span_id.hex() == "b7ad6b7169203331"
    resource = collector.requests[0].resource_spans[0].resource
    assert {"service.name": "traced"}.items() <= {a.key: a.value.string_value for a in resource.attributes}.items()


@pytest.mark.timeout(30)
async def test_an_absent_collector_keeps_nothing_from_ending(unused_tcp_port: int) -> None:
    """Without the collector the process still ends by itself, with exit code 0."""
    code, _, _ = await traced(GYRE_OTLP=f"127.0.0.1:{unused_tcp_port}")
    assert code == 0


async def test_log_lines_carry_trace_and_facts_and_metrics_are_served() -> None:
    """Each line is JSON with service, trace id and the given facts; /metrics answers on the chosen port."""
    code, lines, printed = await traced()
    assert code == 0
    line = next(line for line in lines if line["message"] == "training")
    assert (line["service"], line["loop"], line["level"]) == ("traced", "movies", "INFO")
    assert len(line["trace_id"]) == 32
    assert len(line["span_id"]) == 16
    assert 'gyre_trainer_runs_total{loop="movies",state="STARTED"} 1.0' in printed


def test_series_of_old_versions_go_and_new_ones_are_still_seen(telemetry: Telemetry) -> None:
    """Of three thousand versions the newest have series, whatever their number, and other loops' keep theirs."""
    share, reloads = instrument("gyre_deployer_share"), instrument("gyre_deployer_reloads_total")
    share.set(0.5, loop="another", version="v1", arm="live")
    reloads.add(loop="many")
    series = VersionSeries("many")
    for number in range(3000):
        share.set(1.0, loop="many", version=f"v{number}", arm="live")
        series.note_used([f"v{number}"])

    def value(**labels: str) -> float | None:
        found: float | None = telemetry.registry.get_sample_value("gyre_deployer_share", {**labels, "arm": "live"})
        return found

    assert value(loop="many", version="v2999") == value(loop="many", version="v2980") == 1.0
    assert value(loop="many", version="v2979") is None
    assert value(loop="another", version="v1") == 0.5
    assert telemetry.registry.get_sample_value("gyre_deployer_reloads_total", {"loop": "many"}) == 1
