"""Events as rows of the warehouse, appended so that each is there exactly once."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import isfinite
from operator import attrgetter
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from google.protobuf import json_format
from gyre.events.v1 import behavior_pb2 as behavior
from gyre_runtime import Unavailable, instrument
from gyre_runtime.checkpoints import Checkpoint, Place, checkpoints_after
from gyre_runtime.events import Event
from gyre_warehouse.tables import (
    APPLIED,
    IMPRESSIONS,
    INTERACTIONS,
    ITEMS,
    TABLE_OF,
    USERS,
    append,
    arrow_schema,
    checkpoints_of,
    ensure_table,
    offsets_of,
)
from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import CommitFailedException
from pyiceberg.table import Table

from gyre_features.warehouse.refused_rows import RefusedRows, rows_apart

_LOG = logging.getLogger(__name__)
_COMMITS_FOR_A_SECOND = 500
_LONGEST_S = 60.0
_STALLED_S = 30.0
_METHODS = {
    number: name.removeprefix("IMPRESSION_METHOD_").lower() for name, number in behavior.ImpressionMethod.items()
}
"""The text of each method; a number that a newer gateway writes stays that number."""
Result = TypeVar("Result")
Columns = Mapping[str, Callable[[Any], Any]]
_THINNING = {
    behavior.IMPRESSION_THINNING_UNSPECIFIED: "",
    behavior.IMPRESSION_THINNING_REST: "rest",
    behavior.IMPRESSION_THINNING_FEATURES: "features",
}
_INTERACTION: Columns = {
    "user_id": attrgetter("user_id"),
    "item_id": attrgetter("item_id"),
    "type": attrgetter("type"),
    "value": lambda message: message.value if message.HasField("value") else None,
    "request_id": attrgetter("request_id"),
    "simulated": attrgetter("simulated"),
}
_IMPRESSION: Columns = {
    "request_id": attrgetter("request_id"),
    "user_id": attrgetter("user_id"),
    "item_ids": lambda message: list(message.item_ids),
    "shown": attrgetter("shown"),
    "rest": attrgetter("rest"),
    "scores": lambda message: list(message.scores),
    "item_propensities": lambda message: list(message.item_propensities),
    "explored": attrgetter("explored"),
    "model_version": attrgetter("model_version"),
    "epoch": attrgetter("epoch"),
    "arm": attrgetter("arm"),
    "arm_propensity": attrgetter("arm_propensity"),
    "layout": attrgetter("features.layout"),
    "feature_columns": attrgetter("features.columns"),
    "features": attrgetter("features.values"),
    "item_batches": lambda message: list(message.item_batches),
    "user_batch": attrgetter("user_batch"),
    "feature_age_s": attrgetter("feature_age_s"),
    "degraded_reason": attrgetter("degraded_reason"),
    "latency_s": attrgetter("latency_s"),
    "method": lambda message: _METHODS.get(message.method, str(message.method)),
    "simulated": attrgetter("simulated"),
    "context": lambda message: list(message.context.items()),
    "global_batch": attrgetter("global_batch"),
    "labels": lambda message: list(message.labels.items()),
    "positions": lambda message: list(message.positions),
    "thinning": lambda message: _THINNING.get(message.thinning, str(message.thinning)),
}
_ITEM: Columns = {
    "item_id": attrgetter("item_id"),
    "fields": lambda message: json_format.MessageToJson(message, indent=None),
}
_USER: Columns = {"user_id": attrgetter("user_id"), "fields": _ITEM["fields"]}
_APPLIED: Columns = {
    "layout": attrgetter("layout"),
    "shard": attrgetter("shard"),
    "batch": attrgetter("batch"),
    "events": attrgetter("events"),
    "newest_event_time": lambda message: message.newest_event_time.ToMicroseconds(),
    "applied_time": lambda message: message.applied_time.ToMicroseconds(),
    "range_topics": lambda message: [each.topic for each in message.ranges],
    "range_partitions": lambda message: [each.partition for each in message.ranges],
    "range_firsts": lambda message: [each.first for each in message.ranges],
    "range_ends": lambda message: [each.end for each in message.ranges],
}
_COLUMNS_OF: Mapping[str, Columns] = {
    INTERACTIONS: _INTERACTION,
    IMPRESSIONS: _IMPRESSION,
    ITEMS: _ITEM,
    USERS: _USER,
    APPLIED: _APPLIED,
}


def rows_of(topic: str, events: Sequence[Event]) -> pa.Table:
    """Events of one topic as rows of its table, in their order; one that has no arrival time is given the present.

    Raises:
        Exception: an event does not fit the table; see `rows_apart`.
    """
    table = TABLE_OF[topic.partition(".")[2]]
    messages = [event.message for event in events]
    columns: dict[str, Iterable[Any]] = {
        "event_id": [event.id for event in events],
        "source": [event.source for event in events],
        "event_time": _microseconds([event.time for event in events]),
        **{name: [value(message) for message in messages] for name, value in _COLUMNS_OF[table].items()},
        "kafka_partition": [event.partition for event in events],
        "kafka_offset": [event.offset for event in events],
        "ingest_time": _microseconds([event.arrival_time or time.time() for event in events]),
        "clock_time": [round(event.clock * 1e6) if isfinite(event.clock) else None for event in events],
    }
    schema = arrow_schema(table)
    return pa.Table.from_arrays([pa.array(columns[each.name], each.type) for each in schema], schema=schema)


def _microseconds(unix_s: Sequence[float]) -> npt.NDArray[np.int64]:
    return np.round(np.array(unix_s) * 1e6).astype(np.int64)


@dataclass(slots=True)
class _Waiting:
    """Rows of one topic that are not in the warehouse yet.

    Attributes:
        tables: the rows, in the order of their offsets within each partition.
        ends: for each partition, the checkpoint after all records that were taken in, whether they made a row or not.
    """

    tables: list[pa.Table] = field(default_factory=list)
    ends: dict[int, Checkpoint] = field(default_factory=dict)

    def end(self, partition: int) -> int:
        """The offset after what was taken in of a partition, 0 for nothing."""
        return self.ends[partition].offset if partition in self.ends else 0


class Archive:
    """Collects events in memory and appends them table by table, to Iceberg.

    Where a table stands is read from its properties, never from the group's offsets, which run ahead of it: rows wait
    in memory after they were handed over. On a conflict with another writer the properties are read again and what is
    stored already is dropped, so neither a crash nor a zombie loses or repeats a row.

    Args:
        catalog: of the warehouse.
        rows: append when so many wait.
        seconds: append what waited so long; longer where commits piled up, see `_max_wait_s`.
        payload_bytes: append when so many bytes of Arrow data wait.
        counted: what of some events belongs into the tables; all of it by default.
    """

    def __init__(
        self,
        catalog: Catalog,
        *,
        rows: int,
        seconds: float,
        payload_bytes: int,
        counted: Callable[[Sequence[Event]], Sequence[Event]] = lambda events: events,
    ) -> None:
        self._catalog = catalog
        self._max_rows, self._max_s, self._max_bytes = rows, seconds, payload_bytes
        self._counted = counted
        self._waiting: dict[str, _Waiting] = {}
        self._count = self._bytes = 0
        self._since = time.monotonic()
        self._commits = 0
        self._lock = asyncio.Lock()
        self._failing: tuple[float, Unavailable] | None = None
        self._refused = RefusedRows(catalog)

    def checkpoints(self, topic: str) -> dict[int, Checkpoint]:
        """Up to where the table of a topic, made where it is missing, holds each of its partitions; blocks.

        Partitions of which it holds nothing are missing; rows that wait in memory do not count.
        """
        return checkpoints_of(self._table(topic))

    def _table(self, topic: str) -> Table:
        loop, _, suffix = topic.partition(".")
        return ensure_table(self._catalog, loop, TABLE_OF[suffix])

    async def add(self, events: Sequence[Event], ends: Mapping[Place, Checkpoint] | None = None) -> None:
        """Put events among the rows that wait in memory, after a `flush` where too many wait.

        They are stored by `run` or the next `flush`. What is at an offset that was taken in already is left out.

        Args:
            events: each partition's in the order of its offsets.
            ends: the checkpoints after them and after what makes no row; by default those after the events.

        Raises:
            Unavailable: too much waits and the warehouse takes nothing; nothing was taken in, call again.
        """
        if self._count >= self._max_rows or self._bytes >= self._max_bytes:
            await self.flush()
        async with self._lock:
            by_topic: dict[str, list[Event]] = {}
            for event in events:
                waiting = self._waiting.get(event.topic)
                if waiting is None or event.offset >= waiting.end(event.partition):
                    by_topic.setdefault(event.topic, []).append(event)
            rows = {topic: self._rows(topic, self._counted(own)) for topic, own in by_topic.items()}
            if not self._waiting:
                self._since = time.monotonic()
            for topic, table in rows.items():
                self._waiting.setdefault(topic, _Waiting()).tables.append(table)
                self._count += table.num_rows
                self._bytes += table.nbytes
            for (topic, partition), end in (checkpoints_after(events) if ends is None else ends).items():
                waiting = self._waiting.setdefault(topic, _Waiting())
                if end.offset > waiting.end(partition):
                    waiting.ends[partition] = end

    def _rows(self, topic: str, events: Sequence[Event]) -> pa.Table:
        """The rows of events; those that the table cannot hold are set aside."""
        made, refused = rows_apart(partial(rows_of, topic), events)
        self._refused.add(refused)
        return pa.concat_tables(made) if made else rows_of(topic, [])

    async def run(self) -> None:
        """Append what waits too long, until cancelled; a warehouse that takes nothing is logged, and tried again."""
        while True:
            await asyncio.sleep(self._max_s / 4)
            if self._waiting and time.monotonic() - self._since >= self._max_wait_s:
                try:
                    await self.flush()
                except Unavailable as error:
                    _LOG.warning("rows wait", extra={"rows": self._count, "problem": str(error)})

    @property
    def _max_wait_s(self) -> float:
        """How long rows may wait: each commit of a table costs all later ones, so the more there are the longer."""
        return min(max(self._max_s, self._commits / _COMMITS_FOR_A_SECOND), max(self._max_s, _LONGEST_S))

    async def release(self, *, append: bool = True) -> None:
        """Append what waits and drop it from memory, stored or not, for its partitions go.

        The next owner reads on from the table's offsets, so nothing is lost; a warehouse that takes nothing is logged.

        Args:
            append: False to drop it unwritten, and leave it all to the next owner.
        """
        try:
            if append:
                await self.flush()
        except Unavailable as error:
            _LOG.warning("rows are left to the next owner", extra={"rows": self._count, "problem": str(error)})
        async with self._lock:
            self._waiting.clear()
            self._count = self._bytes = 0

    async def flush(self) -> None:
        """Append everything that waits in memory to the tables now; where nothing waits nothing is committed.

        Raises:
            Unavailable: the warehouse took nothing, or only some tables; the rest waits on.
        """
        async with self._lock:
            try:
                await asyncio.to_thread(self._refused.flush)
                for topic in list(self._waiting):
                    await asyncio.to_thread(self._append, topic, self._waiting[topic])
                    del self._waiting[topic]
            except Exception as error:
                # Whatever the file system or the catalogue raise: rows are well formed here, so it can only be theirs.
                problem = Unavailable("WAREHOUSE_UNAVAILABLE", f"the warehouse takes no rows: {error!r:.200}")
                since = self._failing[0] if self._failing else time.monotonic()
                self._failing = since, problem
                raise problem from error
            else:
                self._failing = None
            finally:
                tables = [table for waiting in self._waiting.values() for table in waiting.tables]
                self._count = sum(table.num_rows for table in tables)
                self._bytes = sum(table.nbytes for table in tables)

    def check(self) -> None:
        """Raise Unavailable where all appends have failed for 30 s; asks the warehouse nothing."""
        if self._failing is not None and time.monotonic() - self._failing[0] > _STALLED_S:
            raise self._failing[1]

    async def alone(self, loop: str, tables: Sequence[str], work: Callable[[Table], Result]) -> dict[str, Result]:
        """Append what waits, then do something with tables of a loop, in a thread, while this archive appends nothing.

        Answers what `work` answered, by table. The tables are worked on one after the other: where one fails, those
        before it stay as `work` left them.

        Raises:
            Unavailable: the warehouse does not take what waits, or the work failed.
        """
        await self.flush()
        async with self._lock:
            found = {}
            try:
                for name in tables:
                    table = await asyncio.to_thread(ensure_table, self._catalog, loop, name)
                    found[name] = await asyncio.to_thread(work, table)
            except Exception as error:
                # Another writer committed meanwhile, or the file system or the catalogue do not answer.
                raise Unavailable(
                    "WAREHOUSE_UNAVAILABLE", f"the warehouse was not rewritten: {error!r:.200}"
                ) from error
            return found

    def _append(self, topic: str, waiting: _Waiting) -> None:
        loop, _, suffix = topic.partition(".")
        rows = pa.concat_tables(waiting.tables) if waiting.tables else None
        while True:
            table = self._table(topic)
            self._commits = max(self._commits, len(table.metadata.snapshots))
            stored = offsets_of(table)
            ends = {each: end for each, end in waiting.ends.items() if end.offset > stored.get(each, 0)}
            if not ends:
                return
            fresh = None if rows is None else _from(rows, stored)
            try:
                append(table, fresh, ends)
            except CommitFailedException:
                _LOG.warning("another archiver committed: reading the checkpoints again", extra={"topic": topic})
                continue
            if fresh is not None:
                instrument("gyre_archive_rows_total").add(fresh.num_rows, loop=loop, table=TABLE_OF[suffix])
            return


def _from(rows: pa.Table, stored: Mapping[int, int]) -> pa.Table:
    """The rows that a table which stands at `stored` does not hold."""
    partitions, offsets = rows["kafka_partition"].to_numpy(), rows["kafka_offset"].to_numpy()
    start = np.zeros(len(rows), dtype=np.int64)
    for partition, offset in stored.items():
        start[partitions == partition] = offset
    fresh = offsets >= start
    return rows if fresh.all() else rows.filter(pa.array(fresh))
