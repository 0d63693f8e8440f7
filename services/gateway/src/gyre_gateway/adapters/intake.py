"""Tracked events into Kafka."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import cast

from google.protobuf.message import Message
from gyre_core.topics import topic
from gyre_runtime.kafka import Producer

from gyre_gateway.domain.events import Event

SOURCE = "gateway"
"""CloudEvents source of tracked events: one for all gateways, so that an event sent again to another counts once.

It differs from the source of impressions, whose ids are those of requests, which callers use for their events too.
"""


class KafkaIntake:
    """An `Intake` on a producer."""

    def __init__(self, producer: Producer) -> None:
        self._producer = producer

    async def send(self, loop: str, events: Sequence[Event]) -> None:
        """See `Intake`."""
        sends = (self._send(loop, event) for event in events)
        outcomes = await asyncio.gather(*sends, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    async def _send(self, loop: str, event: Event) -> None:
        await self._producer.send(
            topic(loop, event.topic),
            cast("Message", event.payload),
            key=event.key,
            time=event.time,
            source=SOURCE,
            id=event.event_id,
        )
