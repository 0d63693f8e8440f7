"""Features as they would have been served: all events of the warehouse, replayed up to each impression."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from google.protobuf import json_format
from gyre.events.v1 import behavior_pb2 as behavior
from gyre_core.features import (
    Event,
    FieldsChanged,
    FieldValue,
    Impression,
    Interaction,
    Layout,
    Replay,
    RequestContext,
)
from gyre_core.features.frame import F32
from gyre_core.spec import IMPRESSION
from gyre_runtime.fields import field_values

_US = 1_000_000
_ALWAYS = float("-inf")


@dataclass(frozen=True, slots=True)
class Asked:
    """A user, the items that were to be ranked, and the request's context with its time (unix seconds)."""

    user_id: str
    item_ids: Sequence[str]
    context: RequestContext


class Past:
    """Answers what the features were strictly before a time; asked in the order of time.

    An item's first known fields hold from the beginning, since a catalogue is often imported after the behaviour.

    Args:
        layout: of the features.
        interactions: every interaction of the warehouse.
        items: every change of the catalogue.
        shown: every impression, where the layout counts them.
    """

    def __init__(self, layout: Layout, *, interactions: pa.Table, items: pa.Table, shown: pa.Table) -> None:
        found = [*_changes(items), *_interactions(layout, interactions), *_impressions(layout, shown)]
        found.sort(key=lambda each: each[0])
        self._times = np.array([time for time, _ in found])
        self._events = [event for _, event in found]
        self._replay, self._applied = Replay(layout), 0

    def matrix(self, asked: Asked) -> tuple[F32, int]:
        """The features, float32 of shape [items, columns], and how many of the items were not known at all.

        Raises:
            ValueError: an earlier call asked for a later time.
        """
        time = asked.context.time
        end = int(np.searchsorted(self._times, time, side="left"))
        if end < self._applied:
            raise ValueError(f"time = {time}: must not be before that of the call before")
        self._replay.apply(self._events[self._applied : end])
        self._applied = end
        matrix, age = self._replay.matrix(asked.user_id, asked.item_ids, asked.context)
        return matrix, age.missing_items


def _changes(items: pa.Table) -> Iterator[tuple[float, Event]]:
    known: set[str] = set()
    for row in _rows(items, ["item_id", "fields"]):
        item_id = row["item_id"]
        change = FieldsChanged("item", item_id, row["time"], _fields(row["fields"]))
        yield (row["time"] if item_id in known else _ALWAYS), change
        known.add(item_id)


def _interactions(layout: Layout, interactions: pa.Table) -> Iterator[tuple[float, Event]]:
    counted = {kind for kind in layout.events if any(layout.plan(each, kind) for each in layout.entities)}
    for row in _rows(interactions, ["user_id", "item_id", "type", "value"]):
        if row["type"] in counted:
            yield row["time"], Interaction(row["user_id"], row["item_id"], row["type"], row["time"], row["value"])


def _impressions(layout: Layout, shown: pa.Table) -> Iterator[tuple[float, Event]]:
    if any(layout.plan(kind, IMPRESSION) for kind in layout.entities):
        for row in _rows(shown, ["user_id", "item_ids", "shown"]):
            yield row["time"], Impression(row["user_id"], row["item_ids"][: row["shown"]], row["time"])


def _rows(table: pa.Table, columns: list[str]) -> Iterator[dict[str, Any]]:
    """Rows in the order of their time, without what a producer sent twice; the event time in unix seconds."""
    times = table["event_time"].cast(pa.timestamp("us", "UTC")).cast(pa.int64()).to_numpy()
    order = np.lexsort((table["kafka_offset"].to_numpy(), table["kafka_partition"].to_numpy(), times))
    ordered = table.select(["source", "event_id", *columns]).take(order)
    seconds = (times[order] / _US).tolist()
    seen: set[tuple[str, str]] = set()
    values = ordered.to_pydict()
    for index, identity in enumerate(zip(values["source"], values["event_id"], strict=True)):
        if identity not in seen:
            seen.add(identity)
            yield {"time": seconds[index], **{name: values[name][index] for name in columns}}


def _fields(text: str) -> dict[str, FieldValue]:
    """The fields of an archived `ItemChanged`, which is in protobuf's JSON mapping."""
    message = json_format.Parse(text, behavior.ItemChanged())
    return field_values(message.fields)
