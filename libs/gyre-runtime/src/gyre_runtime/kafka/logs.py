"""Is it the same log? What a store has applied compared with what Kafka holds now, and how another log is accepted.

An operator accepts a log by `gyre log accept`. The acceptance is an offset that a group of its own commits: Kafka drops
it with the topic, so it never holds for a log that comes after.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import GroupCoordinatorNotAvailableError, KafkaError
from aiokafka.structs import OffsetAndMetadata
from gyre_core.event_time import format_time

from gyre_runtime.checkpoints import Checkpoint, Place, Witness, base_at, witness_of
from gyre_runtime.errors import NotFound, Precondition, Unavailable
from gyre_runtime.kafka._names import loop_of, start_whole, topic_labels
from gyre_runtime.kafka._undecodable import UndecodableRecord
from gyre_runtime.metrics import instrument

_LOG = logging.getLogger(__name__)
ACCEPTED_GROUP = "gyre-log-accepted"
"""The group whose committed offsets are acceptances: where to begin, and the log's base as metadata."""
_WAIT_MS = 200


class LogReplaced(Precondition):
    """Kafka's log is not the one that was applied: nothing of it is read until it is accepted (`gyre log accept`).

    Args:
        found: what was found, a sentence for each topic partition.
    """

    def __init__(self, found: Mapping[Place, str]) -> None:
        names = sorted({topic for topic, _ in found})
        commands = ", ".join(
            f"`gyre log accept {loop_of(name)} {name.partition('.')[2]} --from start|end`" for name in names
        )
        super().__init__(
            "LOG_REPLACED", f"{'; '.join(found[place] for place in sorted(found))}. Accept it by {commands}"
        )


class Gap(NamedTuple):
    """Offsets of Kafka that it had deleted before they were read: `first` included, `end` excluded, which is there."""

    topic: str
    partition: int
    first: int
    end: int


@dataclass(frozen=True, slots=True)
class LogCheck:
    """What became of some topic partitions.

    Attributes:
        starts: where to begin each of those whose log is the one that was applied, or is accepted.
        replaced: for each of the others, what was found.
        gaps: what is gone.
        accepted: the partitions whose log was accepted in place of the one that was applied.
    """

    starts: dict[Place, Checkpoint] = field(default_factory=dict)
    replaced: dict[Place, str] = field(default_factory=dict)
    gaps: list[Gap] = field(default_factory=list)
    accepted: list[Place] = field(default_factory=list)

    def report(self) -> None:
        """Log what is gone and what was accepted, and count what is gone; of what was replaced nothing is said."""
        for gap in self.gaps:
            report_gap(gap)
        for name, partition in self.accepted:
            _LOG.warning("a log was accepted", extra={"topic": name, "partition": partition})


def report_gap(gap: Gap) -> None:
    """Log a gap, and count its offsets in `gyre_consumer_gone_total`."""
    _LOG.error(
        f"partition {gap.partition}: offsets {gap.first}–{gap.end} were gone",
        extra={"topic": gap.topic, "records": gap.end - gap.first},
    )
    instrument("gyre_consumer_gone_total").add(gap.end - gap.first, **topic_labels(gap.topic))


class Acceptance(NamedTuple):
    """An operator's word that a log is to be read on: from this offset of Kafka, with this base."""

    offset: int
    base: int


