"""Bounds the tables: the oldest rows go when there are more than a setting allows, a slice at a time."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, Table, and_, delete, exists, func, not_, select

from gyre_monitor.store.schema import ALERTS, IMPRESSIONS, INTERACTIONS, SPANS, TRACES

_SLICE = 5000


@dataclass(frozen=True, slots=True)
class Retention:
    """How many rows of each kind are kept at most."""

    impressions: int
    interactions: int
    request_spans: int
    model_spans: int
    alerts: int

    def prune(self, connection: Connection) -> bool:
        """Delete a slice of what is too many; return whether there is more, so that writers may go in between."""
        more = [
            _prune(connection, IMPRESSIONS, self.impressions),
            _prune(connection, INTERACTIONS, self.interactions),
            _prune_spans(connection, is_model=False, kept=self.request_spans),
            _prune_spans(connection, is_model=True, kept=self.model_spans),
            _prune_traces(connection, kept=self.request_spans),
        ]
        self._prune_alerts(connection)
        return any(more)

    def _prune_alerts(self, connection: Connection) -> None:
        """Delete the oldest alerts that have ended."""
        too_many = (connection.scalar(select(func.count()).select_from(ALERTS)) or 0) - self.alerts
        if too_many <= 0:
            return
        ended = select(ALERTS.c.loop, ALERTS.c.alert_id).where(ALERTS.c.end_time.is_not(None))
        for loop, alert_id in connection.execute(ended.order_by(ALERTS.c.start_time).limit(too_many)).all():
            connection.execute(delete(ALERTS).where(ALERTS.c.loop == loop, ALERTS.c.alert_id == alert_id))


def _prune(connection: Connection, table: Table, kept: int) -> bool:
    """Delete by the number of the row: rows are numbered as they come."""
    newest = connection.scalar(select(func.max(table.c.id)))
    return newest is not None and _delete(connection, table, table.c.id <= newest - kept)


def _prune_spans(connection: Connection, *, is_model: bool, kept: int) -> bool:
    """Delete by the count within the flow: both flows share the numbers."""
    own = SPANS.c.is_model.is_(is_model)
    last = connection.scalar(select(SPANS.c.id).where(own).order_by(SPANS.c.id.desc()).offset(kept).limit(1))
    return last is not None and _delete(connection, SPANS, and_(own, SPANS.c.id <= last))


def _prune_traces(connection: Connection, *, kept: int) -> bool:
    """Delete what says whose a trace is, of old traces without spans; more than spans there are no traces."""
    newest = connection.scalar(select(func.max(TRACES.c.id)))
    if newest is None:
        return False
    has_spans = exists().where(SPANS.c.trace_id == TRACES.c.trace_id)
    return _delete(connection, TRACES, and_(TRACES.c.id <= newest - kept, not_(has_spans)))


def _delete(connection: Connection, table: Table, condition: ColumnElement[bool]) -> bool:
    old = select(table.c.id).where(condition).order_by(table.c.id).limit(_SLICE)
    return connection.execute(delete(table).where(table.c.id.in_(old))).rowcount == _SLICE
