"""Alerts that belong together: those of one loop that overlap in time, or follow each other closely."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from math import inf


@dataclass(frozen=True, slots=True)
class AlertRecord:
    """An alert as it stands; times are unix seconds, `end_time` is None while it fires."""

    alert_id: str
    name: str
    severity: int
    message: str
    start_time: float
    end_time: float | None


@dataclass(frozen=True, slots=True)
class IncidentRecord:
    """Alerts that belong together, oldest first; `end_time` is None while one fires."""

    incident_id: str
    alerts: tuple[AlertRecord, ...]
    start_time: float
    end_time: float | None


def incidents(alerts: Iterable[AlertRecord], *, gap_s: float) -> list[IncidentRecord]:
    """Group alerts, newest incident first; an alert joins the one before that ended at most `gap_s` earlier."""
    groups: list[list[AlertRecord]] = []
    reach = -inf
    for alert in sorted(alerts, key=lambda each: (each.start_time, each.alert_id)):
        if alert.start_time > reach + gap_s:
            groups.append([])
            reach = -inf
        groups[-1].append(alert)
        reach = max(reach, inf if alert.end_time is None else alert.end_time)
    return [_incident(group) for group in reversed(groups)]


def _incident(alerts: list[AlertRecord]) -> IncidentRecord:
    ends = [alert.end_time for alert in alerts]
    first = alerts[0]
    # From its first alert, so that an incident keeps its id while alerts join it.
    name = blake2b(f"{first.alert_id}\0{first.start_time!r}".encode(), digest_size=8).hexdigest()
    end = None if None in ends else max(each for each in ends if each is not None)
    return IncidentRecord(f"incident-{name}", tuple(alerts), first.start_time, end)
