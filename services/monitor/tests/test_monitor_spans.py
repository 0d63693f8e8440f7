"""Spans: from a real exporter over OTLP into the database, found again over links, and pruned by flow."""

import asyncio

import grpc
import pytest
from gyre_monitor.domain.traces import StoredSpan
from gyre_monitor.store.retention import Retention
from gyre_monitor.store.schema import IMPRESSIONS, INTERACTIONS, SPANS, TRACES
from gyre_monitor.store.spans import insert_spans, linked_spans, traces_of
from gyre_monitor.transport.otlp import OtlpServer, TraceReceiver
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as rpc
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Link, SpanContext, Status, StatusCode, TraceFlags
from sqlalchemy import func, select

KEPT = Retention(impressions=100, interactions=100, request_spans=100, model_spans=100, alerts=100)


def span(trace: str, number: int = 1, *, is_model: bool = False, links: tuple[str, ...] = (), **attributes: str):
    """The span `number` of a trace that links to the first spans of other traces."""
    return StoredSpan(
        trace, f"{number:016x}", "", "s", "n", number, 0.1, failed=False, is_model=is_model,
        attributes=attributes, links=tuple((each, f"{1:016x}") for each in links),
    )  # fmt: skip


@pytest.fixture
async def receiver(database):
    """The OTLP receiver on a free port."""
    async with OtlpServer("127.0.0.1:0", TraceReceiver(database)) as server:
        yield server


async def everything(database) -> list[StoredSpan]:
    """Every stored span."""
    traces = await database.read(lambda connection: list(connection.scalars(select(SPANS.c.trace_id).distinct())))
    return await database.read(linked_spans, traces, max_traces=1000, max_spans=1000)


def test_spans_of_a_real_exporter_are_stored_whole(spans_of_a_process) -> None:
    """Service, name, parent, times, status, attributes and links arrive as the program gave them."""
    parent, child = spans_of_a_process
    assert (parent.service, parent.name, parent.parent_span_id) == ("gateway", "rank", "")
    assert parent.attributes == {
        "gyre.loop": "shop", "gyre.request_id": "r1", "n": "3", "share": "0.5", "ok": "true", "tags": "a, b",
        "gyre.flow": "model", "long": "x" * 256,
    }  # fmt: skip
    assert (parent.is_model, parent.failed) == (True, False)
    assert (child.parent_span_id, child.trace_id, child.failed) == (parent.span_id, parent.trace_id, True)
    assert child.links == ((f"{7:032x}", f"{8:016x}"),)
    assert not child.is_model
    assert 0 <= child.duration_s <= parent.duration_s
    assert child.start_ns >= parent.start_ns


@pytest.fixture
async def spans_of_a_process(database, receiver) -> list[StoredSpan]:
    """Two spans that went through OpenTelemetry's own exporter."""
    provider = TracerProvider(resource=Resource.create({"service.name": "gateway"}), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=receiver.address, insecure=True)))
    tracer = provider.get_tracer("test")
    given = {
        "gyre.loop": "shop", "gyre.request_id": "r1", "n": 3, "share": 0.5, "ok": True, "tags": ["a", "b"],
        "gyre.flow": "model", "long": "x" * 1000,
    }  # fmt: skip
    linked = SpanContext(7, 8, is_remote=True, trace_flags=TraceFlags(1))
    with (
        tracer.start_as_current_span("rank", attributes=given),
        tracer.start_as_current_span("read", links=[Link(linked)]) as child,
    ):
        child.set_status(Status(StatusCode.ERROR, "late"))
    await asyncio.to_thread(provider.force_flush)
    await asyncio.to_thread(provider.shutdown)
    return sorted(await everything(database), key=lambda each: each.start_ns)


async def test_malformed_spans_are_refused_and_counted(database, receiver) -> None:
    """A span without a proper id is not stored, its neighbours are, and the answer says how many were refused."""
    request = pb.ExportTraceServiceRequest()
    scope = request.resource_spans.add().scope_spans.add()
    good, short, zero = b"\1" * 16, b"\1" * 15, bytes(16)
    for trace_id, span_id in ((good, b"\2" * 8), (short, b"\2" * 8), (good, b""), (zero, b"\2" * 8)):
        scope.spans.add(trace_id=trace_id, span_id=span_id, name="s", start_time_unix_nano=5)
    async with grpc.aio.insecure_channel(receiver.address) as channel:
        stub = rpc.TraceServiceStub(channel)
        answer = await stub.Export(request, timeout=30)
        assert answer.partial_success.rejected_spans == 3
        again = await stub.Export(request, timeout=30)
        assert again.partial_success.rejected_spans == 3
    assert len(await everything(database)) == 1, "a repeated export stores nothing twice"


