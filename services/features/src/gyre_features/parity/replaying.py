"""Replays the stream's batches, in memory, exactly as the online store took them in.

A batch is known by its number and the offset ranges that it covered (`BatchApplied`). Within a batch the order of
partitions does not matter: an event reads an item's fields as of its own time, and every merge is commutative.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from gyre_core import keys
from gyre_core.append_windows import WindowIdentities
from gyre_core.features import (
    ENTITY_KINDS,
    MAX_BUFFERED_BATCHES,
    AggregatedBatch,
    Contribution,
    ContributionBuffers,
    Delta,
    EntityId,
    EntityKind,
    Event,
    FieldsChanged,
    Layout,
    State,
    Versions,
    aggregate_batch,
    merge,
    reapply,
    time_seen,
    touched,
)
from gyre_runtime.checkpoints import Place

from gyre_features.parity.source import BatchEvents

_TTL_SLACK_S = 5.0
"""How far a key's end in Redis may lie from what its last batch and its time to live say."""
_NEVER = float("-inf")
_REQUEST = "request"


@dataclass(frozen=True, slots=True)
class AppliedBatch:
    """One batch of one virtual shard.

    Attributes:
        shard: the virtual shard.
        number: of the batch, increasing within the shard.
        applied_time: wall time at which the store had it, unix seconds.
        events: what it held, duplicates left out; catalogue changes first.
        is_whole: these are as many as the store counted, and no number is missing between `first` and `number`.
        first: number of the first batch, where several were joined into this one; None for `number`.
        span_s: from the first one's applied time to the last one's, seconds; 0 for a single one.
        newest: the greatest `time_seen` of its behaviour, unix seconds; None where that is the newest event time.
    """

    shard: int
    number: int
    applied_time: float
    events: Sequence[Event]
    is_whole: bool = True
    first: int | None = None
    span_s: float = 0.0
    newest: float | None = None

    @property
    def newest_seen(self) -> float:
        """The greatest `time_seen` of its behaviour, unix seconds, by which buffered contributions expire.

        -inf for none.
        """
        if self.newest is not None:
            return self.newest
        times = (event.time for event in self.events if not isinstance(event, FieldsChanged))
        return max(times, default=_NEVER)


class ValueKey(NamedTuple):
    """By what one packed value of the store is known: its entity, and the last batch of the shard that touched it.

    It holds no value: a read finds `batch` in the packed value itself.
    """

    kind: EntityKind
    id: str
    batch: int

    def shard(self, shards: int) -> int:
        """The number of the virtual shard that holds the entity, where there are `shards` of them."""
        return keys.shard_of(self.kind, self.id, shards=shards)


class Deduplicated:
    """Leaves out what a producer sent twice, and later impressions of a request, by the store's own rule.

    That is by windows of append times, of each topic partition and virtual shard. It remembers what it has seen, so one
    serves one replay from the first batch on.

    Args:
        duplicates_s: how long a window is, seconds; as the stream had it.
    """

    def __init__(self, duplicates_s: int) -> None:
        self._window_s = duplicates_s
        self._known: dict[tuple[int, Place], WindowIdentities] = {}

    def batches(self, found: Iterable[BatchEvents]) -> Iterator[AppliedBatch]:
        """Each batch without its repeats, lazily and in the order given: each shard's in that of their numbers."""
        for each in found:
            batch, newest = each.batch, _NEVER
            events = list(each.changes)
            for event, arrival_time in self._counted(each):
                events.append(event)
                newest = max(newest, time_seen(event.time, arrival_time))
            yield AppliedBatch(
                shard=batch.shard,
                number=batch.number,
                applied_time=batch.applied_time,
                events=events,
                is_whole=len(events) == batch.events and batch.is_unbroken,
                first=batch.first,
                span_s=batch.span_s,
                newest=newest,
            )

    def _counted(self, found: BatchEvents) -> Iterator[tuple[Event, float]]:
        """The behaviour that counts, and when Kafka had it, unix seconds."""
        for place, events in found.behaviour.items():
            known = self._known.get((found.batch.shard, place))
            if known is None:
                known = self._known[found.batch.shard, place] = WindowIdentities(self._window_s)
            for identity, event, arrival_time in events:
                known.reach(arrival_time)
                if known.is_repeat(identity.event):
                    continue
                if identity.request is None or not known.is_repeat((_REQUEST, *identity.request)):
                    yield event, arrival_time


