"""Rows of the warehouse as the events that the feature algebra takes; for every replay, whoever does it."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from google.protobuf import json_format
from google.protobuf.message import Message
from gyre.events.v1 import behavior_pb2 as behavior
from gyre_core.append_windows import DUPLICATES_S, WindowIdentities
from gyre_core.features import EntityKind, Event, FieldsChanged, Impression, Layout, UserInteraction
from gyre_core.features.encoding import encode_all
from gyre_core.features.slots import FieldSlot
from gyre_core.spec import IMPRESSION
from gyre_runtime import instrument
from gyre_runtime.fields import field_values

from gyre_warehouse.tables import IMPRESSIONS, INTERACTIONS, ITEMS, USERS

_LOG = logging.getLogger(__name__)
_US = 1_000_000
_REQUEST = "request"
EVENT_COLUMNS = {
    INTERACTIONS: ("event_time", "user_id", "item_id", "type", "value", "ingest_time"),
    IMPRESSIONS: ("event_time", "user_id", "item_ids", "shown", "ingest_time"),
    ITEMS: ("event_time", "item_id", "fields"),
    USERS: ("event_time", "user_id", "fields"),
}
"""What of each table an event is made from; of behaviour when Kafka had it, which bounds the time that it counts at."""
IDENTITY_COLUMNS = {
    name: ("source", "event_id", "request_id") if name == IMPRESSIONS else ("source", "event_id")
    for name in EVENT_COLUMNS
}
"""By what of each table repeated events are known; of impressions, with the user, the requests they answer."""
_CHANGES: Mapping[str, tuple[EntityKind, type[Message]]] = {
    ITEMS: ("item", behavior.ItemChanged),
    USERS: ("user", behavior.UserChanged),
}


def seconds_of(times: Any) -> npt.NDArray[np.float64]:
    """A pyarrow column of times as unix seconds [rows], to the microsecond; NaN where one is null."""
    seconds: npt.NDArray[np.float64] = times.cast(pa.timestamp("us", "UTC")).cast(pa.int64()).to_numpy() / _US
    return seconds


def readable_rows(table: str, rows: pa.Table, layout: Layout) -> pa.Table:
    """The rows that an event of a layout can be made of, in their order.

    Tables can hold others from before a rule of admission was made: another message's fields, a value of another kind,
    a null where a name must be. One such row must not fail what reads all of them. What is left out is neither counted
    nor logged here; `RowCounts.readable` counts it.

    Args:
        table: name of the table.
        rows: with the columns of `EVENT_COLUMNS`, which all stay, as others do.
        layout: whose fields the values must fit.
    """
    required = [name for name in EVENT_COLUMNS[table] if name not in ("value", "ingest_time")]
    given = are_complete(rows, required, lists=("item_ids",) if table == IMPRESSIONS else ())
    if table in _CHANGES:
        kind, message = _CHANGES[table]
        slots = layout.slots(kind).fields
        texts: list[Any] = rows["fields"].to_pylist()
        given[given] = [_fits(slots, message, texts[row]) for row in np.flatnonzero(given).tolist()]
    return rows if given.all() else rows.filter(pa.array(given))


def are_complete(rows: pa.Table, columns: Iterable[str], *, lists: Iterable[str] = ()) -> npt.NDArray[np.bool_]:
    """Which rows, bool [rows], have a value in each of some columns, and no null within their lists.

    Args:
        rows: of any table.
        columns: that must have a value.
        lists: those of them that hold lists.
    """
    complete = np.ones(len(rows), dtype=bool)
    for name in columns:
        complete &= rows[name].is_valid().to_numpy()
    for name in lists:
        if pc.list_flatten(rows[name]).null_count:
            complete &= [None not in (each or ()) for each in rows[name].to_pylist()]
    return complete


@dataclass
class RowCounts:
    """How many rows of each table were read, and how many of them were set aside, since no event can be made of them.

    Attributes:
        read: by table.
        unreadable: by table, a part of `read`; without the tables that have none.
    """

    read: Counter[str] = field(default_factory=Counter)
    unreadable: Counter[str] = field(default_factory=Counter)

    def readable(self, table: str, rows: pa.Table, layout: Layout) -> pa.Table:
        """Add rows to the counts, and return those that an event of a layout can be made of; see `readable_rows`."""
        found = readable_rows(table, rows, layout)
        self.note(table, read=len(rows), unreadable=len(rows) - len(found))
        return found

    def note(self, table: str, *, read: int, unreadable: int) -> None:
        """Add numbers of rows of a table; `unreadable` is a part of `read`."""
        self.read[table] += read
        if unreadable:
            self.unreadable[table] += unreadable

    def add(self, other: RowCounts) -> None:
        """Add the counts of another reader, which stay as they are."""
        self.read.update(other.read)
        self.unreadable.update(other.unreadable)

    def lines(self) -> list[str]:
        """What was set aside, for people: a line for each table that has such rows."""
        return [
            f"set aside: {count:,} of {self.read[table]:,} rows of {table} cannot be read"
            for table, count in sorted(self.unreadable.items())
        ]

    def publish(self, loop: str) -> None:
        """Add all counts to this process's metrics of a loop, and log a warning for each table with rows set aside.

        The counts stay: a second call adds them again.
        """
        for table, count in self.read.items():
            instrument("gyre_warehouse_read_rows_total").add(count, loop=loop, table=table)
        for table, count in self.unreadable.items():
            instrument("gyre_warehouse_unreadable_rows_total").add(count, loop=loop, table=table)
            facts = {"loop": loop, "table": table, "rows": count, "of": self.read[table]}
            _LOG.warning("rows that cannot be read are set aside", extra=facts)


def _fits(slots: Sequence[FieldSlot], message: type[Message], text: str) -> bool:
    """Whether a change's fields can be read, and encoded as a layout stores them."""
    try:
        change: Any = json_format.Parse(text, message())
        encode_all(slots, field_values(change.fields))
    except (json_format.ParseError, ValueError, TypeError, OverflowError):
        return False
    return True