async def test_linked_traces_are_found_transitively_and_within_bounds(database) -> None:
    """From a request over its rollout, run and trigger to the events; nearest first when a bound cuts."""
    chain = [("request", ("rollout",)), ("rollout", ("run",)), ("run", ("trigger",)), ("trigger", ("e1", "e2"))]
    chain += [("e1", ("request",)), ("e2", ()), ("stranger", ())]
    await database.write(insert_spans, [span(trace, links=links) for trace, links in chain])
    found = await database.read(linked_spans, ["request"], max_traces=100, max_spans=100)
    assert {each.trace_id for each in found} == {"request", "rollout", "run", "trigger", "e1", "e2"}
    assert len(found) == 6
    few = await database.read(linked_spans, ["request"], max_traces=3, max_spans=100)
    assert [each.trace_id for each in few] == ["request", "rollout", "run"]
    fewer = await database.read(linked_spans, ["request"], max_traces=100, max_spans=2)
    assert [each.trace_id for each in fewer] == ["request", "rollout"]


async def test_the_trace_of_a_request_is_the_loops_own(database) -> None:
    """Another loop's request of the same id is another request; the rollout's trace is found without any link."""
    await database.write(
        insert_spans,
        [
            span("mine", **{"gyre.request_id": "r1", "gyre.loop": "shop"}),
            span("theirs", **{"gyre.request_id": "r1", "gyre.loop": "news"}),
            span("rollout", is_model=True, **{"gyre.rollout_id": "ro1", "gyre.loop": "shop"}),
            span("ranked", **{"gyre.rollout_id": "ro1", "gyre.loop": "shop"}),
        ],
    )
    assert await database.read(traces_of, "shop", "r1", "") == ["mine"]
    assert await database.read(traces_of, "shop", "r1", "ro1") == ["mine", "rollout"]


async def test_the_flow_of_models_outlives_requests(database) -> None:
    """Spans of requests are pruned to their number without touching the older spans of the flow of models."""
    model = [span("model", number, is_model=True) for number in range(1, 51)]
    await database.write(insert_spans, model)
    await database.write(insert_spans, [span("request", number) for number in range(1, 251)])
    while await database.write(KEPT.prune):
        pass
    left = await everything(database)
    assert sorted(each.start_ns for each in left if each.is_model) == list(range(1, 51))
    assert sorted(each.start_ns for each in left if not each.is_model) == list(range(151, 251))


async def test_tables_stay_small(projection, database, log, make) -> None:
    """Answers and interactions beyond their number go, oldest first; the totals stay."""
    events = [log.shown(make.impression(f"r{n}", f"u{n}")) for n in range(250)]
    events += [log.acted(make.interaction(f"u{n}")) for n in range(250)]
    await projection.apply(events)
    while await database.write(KEPT.prune):
        pass

    def look(connection):
        ids = set(connection.scalars(select(IMPRESSIONS.c.request_id)))
        return ids, connection.scalar(select(func.count()).select_from(INTERACTIONS))

    assert await database.read(look) == ({f"r{n}" for n in range(150, 250)}, 100)


async def test_what_says_whose_a_trace_is_goes_with_the_spans(projection, database, log, make) -> None:
    """Of old traces without spans nothing is kept; those with spans stay, whatever their age."""

    def shown(number: int):
        parent = f"00-{number:032x}-{number:016x}-01"
        return log.shown(make.impression(f"r{number}", f"u{number}"), traceparent=parent)

    await database.write(insert_spans, [span(f"{1:032x}")])
    await projection.apply([shown(number) for number in range(1, 301)])
    while await database.write(KEPT.prune):
        pass
    left = await database.read(lambda connection: list(connection.scalars(select(TRACES.c.trace_id))))
    assert {int(each, 16) for each in left} == {1, *range(201, 301)}