class BatchReplay:
    """Recomputes the store's values in memory, batch by batch; keeps a copy of those that somebody was served.

    Attributes:
        shards: count of virtual shards.
        last: by virtual shard, the number of the last batch that was applied.
        kept: the wanted values, packed, as they were when their batch had been applied; what no batch left is missing.
        doubtful: of those in `kept` the ones near the end of a time to live; ask `is_doubtful`, which knows more.
        events: count of all that were applied.

    Args:
        layout: the layout whose values these are.
        shards: count of virtual shards.
        wanted: the values to keep; other entities are computed only as far as these need them.
        settled: by virtual shard, the batch before which nothing that is wanted was read. Up to there batches may be
            joined, and a value is kept as they all leave it: no later one of them can have touched it.
    """

    def __init__(
        self, layout: Layout, *, shards: int, wanted: Collection[ValueKey], settled: Mapping[int, int] | None = None
    ) -> None:
        self._layout = layout
        self.shards = shards
        self._wanted = wanted
        self._entities = {(key.kind, key.id) for key in wanted}
        self._values: dict[EntityId, tuple[bytes, float]] = {}
        self._ttl_s = {kind: layout.ttl_s(kind) for kind in ENTITY_KINDS}
        self._settled = settled or {}
        self._old: dict[EntityId, list[ValueKey]] = {}
        for key in wanted:
            if key.batch <= self._settled.get(key.shard(shards), 0):
                self._old.setdefault((key.kind, key.id), []).append(key)
        self._slack_s = _TTL_SLACK_S
        self._doubted: set[EntityId] = set()
        self._doubt_from: dict[int, int] = {}
        self._versions: dict[str, Versions] = {}
        self._buffers: dict[int, ContributionBuffers] = {}
        self.last: dict[int, int] = {}
        self.kept: dict[ValueKey, bytes] = {}
        self.doubtful: set[ValueKey] = set()
        self.events = 0

    def apply(self, batches: Iterable[AppliedBatch]) -> None:
        """Apply batches after those of earlier calls, each shard's in the order of their numbers; each once."""
        for batch in batches:
            self._apply(batch)

    def is_doubtful(self, key: ValueKey) -> bool:
        """Whether the store's value of a key may rightly differ from what this replay gives.

        That is after a batch that the log lacks, or whose events the warehouse has not all (any more), as after an
        erasure; or around the end of a key's time to live.
        """
        shard = key.shard(self.shards)
        doubt_from = self._doubt_from.get(shard)
        seen = max(key.batch, self._settled.get(shard, 0))
        return key in self.doubtful or (doubt_from is not None and seen >= doubt_from)

    def _apply(self, batch: AppliedBatch) -> None:
        now, expected = batch.applied_time, self.last.get(batch.shard, 0) + 1
        first = batch.number if batch.first is None else batch.first
        if first != expected or not batch.is_whole:
            self._doubt_from.setdefault(batch.shard, min(first, expected))
        self._slack_s = max(self._slack_s, _TTL_SLACK_S + batch.span_s)
        self.last[batch.shard] = batch.number
        self.events += len(batch.events)
        self.buffers(batch.shard).expire(now)
        found = aggregate_batch(self._layout, batch.events, _ShardState(self, batch.shard, now))
        for entity, delta in found.deltas.items():
            if self._is_on(batch.shard, entity) and self._matters(entity, delta):
                self._merge(entity, delta, batch)
        self._apply_corrections(found, batch)
        self._versions.update(found.versions)
        contributions = [
            contribution
            for contribution in found.contributions
            if any(self._is_on(batch.shard, each) for each in self._touched(contribution))
        ]
        gone = [contribution for contribution, _ in found.corrections]
        self.buffers(batch.shard).replace(contributions, gone=gone, newest=batch.newest_seen, now=now)

    def _is_on(self, shard: int, entity: EntityId) -> bool:
        return self.shards == 1 or keys.shard_of(*entity, shards=self.shards) == shard

    def _touched(self, contribution: Contribution) -> list[EntityId]:
        return [entity for entity, _ in touched(self._layout, contribution)]

    def versions(self, item_id: str, now: float) -> Versions:
        """The versions of an item's fields, oldest first.

        Empty where it is unknown or has expired by `now` (unix seconds).
        """
        versions = self._versions.get(item_id, ())
        is_gone = self._ttl_s["item"] is not None and self._value(("item", item_id), now) is None
        return () if is_gone else versions

    def buffers(self, shard: int) -> ContributionBuffers:
        """The live buffers of a virtual shard, made empty where it has none yet; changes to them change the replay."""
        found = self._buffers.get(shard)
        if found is None:
            found = self._buffers[shard] = ContributionBuffers(self._layout, max_batches=MAX_BUFFERED_BATCHES)
        return found

    def _apply_corrections(self, found: AggregatedBatch, batch: AppliedBatch) -> None:
        """Refold what the batch's changed fields concern, in the values that matter."""
        states: dict[EntityId, State] = {}
        for entity in dict.fromkeys(
            entity for contribution, _ in found.corrections for entity in self._touched(contribution)
        ):
            value = self._value(entity, batch.applied_time)
            if entity in self._entities and self._is_on(batch.shard, entity) and value is not None:
                states[entity] = State.unpack(self._layout.slots(entity[0]), value)
        for contribution, held in found.corrections:
            reapply(self._layout, contribution, held, lambda kind, id_: states.get((kind, id_)))
        for entity, state in states.items():
            self._put(entity, state.pack(batch.number), batch)

    def _matters(self, entity: EntityId, delta: Delta) -> bool:
        """Whether somebody was served the entity, or other values are made from its fields."""
        if entity in self._entities:
            return True
        return entity[0] == "item" and (delta.fields_time > _NEVER or self._ttl_s["item"] is not None)

    def _merge(self, entity: EntityId, delta: Delta, batch: AppliedBatch) -> None:
        slots = self._layout.slots(entity[0])
        value = merge(slots, self._value(entity, batch.applied_time), delta.pack(batch.number))
        self._put(entity, value, batch)

    def _put(self, entity: EntityId, value: bytes, batch: AppliedBatch) -> None:
        self._values[entity] = (value, batch.applied_time)
        if batch.number <= self._settled.get(batch.shard, 0):
            self._keep_old(entity, value, batch)
            return
        key = ValueKey(*entity, batch.number)
        if key in self._wanted:
            self.kept[key] = value
            if entity in self._doubted:
                self.doubtful.add(key)

    def _keep_old(self, entity: EntityId, value: bytes, batch: AppliedBatch) -> None:
        """Keep a value from before all reads; it is doubtful where its number is not among the last that touched it."""
        first = batch.number if batch.first is None else batch.first
        for key in self._old.get(entity, ()):
            self.kept[key] = value
            if entity in self._doubted or not first <= key.batch <= batch.number:
                self.doubtful.add(key)
            else:
                self.doubtful.discard(key)

    def _value(self, entity: EntityId, now: float) -> bytes | None:
        """An entity's value, None where it is unknown or its time to live has run out."""
        found = self._values.get(entity)
        if found is None:
            return None
        value, since = found
        ttl_s = self._ttl_s[entity[0]]
        if ttl_s is None:
            return value
        left_s = since + ttl_s - now
        if abs(left_s) < self._slack_s:
            self._doubted.add(entity)
        return value if left_s >= 0 else None


class _ShardState:
    """What stands before a batch of a virtual shard."""

    def __init__(self, replay: BatchReplay, shard: int, now: float) -> None:
        self._replay, self._shard, self._now = replay, shard, now

    def versions(self, item_id: str) -> Versions:
        return self._replay.versions(item_id, self._now)

    def contributions(self, item_id: str) -> list[Contribution]:
        return self._replay.buffers(self._shard).of(item_id)
