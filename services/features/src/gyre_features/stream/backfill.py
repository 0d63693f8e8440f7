"""Fills the online store from the warehouse: the history that Kafka does not hold any more, or a layout that is new.

It is the stream itself, which reads the tables in place of the topics: the same applied offsets, batches and script,
so that a backfill may be cut short and started again, and the stream goes on where it ends. Behaviour is keyed by user,
so topic partitions are applied side by side.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from math import inf
from typing import Any

import numpy as np
from google.protobuf import json_format
from gyre.events.v1 import behavior_pb2 as behavior
from gyre_core.features import Layout
from gyre_core.spec import LoopSpec
from gyre_core.topics import topic
from gyre_privacy.masking import read_keyring
from gyre_privacy.tombstones import Tombstones
from gyre_runtime import Unavailable, load_loops
from gyre_runtime.checkpoints import Batch, Checkpoint, Place, checkpoints_after
from gyre_runtime.events import Event
from gyre_runtime.kafka import existing_topics
from gyre_runtime.layouts import TOPIC as LAYOUTS
from gyre_runtime.layouts import read_layouts
from gyre_warehouse.rows import (
    EVENT_COLUMNS,
    IDENTITY_COLUMNS,
    RowCounts,
    counts_impressions,
    seconds_of,
)
from gyre_warehouse.tables import (
    IMPRESSIONS,
    INTERACTIONS,
    ITEMS,
    TRAINING_TABLE_OF,
    USERS,
    arrow_schema,
    checkpoints_of,
    ensure_table,
    offsets_of,
    open_catalog,
    read_columns,
)
from pyiceberg.catalog import Catalog
from pyiceberg.table import Table

from gyre_features.online.connection import open_redis, open_store
from gyre_features.online.store import OnlineStore
from gyre_features.settings import BackfillSettings
from gyre_features.stream.loop_stream import LoopStream, ReadTombstones, nobody_forgotten

_EPOCH, _SECOND = datetime(1970, 1, 1, tzinfo=UTC), timedelta(seconds=1)
_OFFSETS_AT_ONCE = 20_000
_ATTEMPTS, _RETRY_S = 20, 1.0
_STALL_TIMEOUT_S, _POLL_S = 10.0, 0.1
_CATALOGUE = "catalog.items"


@dataclass
class Backfilled:
    """What a backfill did.

    Attributes:
        events: count of archived events beyond the applied offsets, those that count for nothing among them.
        rows: how many were read of each table, and how many of them set aside, since no event can be made of them.
    """

    events: int = 0
    rows: RowCounts = field(default_factory=RowCounts)

    def add(self, other: Backfilled) -> None:
        """Add what another process did to this one's counts."""
        self.events += other.events
        self.rows.add(other.rows)


def backfill(settings: BackfillSettings, spec: LoopSpec, *, processes: int) -> Backfilled:
    """Apply all archived events of a loop that the store of gyre.yaml's layout does not hold; blocks until done.

    The catalogue comes first, since behaviour is counted by the fields of its items. Events that a tombstone covers
    count for nothing, whether the archive has erased their rows yet or not.

    Args:
        settings: where Kafka, the warehouse and the store are.
        spec: the loop.
        processes: how many work side by side at most, at least 1; each takes topic partitions of its own.

    Raises:
        Precondition: users were forgotten, and there is no key to tell whom (PRIVACY_KEY_MISSING).
        Unavailable: Kafka or the store do not answer; start again.
    """
    layout = Layout.compile(spec)
    generation = asyncio.run(_generation(settings, spec.loop, layout.hash))
    places = _archived(settings, spec.loop)
    catalogue = topic(spec.loop, _CATALOGUE)
    done = apply_archived(settings, spec.loop, [place for place in places if place[0] == catalogue], generation)
    left_out = {catalogue} if counts_impressions(layout) else {catalogue, topic(spec.loop, "behavior.impressions")}
    behaviour = [place for place in places if place[0] not in left_out]
    groups = [
        own for number in range(processes) if (own := [place for place in behaviour if place[1] % processes == number])
    ]
    if len(groups) == 1:
        done.add(apply_archived(settings, spec.loop, groups[0], generation))
    elif groups:
        with ProcessPoolExecutor(len(groups), mp_context=multiprocessing.get_context("spawn")) as pool:
            running = [pool.submit(apply_archived, settings, spec.loop, places, generation) for places in groups]
            for each in running:
                done.add(each.result())
    return done


