"""An event that a caller tracks, on its way to Kafka."""

from __future__ import annotations

from dataclasses import dataclass


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
