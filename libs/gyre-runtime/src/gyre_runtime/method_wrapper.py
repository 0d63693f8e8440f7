"""What every method of a server is wrapped in: request id, token, deadline, decoding, errors, metrics, a span.

It wraps each method once when the server is built, which keeps its cost below what a chain of `grpc.aio`
interceptors costs on every call. Who calls is decided from the metadata alone, before the request is read.
"""

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeAlias

import grpc
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import SpanKind

from gyre_runtime import tracing
from gyre_runtime.constraints import checker_for, invalid
from gyre_runtime.context import CURRENT_CALL, CallContext
from gyre_runtime.errors import (
    DETAILS_KEY,
    DeadlineExceeded,
    GyreError,
    Invalid,
    Unauthenticated,
    Unavailable,
    to_status,
)
from gyre_runtime.metrics import instrument
from gyre_runtime.settings import ServerSettings
from gyre_runtime.transport_security import check_token, read_token

REQUEST_ID = "x-request-id"
_MAX_REQUEST_ID_CHARS = 64
_QUIET_S = 0.2
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
ReadRequest: TypeAlias = Callable[[bytes], Any]
"""Turns the bytes of a request into its message; raises Invalid."""
_LOG = logging.getLogger(__name__)
_TRACER = trace.get_tracer("gyre")


class _Observed:
    """Metrics and span attributes of one method, prepared once."""

    def __init__(self, service: str, method: str) -> None:
        self.span_name = f"{service}/{method}"
        self.attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method}
        self._labels = {"service": service, "method": method}
        self._seconds: dict[str, Callable[[float], None]] = {}

    def record(self, code: str, started: float) -> None:
        seconds = self._seconds.get(code)
        if seconds is None:
            seconds = self._seconds[code] = instrument("gyre_rpc_server_seconds").bind(**self._labels, code=code)
        seconds(time.perf_counter() - started)


@dataclass
class WrappedMethod:
    """One method of a server, as `MethodWrapper.wrap` returns it.

    Attributes:
        handler: answers a caller that `MethodWrapper.admits`.
        refusal: answers any other with UNAUTHENTICATED. It streams, so that gRPC neither reads nor decodes the request.
    """

    handler: Handler
    refusal: Handler


@dataclass
class _Call:
    """One call under way; `code` is how it ended."""

    context: CallContext
    has_deadline: bool
    code: str = "OK"


