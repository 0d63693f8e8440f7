"""Features as they would have been served: all events of the warehouse, replayed up to each impression."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from gyre_core.features import Event, FieldsChanged, Layout, Replay, RequestContext
from gyre_core.features.frame import F32
from gyre_warehouse.rows import EVENT_COLUMNS, counted_rows, counts_impressions, events_of, seconds_of
from gyre_warehouse.tables import IMPRESSIONS, INTERACTIONS, ITEMS, USERS

_ALWAYS = float("-inf")


@dataclass(frozen=True, slots=True)
class Asked:
    """A user, the items that were to be ranked, and the request's context with its time (unix seconds)."""

    user_id: str
    item_ids: Sequence[str]
    context: RequestContext


class Past:
    """Answers what the features were strictly before a time; asked in the order of time.

    An item's first known fields hold from the beginning, since a catalogue is often imported after the behaviour. A
    user's hold from their own time on: they may say what the user did by then.

    Args:
        layout: of the features.
        interactions: every interaction of the warehouse.
        items: every change of the catalogue.
        shown: every impression, where the layout counts them.
        users: every change of users' fields; None for none.
    """

    def __init__(
        self,
        layout: Layout,
        *,
        interactions: pa.Table,
        items: pa.Table,
        shown: pa.Table,
        users: pa.Table | None = None,
    ) -> None:
        known = [] if users is None else [(event.time, event) for event in _events(USERS, users)]
        found = [*_catalogue(items), *known, *_interactions(layout, interactions), *_impressions(layout, shown)]
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


def _catalogue(items: pa.Table) -> Iterator[tuple[float, Event]]:
    known: set[str] = set()
    for change in _events(ITEMS, items):
        if isinstance(change, FieldsChanged):
            yield (change.time if change.id in known else _ALWAYS), change
            known.add(change.id)


def _interactions(layout: Layout, interactions: pa.Table) -> Iterator[tuple[float, Event]]:
    counted = {kind for kind in layout.events if any(layout.plan(each, kind) for each in layout.entities)}
    # Which windows of append times a log passes through depends on all types.
    kept = _counted(INTERACTIONS, interactions)
    for event in _in_order(INTERACTIONS, kept.filter(pc.is_in(kept["type"], pa.array(sorted(counted), pa.string())))):
        yield event.time, event


def _impressions(layout: Layout, shown: pa.Table) -> Iterator[tuple[float, Event]]:
    if counts_impressions(layout):
        for event in _events(IMPRESSIONS, shown):
            yield event.time, event


def _events(name: str, rows: pa.Table) -> list[Event]:
    """Rows as events in the order of their time, without the repeats that the stream leaves out."""
    return _in_order(name, _counted(name, rows))


def _counted(name: str, rows: pa.Table) -> pa.Table:
    return rows.take(pa.array(counted_rows(name, rows), pa.int64()))


def _in_order(name: str, kept: pa.Table) -> list[Event]:
    times = seconds_of(kept["event_time"])
    order = np.lexsort((kept["kafka_offset"].to_numpy(), kept["kafka_partition"].to_numpy(), times))
    return events_of(name, kept.select(EVENT_COLUMNS[name]).take(pa.array(order, pa.int64())))
