"""An OTLP receiver (https://opentelemetry.io/docs/specs/otlp/#otlpgrpc): spans go straight into the database.

A call is answered once its spans are stored, so that nothing waits in memory but a bounded count of calls. The server
speaks neither TLS nor tokens, as the exporters of the mesh do not: it belongs on a private network.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, Self

import grpc
from gyre_runtime import Unavailable, instrument
from gyre_runtime.errors import cannot_listen
from gyre_runtime.tracing import FLOW_ATTRIBUTE
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as rpc
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1 import trace_pb2

from gyre_monitor.domain.traces import StoredSpan
from gyre_monitor.store.database import Database
from gyre_monitor.store.spans import insert_spans

_MAX_CALLS = 32
_MAX_MESSAGE_BYTES = 4 * 1024 * 1024
_MAX_ATTRIBUTES = 64
_MAX_LINKS = 64
_MAX_CHARS = 256
_FLUSH_MS = 2000
_GRACE_S = 1.0
_LOG = logging.getLogger(__name__)


class TraceReceiver(rpc.TraceServiceServicer):
    """`opentelemetry.proto.collector.trace.v1.TraceService`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def Export(self, request: pb.ExportTraceServiceRequest, context: Any) -> pb.ExportTraceServiceResponse:
        """Store spans; those with malformed ids are refused, and counted in the answer."""
        spans, refused = decode(request)
        try:
            await self._database.write(insert_spans, spans)
        except Unavailable as error:
            # An exporter tries again after this status.
            await context.abort(grpc.StatusCode.UNAVAILABLE, error.message)
        instrument("gyre_monitor_spans_total").add(len(spans), outcome="stored")
        answer = pb.ExportTraceServiceResponse()
        if refused:
            instrument("gyre_monitor_spans_total").add(refused, outcome="refused")
            answer.partial_success.rejected_spans = refused
            answer.partial_success.error_message = "trace_id must have 16 bytes, span_id 8, not all of them zero"
        return answer


def decode(request: pb.ExportTraceServiceRequest) -> tuple[list[StoredSpan], int]:
    """The spans of a request, and how many were malformed."""
    spans: list[StoredSpan] = []
    refused = 0
    for part in request.resource_spans:
        service = next((_text(each.value) for each in part.resource.attributes if each.key == "service.name"), "")
        for span in _spans(part):
            if len(span.trace_id) == 16 and len(span.span_id) == 8 and any(span.trace_id) and any(span.span_id):
                spans.append(_stored(span, service))
            else:
                refused += 1
    return spans, refused


def _spans(part: trace_pb2.ResourceSpans) -> Iterator[trace_pb2.Span]:
    for scope in part.scope_spans:
        yield from scope.spans


def _stored(span: trace_pb2.Span, service: str) -> StoredSpan:
    attributes = _attributes(span.attributes)
    links = (link for link in span.links if len(link.trace_id) == 16 and len(link.span_id) == 8)
    return StoredSpan(
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_span_id=span.parent_span_id.hex()[:16],
        service=service,
        name=_clean(span.name),
        start_ns=min(span.start_time_unix_nano, 2**63 - 1),
        duration_s=max(span.end_time_unix_nano - span.start_time_unix_nano, 0) / 1e9,
        failed=span.status.code == trace_pb2.Status.STATUS_CODE_ERROR,
        is_model=attributes.get(FLOW_ATTRIBUTE) == "model",
        attributes=attributes,
        links=tuple((link.trace_id.hex(), link.span_id.hex()) for link in links)[:_MAX_LINKS],
    )


def _attributes(given: Iterable[KeyValue]) -> dict[str, str]:
    pairs = [(_clean(each.key), _text(each.value)) for each in given]
    return dict(pairs[:_MAX_ATTRIBUTES])


def _text(value: AnyValue) -> str:
    kind = value.WhichOneof("value")
    if kind == "string_value":
        return _clean(value.string_value)
    if kind == "bool_value":
        return str(value.bool_value).lower()
    if kind == "array_value":
        return _clean(", ".join(_text(each) for each in value.array_value.values))
    return _clean(str(getattr(value, kind))) if kind in {"int_value", "double_value"} else ""


def _clean(text: str) -> str:
    """Cut what is too long, and leave out what not every database can store."""
    return text[:_MAX_CHARS].replace("\0", "")


class OtlpServer:
    """Listens for spans; an async context manager.

    Args:
        listen: host:port; port 0 takes a free one.
        receiver: what stores them.

    Attributes:
        address: host:port with the real port, once entered.
    """

    def __init__(self, listen: str, receiver: TraceReceiver) -> None:
        self.address = listen
        self._receiver = receiver
        self._server: grpc.aio.Server | None = None

    async def __aenter__(self) -> Self:
        """Listen.

        Raises:
            Misconfigured: nobody can listen at the address (CANNOT_LISTEN).
        """
        options = [("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES)]
        self._server = server = grpc.aio.server(options=options, maximum_concurrent_rpcs=_MAX_CALLS)
        rpc.add_TraceServiceServicer_to_server(self._receiver, server)  # type: ignore[no-untyped-call]
        try:
            port = server.add_insecure_port(self.address)
        except RuntimeError:
            raise cannot_listen("otlp_listen", self.address) from None
        self.address = f"{self.address.rpartition(':')[0]}:{port}"
        await server.start()
        _LOG.info("listening for spans", extra={"address": self.address})
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace_: TracebackType | None
    ) -> None:
        """Take the last spans of this process itself, then stop."""
        flush = getattr(trace.get_tracer_provider(), "force_flush", None)
        if flush is not None:
            await asyncio.to_thread(flush, _FLUSH_MS)
        if self._server is not None:
            await self._server.stop(_GRACE_S)
            self._server = None