class MethodWrapper:
    """Wraps the method handlers of one server when it is built, and keeps track of the calls under way.

    It is no `grpc.aio.ServerInterceptor`: `build_server` alone uses it. A wrapped method decodes and
    validates the request, sets the call's context and deadline, turns errors into statuses, and records metric and
    span; who calls without the token is refused before.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self._token = read_token(settings.token_file)
        self._max_deadline_s = settings.max_deadline_s
        self._max_stream_s = settings.max_stream_s
        self._streams: set[asyncio.Task[Any]] = set()
        self._begun = self._under_way = 0
        self._draining = False

    def wrap(self, service: str, method: str, handler: Handler, request: Descriptor) -> WrappedMethod:
        """Return a method whose handler is wrapped; the given handler is not changed.

        Args:
            service: full proto name of the service.
            method: name of the method.
            handler: unary or server-streaming, as the generated code made it.
            request: the request's message type, whose constraints are compiled now.

        Raises:
            TypeError: the method is client-streaming, or its handler has no deserialiser.
        """
        observed, read = _Observed(service, method), _reader(handler, request)
        if handler.unary_unary is not None:
            behaviour, make = self._unary(handler.unary_unary, observed, read), grpc.unary_unary_rpc_method_handler
        elif handler.unary_stream is not None:
            behaviour, make = self._stream(handler.unary_stream, observed, read), grpc.unary_stream_rpc_method_handler
        else:
            raise TypeError(f"{service}/{method}: a client that streams is not supported")
        # gRPC hands the bytes over: what a deserialiser of its raises is UNKNOWN to the caller, and in no metric.
        wrapped: Handler = make(behaviour, None, handler.response_serializer)
        return WrappedMethod(wrapped, grpc.stream_stream_rpc_method_handler(self._refusing(observed)))

    def admits(self, metadata: Iterable[tuple[str, str | bytes]]) -> bool:
        """Whether a call's metadata holds the token that the server asks for; always True where it asks for none."""
        if not self._token:
            return True
        try:
            check_token(self._token, _value(metadata, "authorization"))
        except Unauthenticated:
            return False
        return True

    async def until_quiet(self, timeout_s: float) -> None:
        """Wait until for 0.2 s no unary call begins or is under way; return after `timeout_s` in any case.

        New calls are admitted meanwhile, and streams are not waited for.

        A gRPC server that stops cancels the calls that have arrived and that nobody has taken up yet, of which a busy
        process may have many (`ZombifyPending` of gRPC's core).
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                begun = 0
                while self._under_way or begun != self._begun:
                    begun = self._begun
                    await asyncio.sleep(_QUIET_S)

    def end_streams(self) -> None:
        """End every stream with UNAVAILABLE (DRAINING), a later one after its first response; unary calls go on."""
        self._draining = True
        for stream in tuple(self._streams):
            stream.cancel()

    def _refusing(self, observed: _Observed) -> Any:
        async def refuse(_requests: object, context: Context) -> None:
            with self._observe(observed, context, self._max_deadline_s) as under_way:
                try:
                    check_token(self._token, _value(context.invocation_metadata() or (), "authorization"))
                except Unauthenticated as error:
                    await self._fail(error, context, under_way)

        return refuse

    def _unary(self, behaviour: Any, observed: _Observed, read: ReadRequest) -> Any:
        async def call(body: bytes, context: Context) -> Any:
            with self._counted(), self._observe(observed, context, self._max_deadline_s) as under_way:
                try:
                    request = self._admit(body, context, under_way.context, read)
                    async with asyncio.timeout(None if under_way.has_deadline else self._max_deadline_s):
                        return await behaviour(request, context)
                except Exception as error:  # noqa: BLE001 - the boundary: every error becomes a status
                    await self._fail(error, context, under_way)

        return call

    def _stream(self, behaviour: Any, observed: _Observed, read: ReadRequest) -> Any:
        async def call(body: bytes, context: Context) -> AsyncIterator[Any]:
            with self._observe(observed, context, self._max_stream_s) as under_way:
                stream = _current_task()
                self._streams.add(stream)
                try:
                    request = self._admit(body, context, under_way.context, read)
                    async with asyncio.timeout(None if under_way.has_deadline else self._max_stream_s):
                        async for response in behaviour(request, context):
                            # Cancelled while gRPC sends, the call would end without a status, and hold the server up.
                            self._streams.discard(stream)
                            yield response
                            self._streams.add(stream)
                            if self._draining:
                                raise _draining()  # noqa: TRY301 - ends as any failure
                except Exception as error:  # noqa: BLE001 - the boundary: every error becomes a status
                    await self._fail(error, context, under_way)
                except asyncio.CancelledError:
                    if not self._draining:
                        raise
                    stream.uncancel()
                    await self._fail(_draining(), context, under_way)
                finally:
                    self._streams.discard(stream)

        return call

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Count a unary call, as long as it is under way."""
        self._begun += 1
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1

    @contextmanager
    def _observe(self, observed: _Observed, context: Context, limit_s: float) -> Any:
        started = time.perf_counter()
        request_id, traceparent = _identity(context)
        remaining = _remaining_s(context)
        deadline = time.monotonic() + (limit_s if remaining is None else remaining)
        under_way = _Call(CallContext(request_id, deadline), has_deadline=remaining is not None)
        span = _server_span(observed, request_id, traceparent)
        attached = otel_context.attach(trace.set_span_in_context(span))
        call_token = CURRENT_CALL.set(under_way.context)
        try:
            yield under_way
        except asyncio.CancelledError:
            under_way.code = "DEADLINE_EXCEEDED" if under_way.context.remaining_s() <= 0 else "CANCELLED"
            raise
        finally:
            observed.record(under_way.code, started)
            if under_way.code != "OK":
                span.set_attribute("rpc.grpc.status", under_way.code)
                span.set_status(trace.Status(trace.StatusCode.ERROR, under_way.code))
            span.end()
            # A stream that nobody ends is closed by the event loop, in a context of its own, where nothing was set.
            with suppress(ValueError):
                CURRENT_CALL.reset(call_token)
            otel_context.detach(attached)

    def _admit(self, body: bytes, context: Context, call: CallContext, read: ReadRequest) -> Any:
        if call.remaining_s() <= 0:
            raise DeadlineExceeded("DEADLINE_EXPIRED", "the deadline was over before the call began")
        request = read(body)
        context.set_trailing_metadata(((REQUEST_ID, call.request_id),))
        return request

    async def _fail(self, error: Exception, context: Context, under_way: _Call) -> None:
        if isinstance(error, grpc.aio.AbortError):
            under_way.code = _code_name(context.code())
            raise error
        if isinstance(error, TimeoutError):
            error = DeadlineExceeded("DEADLINE_EXCEEDED", "the call took longer than it may")
        if not isinstance(error, GyreError):
            _LOG.exception("unexpected error in a call", exc_info=error)
        status = to_status(error)
        code = error.code if isinstance(error, GyreError) else grpc.StatusCode.INTERNAL
        under_way.code = code.name
        trailing = ((DETAILS_KEY, status.SerializeToString()), (REQUEST_ID, under_way.context.request_id))
        await context.abort(code, status.message, trailing)


