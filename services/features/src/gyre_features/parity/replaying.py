"""Replays the stream's batches, in memory, exactly as the online store took them in.

A batch is known by its number and the offset ranges that it covered (`BatchApplied`). Within a batch the order of
partitions does not matter: the catalogue comes first, and every merge is commutative.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from gyre_core import keys
from gyre_core.features import ENTITY_KINDS, EntityId, EntityKind, Event, FieldsChanged, Layout, aggregate, merge


@dataclass(frozen=True, slots=True)
class AppliedBatch:
    """One batch of one virtual shard.

    Attributes:
        shard: the virtual shard.
        number: of the batch, increasing within the shard.
        applied_time: wall time at which the store had it, unix seconds.
        events: what it held, duplicates left out.
    """

    shard: int
    number: int
    applied_time: float
    events: Sequence[Event]


class Touch(NamedTuple):
    """An entity as a certain batch left it: the number stands in every packed value that is read."""

    kind: EntityKind
    id: str
    batch: int


class BatchReplay:
    """The store's values, batch by batch; keeps a copy of those that somebody was served.

    Args:
        layout: the layout whose values these are.
        shards: count of virtual shards.
        wanted: the values to keep.
    """

    def __init__(self, layout: Layout, *, shards: int, wanted: Collection[Touch]) -> None:
        self._layout = layout
        self._shards = shards
        self._wanted = wanted
        self._values: dict[EntityId, tuple[bytes, float]] = {}
        self._ttl_s = {kind: layout.ttl_s(kind) for kind in ENTITY_KINDS}
        self.kept: dict[Touch, bytes] = {}

    def apply(self, batches: Iterable[AppliedBatch]) -> None:
        """Apply batches, each shard's in the order of their numbers."""
        for batch in batches:
            self._apply(batch)

    def _apply(self, batch: AppliedBatch) -> None:
        now = batch.applied_time
        ordered = sorted(batch.events, key=lambda event: not isinstance(event, FieldsChanged))
        deltas = aggregate(self._layout, ordered, lambda item_id: self._value(("item", item_id), now))
        for entity, delta in deltas.items():
            kind, id_ = entity
            if keys.shard_of(kind, id_, shards=self._shards) != batch.shard:
                continue
            value = merge(self._layout.slots(kind), self._value(entity, now), delta.pack(batch.number))
            self._values[entity] = (value, now)
            touch = Touch(kind, id_, batch.number)
            if touch in self._wanted:
                self.kept[touch] = value

    def _value(self, entity: EntityId, now: float) -> bytes | None:
        """An entity's value, None where it is unknown or its time to live has run out."""
        found = self._values.get(entity)
        if found is None:
            return None
        value, since = found
        ttl_s = self._ttl_s[entity[0]]
        return None if ttl_s is not None and now - since > ttl_s else value
