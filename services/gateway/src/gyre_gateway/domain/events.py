"""An event that a caller tracks, on its way to Kafka."""

from __future__ import annotations

from dataclasses import dataclass

SOURCE = "gateway"
"""CloudEvents source of tracked events, followed by the application that calls, where it says so.

It is one for all gateways, so that an event sent again to another counts once.

It differs from the source of impressions, whose ids are those of requests, which callers use for their events too.
"""


def source_of(application: str) -> str:
    """The CloudEvents source of what an application tracks; an empty name is of those that do not say who they are."""
    return f"{SOURCE}/{application}" if application else SOURCE


@dataclass(frozen=True, slots=True)
class OutgoingEvent:
    """One event.

    Attributes:
        topic: without the loop, such as `behavior.interactions`.
        key: of its record.
        event_id: the caller's or a new one.
        time: when it happened, unix seconds.
        payload: its message, as it goes to Kafka.
    """

    topic: str
    key: str
    event_id: str
    time: float
    payload: object
