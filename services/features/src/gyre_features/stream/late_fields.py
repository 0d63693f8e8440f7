"""Fields that come after their events: what a batch of changes has to make up for, read from the store beforehand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil

from gyre.events.v1 import behavior_pb2 as behavior
from gyre_core.features import (
    BUFFER_IDLE_S,
    AggregatedBatch,
    Contribution,
    EntityId,
    EntityKind,
    FieldsChanged,
    State,
    Versions,
    reapply,
    time_seen,
    touched,
    with_version,
)
from gyre_core.features.encoding import encode_all
from gyre_runtime.events import Event

from gyre_features.online.script import BufferChange
from gyre_features.online.store import OnlineStore

_NEVER = float("-inf")
_BEHAVIOR = (behavior.Interaction, behavior.Impression)


def newest_seen(events: Iterable[Event]) -> float:
    """The greatest `time_seen` of what users did and were shown, unix seconds; -inf where there is none."""
    return max(
        (time_seen(event.time, event.arrival_time) for event in events if isinstance(event.message, _BEHAVIOR)),
        default=_NEVER,
    )


@dataclass
class StoredPriorState:
    """What the store held before a batch: items' field versions, and the buffered events that changes may concern.

    Attributes:
        items: versions by item, oldest first; an item that is unknown or was not looked up may be missing.
        base: the store's last batch when the contributions were read; None where none were needed.
        known: members of the buffer of events on known items, as stored, each with its contributions.
        unknown: the same of the buffer of events on items whose fields were unknown.
    """

    items: Mapping[str, Versions]
    base: int | None = None
    known: list[tuple[bytes, list[Contribution]]] = field(default_factory=list)
    unknown: list[tuple[bytes, list[Contribution]]] = field(default_factory=list)
    _by_item: dict[str, list[Contribution]] | None = None

    def versions(self, item_id: str) -> Versions:
        """The versions of an item's fields, oldest first; empty where none are known."""
        return self.items.get(item_id, ())

    def contributions(self, item_id: str) -> Iterable[Contribution]:
        """The buffered contributions on an item, of both buffers; none where nothing was read of it."""
        if self._by_item is None:
            self._by_item = {}
            for _, contributions in (*self.known, *self.unknown):
                for contribution in contributions:
                    self._by_item.setdefault(contribution.item_id, []).append(contribution)
        return self._by_item.get(item_id, ())