async def check_logs(
    bootstrap: str, stored: Mapping[Place, Sequence[Checkpoint]], reached: Mapping[Place, Checkpoint] | None = None
) -> LogCheck:
    """Compare what a store has applied with what Kafka holds now. It only reads, and logs nothing.

    A replaced log is in the answer, not raised. A log is another one where it ends before what was applied, or holds
    another record at a witness; where the witness was deleted, it is taken to be the same.

    Args:
        bootstrap: Kafka's host:port list.
        stored: the checkpoints of each topic partition: one, or one for each part of the store, the lowest of which is
            where to begin.
        reached: where a partition was read further, the checkpoint to begin at instead.

    Raises:
        KafkaError: Kafka does not answer.
    """
    check, reached = LogCheck(), reached or {}
    if not stored:
        return check
    places = [TopicPartition(*place) for place in stored]
    stored = {place: [*each, *([reached[place]] if place in reached else [])] for place, each in stored.items()}
    async with _reader(bootstrap, places) as reader:
        starts, ends = await reader.beginning_offsets(places), await reader.end_offsets(places)
        held = await _records_at(reader, _witnesses(stored, starts), ends)
    suspects = {
        place: found
        for place, checkpoints in stored.items()
        for found in [_first_finding(place, checkpoints, ends[place], held)]
        if found
    }
    accepted = await acceptances(bootstrap, suspects) if suspects else {}
    for place, checkpoints in stored.items():
        acceptance = accepted.get(place)
        if place in suspects and (acceptance is None or acceptance.base <= max(each.base for each in checkpoints)):
            check.replaced[place] = suspects[place]
            continue
        if place in suspects and acceptance is not None:
            check.accepted.append(place)
            start = Checkpoint(acceptance.base + acceptance.offset, acceptance.base)
        else:
            start = reached.get(place) or min(checkpoints, key=lambda each: each.offset)
        if start.kafka_offset < starts[place]:
            check.gaps.append(Gap(*place, start.kafka_offset, starts[place]))
            start = start.at(starts[place])
        check.starts[place] = start
    return check


def _witnesses(stored: Mapping[Place, Sequence[Checkpoint]], starts: Mapping[Place, int]) -> dict[Place, set[int]]:
    """The offsets of the witnesses that Kafka may hold still."""
    return {
        place: {each.witness.offset for each in checkpoints if each.witness and each.witness.offset >= starts[place]}
        for place, checkpoints in stored.items()
    }


def _first_finding(
    place: Place, checkpoints: Iterable[Checkpoint], end: int, held: Mapping[tuple[Place, int], Witness]
) -> str | None:
    """What says that a log is another one, or None."""
    topic, partition = place
    for each in checkpoints:
        if each.kafka_offset > end:
            return f"{topic} partition {partition}: {each.kafka_offset} records were applied, and the log ends at {end}"
        if each.witness and each.witness.offset >= end:  # of a store that begins again before what it has seen
            return f"{topic} partition {partition}: offset {each.witness.offset} was read, and the log ends at {end}"
        known, found = each.witness, held.get((place, each.witness.offset)) if each.witness else None
        if known and found and known != found:
            return (
                f"{topic} partition {partition}: the record at offset {known.offset} was {_described(known)}, "
                f"and is {_described(found)}"
            )
    return None


def _described(witness: Witness) -> str:
    """A record by its digest and time, which a topic with the producer's times holds whatever it is."""
    try:
        moment = format_time(witness.timestamp_ms / 1000)
    except (ValueError, OverflowError, OSError):
        moment = f"{witness.timestamp_ms // 1000} s since 1970"
    return f"{witness.digest} of {moment}"


async def _records_at(
    reader: AIOKafkaConsumer, wanted: Mapping[Place, set[int]], ends: Mapping[Place, int]
) -> dict[tuple[Place, int], Witness]:
    """What Kafka holds at some offsets; where it holds none that can be read, nothing is said."""
    found: dict[tuple[Place, int], Witness] = {}
    left = {
        TopicPartition(*place): {each for each in offsets if each < ends[place]} for place, offsets in wanted.items()
    }
    while left := {partition: offsets for partition, offsets in left.items() if offsets}:
        for partition, offsets in left.items():
            reader.seek(partition, min(offsets))
        waiting = set(left)
        while waiting:
            for partition, records in (await reader.getmany(*waiting, timeout_ms=_WAIT_MS)).items():
                waiting.discard(partition)
                _note(found, partition, left[partition], records[0])
            for partition in tuple(waiting):
                if await reader.position(partition) >= ends[partition]:
                    waiting.discard(partition)
                    left[partition].discard(min(left[partition]))
    return found


def _note(found: dict[tuple[Place, int], Witness], partition: TopicPartition, wanted: set[int], record: Any) -> None:
    offset = min(wanted)
    if record.offset == offset and not isinstance(record, UndecodableRecord):
        found[(partition.topic, partition.partition), offset] = witness_of(record)
    wanted.discard(offset)


