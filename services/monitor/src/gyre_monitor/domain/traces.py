"""Spans as they are kept, and their order: parents before children, roots by their beginning."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class StoredSpan:
    """One span; ids are hexadecimal, `links` are (trace id, span id) pairs.

    Attributes:
        start_ns: when it began, unix nanoseconds.
        is_model: it belongs to the flow of models, which is kept longer.
    """

    trace_id: str
    span_id: str
    parent_span_id: str
    service: str
    name: str
    start_ns: int
    duration_s: float
    failed: bool
    is_model: bool
    attributes: Mapping[str, str] = field(default_factory=dict)
    links: tuple[tuple[str, str], ...] = ()


def parents_first(spans: Iterable[StoredSpan]) -> list[StoredSpan]:
    """Order spans so that each follows its parent, if that is there; siblings and roots by their beginning."""
    known = {(span.trace_id, span.span_id): span for span in spans}
    children: dict[tuple[str, str], list[StoredSpan]] = defaultdict(list)
    roots: list[StoredSpan] = []
    for span in known.values():
        parent = (span.trace_id, span.parent_span_id)
        if parent in known and span.parent_span_id != span.span_id:
            children[parent].append(span)
        else:
            roots.append(span)
    ordered: list[StoredSpan] = []
    waiting = _latest_first(roots)
    while waiting:
        span = waiting.pop()
        ordered.append(span)
        waiting.extend(_latest_first(children.pop((span.trace_id, span.span_id), [])))
    # What is left names itself as its own ancestor: no order is right, but nothing is hidden.
    return ordered + [span for circle in children.values() for span in circle]


def _latest_first(spans: list[StoredSpan]) -> list[StoredSpan]:
    return sorted(spans, key=lambda span: (span.start_ns, span.span_id), reverse=True)
