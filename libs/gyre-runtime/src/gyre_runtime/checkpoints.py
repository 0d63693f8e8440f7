"""Checkpoints: how far a store has applied a topic partition, and by which record it recognises the partition's log.

Kafka numbers the records of a topic that was deleted and created again from 0, and this client gets no topic id. So a
store keeps a *witness* beside the next offset: place, timestamp and a digest of the last record that it applied. A log
that holds another record there is another log.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from math import inf
from typing import Any, NamedTuple

from gyre_core.admission import PartitionClock
from gyre_core.append_windows import AppendWindow

from gyre_runtime.events import Event

_DIGEST_BYTES = 8
_EPOCH_S = 1_577_836_800  # 2020-01-01T00:00:00Z
_LOG_BITS = 24

Place = tuple[str, int]
"""(topic, partition); aiokafka's `TopicPartition` is one."""


class Witness(NamedTuple):
    """The last record that was applied.

    Attributes:
        offset: its offset in Kafka.
        timestamp_ms: its timestamp in Kafka, unix milliseconds.
        digest: of its `ce_id`, or of its value where it has none; hexadecimal.
    """

    offset: int
    timestamp_ms: int
    digest: str


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Up to where a store has applied a topic partition.

    Attributes:
        offset: the next offset to apply, `base` included.
        base: what is added to Kafka's offsets, so that the offsets of a log which was accepted in place of another are
            greater than all of the one before (see `base_at`); 0 for the first log.
        witness: the last applied record; None before the first, and where an older version wrote the checkpoint.
        clock: the partition's clock after the last applied record.
        append_window: window of append times that the applied log has reached, by which the store knows repeats.
    """

    offset: int = 0
    base: int = 0
    witness: Witness | None = None
    clock: PartitionClock = PartitionClock()  # noqa: RUF009 - frozen
    append_window: AppendWindow = AppendWindow()  # noqa: RUF009 - frozen

    @property
    def kafka_offset(self) -> int:
        """The next offset to read from Kafka: `offset` without `base`."""
        return self.offset - self.base

    def at(self, kafka_offset: int) -> Checkpoint:
        """A copy of this checkpoint, moved over offsets that hold no record to an offset of Kafka (without `base`).

        Witness, clock and window stay.
        """
        return replace(self, offset=self.base + kafka_offset)

    def encoded(self) -> str:
        """As text for a store, which `decoded` reads: the offset, then a space and what else is known as JSON."""
        rest: dict[str, Any] = {}
        if self.base:
            rest["base"] = self.base
        if self.witness is not None:
            rest["witness"] = list(self.witness)
        if self.clock.is_set:
            rest["clock"] = self.clock.newest
        if self.append_window.start is not None:
            rest["append_window"] = self.append_window.start
        if self.append_window.behind:
            rest["append_behind"] = self.append_window.behind
        return f"{self.offset} {json.dumps(rest, separators=(',', ':'))}" if rest else str(self.offset)

    @classmethod
    def decoded(cls, text: str | bytes) -> Checkpoint:
        """What `encoded` wrote, or the bare offset of an older version.

        Raises:
            ValueError: the text is neither.
        """
        number, _, rest = (text.decode() if isinstance(text, bytes) else text).partition(" ")
        known = json.loads(rest) if rest else {}
        witness = Witness(*known["witness"]) if "witness" in known else None
        clock = PartitionClock(known.get("clock", -inf))
        window = AppendWindow(known.get("append_window"), known.get("append_behind", 0))
        return cls(int(number), known.get("base", 0), witness, clock, window)


@dataclass(frozen=True, slots=True)
class RefusedRecord:
    """A record that is left out of the store: its place, the offset with the checkpoint's `base`; why, UPPER_SNAKE."""

    topic: str
    partition: int
    offset: int
    reason: str


@dataclass(frozen=True, slots=True)
class Batch:
    """Consecutive records of some topic partitions, decided one by one.

    Attributes:
        events: those that count, each partition's in the order of its offsets.
        refusals: those that do not; where dead letters are written, Kafka has acknowledged them.
        ends: each partition's checkpoint after the last of its records, refused or not, and after what holds no record
            (transaction markers, deletions, what was compacted away).
    """

    events: Sequence[Event] = ()
    refusals: Sequence[RefusedRecord] = ()
    ends: Mapping[Place, Checkpoint] = field(default_factory=dict)

    def parts(
        self, max_events: int, *, size_of: Callable[[Event], int] | None = None, max_size: int = 0
    ) -> list[Batch]:
        """Batches that together are this one, in the order in which they are to be applied; [self] where one will do.

        The last has the refusals and the ends of this one. The ends of each other are of its
        own events alone, those of one partition after the other's last event, and without an append window.

        Args:
            max_events: in one batch.
            size_of: what an event weighs; None for nothing.
            max_size: what the events of one batch weigh at most together; one that weighs more is a batch of its own.
        """
        starts = (
            list(range(0, len(self.events), max_events))
            if size_of is None
            else _starts(map(size_of, self.events), max_events, max_size)
        )
        if len(starts) <= 1:
            return [self]
        ends = [*starts[1:], len(self.events)]
        made = [self._part(self.events[first:end]) for first, end in zip(starts, ends, strict=True)]
        made[-1] = Batch(made[-1].events, self.refusals, self.ends)
        return made

    def _part(self, events: Sequence[Event]) -> Batch:
        return Batch(events, (), checkpoints_after(events, self.ends))


def _starts(sizes: Iterable[int], max_events: int, max_size: int) -> list[int]:
    """At which events batches start that are bounded in number and size."""
    starts, count, total = list[int](), max_events, 0
    for index, size in enumerate(sizes):
        if count >= max_events or total + size > max_size:
            starts.append(index)
            count = total = 0
        count, total = count + 1, total + size
    return starts


def checkpoints_after(
    events: Iterable[Event], ends: Mapping[Place, Checkpoint] | None = None
) -> dict[Place, Checkpoint]:
    """The checkpoints after the last event of each partition, in the order given; no append window.

    Args:
        events: each partition's in the order of offsets.
        ends: give the `base` of each partition's log; 0 where it is not in them.
    """
    last = {(event.topic, event.partition): event for event in events}
    return {place: _after(event, (ends or {}).get(place, Checkpoint()).base) for place, event in last.items()}


def _after(event: Event, base: int) -> Checkpoint:
    witness = Witness(event.offset - base, round(event.arrival_time * 1000), digest_of(event.id.encode()))
    return Checkpoint(event.offset + 1, base, witness, PartitionClock(event.clock))


def witness_of(record: Any) -> Witness:
    """The witness that identifies a log by one of its records (aiokafka's); of a header given twice the last counts."""
    event_id = dict(record.headers).get("ce_id")
    return Witness(record.offset, record.timestamp, digest_of(event_id or b"\0" + (record.value or b"")))


def digest_of(content: bytes) -> str:
    """BLAKE2b of some bytes, unkeyed, as sixteen hexadecimal digits: for comparing, not for hiding."""
    return blake2b(content, digest_size=_DIGEST_BYTES).hexdigest()


def base_at(unix_s: float) -> int:
    """The base of a log that is accepted at some time: greater than any offset of the logs before it.

    It is 2^24 for each minute since 2020, so a partition may get 280,000 records a second all that time; it stays below
    2^48 until 2051, as readers of the tables need that put partition and offset into one number.
    """
    return max(int(unix_s - _EPOCH_S) // 60, 1) << _LOG_BITS
