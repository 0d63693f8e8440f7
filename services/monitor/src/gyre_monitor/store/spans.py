"""Spans in SQL: written as they come, found by request and by link, the flow of models kept longer than requests."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Connection, select

from gyre_monitor.domain.traces import StoredSpan
from gyre_monitor.store.database import chunks, insert_new
from gyre_monitor.store.schema import SPANS

REQUEST_ATTRIBUTE = "gyre.request_id"
ROLLOUT_ATTRIBUTE = "gyre.rollout_id"
LOOP_ATTRIBUTE = "gyre.loop"
MAX_ID_CHARS = 128
"""To how many characters the ids that spans are found by are cut."""


def insert_spans(connection: Connection, spans: Iterable[StoredSpan]) -> None:
    """Store spans; those that are stored already stay as they are."""
    rows = [
        {
            "trace_id": span.trace_id,
            "span_id": span.span_id,
            "parent_span_id": span.parent_span_id,
            "service": span.service[:128],
            "name": span.name,
            "start_ns": span.start_ns,
            "duration_s": span.duration_s,
            "failed": span.failed,
            "is_model": span.is_model,
            "request_id": span.attributes.get(REQUEST_ATTRIBUTE, "")[:MAX_ID_CHARS],
            "rollout_id": span.attributes.get(ROLLOUT_ATTRIBUTE, "")[:MAX_ID_CHARS] if span.is_model else "",
            "attributes": json.dumps(dict(span.attributes)),
            "links": json.dumps(span.links),
        }
        for span in spans
    ]
    insert_new(connection, SPANS, rows)


def linked_spans(
    connection: Connection, trace_ids: Sequence[str], *, max_traces: int, max_spans: int
) -> list[StoredSpan]:
    """The spans of traces and of every trace that they link to, and so on; no order, within the bounds.

    The nearest traces come first: a bound cuts off what is linked through the most others.
    """
    found: list[StoredSpan] = []
    known, frontier = set(trace_ids), list(trace_ids)
    while frontier and len(found) < max_spans:
        level: list[StoredSpan] = []
        for some in chunks(frontier):
            level += _of_traces(connection, some, limit=max_spans - len(found) - len(level))
        found += level
        linked = dict.fromkeys(trace_id for span in level for trace_id, _ in span.links)
        frontier = [each for each in linked if each not in known][: max(0, max_traces - len(known))]
        known.update(frontier)
    return found


def _of_traces(connection: Connection, trace_ids: Sequence[str], *, limit: int) -> list[StoredSpan]:
    query = select(SPANS).where(SPANS.c.trace_id.in_(trace_ids)).order_by(SPANS.c.start_ns).limit(limit)
    return [_span(row) for row in connection.execute(query)]


def _span(row: Any) -> StoredSpan:
    return StoredSpan(
        trace_id=row.trace_id,
        span_id=row.span_id,
        parent_span_id=row.parent_span_id,
        service=row.service,
        name=row.name,
        start_ns=row.start_ns,
        duration_s=row.duration_s,
        failed=row.failed,
        is_model=row.is_model,
        attributes=json.loads(row.attributes),
        links=tuple((trace_id, span_id) for trace_id, span_id in json.loads(row.links)),
    )


def traces_of(connection: Connection, loop: str, request_id: str, rollout_id: str) -> list[str]:
    """The traces of a request, and of the rollout behind its answer, which an unsampled request has no link to."""
    of_request = select(SPANS.c.trace_id, SPANS.c.attributes).where(SPANS.c.request_id == request_id)
    of_rollout = select(SPANS.c.trace_id, SPANS.c.attributes).where(SPANS.c.rollout_id == rollout_id)
    rows = list(connection.execute(of_request))
    if rollout_id:
        rows += connection.execute(of_rollout)
    own = (row.trace_id for row in rows if json.loads(row.attributes).get(LOOP_ATTRIBUTE, loop) == loop)
    return list(dict.fromkeys(own))