def _reader(handler: Handler, request: Descriptor) -> ReadRequest:
    """What decodes and checks the requests of a method."""
    decode, check = handler.request_deserializer, checker_for(request)
    if decode is None:
        raise TypeError(f"{request.full_name}: generated code gives every method a deserialiser")

    def read(body: bytes) -> Any:
        try:
            message = decode(body)
        except DecodeError as error:
            raise Invalid("BAD_PAYLOAD", f"the request's body is no {request.full_name}") from error
        broken = check(message)
        if broken:
            raise invalid(broken)
        return message

    return read


def _server_span(observed: _Observed, request_id: str, traceparent: str | None) -> trace.Span:
    """The span of a call; one of a trace that is not sampled only passes the caller's context on."""
    above = tracing.parse(traceparent)
    if above is not None and tracing.is_left_out(above):
        return trace.NonRecordingSpan(above)
    return _TRACER.start_span(
        observed.span_name,
        context=tracing.parent_context(traceparent) or otel_context.Context(),
        kind=SpanKind.SERVER,
        attributes={**observed.attributes, "gyre.request_id": request_id},
    )


def _draining() -> Unavailable:
    return Unavailable("DRAINING", "the server is going down")


def _current_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    if task is None:
        raise RuntimeError("gRPC runs each call in a task")
    return task


def _remaining_s(context: Any) -> float | None:
    """Return what the caller leaves, or None without a deadline (which gRPC's type stubs do not know of)."""
    remaining: float | None = context.time_remaining()
    return remaining


def _code_name(code: Any) -> str:
    if isinstance(code, grpc.StatusCode):
        return code.name
    return next((status.name for status in grpc.StatusCode if status.value[0] == code), "UNKNOWN")


def _value(metadata: Iterable[tuple[str, str | bytes]], name: str) -> str:
    for key, value in metadata:
        if key == name:
            return value if isinstance(value, str) else value.decode("latin-1")
    return ""


def _identity(context: Context) -> tuple[str, str | None]:
    """Return the request id, the caller's or a new one, and the caller's traceparent."""
    request_id, traceparent = "", None
    for key, value in context.invocation_metadata() or ():
        if key == REQUEST_ID and isinstance(value, str) and len(value) <= _MAX_REQUEST_ID_CHARS:
            request_id = value
        elif key == tracing.TRACEPARENT and isinstance(value, str):
            traceparent = value
    return request_id or uuid.uuid4().hex, traceparent
