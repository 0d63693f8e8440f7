"""Server and client in one process over real sockets: every error class, constraints, deadline, token, TLS, health."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from gyre.gateway.v1.gateway_pb2 import RankRequest, RankResponse, WatchBatchRequest, WatchBatchResponse
from gyre.gateway.v1.gateway_pb2_grpc import GatewayServiceStub
from gyre_local.testing import eventually
from gyre_local.timeouts import scaled
from gyre_runtime import (
    Conflict,
    DeadlineExceeded,
    Dependency,
    Exhausted,
    GyreError,
    Health,
    Invalid,
    Misconfigured,
    NotFound,
    Precondition,
    Server,
    ServiceSettings,
    Unauthenticated,
    Unavailable,
    Violation,
    call,
    channel,
)
from gyre_runtime.context import current_call
from gyre_runtime.errors import from_rpc_error
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import generate_latest

pytestmark = pytest.mark.timeout(20)
SETTINGS = ServiceSettings()
RANK = RankRequest(loop="movies", user_id="u1", item_ids=["a", "b"])

ServerAt = Callable[..., Server]
ToldGateway = Any

ERRORS = [
    (Invalid, grpc.StatusCode.INVALID_ARGUMENT),
    (NotFound, grpc.StatusCode.NOT_FOUND),
    (Conflict, grpc.StatusCode.ABORTED),
    (Precondition, grpc.StatusCode.FAILED_PRECONDITION),
    (Exhausted, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (Unavailable, grpc.StatusCode.UNAVAILABLE),
    (Unauthenticated, grpc.StatusCode.UNAUTHENTICATED),
    (DeadlineExceeded, grpc.StatusCode.DEADLINE_EXCEEDED),
    (GyreError, grpc.StatusCode.INTERNAL),
]


def raising(error: Exception) -> Callable[[RankRequest], object]:
    """Return a `rank` that raises."""

    async def rank(request: RankRequest) -> RankResponse:
        raise error

    return rank


@pytest.mark.parametrize(("kind", "code"), ERRORS)
async def test_every_error_class_crosses_the_wire(
    kind: type[GyreError], code: grpc.StatusCode, server_of: ServerAt, gateway: ToldGateway
) -> None:
    """A caller gets the class, reason, message, metadata, violations and delay that the server raised, and the code."""
    broken = (Violation("items[2]", "'a: b'", "must be known"),)
    gateway.rank = raising(kind("SOME_REASON", "a sentence", metadata={"k": "v"}, violations=broken, retry_after_s=1.5))
    async with server_of() as server, channel(server.address, SETTINGS, name="gateway") as peer:
        with pytest.raises(GyreError) as caught:
            await call(GatewayServiceStub(peer).Rank, RANK, timeout_s=5, attempts=1)
    error = caught.value
    assert type(error) is kind
    assert error.code is code
    assert (error.reason, error.message, error.metadata) == ("SOME_REASON", "a sentence", {"k": "v"})
    assert (error.violations, error.retry_after_s) == (broken, 1.5)


async def test_an_unknown_error_leaks_nothing(server_of: ServerAt, gateway: ToldGateway) -> None:
    """An exception that is not ours becomes INTERNAL without its text."""
    gateway.rank = raising(KeyError("the user's secret"))
    async with server_of() as server, grpc.aio.insecure_channel(server.address) as bare:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await GatewayServiceStub(bare).Rank(RANK, timeout=5)
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in f"{caught.value.details()}{caught.value.trailing_metadata()}"


async def test_constraints_are_enforced_before_the_handler(server_of: ServerAt, gateway: ToldGateway) -> None:
    """A request that breaks its proto's rules is refused with each violation, and no handler sees it."""
    async with server_of() as server, channel(server.address, SETTINGS, name="gateway") as peer:
        with pytest.raises(Invalid) as caught:
            await call(GatewayServiceStub(peer).Rank, RankRequest(loop="movies", item_ids=["a", ""]), timeout_s=5)
    assert caught.value.reason == "INVALID_FIELD"
    assert [broken.field for broken in caught.value.violations] == ["user_id", "item_ids[1]"]
    assert gateway.calls == 0


