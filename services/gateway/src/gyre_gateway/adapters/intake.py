"""Tracked events into Kafka."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import cast

from google.protobuf.message import Message
from gyre_core.topics import topic
from gyre_runtime import Invalid, Violation, tracing
from gyre_runtime.events import Record, encode
from gyre_runtime.kafka import Producer, require_fits

from gyre_gateway.domain.events import OutgoingEvent

_FIELDS = {
    "behavior.interactions": "interaction",
    "catalog.items": "item_changed",
    "catalog.users": "user_changed",
}
"""The field of a `TrackedEvent` that holds the event of each topic."""


class KafkaIntake:
    """An `Intake` on a producer."""

    def __init__(self, producer: Producer) -> None:
        self._producer = producer

    async def send(self, loop: str, events: Sequence[OutgoingEvent], *, source: str) -> None:
        """See `Intake`."""
        records = [_record(loop, event, index=index, source=source) for index, event in enumerate(events)]
        sends = (self._producer.send_record(name, record) for name, record in records)
        outcomes = await asyncio.gather(*sends, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome


def _record(loop: str, event: OutgoingEvent, *, index: int, source: str) -> tuple[str, Record]:
    """The topic and record of the event at an index of its call; raises Invalid where it is too large."""
    name = topic(loop, event.topic)
    message = cast("Message", event.payload)
    trace = tracing.current_traceparent()
    record = encode(message, source=source, id=event.event_id, time=event.time, key=event.key, traceparent=trace)
    try:
        require_fits(name, *record)
    except Invalid as error:
        violation = Violation(f"events[{index}].{_FIELDS[event.topic]}", f"{len(record.value):,} bytes", error.message)
        raise Invalid(error.reason, str(violation), violations=[violation]) from error
    return name, record