def _archived(settings: BackfillSettings, loop: str) -> list[Place]:
    """The topic partitions that the tables know, which are all that Kafka had, whatever `gyre.yaml` says."""
    catalog = open_catalog(settings)
    return [
        (topic(loop, suffix), partition)
        for suffix, name in TRAINING_TABLE_OF.items()
        for partition in sorted(offsets_of(ensure_table(catalog, loop, name)))
    ]


async def _generation(settings: BackfillSettings, loop: str, layout: str) -> int:
    """Which of a layout's stores holds its values; the first where no stream has run yet."""
    if not await existing_topics(settings.kafka, (topic(loop, LAYOUTS),)):
        return 0
    known = (await read_layouts(settings.kafka, loop)).get(layout)
    return 0 if known is None else known.generation + (not known.is_maintained)  # the stream's next start


def apply_archived(settings: BackfillSettings, loop: str, places: Sequence[Place], generation: int) -> Backfilled:
    """Apply the warehouse's events of some topic partitions to gyre.yaml's layout, from its applied offsets on; blocks.

    `generation` says which of the layout's stores; without partitions nothing is applied.

    Raises:
        Unavailable: Kafka or the store do not answer; what was applied stands.
    """
    return asyncio.run(_apply(settings, load_loops(settings)[loop], places, generation))


async def _apply(settings: BackfillSettings, spec: LoopSpec, places: Sequence[Place], generation: int) -> Backfilled:
    tombstones = Tombstones({spec.loop: spec}, read_keyring(settings))
    async with tombstones.following(settings), open_redis(settings) as redis:
        store, max_events = open_store(settings, redis, spec, generation), settings.features_batch_events
        archived = Archived(
            store,
            max_events=max_events,
            forgotten=tombstones.cover,
            read_tombstones=partial(tombstones.catch_up, spec.loop),
        )
        return Backfilled(await archived.apply(open_catalog(settings), places), archived.rows)


async def missing_events(catalog: Catalog, store: OnlineStore, places: Sequence[Place]) -> int:
    """How many offsets of topic partitions the tables reach beyond the store's lowest applied ones, with gaps.

    0 for none.

    Raises:
        Unavailable: the store does not answer.
    """
    tables = await asyncio.to_thread(_tables_of, catalog, store.spec.loop, places)
    ends = {place: checkpoints_of(tables[place[0]]).get(place[1], Checkpoint()).offset for place in places}
    shards = await store.applied_offsets(places)
    return sum(max(end - min(applied_offsets[place] for applied_offsets in shards), 0) for place, end in ends.items())