@pytest.mark.parametrize("method", ["Rank", "WatchBatch"])
async def test_bytes_that_are_no_request_are_the_callers_fault(
    method: str, server_of: ServerAt, gateway: ToldGateway, telemetry: Any
) -> None:
    """A body that is no such message is INVALID_ARGUMENT, says so, is counted, and reaches no handler."""
    path = f"/gyre.gateway.v1.GatewayService/{method}"
    async with server_of() as server, grpc.aio.insecure_channel(server.address) as bare:
        for body in (b"\xff\xff\xff", RANK.SerializeToString()[:-1], b"\x0a\x02\xc3\x28"):
            sent = bare.unary_stream(path)(body, timeout=5)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await sent.read()
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT, caught.value
            assert caught.value.details() == f"the request's body is no gyre.gateway.v1.{method}Request"
            assert from_rpc_error(caught.value).reason == "BAD_PAYLOAD"
    assert gateway.calls == 0
    labels = {"code": "INVALID_ARGUMENT", "method": method, "service": "gyre.gateway.v1.GatewayService"}
    assert telemetry.registry.get_sample_value("gyre_rpc_server_seconds_count", labels) >= 3


async def test_a_time_that_is_none_is_refused_by_its_field(server_of: ServerAt, gateway: ToldGateway) -> None:
    """Seconds beyond year 9999 and nanoseconds of a second and more are named, in every message with a time."""
    async with server_of() as server, channel(server.address, SETTINGS, name="gateway") as peer:
        for field, value, rule in (
            ("seconds", 2**60, "must be a time from year 1 to 9999"),
            ("nanos", 1_000_000_000, "must be 0 to 999,999,999"),
            ("nanos", -1, "must be 0 to 999,999,999"),
        ):
            request = RankRequest(loop="movies", user_id="u1", item_ids=["a"])
            setattr(request.context.request_time, field, value)
            with pytest.raises(Invalid) as caught:
                await call(GatewayServiceStub(peer).Rank, request, timeout_s=5)
            assert caught.value.violations == (Violation(f"context.request_time.{field}", str(value), rule),)
    assert gateway.calls == 0


async def test_a_call_without_deadline_gets_one(server_of: ServerAt, gateway: ToldGateway) -> None:
    """A handler that hangs is ended by the server when the caller set no deadline, and says so."""

    async def hang(request: RankRequest) -> RankResponse:
        await asyncio.Event().wait()
        return RankResponse()

    gateway.rank = hang
    async with server_of(max_deadline_s=0.05) as server, grpc.aio.insecure_channel(server.address) as bare:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await GatewayServiceStub(bare).Rank(RANK)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_an_outgoing_call_ends_before_the_incoming_one(server_of: ServerAt, gateway: ToldGateway) -> None:
    """Within a handler, a call with a longer timeout gets what the caller has left, and not more."""
    left: list[float] = []
    async with server_of() as server, channel(server.address, SETTINGS, name="gateway") as peer:
        stub = GatewayServiceStub(peer)

        async def rank(request: RankRequest) -> RankResponse:
            incoming = current_call()
            assert incoming is not None
            left.append(incoming.remaining_s())
            return await call(stub.Rank, RANK, timeout_s=60) if len(left) == 1 else RankResponse()

        gateway.rank = rank
        await call(stub.Rank, RANK, timeout_s=2)
    assert left[1] <= 2.1, "gRPC rounds a timeout up on the wire, by 1 % at most"


async def test_a_call_needs_a_deadline(server_of: ServerAt) -> None:
    """Calling a peer without a timeout, outside of any call, is a programming error."""
    async with server_of() as server, channel(server.address, SETTINGS, name="gateway") as peer:
        with pytest.raises(ValueError, match="needs a timeout"):
            await GatewayServiceStub(peer).Rank(RANK)


async def test_only_unavailable_is_tried_again_within_the_budget(server_of: ServerAt, gateway: ToldGateway) -> None:
    """UNAVAILABLE is repeated until it succeeds, attempts end, or the budget is spent; nothing else is repeated."""
    async with server_of() as server, channel(server.address, SETTINGS, name="gateway") as peer:
        stub = GatewayServiceStub(peer)

        async def second_time(request: RankRequest) -> RankResponse:
            if gateway.calls == 1:
                raise Unavailable("STARTING", "not yet")
            return RankResponse()

        gateway.rank = second_time
        await call(stub.Rank, RANK, timeout_s=5)
        assert gateway.calls == 2

        gateway.rank, gateway.calls = raising(Unavailable("DOWN", "down")), 0
        for _ in range(30):
            with pytest.raises(Unavailable):
                await call(stub.Rank, RANK, timeout_s=5, attempts=2)
        assert 30 + 10 <= gateway.calls <= 30 + 10 + 4

        gateway.rank, gateway.calls = raising(Conflict("CHANGED", "changed")), 0
        with pytest.raises(Conflict):
            await call(stub.Rank, RANK, timeout_s=5)
        assert gateway.calls == 1


