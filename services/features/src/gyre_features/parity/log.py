"""The stream's own log of its batches (`features.applied`), read into one unbroken story for each virtual shard.

The log may hold a batch twice, since what was not acknowledged is sent again, and batches of several workers a little
out of order. Where the numbers begin again the online store had lost what it held: the batches from there on replace
those of before. What was applied before anything that is checked was read is joined: of those only the outcome matters.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from gyre_runtime.checkpoints import Place
from gyre_warehouse.rows import RowCounts, are_complete, seconds_of
from gyre_warehouse.tables import APPLIED
from pyiceberg.conversions import from_bytes
from pyiceberg.io.pyarrow import ArrowScan
from pyiceberg.table import FileScanTask, Table
from pyiceberg.types import LongType

_OUT_OF_ORDER_S = 5.0
"""How far apart the clocks of two workers of a shard may be."""
_MAX_JOINED = 20_000
"""Offsets that joined batches span at most, so that their events fit into memory."""
_MAX_JOINED_S = 300.0
"""Seconds that joined batches span at most: by so much more it is in doubt when a key's time to live ended."""
_ROWS_AT_ONCE = 50_000
_UNKNOWN = -1
_RANGE_COLUMNS = ("range_topics", "range_partitions", "range_firsts", "range_ends")
LOG_COLUMNS = (
    "layout",
    "shard",
    "batch",
    "events",
    "applied_time",
    "range_topics",
    "range_partitions",
    "range_firsts",
    "range_ends",
    "kafka_offset",
)


@dataclass(frozen=True, slots=True)
class LoggedBatch:
    """What the log says of one batch, or of several that were joined into one record.

    Attributes:
        shard: the virtual shard.
        number: of the batch within the shard; where several were joined the greatest.
        events: how many of their events counted; negative where that is not known.
        applied_time: wall time at which the store had it, unix seconds; where several were joined the latest.
        ranges: (first, end) offsets by (topic, partition); `end` is the offset after the last.
        first: the least number; of a single batch `number`.
        count: of batches that were joined, 1 for a single one.
        span_s: from the first one's time to the last one's, seconds.
    """

    shard: int
    number: int
    events: int
    applied_time: float
    ranges: Mapping[Place, tuple[int, int]]
    first: int
    count: int = 1
    span_s: float = 0.0

    @property
    def is_unbroken(self) -> bool:
        """Whether no batch's number is missing between the first and the last that were joined."""
        return self.count == self.number - self.first + 1

    def joined(self, other: LoggedBatch) -> LoggedBatch:
        """A new record that covers both batches, which are of one virtual shard; neither is changed."""
        ranges = dict(self.ranges)
        for place, (first, end) in other.ranges.items():
            start, stop = ranges.get(place, (first, end))
            ranges[place] = min(start, first), max(stop, end)
        begun = min(self.applied_time - self.span_s, other.applied_time - other.span_s)
        ended = max(self.applied_time, other.applied_time)
        return LoggedBatch(
            shard=self.shard,
            number=max(self.number, other.number),
            events=self.events + other.events,
            applied_time=ended,
            ranges=ranges,
            first=min(self.first, other.first),
            count=self.count + other.count,
            span_s=ended - begun,
        )

    def offsets(self) -> int:
        """How many offsets its ranges span together, whether an event is at each or not."""
        return sum(end - first for first, end in self.ranges.values())


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """The online store had lost batches and applied others under their numbers.

    Attributes:
        time: applied time of the first of the others, unix seconds.
        number: its number; batches logged before with this number or a greater one are lost.
    """

    time: float
    number: int


@dataclass(frozen=True, slots=True)
class Settled:
    """Which batches were applied before anything that is checked was read: those that meet both conditions.

    Attributes:
        before: applied before this time, unix seconds.
        numbers: with at most this number, by virtual shard; any number in shards that are missing here.
    """

    before: float = float("inf")
    numbers: Mapping[int, int] = field(default_factory=dict)

    def holds(self, batch: LoggedBatch) -> bool:
        """Whether a batch, by its time and number, was applied before anything that is checked was read."""
        return batch.applied_time < self.before and batch.number <= self.numbers.get(batch.shard, batch.number)


@dataclass(slots=True)
class ShardLog:
    """One virtual shard's log, without repeats and lost batches, in the order of the batches' numbers.

    Attributes:
        known: which batches may be joined.
        batches: those that the store still holds, as far as the log tells; settled ones are joined.
        rebuilt: the losses, in the order of the log.
        settled: number of the last batch that may be joined, 0 for none.
    """

    known: Settled
    batches: list[LoggedBatch] = field(default_factory=list)
    rebuilt: list[Rebuilt] = field(default_factory=list)
    settled: int = 0

    def add(self, batch: LoggedBatch) -> None:
        """Add the next record of the log, in the log's order.

        A repeat changes nothing; one a little out of order goes to its place. A number that others had before means
        that the store lost them: they and all after them are dropped, and the loss is noted in `rebuilt`.
        """
        own = self.batches
        if not own or batch.number > own[-1].number:
            self._append(batch)
            return
        at = bisect_left(own, batch.number, key=attrgetter("number"))
        found = own[at]
        if _is_redelivered(found, batch):
            return
        inside = found.first <= batch.number
        if batch.applied_time <= found.applied_time + _OUT_OF_ORDER_S and not (inside and found.is_unbroken):
            if inside:
                own[at] = found.joined(batch)
            else:
                own.insert(at, batch)
            return
        del own[at:]
        if found.first < batch.number:
            # A part of what was joined is lost: how it was made is not known any more.
            own.append(replace(found, number=batch.number - 1, events=_UNKNOWN))
        self.settled = min(self.settled, batch.number - 1)
        self.rebuilt.append(Rebuilt(batch.applied_time, batch.number))
        self._append(batch)

    def _append(self, batch: LoggedBatch) -> None:
        own = self.batches
        if not self.known.holds(batch):
            own.append(batch)
            return
        last = own[-1] if own else None
        # One that is not settled, by the clock of another worker, keeps those after it from being so.
        if last is not None and last.number > self.settled:
            own.append(batch)
            return
        self.settled = batch.number
        if last is not None and self._may_join(last, batch):
            own[-1] = last.joined(batch)
        else:
            own.append(batch)

    def _may_join(self, last: LoggedBatch, batch: LoggedBatch) -> bool:
        span_s = batch.applied_time - (last.applied_time - last.span_s)
        return span_s <= _MAX_JOINED_S and last.events >= 0 and last.offsets() + batch.offsets() <= _MAX_JOINED

    def was_rebuilt(self, number: int, *, time: float, slack_s: float) -> bool:
        """Whether the batch that a read named may be one that the store has lost since.

        Args:
            number: of the batch.
            time: when Kafka had the read, unix seconds.
            slack_s: how long before that the read may have been made, seconds.
        """
        return any(number >= each.number and time < each.time + slack_s for each in self.rebuilt)


