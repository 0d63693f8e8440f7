"""The training set: impressions, what followed them, and the features that were served or would have been.

Attribution gives an interaction to the impression that it names, or else to the impressions of the same user that held
the item within the attribution window before it, which share it as `training.label.credit` says. An impression whose
window is still open is left out, and so is one that nothing followed, which a listwise loss cannot use.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from gyre_core.features import Layout, RequestContext
from gyre_core.spec import LoopSpec

from gyre_trainer.attribution import Attribution
from gyre_trainer.past import Asked, Past

F32 = npt.NDArray[np.float32]

_US = 1_000_000
_KEYS = ("source", "event_id", "kafka_partition", "kafka_offset")
_SHOWN = (*_KEYS, "request_id", "user_id", "item_ids")
_ACTED = (*_KEYS, "request_id", "user_id", "item_id", "type")


@dataclass(frozen=True)
class Tables:
    """The tables of a loop as of a run's snapshots, with the columns of `gyre_warehouse.tables`.

    Attributes:
        impressions: at least the newest; columns that are not used may be missing.
        interactions: all, where features are to be computed again (see `are_served`); at least those since the oldest
            impression.
        items: all changes of the catalogue.
        shown: all impressions without their features, where the layout counts impressions; `impressions` without it.
        labelling: the interactions that may be labels; all of them without it.
        users: all changes of users' fields; none without it.
        unreadable: by `impressions`, `interactions`, `items` and `users`, how many rows were set aside, since no event
            can be made of them, and how many there were.
    """

    impressions: pa.Table
    interactions: pa.Table
    items: pa.Table
    shown: pa.Table | None = None
    labelling: pa.Table | None = None
    users: pa.Table | None = None
    unreadable: Mapping[str, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainingSet:
    """Impressions in the order of their time.

    Attributes:
        features: float32 of shape [impressions, most items, columns], zero beyond an impression's items.
        relevance: float32 of shape [impressions, most items]: the weights of the item's labels as `training.label`
            combines them, 0 where nothing followed, -1 beyond the impression's items.
        times: unix seconds, one for each impression.
        served: for each impression, whether its features are those that were served; the others were computed again.
        unknown_items: for each impression, how many of its items had no features at all.
        open_windows: count of impressions left out because their window is open.
        unlabelled: count of impressions left out because nothing followed.
        late: count of the interactions behind the labels that were taken in after the impression's window, once for
            each impression that they count for; 0 on the replay clock, which takes everything in later.
        rows: the impressions with `source`, `event_id`, `user_id`, `item_ids` and `method`, which the archive writes as
            a number where it does not know it; None where they come from elsewhere.
    """

    features: F32
    relevance: F32
    times: npt.NDArray[np.float64]
    served: npt.NDArray[np.bool_]
    unknown_items: npt.NDArray[np.int64]
    open_windows: int
    unlabelled: int
    rows: pa.Table | None = None
    late: int = 0

    def __len__(self) -> int:
        return len(self.times)

    @property
    def held(self) -> npt.NDArray[np.bool_]:
        """Where there is an item: bool of shape [impressions, most items]."""
        return self.relevance >= 0

    def part(self, begin: int, end: int) -> TrainingSet:
        """The impressions from `begin` up to but without `end`."""
        return replace(
            self,
            features=self.features[begin:end],
            relevance=self.relevance[begin:end],
            times=self.times[begin:end],
            served=self.served[begin:end],
            unknown_items=self.unknown_items[begin:end],
            rows=None if self.rows is None else self.rows.slice(begin, end - begin),
        )

    def without(self, places: npt.NDArray[np.int64]) -> TrainingSet:
        """Leave out items, by their flat index in `held`, and then the impressions that have nothing to learn from."""
        if not places.size:
            return self
        relevance = self.relevance.copy()
        relevance.ravel()[places] = -1.0
        kept = np.flatnonzero((relevance > 0).any(axis=1) & ((relevance >= 0).sum(axis=1) > 1))
        return replace(
            self,
            features=self.features[kept],
            relevance=relevance[kept],
            times=self.times[kept],
            served=self.served[kept],
            unknown_items=self.unknown_items[kept],
            rows=None if self.rows is None else self.rows.take(pa.array(kept, pa.int64())),
        )

    def split(self, holdout: float) -> tuple[TrainingSet, TrainingSet]:
        """The older impressions to train on, and the newest share `holdout`, at least one, to evaluate on."""
        cut = len(self) - max(1, round(len(self) * holdout))
        return self.part(0, cut), self.part(cut, len(self))


def build(spec: LoopSpec, layout: Layout, tables: Tables, *, now: float | None = None) -> TrainingSet:
    """Join impressions with what followed them, and fill in their features.

    Served features are used where they are of this layout; others are computed from the events strictly before the
    impression.

    Args:
        spec: the loop.
        layout: its current layout.
        tables: what the warehouse held.
        now: unix seconds, which decides which windows are open; without it the newest event's time, as on the
            replay clock.
    """
    moment = newest_event_time(tables.impressions, tables.interactions) if now is None else now
    found = _attribute(spec, tables, moment)
    rows = tables.impressions.take(pa.array(list(found.labels), pa.int64()))
    made = _empty(layout, rows, found)
    items: list[Any] = rows["item_ids"].to_pylist()
    for index, (own, item_ids) in enumerate(zip(found.labels.values(), items, strict=True)):
        made.relevance[index, : len(item_ids)] = [own.get(item, 0.0) for item in item_ids]
    _fill_served(layout, rows, items, made)
    _fill_replayed(layout, tables, rows, items, made)
    return made


def features_under(layout: Layout, tables: Tables, data: TrainingSet) -> F32:
    """The features of a training set's impressions in another layout, float32 of shape [impressions, items, columns].

    What was served in that layout is used, the rest is computed again, as in `build`.

    Args:
        layout: the other one.
        tables: what the training set was built from.
        data: the training set, with its rows.
    """
    if data.rows is None:
        raise ValueError("rows: must name the impressions of the training set")
    keys: Any = zip(tables.impressions["source"].to_pylist(), tables.impressions["event_id"].to_pylist(), strict=True)
    places: dict[tuple[str, str], int] = {}
    for index, key in enumerate(keys):
        places.setdefault(key, index)
    wanted: Any = zip(data.rows["source"].to_pylist(), data.rows["event_id"].to_pylist(), strict=True)
    rows = tables.impressions.take(pa.array([places[key] for key in wanted], pa.int64()))
    count = len(data)
    items: list[Any] = rows["item_ids"].to_pylist()
    made = replace(
        data,
        features=np.zeros((count, data.relevance.shape[1], len(layout.columns)), dtype=np.float32),
        served=np.zeros(count, dtype=np.bool_),
        unknown_items=np.zeros(count, dtype=np.int64),
    )
    _fill_served(layout, rows, items, made)
    _fill_replayed(layout, tables, rows, items, made)
    return made.features


def newest_event_time(*tables: pa.Table) -> float:
    """The newest event time of some tables, unix seconds; 0 where they are empty."""
    newest = [pc.max(_micros(table)).as_py() for table in tables if table.num_rows]
    return max(newest, default=0) / _US


def _micros(table: pa.Table) -> Any:
    """The event times as whole microseconds, which joins and sorts without time zones."""
    return table["event_time"].cast(pa.timestamp("us", "UTC")).cast(pa.int64())


@dataclass(frozen=True)
class _Attributed:
    """The impressions to train on, by their row, and their labels.

    Attributes:
        chosen: count of closed impressions, labelled or not.
        labels: for each labelled impression, the relevance of the items that got a label.
        open_windows: count of impressions that are still open.
        late: count of the interactions behind the labels that came after the impression's window.
    """

    chosen: int
    labels: dict[int, dict[str, float]]
    open_windows: int
    late: int


def _attribute(spec: LoopSpec, tables: Tables, now: float) -> _Attributed:
    rules = Attribution(spec.training.label, now=now, most=spec.training.history.impressions)
    order = _in_time(tables.impressions)
    shown = tables.impressions.select(list(_SHOWN)).append_column("event_us", _micros(tables.impressions))
    shown = shown.append_column("items", pc.list_value_length(shown["item_ids"]))
    # In the order of time a row's number orders impressions of one time, too.
    places = np.empty(len(order), dtype=np.int64)
    places[order] = np.arange(len(order))
    acted = tables.interactions if tables.labelling is None else tables.labelling
    taken_in = acted["ingest_time"].cast(pa.timestamp("us", "UTC")).cast(pa.int64())
    # One thread: a training run shares its machine with the services that answer requests.
    with duckdb.connect(config={"threads": 1}) as db:
        db.register("impressions", shown.append_column("place", pa.array(places)))
        events = acted.select(list(_ACTED)).append_column("event_us", _micros(acted))
        db.register("interactions", events.append_column("ingest_us", taken_in))
        found = db.execute(rules.labels).fetchall()
        ((chosen, open_windows),) = db.execute(rules.counts).fetchall()
    labels: dict[int, dict[str, float]] = {}
    for place, item_id, relevance, _ in sorted(found):
        labels.setdefault(int(order[place]), {})[item_id] = relevance
    # On the replay clock everything is taken in long after its own time.
    late = sum(int(each[3]) for each in found) if spec.clock == "wall" else 0
    return _Attributed(chosen, labels, open_windows, late)


def _in_time(impressions: pa.Table) -> npt.NDArray[np.int64]:
    """The rows in the order of event time, partition and offset."""
    keys = (impressions["kafka_offset"], impressions["kafka_partition"], _micros(impressions))
    order: npt.NDArray[np.int64] = np.lexsort([each.to_numpy() for each in keys])
    return order


def _empty(layout: Layout, rows: pa.Table, found: _Attributed) -> TrainingSet:
    most = pc.max(pc.list_value_length(rows["item_ids"])).as_py() or 0
    return TrainingSet(
        features=np.zeros((len(rows), most, len(layout.columns)), dtype=np.float32),
        relevance=np.full((len(rows), most), -1.0, dtype=np.float32),
        times=_micros(rows).to_numpy() / _US,
        served=np.zeros(len(rows), dtype=np.bool_),
        unknown_items=np.zeros(len(rows), dtype=np.int64),
        open_windows=found.open_windows,
        unlabelled=found.chosen - len(rows),
        late=found.late,
        rows=rows.select(["source", "event_id", "user_id", "item_ids", "method"]),
    )


def are_served(layout: Layout, impressions: pa.Table) -> npt.NDArray[np.bool_]:
    """Which impressions hold the features of this layout that were served; those of the others are computed again."""
    sizes = pc.multiply(pc.list_value_length(impressions["item_ids"]), 4 * len(layout.columns))
    whole = pc.equal(pc.binary_length(impressions["features"]), sizes)
    served = pc.and_(pc.is_in(impressions["layout"], pa.array([layout.hash], pa.string())), whole)
    return np.array(served.to_pylist(), dtype=np.bool_)


def _fill_served(layout: Layout, rows: pa.Table, items: list[list[str]], made: TrainingSet) -> None:
    made.served[:] = are_served(layout, rows)
    blocks: Any = zip(rows["features"].to_pylist(), rows["item_batches"].to_pylist(), strict=True)
    for index, (values, batches) in enumerate(blocks):
        if made.served[index]:
            count = len(items[index])
            made.features[index, :count] = np.frombuffer(values, dtype="<f4").reshape(count, len(layout.columns))
            made.unknown_items[index] = sum(batch < 0 for batch in batches or ())


def _fill_replayed(layout: Layout, tables: Tables, rows: pa.Table, items: list[list[str]], made: TrainingSet) -> None:
    """Compute the features that were not served; the impressions are in the order of their time, as `Past` needs."""
    wanted = np.flatnonzero(~made.served).tolist()
    if not wanted:
        return
    users: list[Any] = rows["user_id"].to_pylist()
    shown = tables.impressions if tables.shown is None else tables.shown
    past = Past(layout, interactions=tables.interactions, items=tables.items, shown=shown, users=tables.users)
    contexts = rows.select(["context", "labels", "positions"]).to_pylist()
    for index in wanted:
        context = _context(contexts[index], float(made.times[index]), len(items[index]))
        matrix, unknown = past.matrix(Asked(users[index], items[index], context))
        made.features[index, : len(matrix)] = matrix
        made.unknown_items[index] = unknown


def _context(row: dict[str, Any], time: float, count: int) -> RequestContext:
    """What came with a request; where its caller's order was not logged, the items count as in the order logged."""
    positions = row["positions"] if len(row["positions"] or ()) == count else None
    return RequestContext(time, dict(row["context"] or ()), dict(row["labels"] or ()), positions)
