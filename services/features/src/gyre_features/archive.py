"""Events as rows of the warehouse, appended so that each is there exactly once."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
from google.protobuf import json_format
from gyre.events.v1 import behavior_pb2 as behavior
from gyre_runtime import instrument
from gyre_runtime.events import Event
from gyre_runtime.warehouse import TABLE_OF, append, ensure_table, offsets_of
from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import CommitFailedException

_LOG = logging.getLogger(__name__)
Row = dict[str, Any]


def _moment(unix_s: float) -> datetime:
    return datetime.fromtimestamp(unix_s, UTC)


def _interaction(message: behavior.Interaction) -> Row:
    return {
        "user_id": message.user_id,
        "item_id": message.item_id,
        "type": message.type,
        "value": message.value if message.HasField("value") else None,
        "request_id": message.request_id,
        "simulated": message.simulated,
    }


def _impression(message: behavior.Impression) -> Row:
    return {
        "request_id": message.request_id,
        "user_id": message.user_id,
        "item_ids": list(message.item_ids),
        "shown": message.shown,
        "rest": message.rest,
        "scores": list(message.scores),
        "item_propensities": list(message.item_propensities),
        "explored": message.explored,
        "model_version": message.model_version,
        "epoch": message.epoch,
        "arm": message.arm,
        "arm_propensity": message.arm_propensity,
        "layout": message.features.layout,
        "feature_columns": message.features.columns,
        "features": message.features.values,
        "item_batches": list(message.item_batches),
        "user_batch": message.user_batch,
        "feature_age_s": message.feature_age_s,
        "degraded_reason": message.degraded_reason,
        "latency_s": message.latency_s,
        "method": behavior.ImpressionMethod.Name(message.method).removeprefix("IMPRESSION_METHOD_").lower(),
        "simulated": message.simulated,
    }


def _item(message: behavior.ItemChanged) -> Row:
    fields = json_format.MessageToJson(message, indent=None)
    return {"item_id": message.item_id, "fields": fields}


_ROW_OF: dict[type, Callable[[Any], Row]] = {
    behavior.Interaction: _interaction,
    behavior.Impression: _impression,
    behavior.ItemChanged: _item,
}


def row_of(event: Event) -> Row:
    """One event as a row of its table."""
    return {
        "event_id": event.id,
        "source": event.source,
        "event_time": _moment(event.time),
        **_ROW_OF[type(event.message)](event.message),
        "kafka_partition": event.partition,
        "kafka_offset": event.offset,
        "ingest_time": _moment(event.arrival_time or time.time()),
    }


class Archive:
    """Collects events and appends them table by table.

    Where a table stands is read from its properties. On a conflict with another writer they are read again and what
    is stored already is dropped, so neither a crash nor a zombie loses or repeats a row.
    """

    def __init__(self, catalog: Catalog, *, rows: int, seconds: float, payload_bytes: int) -> None:
        self._catalog = catalog
        self._most_rows, self._most_s, self._most_bytes = rows, seconds, payload_bytes
        self._waiting: dict[str, list[Event]] = {}
        self._count = self._bytes = 0
        self._since = time.monotonic()
        self._lock = asyncio.Lock()

    def offsets(self, topic: str) -> dict[int, int]:
        """The next offset of each partition of a topic that its table does not hold yet."""
        return offsets_of(self._table(topic))

    def _table(self, topic: str) -> Any:
        loop, _, suffix = topic.partition(".")
        return ensure_table(self._catalog, loop, TABLE_OF[suffix])

    async def add(self, events: Sequence[Event]) -> None:
        """Take events in; append when there are enough."""
        async with self._lock:
            if not self._count:
                self._since = time.monotonic()
            for event in events:
                self._waiting.setdefault(event.topic, []).append(event)
            self._count += len(events)
            self._bytes += sum(event.message.ByteSize() for event in events)
        if self._count >= self._most_rows or self._bytes >= self._most_bytes:
            await self.flush()

    async def run(self) -> None:
        """Append what waits too long, until cancelled."""
        while True:
            await asyncio.sleep(self._most_s / 4)
            if self._count and time.monotonic() - self._since >= self._most_s:
                await self.flush()

    async def forget(self) -> None:
        """Drop what waits: its partitions went to another process, which reads them again from the table's offsets."""
        async with self._lock:
            self._waiting.clear()
            self._count = self._bytes = 0

    async def flush(self) -> None:
        """Append everything that waits."""
        async with self._lock:
            for topic, events in self._waiting.items():
                await asyncio.to_thread(self._append, topic, events)
            self._waiting.clear()
            self._count = self._bytes = 0

    def _append(self, topic: str, events: Sequence[Event]) -> None:
        loop, _, suffix = topic.partition(".")
        while True:
            table = self._table(topic)
            stored = offsets_of(table)
            fresh = [event for event in events if event.offset >= stored.get(event.partition, 0)]
            if not fresh:
                return
            following = {event.partition: event.offset + 1 for event in fresh}
            try:
                append(
                    table, pa.Table.from_pylist([row_of(each) for each in fresh], table.schema().as_arrow()), following
                )
            except CommitFailedException:
                _LOG.warning("another archiver committed: reading the offsets again", extra={"topic": topic})
                continue
            instrument("gyre_archive_rows_total").add(len(fresh), loop=loop, table=TABLE_OF[suffix])
            return