def _is_redelivered(found: LoggedBatch, batch: LoggedBatch) -> bool:
    if found.count == 1:
        return (found.number, found.ranges, found.applied_time) == (batch.number, batch.ranges, batch.applied_time)
    return found.is_unbroken and found.first <= batch.number and batch.applied_time <= found.applied_time


def read_log(table: Table, layout: str, *, settled: Settled, counts: RowCounts | None = None) -> dict[int, ShardLog]:
    """The log of each virtual shard of a layout, by shard; shards without a batch are missing.

    The table is read in the order of its offsets, a bounded number of rows at a time. Rows that describe no batch are
    set aside, as if their batches had not been logged.

    Args:
        table: the log.
        layout: hash of the layout.
        settled: which batches may be joined.
        counts: gets how many rows were read, and how many of them were set aside.
    """
    shards: dict[int, ShardLog] = {}
    for stored in _in_stretches(table, layout):
        rows = _readable(stored)
        if counts is not None:
            counts.note(APPLIED, read=len(stored), unreadable=len(stored) - len(rows))
        for batch in _batches(rows):
            log = shards.get(batch.shard)
            if log is None:
                log = shards[batch.shard] = ShardLog(settled)
            log.add(batch)
    return shards


def in_order(shards: Mapping[int, ShardLog]) -> list[LoggedBatch]:
    """The batches of all shards, merged in the order of their applied times.

    Each shard's stay in that of their numbers.
    """
    ordered: list[tuple[float, int, int, LoggedBatch]] = []
    for shard, log in shards.items():
        latest = 0.0
        for batch in log.batches:
            latest = max(latest, batch.applied_time)  # clocks of two workers may differ, numbers do not
            ordered.append((latest, shard, batch.number, batch))
    ordered.sort(key=lambda each: each[:3])
    return [each[3] for each in ordered]


def _in_stretches(table: Table, layout: str) -> Iterator[pa.Table]:
    """The log's rows; its topic has one partition, whose offsets are the order of everything."""
    scan = table.scan(row_filter=f"layout = '{layout}'", selected_fields=LOG_COLUMNS)
    offset = table.schema().find_field("kafka_offset").field_id
    some: list[FileScanTask] = []
    for task in sorted(scan.plan_files(), key=lambda task: _lower_bound(task, offset)):
        if some and sum(each.file.record_count for each in some) + task.file.record_count > _ROWS_AT_ONCE:
            yield _rows(table, scan, some)
            some = []
        some.append(task)
    if some:
        yield _rows(table, scan, some)


def _lower_bound(task: FileScanTask, field_id: int) -> int:
    bound: Any = (task.file.lower_bounds or {}).get(field_id)
    return 0 if bound is None else int(from_bytes(LongType(), bound))


def _rows(table: Table, scan: Any, tasks: Iterable[FileScanTask]) -> pa.Table:
    found = ArrowScan(table.metadata, table.io, scan.projection(), scan.row_filter).to_table(tasks)
    return found.sort_by("kafka_offset")


def _readable(rows: pa.Table) -> pa.Table:
    """The rows that describe a batch: nothing of it is missing, and its ranges are whole."""
    given = are_complete(rows, LOG_COLUMNS, lists=_RANGE_COLUMNS)
    lengths: list[Any] = [pc.list_value_length(rows[name]) for name in _RANGE_COLUMNS]
    for each in lengths[1:]:
        given &= pc.equal(each, lengths[0]).fill_null(False).to_numpy()
    return rows if given.all() else rows.filter(pa.array(given))


def _batches(rows: pa.Table) -> Iterator[LoggedBatch]:
    columns: Iterable[tuple[Any, ...]] = zip(
        rows["shard"].to_pylist(),
        rows["batch"].to_pylist(),
        rows["events"].to_pylist(),
        seconds_of(rows["applied_time"]).tolist(),
        *(rows[name].to_pylist() for name in _RANGE_COLUMNS),
        strict=True,
    )
    for shard, number, events, applied, topics, partitions, firsts, ends in columns:
        ranges = dict(zip(zip(topics, partitions, strict=True), zip(firsts, ends, strict=True), strict=True))
        yield LoggedBatch(shard, number, events, applied, ranges, first=number)
