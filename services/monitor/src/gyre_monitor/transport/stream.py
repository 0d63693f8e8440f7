"""The stream of one loop's events: begins where the database stands, the flow of models before behaviour."""

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
from gyre_runtime import Unavailable
from gyre_runtime.admission import Admission, RefusalCount, StalledClock
from gyre_runtime.checkpoints import Place
from gyre_runtime.events import Event, message_types
from gyre_runtime.kafka import Consumer, ConsumerOptions

from gyre_monitor.handlers import Monitor
from gyre_monitor.store.projection import ALERT, APPLIED, BEHAVIOUR, CONTROL, Projection

GROUP, ALERT_GROUP = "monitor", "monitor-alerts"
"""What the names of the consumer groups of a loop start with."""
TYPES = message_types(
    behavior.Impression,
    behavior.Interaction,
    features.BatchApplied,
    models.TrainingTrigger,
    models.CandidateRegistered,
    models.RolloutEvent,
    monitor.Alert,
)
_POLL_S = 0.05
_RETRY_S = 0.5
_LOG = logging.getLogger(__name__)


class LoopConsumer:
    """Consumes every topic of a loop that the monitor follows; a `LoopWork`.

    Args:
        bootstrap: Kafka's host:port list.
        spec: of the loop.
        projection: where the events are folded.
        monitor: what handles them.
        batch_events: most events in one transaction.
        mask: takes users' ids out of events; None where the loop keeps them.
    """

    def __init__(
        self,
        bootstrap: str,
        spec: LoopSpec,
        *,
        projection: Projection,
        monitor: Monitor,
        batch_events: int,
        mask: Callable[[Event], None] | None = None,
    ) -> None:
        self._loop, self._projection, self._monitor = spec.loop, projection, monitor
        self._admission = Admission({spec.loop: spec}, TYPES, mask)
        self._stopping = False
        self._tasks: asyncio.TaskGroup | None = None
        self._wait: asyncio.Task[None] | None = None
        # Others dead-letter what cannot be read there; alerts are the monitor's own.
        self._consumer = Consumer(
            bootstrap,
            group=f"{GROUP}-{spec.loop}",
            topics=[topic(spec.loop, suffix) for suffix in (*BEHAVIOUR, APPLIED, *CONTROL)],
            types=TYPES,
            options=self._options(batch_events, dead_letters=False),
        )
        self._alerts = Consumer(
            bootstrap,
            group=f"{ALERT_GROUP}-{spec.loop}",
            topics=[topic(spec.loop, ALERT)],
            types=TYPES,
            options=self._options(batch_events, dead_letters=True),
        )

    def _options(self, batch_events: int, *, dead_letters: bool) -> ConsumerOptions:
        return ConsumerOptions(
            max_records=batch_events,
            dead_letters=dead_letters,
            admission=self._admission,
            stored=self._projection.checkpoints,
            on_assigned=self._assigned,
        )

    @property
    def stalled(self) -> Mapping[Place, StalledClock]:
        """The partitions of behaviour whose replay clock stands."""
        return self._admission.stalled

    @property
    def refusals(self) -> Mapping[tuple[str, str], RefusalCount]:
        """How many events were refused, by topic and reason, since the process started."""
        return self._admission.refusals

    def stop(self) -> None:
        """End `run` after the batch under way."""
        self._stopping = True
        self._consumer.stop()
        self._alerts.stop()

    async def check(self) -> bool:
        """Whether what waits in the topics is taken; raises why not."""
        both = (self._consumer, self._alerts)
        return all([each.has_joined and await each.check() for each in both])

    async def run(self) -> None:
        """Consume until `stop`."""
        try:
            async with asyncio.TaskGroup() as group:
                self._tasks = group
                for consumer in (self._consumer, self._alerts):
                    group.create_task(self._run(consumer), name="consume")
        finally:
            self._projection.decides.discard(self._loop)

    async def _run(self, consumer: Consumer) -> None:
        try:
            async with consumer:
                await consumer.run_batches(self._monitor.apply)
        finally:
            if consumer is self._consumer and self._wait is not None:
                self._wait.cancel()

    async def _assigned(self, consumer: Consumer, partitions: tuple[TopicPartition, ...]) -> None:
        """Hold behaviour back until the flow of models is known."""
        if consumer is not self._consumer or self._tasks is None or self._stopping:
            return
        if self._wait is not None:
            self._wait.cancel()
        self._projection.decides.discard(self._loop)
        control = [each for each in partitions if each.topic.partition(".")[2] in CONTROL]
        behaviour = [each for each in partitions if each.topic.partition(".")[2] in BEHAVIOUR]
        if behaviour:
            consumer.hold(*behaviour)
        wait = self._until_known(consumer, control, behaviour)
        self._wait = self._tasks.create_task(wait, name="flow of models first")

    async def _until_known(
        self, consumer: Consumer, control: Sequence[TopicPartition], behaviour: Sequence[TopicPartition]
    ) -> None:
        while True:
            try:
                await self._release_after(consumer, control, behaviour)
            except Unavailable as error:
                _LOG.warning("the flow of models is not known yet", extra={"problem": str(error)})
                await asyncio.sleep(_RETRY_S)
                continue
            except IllegalStateError:
                _LOG.info("partitions moved meanwhile: the next assignment begins anew")
            return

    async def _release_after(
        self, consumer: Consumer, control: Sequence[TopicPartition], behaviour: Sequence[TopicPartition]
    ) -> None:
        """Let behaviour flow, and triggers be decided, once the flow of models as it was is in the database."""
        targets = await _ends(consumer, control)
        while not await self._holds(targets):  # noqa: ASYNC110 - a database has no event for it
            await asyncio.sleep(_POLL_S)
        ends = await _ends(consumer, behaviour)
        await self._projection.begin({(each.topic, each.partition): end for each, end in ends.items()})
        consumer.release(*behaviour)
        self._projection.decides.add(self._loop)
        _LOG.info("the flow of models is known", extra={"loop": self._loop})

    async def _holds(self, ends: Mapping[TopicPartition, int]) -> bool:
        """Whether the database holds everything before some ends of partitions in Kafka."""
        stored = await self._projection.checkpoints(list(ends))
        return all(stored[place][0].kafka_offset >= end for place, end in ends.items())


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
