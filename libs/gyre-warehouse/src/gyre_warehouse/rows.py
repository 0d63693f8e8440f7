"""Rows of the warehouse as the events that the feature algebra takes; for every replay, whoever does it."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from google.protobuf import json_format
from gyre.events.v1 import behavior_pb2 as behavior
from gyre_core.features import Event, FieldsChanged, Impression, Interaction, Layout
from gyre_core.spec import IMPRESSION
from gyre_runtime.fields import field_values

from gyre_warehouse.tables import IMPRESSIONS, INTERACTIONS, ITEMS, USERS

_US = 1_000_000
EVENT_COLUMNS = {
    INTERACTIONS: ("event_time", "user_id", "item_id", "type", "value"),
    IMPRESSIONS: ("event_time", "user_id", "item_ids", "shown"),
    ITEMS: ("event_time", "item_id", "fields"),
    USERS: ("event_time", "user_id", "fields"),
}
"""What of each table an event is made from."""


def seconds_of(times: Any) -> npt.NDArray[np.float64]:
    """A column of times as unix seconds."""
    seconds: npt.NDArray[np.float64] = times.cast(pa.timestamp("us", "UTC")).cast(pa.int64()).to_numpy() / _US
    return seconds


def events_of(table: str, rows: pa.Table) -> list[Event]:
    """The events of some rows with the columns of `EVENT_COLUMNS`, in the rows' order."""
    times: list[float] = seconds_of(rows["event_time"]).tolist()
    columns: list[list[Any]] = [rows[name].to_pylist() for name in EVENT_COLUMNS[table][1:]]
    made: Iterable[Event]
    if table == INTERACTIONS:
        users, items, types, values = columns
        made = map(Interaction, users, items, types, times, values)
    elif table == IMPRESSIONS:
        made = map(_impression, *columns, times)
    else:
        made = map(_item_change if table == ITEMS else _user_change, *columns, times)
    return list(made)


def first_copies(table: str, rows: pa.Table) -> npt.NDArray[np.int64]:
    """The rows that count, increasing: of those with one source and id the first in Kafka's order.

    Of several impressions of one (user, request) likewise, among those. Needs `source`, `event_id`, `kafka_partition`,
    `kafka_offset`, and of impressions `user_id` and `request_id`.
    """
    order = np.lexsort((rows["kafka_offset"].to_numpy(), rows["kafka_partition"].to_numpy()))
    kept = _first(order, rows["source"].to_pylist(), rows["event_id"].to_pylist())
    if table == IMPRESSIONS:
        kept = _first(kept, rows["user_id"].to_pylist(), rows["request_id"].to_pylist())
    return np.sort(kept)


def _first(order: npt.NDArray[np.int64], *columns: Sequence[Any]) -> npt.NDArray[np.int64]:
    """Of the rows in an order, the first with each tuple of values."""
    first: dict[tuple[Any, ...], int] = {}
    for row in order.tolist():
        first.setdefault(tuple(column[row] for column in columns), row)
    return np.array(list(first.values()), dtype=np.int64)


def counts_impressions(layout: Layout) -> bool:
    """Whether any feature of a layout counts what was shown."""
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