async def acceptances(bootstrap: str, places: Iterable[Place]) -> dict[Place, Acceptance]:
    """What operators accepted last of some topic partitions; those without an acceptance are left out.

    Raises:
        KafkaError: Kafka does not answer.
    """
    try:
        found = await committed_offsets(bootstrap, ACCEPTED_GROUP, places)
    except GroupCoordinatorNotAvailableError:  # no group has committed anything yet
        return {}
    return {
        place: Acceptance(each.offset, int(each.metadata)) for place, each in found.items() if each.metadata.isdecimal()
    }


async def committed_offsets(bootstrap: str, group: str, places: Iterable[Place]) -> dict[Place, OffsetAndMetadata]:
    """The next offset, with metadata, that a group has committed of some topic partitions; those without are left out.

    Raises:
        KafkaError: Kafka does not answer.
    """
    wanted = [TopicPartition(*place) for place in places]
    if not wanted:
        return {}
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    try:
        await start_whole(admin.start)
        found = await admin.list_consumer_group_offsets(group, partitions=wanted)
    finally:
        await admin.close()
    return {(place.topic, place.partition): each for place, each in found.items() if each.offset >= 0}


async def accept_log(bootstrap: str, topic: str, *, from_start: bool) -> dict[int, Acceptance]:
    """Accept the log of a topic as it is now, in place of the one that stores have applied.

    It commits offsets for `ACCEPTED_GROUP`, in place of an earlier acceptance. Consumers that wait with LOG_REPLACED
    find it within seconds; those whose log is the one they applied pass it over.

    Args:
        bootstrap: Kafka's host:port list.
        topic: full name.
        from_start: count every record that it holds, as of a topic that was created again; else only those to come, as
            of one that lost its tail.

    Returns:
        What was accepted, by partition.

    Raises:
        NotFound: there is no such topic (TOPIC_UNKNOWN).
        Unavailable: Kafka does not answer.
    """
    consumer = AIOKafkaConsumer(
        bootstrap_servers=bootstrap,
        group_id=ACCEPTED_GROUP,
        enable_auto_commit=False,
        isolation_level="read_committed",
    )
    try:
        await start_whole(consumer.start)
        places = await _partitions(bootstrap, topic)
        consumer.assign(places)
        offsets = await (consumer.beginning_offsets(places) if from_start else consumer.end_offsets(places))
        before = await acceptances(bootstrap, places)
        base = max([base_at(time.time()), *(each.base + base_at(0) for each in before.values())])
        await consumer.commit({place: OffsetAndMetadata(offset, str(base)) for place, offset in offsets.items()})
    except (KafkaError, OSError) as error:
        raise Unavailable("KAFKA_UNAVAILABLE", f"Kafka at {bootstrap}: {type(error).__name__}") from error
    finally:
        await consumer.stop()
    return {place.partition: Acceptance(offset, base) for place, offset in offsets.items()}


async def _partitions(bootstrap: str, topic: str) -> list[TopicPartition]:
    """The partitions of a topic; raises NotFound where Kafka has none of it."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    try:
        await start_whole(admin.start)
        (described,) = await admin.describe_topics([topic])
    finally:
        await admin.close()
    if described["error_code"]:
        raise NotFound("TOPIC_UNKNOWN", f"{topic}: Kafka has no such topic")
    return [TopicPartition(topic, each["partition"]) for each in described["partitions"]]


@asynccontextmanager
async def _reader(bootstrap: str, places: Sequence[TopicPartition]) -> AsyncIterator[AIOKafkaConsumer]:
    """A consumer of some partitions that is no member of a group."""
    reader = AIOKafkaConsumer(
        bootstrap_servers=bootstrap,
        enable_auto_commit=False,
        auto_offset_reset="none",
        isolation_level="read_committed",
        fetch_max_wait_ms=_WAIT_MS,
    )
    try:
        await start_whole(reader.start)
        reader.assign(places)
        yield reader
    finally:
        await reader.stop()