class Archived:
    """Applies a loop's archived events to the store of one layout.

    The batches are not published here: they stay in the store's outbox, from which the stream publishes them.

    Args:
        store: of the layout.
        max_events: in one batch.
        share: of the time that applying may take, above 0 and at most 1; the rest is left to others.
        forgotten: whether an event is of a user who was forgotten.
        read_tombstones: returns once `forgotten` knows everybody who was forgotten before.

    Attributes:
        rows: how many rows all calls of `apply` read, and how many of them were set aside.
    """

    def __init__(
        self,
        store: OnlineStore,
        *,
        max_events: int,
        share: float = 1.0,
        forgotten: Callable[[Event], bool] = lambda _event: False,
        read_tombstones: ReadTombstones = nobody_forgotten,
    ) -> None:
        self._stream = LoopStream(
            store, on_batch=_ignore, max_events=max_events, forgotten=forgotten, read_tombstones=read_tombstones
        )
        self._store, self._max_events, self._share = store, max_events, share
        self.rows = RowCounts()

    async def apply(self, catalog: Catalog, places: Sequence[Place]) -> int:
        """Apply what the tables hold of topic partitions beyond the store's applied offsets; answer how many events.

        Returns when all is applied; a second call applies what was appended since.

        The catalogue comes first, since behaviour is counted by the fields of its items.

        Raises:
            Unavailable: the store does not answer; what was applied stands.
        """
        spec, name = self._store.spec, topic(self._store.spec.loop, _CATALOGUE)
        tables = await asyncio.to_thread(_tables_of, catalog, spec.loop, [(name, 0), *places])
        start, count = await self._stream.assigned(places), 0
        ends = {(name, number): each.offset for number, each in checkpoints_of(tables[name]).items()}
        self._stream.follow_catalogue(max([spec.shards.kafka_partitions, *(number + 1 for _, number in ends)]))
        catalogue = [place for place in places if place[0] == name]
        for place in catalogue:
            count += await self._apply_place(tables[name], place, start[place])
        if len(catalogue) < len(places):
            await self._until_applied(ends)
        for place in places:
            if place[0] != name:
                count += await self._apply_place(tables[place[0]], place, start[place])
        return count

    async def _until_applied(self, ends: Mapping[Place, int]) -> None:
        """Wait until the store holds the archived catalogue, of which others may apply a part at the same time."""
        seen, since = -1, time.monotonic()
        while time.monotonic() - since < _STALL_TIMEOUT_S:
            shards = await self._store.applied_offsets(ends)
            missing = sum(
                max(end - applied_offsets[place], 0) for place, end in ends.items() for applied_offsets in shards
            )
            if not missing:
                return
            if missing != seen:
                seen, since = missing, time.monotonic()
            await asyncio.sleep(_POLL_S)

    async def _apply_place(self, table: Table, place: Place, start: int) -> int:
        """Apply what a table holds of a topic partition from an offset on; answer how many events.

        The last batch ends where the table does, so that the stream goes on behind what was refused, too. Those before
        end at an archived event, with the clock that the partition had there.
        """
        end, count = checkpoints_of(table).get(place[1], Checkpoint()), 0
        if table.name()[-1] == IMPRESSIONS and not counts_impressions(self._store.layout):
            if start < end.offset:
                await _apply_with_retries(self._stream, (), {place: end})
            return 0
        for first, last in await asyncio.to_thread(_ranges, table, place[1], start, end.offset):
            read = partial(_read, self._store.layout, table, place, (first, last), counts=self.rows)
            events = await asyncio.to_thread(read)
            ends = {place: end} if last == end.offset else checkpoints_after(events, {place: end})
            await self._apply(Batch(events, (), ends))
            count += len(events)
        return count

    async def _apply(self, batch: Batch) -> None:
        """Apply a batch, leaving some of the time to others where they are to have it."""
        for part in batch.parts(self._max_events) if self._share < 1 else [batch]:
            started = time.monotonic()
            await _apply_with_retries(self._stream, part.events, part.ends)
            await asyncio.sleep((time.monotonic() - started) * (1 / self._share - 1))


