"""Is it the same log? What the published windows say of the partitions' logs, compared with what Kafka holds.

Windows carry checkpoints, since Kafka drops what a group has committed with its topic. What the group commits has one
as its metadata, so that a successor begins with the replay clock that its first offset had. Of a partition that has
another log nothing is counted until somebody accepts it; the worker then starts again, since faust cannot restart a
partition.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from aiokafka.errors import KafkaError
from gyre_runtime.admission import PartitionClock
from gyre_runtime.checkpoints import Checkpoint, Place, witness_of
from gyre_runtime.kafka import LogReplaced
from gyre_runtime.kafka.logs import check_logs, committed_offsets

if TYPE_CHECKING:
    from gyre_features.quality.faust_consumer import ReceivedFromFaust

_LOG = logging.getLogger(__name__)
_RETRY_S = 0.5
_CHECK_EVERY_S = 5.0
_CHECK_AGAIN_S = 2.0
_LOG_EVERY_S = 60.0
StoredCheckpoints = Callable[[Collection[Place]], Awaitable[Mapping[Place, Checkpoint]]]


class LogChanged(Exception):  # noqa: N818 - says what happened
    """A partition has another log, or its log was accepted: the worker has to begin again where the group stands."""


class QualityLogs:
    """Kafka's logs of the partitions that this process counts: where to begin in each, and whether it was replaced.

    Args:
        bootstrap: Kafka's host:port list.
        group: the consumer group; its commits have checkpoints as metadata.

    Attributes:
        stored: set by the caller: reads by partition the checkpoints in the newest published windows; none by default.
    """

    def __init__(self, bootstrap: str, group: str) -> None:
        self._bootstrap, self._group = bootstrap, group
        self.stored: StoredCheckpoints = _nothing_stored
        self._reached: dict[Place, Checkpoint] = {}
        self._resume: dict[Place, Checkpoint] = {}
        self._replaced: dict[Place, Checkpoint] = {}
        self._found: dict[Place, str] = {}
        self._logged: tuple[str, float] = ("", 0.0)

    async def starts(self, committed: Mapping[Place, int]) -> dict[Place, int]:
        """The Kafka offsets at which to begin those partitions that do not begin where the group has committed.

        Replaces what is known of all partitions, reports and logs replaced logs, and waits for Kafka without limit.

        Args:
            committed: the group's offsets in Kafka of all partitions that this process now has; 0 for none.

        Returns:
            Offsets by partition; those that begin at the committed offset are missing.
        """
        stored = await self.stored(committed.keys())
        while True:
            try:
                check = await check_logs(self._bootstrap, {place: [each] for place, each in stored.items()})
                noted = await committed_offsets(self._bootstrap, self._group, committed)
                break
            except KafkaError as error:
                _LOG.warning("the logs cannot be checked yet", extra={"problem": type(error).__name__})
                await asyncio.sleep(_RETRY_S)
        check.report()
        self._reached = {place: check.starts.get(place, Checkpoint()) for place in committed}
        self._resume = dict(self._reached)
        self._replaced = {place: stored[place] for place in check.replaced}
        self._found = check.replaced
        self._say_replaced()
        elsewhere = {
            place: start.kafka_offset
            for place, start in check.starts.items()
            if place in check.accepted or start.kafka_offset > committed[place]
        }
        for place, each in noted.items():
            known = _checkpoint_in(each.metadata)
            starts_there = place not in elsewhere and each.offset == committed[place]
            if starts_there and known and known.kafka_offset == each.offset and known.base == self._reached[place].base:
                self._resume[place] = known
        return elsewhere

    def admit(self, records: Iterable[ReceivedFromFaust]) -> list[ReceivedFromFaust]:
        """The records to count, in order, with the base of their log added to their offsets.

        Notes how far each log is read.

        Records of a log that was replaced are dropped without a trace: `check` and the log say why.
        """
        admitted = []
        for record in records:
            place = record.topic, record.partition
            if place in self._replaced:
                continue
            before = self._reached.get(place, Checkpoint())
            self._reached[place] = replace(before.at(record.offset + 1), witness=witness_of(record))
            admitted.append(replace(record, offset=record.offset + before.base) if before.base else record)
        return admitted

    def kafka_offsets(self, resume: Mapping[Place, Checkpoint]) -> dict[Place, int]:
        """The offsets of some checkpoints as Kafka has them, without the bases of their logs; commits nothing.

        Notes the checkpoints as where a successor begins, for `clock`, `checkpoint` and `metadata`.
        """
        self._resume.update(resume)
        return {place: each.offset - self._reached.get(place, Checkpoint()).base for place, each in resume.items()}

    def clock(self, place: Place) -> PartitionClock:
        """The replay clock of a partition before the record at which a successor begins.

        Unset where nobody noted it.
        """
        return self._resume.get(place, Checkpoint()).clock

    def checkpoint(self, place: Place) -> Checkpoint:
        """A partition's checkpoint: offset and clock where a successor begins, witness of the last record counted."""
        reached = self._reached.get(place, Checkpoint())
        resume = self._resume.get(place, Checkpoint(reached.base))
        return replace(reached, offset=resume.offset, clock=resume.clock)

    def metadata(self, place: Place, kafka_offset: int) -> str:
        """The metadata to commit with a Kafka offset: the checkpoint, encoded.

        Empty where a successor begins elsewhere.
        """
        checkpoint = self.checkpoint(place)
        return checkpoint.encoded() if checkpoint.kafka_offset == kafka_offset else ""

    async def run(self) -> None:
        """Check the logs every 5 s, every 2 s while one is replaced, until one changes; Kafka being away is logged.

        Raises:
            LogChanged: one is another, or was accepted.
        """
        while True:
            await asyncio.sleep(_CHECK_AGAIN_S if self._replaced else _CHECK_EVERY_S)
            try:
                await self._check()
            except KafkaError as error:
                _LOG.warning("the logs cannot be checked", extra={"problem": type(error).__name__})

    async def _check(self) -> None:
        self._say_replaced()
        known = {place: [each] for place, each in {**self._reached, **self._replaced}.items()}
        check = await check_logs(self._bootstrap, known)
        if check.accepted:
            raise LogChanged(f"accepted: {sorted(check.accepted)}")
        if check.replaced.keys() - self._replaced.keys():
            raise LogChanged(str(LogReplaced(check.replaced)))

    def _say_replaced(self) -> None:
        if not self._replaced:
            return
        problem, (before, since) = str(LogReplaced(self._found)), self._logged
        if problem != before or time.monotonic() - since > _LOG_EVERY_S:
            self._logged = (problem, time.monotonic())
            _LOG.error("nothing is counted", extra={"problem": problem})

    async def check(self, loop: str) -> bool:
        """Answer True from what is known of a loop's logs since the start, without asking Kafka; for a `Dependency`.

        Raises:
            LogReplaced: one was not the one that was counted.
        """
        found = {place: each for place, each in self._found.items() if place[0].partition(".")[0] == loop}
        if found:
            raise LogReplaced(found)
        return True


def _checkpoint_in(metadata: str) -> Checkpoint | None:
    """The checkpoint that was committed with an offset; None from a version that committed none."""
    try:
        return Checkpoint.decoded(metadata)
    except (ValueError, KeyError, TypeError):
        return None


async def _nothing_stored(_places: Collection[Place]) -> Mapping[Place, Checkpoint]:
    return {}
