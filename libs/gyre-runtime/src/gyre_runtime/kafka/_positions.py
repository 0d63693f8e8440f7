"""Where a consumer begins and how far it is: at its store's checkpoints, once Kafka's log is the one it applied."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from gyre_runtime.checkpoints import Checkpoint, Place, witness_of
from gyre_runtime.errors import Unavailable, is_transient
from gyre_runtime.kafka.logs import Gap, LogReplaced, check_logs, report_gap

_LOG = logging.getLogger(__name__)
_RETRY_S = 0.5
_CHECK_AGAIN_S = 2.0
_LOG_EVERY_S = 60.0
_STALLED_S = 30.0
_LOOK_EVERY_S = 1.0
_CHECK_EVERY_S = 5.0

Stored = Callable[[Sequence[Place]], Awaitable[Mapping[Place, Sequence[Checkpoint]]]]
"""The checkpoints that a store holds of topic partitions: one for each, or one for each part of the store."""


class Resumption:
    """Finds where to begin, however long the store or Kafka are away or the log is another one.

    Args:
        bootstrap: Kafka's host:port list.
        stored: reads the store.

    Attributes:
        problem: why nothing begins yet; None while nothing is in the way.
    """

    def __init__(self, bootstrap: str, stored: Stored) -> None:
        self._bootstrap, self._stored = bootstrap, stored
        self.problem: Exception | None = None
        self._logged: tuple[str, float] = ("", 0.0)

    async def starts(self, places: Sequence[Place], reached: Mapping[Place, Checkpoint]) -> Mapping[Place, Checkpoint]:
        """The checkpoint to begin each partition at.

        Args:
            places: the topic partitions.
            reached: what was handed over already, which may be more than the store says; its log must be the same.
        """
        while True:
            try:
                stored = await self._stored(places)
                check = await check_logs(self._bootstrap, stored, reached)
            except Exception as error:
                if not (is_transient(error) or isinstance(error, KafkaError)):
                    raise
                self._wait_for(Unavailable("NOT_STARTED", f"the store or Kafka do not answer: {error!r:.200}"))
                await asyncio.sleep(_RETRY_S)
                continue
            if not check.replaced:
                self.problem = None
                check.report()
                return check.starts
            self._wait_for(LogReplaced(check.replaced))
            await asyncio.sleep(_CHECK_AGAIN_S)

    async def is_same_log(self, reached: Mapping[Place, Checkpoint]) -> bool:
        """Whether the log is still the one that was read so far; raises KafkaError where Kafka does not answer."""
        check = await check_logs(self._bootstrap, {place: [each] for place, each in reached.items()})
        return not (check.replaced or check.accepted)

    def _wait_for(self, problem: Exception) -> None:
        self.problem = problem
        text, since = self._logged
        if str(problem) != text or time.monotonic() - since > _LOG_EVERY_S:
            self._logged = (str(problem), time.monotonic())
            _LOG.error("nothing is read", extra={"problem": str(problem)})


async def seek_to_start(kafka: AIOKafkaConsumer, positions: Mapping[TopicPartition, int]) -> None:
    """Read partitions from the start of their logs, which do not reach to the positions any more; say what is gone."""
    starts = await kafka.beginning_offsets(list(positions))
    for partition, position in positions.items():
        if position < starts[partition]:
            report_gap(Gap(partition.topic, partition.partition, position, starts[partition]))
        else:
            _LOG.error(
                "the log ends before the position: reading it from its start",
                extra={"topic": partition.topic, "partition": partition.partition, "position": position},
            )
        kafka.seek(partition, starts[partition])


class NoProgress(Unavailable):
    """Records wait, and the position in front of them stands."""

    def __init__(self, place: Place, lag: int, seconds: float) -> None:
        topic, partition = place
        super().__init__(
            "NO_PROGRESS", f"{topic} partition {partition}: {lag} records wait, and none was taken for {seconds:.0f} s"
        )


class Positions:
    """The checkpoints that a consumer has reached, and since when each stands.

    Attributes:
        ends: the checkpoint after what was handed over last, by partition.
    """

    def __init__(self, resumption: Resumption | None) -> None:
        self._resumption = resumption
        self.ends: dict[TopicPartition, Checkpoint] = {}
        self._unmoved_since: dict[TopicPartition, tuple[int, float]] = {}
        self._next_look = self._next_check = 0.0

    def start(self, partition: TopicPartition, checkpoint: Checkpoint) -> None:
        """Begin a partition at a checkpoint whose log was just found to be the one that was applied."""
        self.ends[partition] = checkpoint
        self._next_check = time.monotonic() + _CHECK_EVERY_S

    async def after(
        self, kafka: AIOKafkaConsumer, fetched: Mapping[TopicPartition, Sequence[Any]]
    ) -> dict[TopicPartition, Checkpoint]:
        """The checkpoints after what was fetched, and from time to time after what holds no record.

        Raises:
            IllegalStateError: a partition is not ours any more.
        """
        moved = set(fetched)
        if self._resumption is not None and time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + _LOOK_EVERY_S
            moved |= self.ends.keys() & kafka.assignment()
        after = {}
        for partition in moved:
            before = self.ends.get(partition, Checkpoint())
            records, position = fetched.get(partition), await kafka.position(partition)
            if records:
                after[partition] = replace(before.at(position), witness=witness_of(records[-1]))
            elif position > before.kafka_offset:
                after[partition] = before.at(position)
        return after

    async def is_same_log(self, fetched: Iterable[TopicPartition]) -> bool:
        """Whether what came follows on what came before; asked where partitions move, from time to time.

        A topic that was deleted, created again and filled beyond our position between two fetches shows in no error.
        """
        reached = {partition: self.ends[partition] for partition in fetched if partition in self.ends}
        if self._resumption is None or not reached or time.monotonic() < self._next_check:
            return True
        try:
            same = await self._resumption.is_same_log(reached)
        except KafkaError as error:
            _LOG.warning("the log cannot be checked", extra={"problem": type(error).__name__})
            return True
        self._next_check = time.monotonic() + _CHECK_EVERY_S
        return same

    def check(self, kafka: AIOKafkaConsumer, partitions: Iterable[TopicPartition]) -> None:
        """Check that partitions have begun, and that what waits in them is taken.

        Raises:
            LogReplaced: another log stands in Kafka than the one that was applied.
            Unavailable: the store does not answer, or a position has not moved for 30 s though records wait.
        """
        if self._resumption is not None and self._resumption.problem is not None:
            raise self._resumption.problem
        now = time.monotonic()
        for partition in partitions:
            end, last = self.ends.get(partition), kafka.last_stable_offset(partition)
            if end is None or last is None:
                continue
            before, since = self._unmoved_since.get(partition, (end.offset, now))
            if before != end.offset or last <= end.kafka_offset:
                since = now
            self._unmoved_since[partition] = (end.offset, since)
            if now - since > _STALLED_S:
                raise NoProgress(partition, last - end.kafka_offset, now - since)