async def test_a_peer_that_is_not_there_is_unavailable(unused_tcp_port: int) -> None:
    """Nobody listening means Unavailable, within the timeout."""
    async with channel(f"127.0.0.1:{unused_tcp_port}", SETTINGS, name="gateway") as peer:
        with pytest.raises((Unavailable, DeadlineExceeded)):
            await call(GatewayServiceStub(peer).Rank, RANK, timeout_s=1)


async def test_a_stream_delivers_then_fails_with_our_error(server_of: ServerAt, gateway: ToldGateway) -> None:
    """A server stream gives its responses, then raises what the server raised."""

    async def watch() -> AsyncIterator[WatchBatchResponse]:
        yield WatchBatchResponse()
        yield WatchBatchResponse()
        raise Exhausted("ENOUGH", "that is enough")

    gateway.watch, seen = watch, []
    async with server_of() as server, channel(server.address, SETTINGS, name="gateway") as peer:
        with pytest.raises(Exhausted) as caught:  # noqa: PT012 - the loop is what is tested
            async for response in GatewayServiceStub(peer).WatchBatch(
                WatchBatchRequest(loop="movies", batch_id="b1"), timeout=5
            ):
                seen.append(response)  # noqa: PERF401 - the responses before the error count
    assert len(seen) == 2
    assert caught.value.reason == "ENOUGH"


async def test_health_follows_the_dependencies(server_of: ServerAt) -> None:
    """NOT_SERVING until set-up is over and every required dependency is up, and again as soon as one is down."""
    health, state = Health(), {"store": False}

    async def store() -> bool:
        return state["store"]

    async def optional() -> None:
        raise ConnectionError

    health.add(Dependency("store", store))
    health.add(Dependency("cache", optional, required=False))
    watching = asyncio.create_task(health.watch())
    async with server_of(health) as server, grpc.aio.insecure_channel(server.address) as bare:
        stub = health_pb2_grpc.HealthStub(bare)

        async def status(service: str = "") -> str:
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
            return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)

        assert await status() == "NOT_SERVING"
        state["store"] = True
        await eventually(lambda: health._up.get("store"))
        assert await status() == "NOT_SERVING"
        await health.start()
        await health.wait_serving(5)
        assert await status("gyre.gateway.v1.GatewayService") == "SERVING"
        state["store"] = False

        async def down() -> bool:
            return await status() == "NOT_SERVING"

        await eventually(down)
    watching.cancel()


async def test_reflection_describes_the_services(server_of: ServerAt) -> None:
    """A reflection client, as grpcurl is, finds the service by name."""
    async with server_of() as server, grpc.aio.insecure_channel(server.address) as bare:
        asked = reflection_pb2.ServerReflectionRequest(list_services="")

        async def requests() -> AsyncIterator[reflection_pb2.ServerReflectionRequest]:
            yield asked

        answers = reflection_pb2_grpc.ServerReflectionStub(bare).ServerReflectionInfo(requests(), timeout=5)
        names = [service.name async for answer in answers for service in answer.list_services_response.service]
    assert {"gyre.gateway.v1.GatewayService", "grpc.health.v1.Health"} <= set(names)
    assert descriptor_pool.Default().FindServiceByName("gyre.gateway.v1.GatewayService") is not None


async def test_a_busy_port_is_refused(server_of: ServerAt) -> None:
    """A second server on the same port does not start, in place of sharing it silently."""
    async with server_of() as server:
        with pytest.raises(Misconfigured, match="another process listening"):
            async with server_of(listen=server.address):
                pass


async def test_calls_under_way_finish_while_the_server_drains(server_of: ServerAt, gateway: ToldGateway) -> None:
    """A call that runs when the server stops is answered."""
    entered, release = asyncio.Event(), asyncio.Event()

    async def rank(request: RankRequest) -> RankResponse:
        entered.set()
        await release.wait()
        return RankResponse()

    gateway.rank = rank
    server = await server_of().__aenter__()
    async with channel(server.address, SETTINGS, name="gateway") as peer:
        answer = asyncio.ensure_future(call(GatewayServiceStub(peer).Rank, RANK, timeout_s=5))
        await entered.wait()
        stopping = asyncio.ensure_future(server.__aexit__(None, None, None))
        release.set()
        assert await answer == RankResponse()
        await stopping


