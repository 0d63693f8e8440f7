"""Spans and their context across gRPC metadata and Kafka headers, as W3C `traceparent` strings.

The model flow (`flow="model"`) is always sampled; the request flow follows its caller, or the ratio. Spans never
carry payloads or personal data.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult, TraceIdRatioBased
from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanContext, SpanKind, Status, StatusCode, TraceFlags

Flow = Literal["request", "model"]
FLOW_ATTRIBUTE = "gyre.flow"
TRACEPARENT = "traceparent"
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")
_TRACER = trace.get_tracer("gyre")


def parse(traceparent: str | None) -> SpanContext | None:
    """Read a `traceparent` (https://www.w3.org/TR/trace-context/); None when it is absent or malformed."""
    match = _TRACEPARENT.fullmatch(traceparent) if traceparent else None
    if match is None:
        return None
    span = SpanContext(
        trace_id=int(match[1], 16),
        span_id=int(match[2], 16),
        is_remote=True,
        trace_flags=TraceFlags(int(match[3], 16)),
    )
    return span if span.is_valid else None


def format_traceparent(span: SpanContext) -> str:
    """Return a span context as a `traceparent`; no header is set."""
    return f"00-{span.trace_id:032x}-{span.span_id:016x}-{span.trace_flags:02x}"


def current_traceparent() -> str | None:
    """Return the current span as a `traceparent`, for a header that the caller sets; None outside of any span."""
    span = trace.get_current_span().get_span_context()
    return format_traceparent(span) if span.is_valid else None


def current_trace_id() -> str:
    """Return the current trace id in hex, or an empty string outside of any span."""
    span = trace.get_current_span().get_span_context()
    return f"{span.trace_id:032x}" if span.is_valid else ""


def is_sampled(traceparent: str | None) -> bool:
    """Whether a `traceparent` has the flag of a sampled trace; False for None, and nothing else of it is checked."""
    return traceparent is not None and len(traceparent) >= 55 and traceparent[54] in "13579bdf"


def trace_id_of(traceparent: str) -> str:
    """The trace id of a `traceparent` (https://www.w3.org/TR/trace-context/#traceparent-header), 32 hex digits.

    The text is cut, and not checked.
    """
    return traceparent[3:35]


def is_left_out(above: SpanContext) -> bool:
    """Whether a parent span's trace is not sampled, so that spans need not be made; False where there is no parent."""
    return above.is_valid and not above.trace_flags.sampled


def parent_context(traceparent: str | None) -> Context | None:
    """Return a context in which a span becomes the child of a remote one, for `start_span` of OpenTelemetry.

    None where the `traceparent` is absent or malformed, by which the current context is kept. Nothing is attached.
    """
    span = parse(traceparent)
    return trace.set_span_in_context(NonRecordingSpan(span), Context()) if span else None


@contextmanager
def start_span(
    name: str,
    *,
    parent: str | None = None,
    links: Sequence[str] = (),
    flow: Flow = "request",
    attributes: Mapping[str, Any] | None = None,
    kind: SpanKind = SpanKind.INTERNAL,
) -> Iterator[Span]:
    """Run a block in a new current span, which an exception marks as failed, by class and `reason` alone.

    Within a trace that is not sampled no span is made for the request flow: the block gets the current one, and
    `attributes` and `links` are dropped.

    Args:
        name: what is done, of low cardinality.
        parent: `traceparent` of a remote parent; the current span is the parent without it, or where it is malformed.
        links: `traceparent`s of what led here where the flow fans in; malformed ones are left out.
        flow: `model` is always sampled.
        attributes: low-risk facts; never payloads or personal data.
        kind: server, client, producer, consumer or internal.
    """
    if flow == "request" and parent is None and is_left_out(trace.get_current_span().get_span_context()):
        yield trace.get_current_span()
        return
    linked = [Link(span) for span in map(parse, links) if span]
    span = _TRACER.start_span(
        name,
        context=parent_context(parent),
        kind=kind,
        links=linked,
        attributes={**(attributes or {}), FLOW_ATTRIBUTE: flow},
        record_exception=False,
    )
    token = otel_context.attach(trace.set_span_in_context(span))
    try:
        yield span
    except Exception as error:
        span.set_attribute("error.type", type(error).__name__)
        span.set_status(Status(StatusCode.ERROR, getattr(error, "reason", type(error).__name__)))
        raise
    finally:
        otel_context.detach(token)
        span.end()


class ModelTracer:
    """Spans of the model flow: triggers, training runs, rollouts. They are always sampled."""

    @contextmanager
    def span(
        self,
        name: str,
        *,
        parent: str | None = None,
        links: Sequence[str] = (),
        attributes: Mapping[str, Any] | None = None,
    ) -> Iterator[Span]:
        """Run a block in a span as `start_span` does, but one that is always sampled."""
        with start_span(name, parent=parent, links=links, flow="model", attributes=attributes) as span:
            yield span


def model_tracer() -> ModelTracer:
    """Return the tracer of the model flow; it has no state."""
    return ModelTracer()


class FlowSampler(Sampler):
    """Always the model flow; else as the parent decided; else a ratio of the roots."""

    def __init__(self, ratio: float) -> None:
        self._ratio = TraceIdRatioBased(ratio)

    def should_sample(  # noqa: PLR0913, PLR0917 - OpenTelemetry's interface
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Any = None,
        links: Sequence[Link] | None = None,
        trace_state: Any = None,
    ) -> SamplingResult:
        """Keep a span of the model flow or of a sampled parent; a root by the ratio; drop any other."""
        if attributes and attributes.get(FLOW_ATTRIBUTE) == "model":
            return SamplingResult(Decision.RECORD_AND_SAMPLE, attributes)
        parent = trace.get_current_span(parent_context).get_span_context()
        if not parent.is_valid:
            return self._ratio.should_sample(parent_context, trace_id, name, kind, attributes, links, trace_state)
        if parent.trace_flags.sampled:
            return SamplingResult(Decision.RECORD_AND_SAMPLE, attributes)
        return SamplingResult(Decision.DROP)

    def get_description(self) -> str:
        """The sampler's name and ratio."""
        return f"FlowSampler{{{self._ratio.rate}}}"
