"""Queues the run of each trigger on Kafka; the offset is committed once the run is stored."""

from __future__ import annotations

from collections.abc import Iterable

from gyre.events.v1 import models_pb2 as models
from gyre_core.topics import topic
from gyre_runtime import Invalid, Violation
from gyre_runtime.events import Event, message_types
from gyre_runtime.kafka import Consumer

from gyre_trainer.domain import Trigger
from gyre_trainer.handlers import RunRegistry

GROUP = "trainer"
SUFFIX = "training.triggers"


def trigger_consumer(bootstrap: str, loops: Iterable[str]) -> Consumer:
    """The member of the group that reads the triggers of all loops."""
    topics = [topic(loop, SUFFIX) for loop in loops]
    return Consumer(bootstrap, group=GROUP, topics=topics, types=message_types(models.TrainingTrigger))


class TriggerConsumer:
    """Hands triggers to the handlers."""

    def __init__(self, runs: RunRegistry) -> None:
        self._runs = runs

    async def handle(self, event: Event) -> None:
        """Queue the run of one trigger.

        Raises:
            Invalid: the trigger is of another loop than its topic, or gives no reason; it is dead-lettered.
        """
        message = event.message
        own = event.topic.removesuffix(f".{SUFFIX}")
        if message.loop != own:
            raise _invalid("loop", repr(message.loop), f"must be {own!r}, the loop of its topic")
        if message.reason == models.TRIGGER_REASON_UNSPECIFIED:
            raise _invalid("reason", "TRIGGER_REASON_UNSPECIFIED", "must say why")
        self._runs.queue(Trigger(message.trigger_id, message.loop, event.traceparent or ""))


def _invalid(field: str, value: str, rule: str) -> Invalid:
    violation = Violation(field, value, rule)
    return Invalid("INVALID_FIELD", str(violation), violations=[violation])
