"""The events behind the logged batches, read from the warehouse stretch by stretch, so that memory stays bounded."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from gyre_core.features import Event, Layout
from gyre_core.topics import topic
from gyre_runtime.checkpoints import Place
from gyre_warehouse.rows import (
    EVENT_COLUMNS,
    IDENTITY_COLUMNS,
    RowCounts,
    counts_impressions,
    events_of,
    seconds_of,
)
from gyre_warehouse.tables import IMPRESSIONS, TRAINING_TABLE_OF, offsets_of, read_columns
from pyiceberg.table import Table

from gyre_features.parity.log import LoggedBatch


class EventIdentity(NamedTuple):
    """By what duplicates of an event are known.

    Attributes:
        event: (ce_source, ce_id) of the CloudEvents headers.
        request: (user, request) of an impression, of which only the first counts; None for other events, and for
            impressions that name no request, as those from before it was required.
    """

    event: tuple[str, str]
    request: tuple[str, str] | None


class ArchivedEvent(NamedTuple):
    """An event of a logged batch.

    Attributes:
        identity: by what duplicates of it are known.
        event: as the feature algebra takes it.
        arrival_time: when Kafka got it, unix seconds.
    """

    identity: EventIdentity
    event: Event
    arrival_time: float


_EVENTS_AT_ONCE = 50_000


@dataclass(frozen=True, slots=True)
class _OffsetRange:
    """Events of one topic partition in the order of their offsets."""

    offsets: npt.NDArray[np.int64]
    events: Sequence[Event]
    identities: Sequence[EventIdentity]
    arrivals: Sequence[float]

    def between(self, first: int, end: int) -> Iterator[ArchivedEvent]:
        start, stop = np.searchsorted(self.offsets, (first, end)).tolist()
        own = (each[start:stop] for each in (self.identities, self.events, self.arrivals))
        return map(ArchivedEvent, *own)


@dataclass(frozen=True, slots=True)
class BatchEvents:
    """A logged batch with its events.

    Attributes:
        batch: as logged.
        changes: of items and users, each topic partition's in the order of the offsets.
        behaviour: what users did and were shown, by topic partition in the order of the offsets.
    """

    batch: LoggedBatch
    changes: Sequence[Event]
    behaviour: Mapping[Place, Sequence[ArchivedEvent]]


class ArchivedBatches:
    """Reads events of a loop by the offset ranges of its batches.

    Args:
        loop: its name.
        layout: whose batches these are; impressions are read only where it counts them.
        tables: the loop's tables by name, as they were loaded; what is appended later is not seen.
        events_at_once: read about so many in one go.
        counts: is added how many rows were read, and how many of them were set aside.
    """

    def __init__(
        self,
        loop: str,
        layout: Layout,
        tables: Mapping[str, Table],
        *,
        events_at_once: int = _EVENTS_AT_ONCE,
        counts: RowCounts | None = None,
    ) -> None:
        self._counts = RowCounts() if counts is None else counts
        counted = {
            suffix: name
            for suffix, name in TRAINING_TABLE_OF.items()
            if name != IMPRESSIONS or counts_impressions(layout)
        }
        self._table_of = {topic(loop, suffix): name for suffix, name in counted.items()}
        self._tables, self._layout = tables, layout
        self._held = {name: offsets_of(tables[name]) for name in counted.values()}
        self._events_at_once = events_at_once

    def holds(self, batch: LoggedBatch) -> bool:
        """Whether the tables, as they were loaded, reach the end of all ranges of a batch; topics not read are ignored.

        True also where rows were erased or set aside since.
        """
        return all(
            end <= self._held[self._table_of[name]].get(partition, 0)
            for (name, partition), (_, end) in batch.ranges.items()
            if name in self._table_of
        )

    def read(self, batches: Sequence[LoggedBatch]) -> Iterator[BatchEvents]:
        """The batches with those of their events that the tables hold, lazily, in the order given.

        Duplicates are included; rows that cannot be read are left out and counted.
        """
        for some in self._in_stretches(batches):
            found = self._fetch(some)
            for batch in some:
                yield _joined(batch, found)

    def _in_stretches(self, batches: Sequence[LoggedBatch]) -> Iterator[list[LoggedBatch]]:
        """Consecutive batches that together span about as many events as are read at once."""
        some: list[LoggedBatch] = []
        spans: dict[Place, tuple[int, int]] = {}
        for batch in batches:
            wider = _spans([batch], self._table_of, spans)
            if some and sum(end - first for first, end in wider.values()) > self._events_at_once:
                yield some
                some, wider = [], _spans([batch], self._table_of, {})
            some.append(batch)
            spans = wider
        if some:
            yield some

    def _fetch(self, batches: Sequence[LoggedBatch]) -> dict[Place, _OffsetRange]:
        found: dict[Place, _OffsetRange] = {}
        by_table: dict[str, dict[Place, tuple[int, int]]] = {}
        for place, span in _spans(batches, self._table_of, {}).items():
            by_table.setdefault(self._table_of[place[0]], {})[place] = span
        for name, spans in by_table.items():
            columns = [*IDENTITY_COLUMNS[name], *EVENT_COLUMNS[name], "kafka_partition", "kafka_offset", "ingest_time"]
            columns = list(dict.fromkeys(columns))
            stored = read_columns(self._tables[name], columns, rows=_within(spans)).sort_by("kafka_offset")
            rows = self._counts.readable(name, stored, self._layout)
            partitions = rows["kafka_partition"].to_numpy()
            for place in spans:
                own = rows.filter(partitions == place[1])
                found[place] = _OffsetRange(
                    own["kafka_offset"].to_numpy(),
                    events_of(name, own),
                    _identities(name, own),
                    seconds_of(own["ingest_time"]).tolist(),
                )
        return found


def _identities(name: str, rows: Any) -> list[EventIdentity]:
    events = zip(rows["source"].to_pylist(), rows["event_id"].to_pylist(), strict=True)
    if name != IMPRESSIONS:
        return [EventIdentity(event, None) for event in events]
    requests = zip(rows["user_id"].to_pylist(), rows["request_id"].to_pylist(), strict=True)
    return [EventIdentity(event, each if each[1] else None) for event, each in zip(events, requests, strict=True)]


def _spans(
    batches: Sequence[LoggedBatch], topics: Collection[str], before: Mapping[Place, tuple[int, int]]
) -> dict[Place, tuple[int, int]]:
    """From the first to the last offset of each place, over some batches and what was spanned before."""
    spans = dict(before)
    for batch in batches:
        for place, (first, end) in batch.ranges.items():
            if place[0] in topics:
                start, stop = spans.get(place, (first, end))
                spans[place] = min(start, first), max(stop, end)
    return spans


def _within(spans: Mapping[Place, tuple[int, int]]) -> str:
    """The rows of some places between two offsets each."""
    return " or ".join(
        f"(kafka_partition = {partition} and kafka_offset >= {first} and kafka_offset < {end})"
        for (_, partition), (first, end) in spans.items()
    )


def _joined(batch: LoggedBatch, found: Mapping[Place, _OffsetRange]) -> BatchEvents:
    changes: list[Event] = []
    behaviour: dict[Place, Sequence[ArchivedEvent]] = {}
    for place, (first, end) in batch.ranges.items():
        events = found.get(place)
        if events is None:
            continue
        own = events.between(first, end)
        if place[0].partition(".")[2].startswith("catalog."):
            changes.extend(each.event for each in own)
        else:
            behaviour[place] = list(own)
    return BatchEvents(batch, changes, behaviour)