def events_of(table: str, rows: pa.Table) -> list[Event]:
    """The events of some rows with the columns of `EVENT_COLUMNS`, in the rows' order.

    Behaviour is at its event time, but no later than Kafka had it (`ingest_time`). Every row must be one of
    `readable_rows`: another one can raise or make a wrong event.
    """
    moments = seconds_of(rows["event_time"])
    if table in (INTERACTIONS, IMPRESSIONS):
        moments = np.fmin(moments, seconds_of(rows["ingest_time"]))  # the event's own where none is known
    times: list[float] = moments.tolist()
    columns: list[list[Any]] = [rows[name].to_pylist() for name in EVENT_COLUMNS[table][1:] if name != "ingest_time"]
    made: Iterable[Event]
    if table == INTERACTIONS:
        users, items, types, values = columns
        made = map(UserInteraction, users, items, types, times, values)
    elif table == IMPRESSIONS:
        made = map(_impression, *columns, times)
    else:
        made = map(_item_change if table == ITEMS else _user_change, *columns, times)
    return list(made)


def first_copies(table: str, rows: pa.Table) -> npt.NDArray[np.int64]:
    """The indices of rows without later copies, increasing: of those with one source and id the first in Kafka's order.

    However far apart they are, unlike `counted_rows`.
    Of several impressions of one (user, request) likewise, among those; one that names no request repeats none. Needs
    `source`, `event_id`, `kafka_partition`, `kafka_offset`, and of impressions `user_id` and `request_id`.
    """
    order = np.lexsort((rows["kafka_offset"].to_numpy(), rows["kafka_partition"].to_numpy()))
    kept = _first(order, rows["source"].to_pylist(), rows["event_id"].to_pylist())
    if table == IMPRESSIONS:
        requests = rows["request_id"].to_pylist()
        unnamed = [None if request else row for row, request in enumerate(requests)]
        kept = _first(kept, rows["user_id"].to_pylist(), requests, unnamed)
    return np.sort(kept)


def counted_rows(table: str, rows: pa.Table, *, window_s: int = DUPLICATES_S) -> npt.NDArray[np.int64]:
    """The indices of the rows that features count, increasing: those that the stream does not leave out as repeats.

    An event repeats another where the two have one source and id, of impressions also where they have one user and
    request, stand in one topic partition, and no whole window of append times is between them. Changes of the
    catalogue all count. Needs `source`, `event_id`, `kafka_partition`, `kafka_offset`, `ingest_time`, and of
    impressions `user_id` and `request_id`.

    Args:
        table: name of the table.
        rows: of it.
        window_s: length of a window of append times, seconds.
    """
    if table in _CHANGES:
        return np.arange(len(rows))
    order = np.lexsort((rows["kafka_offset"].to_numpy(), rows["kafka_partition"].to_numpy()))
    partitions: list[Any] = rows["kafka_partition"].to_pylist()
    arrivals = np.nan_to_num(seconds_of(rows["ingest_time"])).tolist()
    sources, ids = rows["source"].to_pylist(), rows["event_id"].to_pylist()
    nobody = [None] * len(rows)
    users, requests = (
        (rows["user_id"].to_pylist(), rows["request_id"].to_pylist()) if table == IMPRESSIONS else (nobody, nobody)
    )
    places, kept = dict[int, WindowIdentities](), []
    for row in order.tolist():
        known = places.get(partitions[row])
        if known is None:
            known = places[partitions[row]] = WindowIdentities(window_s)
        known.reach(arrivals[row])
        if known.is_repeat((sources[row], ids[row])):
            continue
        if not requests[row] or not known.is_repeat((_REQUEST, users[row], requests[row])):
            kept.append(row)
    return np.sort(np.array(kept, dtype=np.int64))


def _first(order: npt.NDArray[np.int64], *columns: Sequence[Any]) -> npt.NDArray[np.int64]:
    """Of the rows in an order, the first with each tuple of values."""
    first: dict[tuple[Any, ...], int] = {}
    for row in order.tolist():
        first.setdefault(tuple(column[row] for column in columns), row)
    return np.array(list(first.values()), dtype=np.int64)


def counts_impressions(layout: Layout) -> bool:
    """Whether any feature of a layout is computed from impressions."""
    return any(layout.plan(kind, IMPRESSION) for kind in layout.entities)


def _impression(user_id: str, item_ids: Sequence[str], shown: int, time: float) -> Impression:
    return Impression(user_id, item_ids[:shown], time)


def _item_change(item_id: str, fields: str, time: float) -> FieldsChanged:
    """A change of an item, whose row holds the message in protobuf's JSON mapping; so of a user."""
    message = json_format.Parse(fields, behavior.ItemChanged())
    return FieldsChanged("item", item_id, time, field_values(message.fields))


def _user_change(user_id: str, fields: str, time: float) -> FieldsChanged:
    message = json_format.Parse(fields, behavior.UserChanged())
    return FieldsChanged("user", user_id, time, field_values(message.fields))