class LateFields:
    """Works out how fields that come after the events on their items correct what those events were counted with.

    A contribution is what one event added to features from its item's fields. The store buffers them, so that a late
    change can take them back and apply them again with the fields that they should have been counted with.

    Args:
        store: of one layout of the loop. What its buffers hold counts: of whoever is forgotten they hold nothing more.
    """

    def __init__(self, store: OnlineStore) -> None:
        self._store, self._layout = store, store.layout

    async def store_versions(
        self, changes: Sequence[FieldsChanged], items: Mapping[str, Versions]
    ) -> dict[str, Versions]:
        """Write changed items' field versions to the store, so that look-ups find them before a shard applies them.

        So an event that is applied between two shards reads what it will have been counted with in the end.

        Returns:
            All versions of the changed items, oldest first: those in `items` with the changes.

        Raises:
            Unavailable: the store does not answer.
        """
        fields, found = self._layout.item_fields, dict[str, Versions]()
        for change in changes:
            version = fields.version(change.time, encode_all(self._layout.slots("item").fields, change.fields))
            before = found.get(change.id, items.get(change.id, ()))
            found[change.id] = with_version(before, version, kept_s=self._layout.max_lateness_s)
        ttl_s = ceil(self._layout.max_lateness_s) + BUFFER_IDLE_S
        await self._store.put_versions({item_id: fields.pack(each) for item_id, each in found.items()}, ttl_s=ttl_s)
        return found

    async def prior_state(
        self, shard: int, changes: Sequence[FieldsChanged], items: Mapping[str, Versions]
    ) -> StoredPriorState:
        """Read from the store what changes of items may concern; without changes nothing is read.

        The number of the last batch is read first, so that the script refuses what another batch has made stale.

        Raises:
            Unavailable: the store does not answer.
        """
        if not changes:
            return StoredPriorState(items)
        base = await self._store.last_batch(shard)
        since, is_new = self._since(changes, items)
        known = [] if since is None else await self._store.contributions(shard, known=True, since=since)
        return StoredPriorState(
            items, base, known, await self._store.contributions(shard, known=False, since=_NEVER) if is_new else []
        )

    def _since(self, changes: Sequence[FieldsChanged], items: Mapping[str, Versions]) -> tuple[float | None, bool]:
        """From when on events on known items may be concerned, None for none; and whether unknown items' may."""
        since: float | None = None
        is_new = self._store.shards > 1  # another shard may have made an item known before this one
        for change in changes:
            versions = items.get(change.id, ())
            is_new = is_new or not versions
            if versions:
                start = change.time if versions[0].time < change.time else _NEVER
                since = start if since is None else min(since, start)
        return since, is_new

    async def corrected_values(self, shard: int, batch: AggregatedBatch) -> dict[EntityId, bytes]:
        """Packed whole values to replace a shard's stored ones: corrected, and with what else the batch adds to them.

        Only entities that a correction concerns and that the store holds. Nothing is written.

        Raises:
            Unavailable: the store does not answer.
        """
        contributions = (contribution for contribution, _ in batch.corrections)
        entities = dict.fromkeys(entity for each in contributions for entity in self._own(shard, each))
        stored = await self._store.values(list(entities))
        states = {
            entity: State.unpack(self._layout.slots(entity[0]), value)
            for entity, value in stored.items()
            if value is not None
        }

        def state(kind: EntityKind, id: str) -> State | None:  # noqa: A002 (the field's name)
            return states.get((kind, id))

        for contribution, held in batch.corrections:
            reapply(self._layout, contribution, held, state)
        for entity, each in states.items():
            delta = batch.deltas.get(entity)
            if delta is not None:
                each.merge(delta)
        return {entity: each.pack(0) for entity, each in states.items()}

    def buffer_changes(
        self, shard: int, batch: AggregatedBatch, known: StoredPriorState, *, newest: float
    ) -> tuple[BufferChange, ...]:
        """The changes to a shard's buffers that the batch makes; nothing is written here.

        Each new contribution of the batch is added, that an item's fields were known or not; those that the batch
        corrected leave, and come in again as the batch counted them.

        Args:
            shard: the virtual shard.
            batch: with its contributions, the corrected ones among them, and its corrections.
            known: what `prior_state` read for the batch.
            newest: the batch's `newest_seen`; contributions older than it by the buffer's retention are dropped.

        Returns:
            One change for the buffer of known items, then one for that of unknown items; none where the batch changes
            nothing in either.
        """
        layout, gone = self._layout, {contribution for contribution, _ in batch.corrections}
        contributions = (
            batch.contributions
            if self._store.shards == 1
            else [each for each in batch.contributions if self._own(shard, each)]
        )
        if not contributions and not gone:
            return ()
        found: list[BufferChange] = []
        for is_known, members, kept_s in (
            (True, known.known, layout.max_field_lateness_s),
            (False, known.unknown, layout.max_lateness_s),
        ):
            drop, left = [], [[contribution for contribution in contributions if contribution.is_known == is_known]]
            for member, own in members:
                rest = [each for each in own if each not in gone]
                if len(rest) < len(own):
                    drop.append(member)
                    left.append(rest)
            pack = layout.item_fields.pack_contributions
            add = [(max(contribution.time for contribution in each), pack(each)) for each in left if each]
            found.append(BufferChange(drop, add, newest - kept_s, ceil(kept_s) + BUFFER_IDLE_S))
        return tuple(found)

    def older_versions(
        self, shard: int, batch: AggregatedBatch, known: StoredPriorState
    ) -> dict[str, tuple[bytes, int]]:
        """The packed versions, without the newest, to store of a shard's changed items, with time to live in s.

        An empty value deletes what is stored. Nothing is written here.
        """
        fields, store, found = self._layout.item_fields, self._store, dict[str, tuple[bytes, int]]()
        for item_id, versions in batch.versions.items():
            if store.shards > 1 and store.names.shard_of("item", item_id) != shard:
                continue
            if store.shards > 1 or len(versions) > 1 or len(known.versions(item_id)) > 1:
                found[item_id] = fields.pack(versions[:-1]), ceil(self._layout.max_lateness_s) + BUFFER_IDLE_S
        return found

    def _own(self, shard: int, contribution: Contribution) -> list[EntityId]:
        """The entities of a virtual shard that a contribution touched."""
        entities = [entity for entity, _ in touched(self._layout, contribution)]
        shards = self._store.shards
        return [each for each in entities if shards == 1 or self._store.names.shard_of(*each) == shard]