def _ranges(table: Table, partition: int, start: int, end: int) -> list[tuple[int, int]]:
    """Ranges of offsets that together hold all rows of a partition between two offsets; the last reaches to the end.

    Where another log was accepted offsets jump far, so ranges without rows are left out.
    """
    wanted = f"kafka_partition = {partition} and kafka_offset >= {start} and kafka_offset < {end}"
    scan = table.scan(row_filter=wanted, selected_fields=("kafka_partition", "kafka_offset"))
    held = set[int]()
    for rows in scan.to_arrow_batch_reader():
        held.update(np.unique(rows["kafka_offset"].to_numpy() // _OFFSETS_AT_ONCE).tolist())
    firsts = [each * _OFFSETS_AT_ONCE for each in sorted(held)]
    found = [(max(start, first), min(end, first + _OFFSETS_AT_ONCE)) for first in firsts]
    if start < end and (not found or found[-1][1] < end):
        found.append((found[-1][1] if found else start, end))
    return found


async def _apply_with_retries(stream: LoopStream, events: Sequence[Event], ends: Mapping[Place, Checkpoint]) -> None:
    """Apply events; a store that is busy with those of the other processes is asked again, which changes nothing."""
    for left in reversed(range(_ATTEMPTS)):
        try:
            await stream.apply(events, ends)
        except Unavailable:
            if not left:
                raise
            await asyncio.sleep(_RETRY_S)
        else:
            return


async def _ignore(*_: object) -> None:
    pass


def _tables_of(catalog: Catalog, loop: str, places: Iterable[Place]) -> dict[str, Table]:
    tables, names = {topic(loop, suffix): table for suffix, table in TRAINING_TABLE_OF.items()}, {n for n, _ in places}
    return {name: ensure_table(catalog, loop, table) for name, table in tables.items() if name in names}


def _read(layout: Layout, table: Table, place: Place, offsets: tuple[int, int], *, counts: RowCounts) -> list[Event]:
    """The archived events of a topic partition between two offsets, as consumers of Kafka get them."""
    first, end = offsets
    name = table.name()[-1]
    columns = [*IDENTITY_COLUMNS[name], *EVENT_COLUMNS[name], "kafka_partition", "kafka_offset", "ingest_time"]
    columns = list(dict.fromkeys([*columns, *({"clock_time"} & set(arrow_schema(name).names))]))
    wanted = f"kafka_partition = {place[1]} and kafka_offset >= {first} and kafka_offset < {end}"
    stored = read_columns(table, columns, rows=wanted).sort_by("kafka_offset")
    rows = counts.readable(name, stored, layout)
    times, arrivals = seconds_of(rows["event_time"]).tolist(), seconds_of(rows["ingest_time"]).tolist()
    message = _MESSAGES[name]
    return [
        Event(
            id=row["event_id"],
            source=row["source"],
            type="",
            time=at,
            message=message(row),
            traceparent=None,
            topic=place[0],
            partition=place[1],
            offset=row["kafka_offset"],
            arrival_time=arrival,
            clock=_clock_of(row),
        )
        for row, at, arrival in zip(
            rows.drop_columns(["event_time", "ingest_time"]).to_pylist(), times, arrivals, strict=True
        )
    ]


def _clock_of(row: Mapping[str, Any]) -> float:
    """The replay clock after a row, unix seconds; -inf where it is not known."""
    at = row.get("clock_time")
    return -inf if at is None else (at - _EPOCH) / _SECOND


def _interaction(row: Mapping[str, Any]) -> behavior.Interaction:
    return behavior.Interaction(user_id=row["user_id"], item_id=row["item_id"], type=row["type"], value=row["value"])


def _impression(row: Mapping[str, Any]) -> behavior.Impression:
    request = row["request_id"] or ""  # archived rows from before it was required may hold none
    return behavior.Impression(request_id=request, user_id=row["user_id"], item_ids=row["item_ids"], shown=row["shown"])


def _item_change(row: Mapping[str, Any]) -> behavior.ItemChanged:
    return json_format.Parse(row["fields"], behavior.ItemChanged())


def _user_change(row: Mapping[str, Any]) -> behavior.UserChanged:
    return json_format.Parse(row["fields"], behavior.UserChanged())


_MESSAGES: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {
    INTERACTIONS: _interaction,
    IMPRESSIONS: _impression,
    ITEMS: _item_change,
    USERS: _user_change,
}
