"""The stream's own log of its batches (`features.applied`), read into one unbroken story for each virtual shard.

The log may hold a batch twice, since what was not acknowledged is sent again, and batches of several workers a little
out of order. Where the numbers begin again the online store had lost what it held: the batches from there on replace
those of before.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import pyarrow as pa
from gyre_runtime.archived import seconds_of

from gyre_features.online.stream import Place

_OUT_OF_ORDER_S = 5.0
"""How far apart the clocks of two workers of a shard may be."""
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
    "kafka_partition",
    "kafka_offset",
)


@dataclass(frozen=True, slots=True)
class LoggedBatch:
    """What the log says of one batch.

    Attributes:
        shard: the virtual shard.
        number: of the batch within the shard.
        events: how many of its events counted.
        applied_time: wall time at which the store had it, unix seconds.
        ranges: (first, end) offsets by (topic, partition).
    """

    shard: int
    number: int
    events: int
    applied_time: float
    ranges: Mapping[Place, tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """From this time on (unix seconds) the batches from a number on are others than before."""

    time: float
    number: int


@dataclass(slots=True)
class ShardLog:
    """One shard's batches, in the order of their numbers.

    Attributes:
        batches: those that the store holds now.
        rebuilt: when it had lost some.
    """

    batches: list[LoggedBatch] = field(default_factory=list)
    rebuilt: list[Rebuilt] = field(default_factory=list)

    def add(self, batch: LoggedBatch) -> None:
        """Take the next record of the log in."""
        own = self.batches
        if not own or batch.number > own[-1].number:
            own.append(batch)
            return
        at = bisect_left(own, batch.number, key=attrgetter("number"))
        found = own[at]
        if found.number == batch.number:
            if (found.ranges, found.applied_time) == (batch.ranges, batch.applied_time):
                return
        elif batch.applied_time <= found.applied_time + _OUT_OF_ORDER_S:
            insort(own, batch, key=attrgetter("number"))
            return
        del own[at:]
        own.append(batch)
        self.rebuilt.append(Rebuilt(batch.applied_time, batch.number))

    def was_rebuilt(self, number: int, *, time: float, slack_s: float) -> bool:
        """Whether the batch that a read at a time named may be one that the store has lost since."""
        return any(number >= each.number and time < each.time + slack_s for each in self.rebuilt)


def read_log(rows: pa.Table, layout: str) -> dict[int, ShardLog]:
    """The story of each virtual shard of a layout, from rows with `LOG_COLUMNS` in any order."""
    shards: dict[int, ShardLog] = {}
    for batch in _batches(rows.sort_by([("kafka_partition", "ascending"), ("kafka_offset", "ascending")]), layout):
        shards.setdefault(batch.shard, ShardLog()).add(batch)
    return shards


def in_order(shards: Mapping[int, ShardLog]) -> list[LoggedBatch]:
    """The batches of all shards as they were applied: each shard's by number, the shards' by time."""
    ordered: list[tuple[float, int, int, LoggedBatch]] = []
    for shard, log in shards.items():
        latest = 0.0
        for batch in log.batches:
            latest = max(latest, batch.applied_time)  # clocks of two workers may differ, numbers do not
            ordered.append((latest, shard, batch.number, batch))
    ordered.sort(key=lambda each: each[:3])
    return [each[3] for each in ordered]


def _batches(rows: pa.Table, layout: str) -> Iterator[LoggedBatch]:
    columns: Iterable[tuple[Any, ...]] = zip(
        rows["layout"].to_pylist(),
        rows["shard"].to_pylist(),
        rows["batch"].to_pylist(),
        rows["events"].to_pylist(),
        seconds_of(rows["applied_time"]).tolist(),
        *(rows[f"range_{name}"].to_pylist() for name in ("topics", "partitions", "firsts", "ends")),
        strict=True,
    )
    for name, shard, number, events, applied, topics, partitions, firsts, ends in columns:
        if name == layout:
            places = zip(topics, partitions, strict=True)
            ranges = dict(zip(places, zip(firsts, ends, strict=True), strict=True))
            yield LoggedBatch(shard, number, events, applied, ranges)