@pytest.mark.parametrize("is_busy", [False, True])
async def test_streams_end_when_the_server_drains(server_of: ServerAt, gateway: ToldGateway, is_busy: bool) -> None:
    """A watcher is sent away with DRAINING at once, also while it is sent something."""

    async def watch() -> AsyncIterator[WatchBatchResponse]:
        yield WatchBatchResponse()
        while is_busy:
            yield WatchBatchResponse()
        await asyncio.Event().wait()

    gateway.watch, first = watch, asyncio.Event()
    server = await server_of(drain_s=60).__aenter__()
    async with channel(server.address, SETTINGS, name="gateway") as peer:

        async def follow() -> None:
            async for _ in GatewayServiceStub(peer).WatchBatch(
                WatchBatchRequest(loop="movies", batch_id="b1"), timeout=60
            ):
                first.set()

        watcher = asyncio.ensure_future(follow())
        await first.wait()
        async with asyncio.timeout(scaled(5)):
            await server.__aexit__(None, None, None)
            with pytest.raises(Unavailable) as caught:
                await watcher
    assert caught.value.reason == "DRAINING"


async def test_the_request_id_travels_and_returns(server_of: ServerAt, gateway: ToldGateway) -> None:
    """The caller's request id is the call's, goes on to the next hop, and comes back in the trailing metadata."""
    seen: list[str] = []
    async with server_of() as server, channel(server.address, SETTINGS, name="gateway") as peer:
        stub = GatewayServiceStub(peer)

        async def rank(request: RankRequest) -> RankResponse:
            incoming = current_call()
            assert incoming is not None
            seen.append(incoming.request_id)
            return await call(stub.Rank, RANK, timeout_s=5) if len(seen) == 1 else RankResponse()

        gateway.rank = rank
        async with grpc.aio.insecure_channel(server.address) as bare:
            under_way = GatewayServiceStub(bare).Rank(RANK, timeout=5, metadata=(("x-request-id", "r-1"),))
            await under_way
            trailing = dict(await under_way.trailing_metadata())
    assert seen == ["r-1", "r-1"]
    assert trailing["x-request-id"] == "r-1"


async def test_a_sampled_caller_forces_spans_over_every_hop(
    server_of: ServerAt, gateway: ToldGateway, spans: InMemorySpanExporter
) -> None:
    """With a sampled traceparent each hop has a span, child of the one before, with rpc attributes and no payload."""
    async with server_of() as server, channel(server.address, SETTINGS, name="gateway") as peer:
        stub = GatewayServiceStub(peer)

        async def rank(request: RankRequest) -> RankResponse:
            return await call(stub.Rank, RANK, timeout_s=5) if gateway.calls == 1 else RankResponse()

        gateway.rank = rank
        trace_id, span_id = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
        async with grpc.aio.insecure_channel(server.address) as bare:
            metadata = (("traceparent", f"00-{trace_id}-{span_id}-01"),)
            await GatewayServiceStub(bare).Rank(RANK, timeout=5, metadata=metadata)
    inner, outer = spans.get_finished_spans()
    assert f"{outer.context.trace_id:032x}" == f"{inner.context.trace_id:032x}" == trace_id
    assert f"{outer.parent.span_id:016x}" == span_id
    assert inner.parent.span_id == outer.context.span_id
    assert set(outer.attributes) == {"rpc.system", "rpc.service", "rpc.method", "gyre.request_id"}


async def test_an_unsampled_call_makes_no_span(server_of: ServerAt, spans: InMemorySpanExporter) -> None:
    """At ratio 0 and without a sampled caller nothing is recorded."""
    async with server_of() as server, channel(server.address, SETTINGS, name="gateway") as peer:
        await call(GatewayServiceStub(peer).Rank, RANK, timeout_s=5)
    assert spans.get_finished_spans() == ()


async def test_calls_are_counted_by_method_and_code(
    server_of: ServerAt, gateway: ToldGateway, telemetry: object
) -> None:
    """The server's histogram has a series for the method and each code that it returned."""
    gateway.rank = raising(NotFound("NO_USER", "no such user"))
    async with server_of() as server, channel(server.address, SETTINGS, name="counted") as peer:
        with pytest.raises(NotFound):
            await call(GatewayServiceStub(peer).Rank, RANK, timeout_s=5)
    page = generate_latest(telemetry.registry).decode()  # type: ignore[attr-defined]
    service = "gyre.gateway.v1.GatewayService"
    assert f'gyre_rpc_server_seconds_count{{code="NOT_FOUND",method="Rank",service="{service}"}}' in page
    assert 'gyre_rpc_client_seconds_count{code="NOT_FOUND",method="Rank",peer="counted"} 1.0' in page
