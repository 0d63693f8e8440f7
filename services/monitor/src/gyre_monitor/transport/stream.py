"""The stream of events: begins where the database stands, the flow of models before behaviour."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence

from aiokafka import TopicPartition
from aiokafka.errors import IllegalStateError, KafkaError, KafkaTimeoutError
from gyre.events.v1 import behavior_pb2 as behavior
from gyre.events.v1 import features_pb2 as features
from gyre.events.v1 import models_pb2 as models
from gyre.events.v1 import monitor_pb2 as monitor
from gyre_core.spec import LoopSpec
from gyre_core.topics import topic
from gyre_runtime.admission import Admission
from gyre_runtime.events import Event, message_types
from gyre_runtime.kafka import Consumer, ConsumerOptions

from gyre_monitor.handlers import Monitor
from gyre_monitor.store.projection import ALERT, APPLIED, BEHAVIOUR, CONTROL, Projection

GROUP, ALERT_GROUP = "monitor", "monitor-alerts"
TYPES = message_types(
    behavior.Impression,
    behavior.Interaction,
    features.BatchApplied,
    models.TrainingTrigger,
    models.CandidateRegistered,
    models.RolloutEvent,
    monitor.Alert,
)
_POLL_S = 0.02
_RETRY_S = 0.5
_LOG = logging.getLogger(__name__)


class Stream:
    """Consumes every topic that the monitor follows.

    Args:
        bootstrap: Kafka's host:port list.
        loops: specs by name.
        projection: where the events are folded.
        monitor: what handles them.
        batch_events: most events in one transaction.
        mask: takes users' ids out of events; None where the loops keep them.
    """

    def __init__(
        self,
        bootstrap: str,
        loops: Mapping[str, LoopSpec],
        *,
        projection: Projection,
        monitor: Monitor,
        batch_events: int,
        mask: Callable[[Event], None] | None = None,
    ) -> None:
        self._projection, self._monitor = projection, monitor
        self._admission = Admission(loops, TYPES, mask)
        self._stopping = False
        self._tasks: asyncio.TaskGroup | None = None
        self._wait: asyncio.Task[None] | None = None
        suffixes = (*BEHAVIOUR, APPLIED, *CONTROL)
        # Others dead-letter what cannot be read there; alerts are the monitor's own.
        self._consumer = Consumer(
            bootstrap,
            group=GROUP,
            topics=[topic(name, suffix) for name in loops for suffix in suffixes],
            types=TYPES,
            options=self._options(batch_events, dead_letters=False),
        )
        self._alerts = Consumer(
            bootstrap,
            group=ALERT_GROUP,
            topics=[topic(name, ALERT) for name in loops],
            types=TYPES,
            options=self._options(batch_events, dead_letters=True),
        )

    def _options(self, batch_events: int, *, dead_letters: bool) -> ConsumerOptions:
        return ConsumerOptions(
            max_records=batch_events,
            dead_letters=dead_letters,
            admission=self._admission,
            on_assigned=self._assigned,
        )

    def stop(self) -> None:
        """End `run` after the batch under way."""
        self._stopping = True
        self._consumer.stop()
        self._alerts.stop()

    async def run(self) -> None:
        """Consume until `stop`."""
        async with asyncio.TaskGroup() as group:
            self._tasks = group
            for consumer in (self._consumer, self._alerts):
                group.create_task(self._run(consumer), name="consume")

    async def _run(self, consumer: Consumer) -> None:
        try:
            async with consumer:
                await consumer.run(self._monitor.apply)
        finally:
            if consumer is self._consumer and self._wait is not None:
                self._wait.cancel()

    async def _assigned(self, consumer: Consumer, partitions: tuple[TopicPartition, ...]) -> None:
        """Begin every partition where the database stands; behaviour waits for the flow of models."""
        stored = await self._projection.offsets()
        for each in partitions:
            self._admission.start(each.topic, each.partition)
            consumer.kafka.seek(each, stored.get((each.topic, each.partition), 0))
        if consumer is not self._consumer or self._tasks is None or self._stopping:
            return
        if self._wait is not None:
            self._wait.cancel()
        self._projection.decides = False
        control = [each for each in partitions if each.topic.partition(".")[2] in CONTROL]
        behaviour = [each for each in partitions if each.topic.partition(".")[2] in BEHAVIOUR]
        if behaviour:
            consumer.kafka.pause(*behaviour)
        wait = self._until_known(consumer, control, behaviour)
        self._wait = self._tasks.create_task(wait, name="flow of models first")

    async def _until_known(
        self, consumer: Consumer, control: Sequence[TopicPartition], behaviour: Sequence[TopicPartition]
    ) -> None:
        try:
            await self._resume_after(consumer, control, behaviour)
        except IllegalStateError:
            _LOG.info("partitions moved meanwhile: the next assignment begins anew")

    async def _resume_after(
        self, consumer: Consumer, control: Sequence[TopicPartition], behaviour: Sequence[TopicPartition]
    ) -> None:
        """Let behaviour flow, and triggers be decided, once the flow of models as it was is in the database."""
        targets = await _ends(consumer, control)
        while not await self._reached(consumer, targets):  # noqa: ASYNC110 - aiokafka has no event for it
            await asyncio.sleep(_POLL_S)
        ends = await _ends(consumer, behaviour)
        await self._projection.begin({(each.topic, each.partition): end for each, end in ends.items()})
        consumer.kafka.resume(*behaviour)
        self._projection.decides = True
        _LOG.info("the flow of models is known")

    async def _reached(self, consumer: Consumer, targets: Mapping[TopicPartition, int]) -> bool:
        """Whether everything before the targets was handed over, so that a later write comes after its own."""
        for partition, end in targets.items():
            if end > 0 and await consumer.kafka.position(partition) < end:
                return False
        return True


async def _ends(consumer: Consumer, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
    """The present ends of partitions, however long Kafka is away."""
    while partitions:
        try:
            ends: dict[TopicPartition, int] = await consumer.kafka.end_offsets(partitions)
        except KafkaError as error:
            if not (error.retriable or isinstance(error, KafkaTimeoutError)):
                raise
            _LOG.warning("the stream waits for Kafka", extra={"problem": type(error).__name__})
            await asyncio.sleep(_RETRY_S)
        else:
            return ends
    return {}
