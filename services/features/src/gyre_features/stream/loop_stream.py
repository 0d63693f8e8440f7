"""One loop's stream: decoded events become deltas, and deltas one fenced script for each virtual shard."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence

from gyre.events.v1 import behavior_pb2 as behavior
from gyre.events.v1.features_pb2 import BatchApplied
from gyre_core.features import (
    Delta,
    EntityId,
    FieldsChanged,
    Impression,
    UserInteraction,
    aggregate_batch,
    items_needed,
    time_seen,
)
from gyre_core.features import Event as FeatureEvent
from gyre_core.spec import IMPRESSION
from gyre_core.topics import topic
from gyre_runtime.checkpoints import Batch, Checkpoint, Place, checkpoints_after
from gyre_runtime.events import Event
from gyre_runtime.fields import field_values
from gyre_runtime.kafka import StoreLostState

from gyre_features.online.script import (
    AlreadyApplied,
    Applied,
    AppliedOffsets,
    RepeatedIdentity,
    StaleInput,
    TombstonesUnread,
    Write,
)
from gyre_features.online.store import OnlineStore
from gyre_features.stream.item_lookup import KnownItems
from gyre_features.stream.late_fields import LateFields, newest_seen
from gyre_features.stream.outbox import completed, described, restored
from gyre_features.stream.prepared import PreparedBatch
from gyre_features.stream.repeats import RepeatFilter
from gyre_features.stream.tallies import count_late_fields, count_left_out, count_superseded, field_changes

_LOG = logging.getLogger(__name__)
_SENDING_S = 0.001
_MAX_WRITTEN = 20_000
"""So many items the impressions of one script change at most: Redis answers nobody else meanwhile."""

ReadTombstones = Callable[[], Awaitable[object]]
"""Returns once everybody is known who was forgotten before the call."""
OnBatch = Callable[[BatchApplied, Sequence[Event]], Awaitable[None]]


async def nobody_forgotten() -> None:
    """A `ReadTombstones` for streams without forgetting: returns at once."""


def feature_event(event: Event) -> FeatureEvent:
    """A decoded event for the feature algebra: behaviour at its `time_seen`, and of an impression the items shown."""
    message = event.message
    if isinstance(message, behavior.Interaction):
        value, seen = message.value if message.HasField("value") else None, time_seen(event.time, event.arrival_time)
        return UserInteraction(message.user_id, message.item_id, message.type, seen, value)
    if isinstance(message, behavior.Impression):
        seen = time_seen(event.time, event.arrival_time)
        return Impression(message.user_id, message.item_ids[: message.shown], seen)
    if isinstance(message, behavior.UserChanged):
        return FieldsChanged("user", message.user_id, event.time, field_values(message.fields))
    return FieldsChanged("item", message.item_id, event.time, field_values(message.fields))


def _items_shown(event: Event) -> int:
    """How many items an event changes at most."""
    return event.message.shown if isinstance(event.message, behavior.Impression) else 1


def _of_items(events: Iterable[FeatureEvent]) -> list[FieldsChanged]:
    return [each for each in events if isinstance(each, FieldsChanged) and each.kind == "item"]


class LoopStream:
    """Applies the events of one loop, whatever batches they come in, exactly once.

    The applied offsets say what every virtual shard holds already. A batch that begins before one is sliced there, so
    a redelivery with other boundaries changes nothing.

    Attributes:
        store: of the loop.
        max_events: in one batch, so in one script, during which Redis answers nobody else.

    Args:
        store: of the loop.
        on_batch: awaited after each applied batch, with the events that counted. The store keeps what is published
            of the batch, until the caller says by `published` that others know it.
        max_events: in one batch, so in one script, during which Redis answers nobody else.
        forgotten: whether an event is of a user who was forgotten: it moves the applied offsets and counts for nothing.
        read_tombstones: returns once `forgotten` knows everybody who was forgotten before.
    """

    def __init__(
        self,
        store: OnlineStore,
        *,
        on_batch: OnBatch,
        max_events: int = 1000,
        forgotten: Callable[[Event], bool] = lambda _event: False,
        read_tombstones: ReadTombstones = nobody_forgotten,
    ) -> None:
        self.store = store
        self.max_events = max_events
        self._on_batch = on_batch
        self._forgotten, self._read_tombstones = forgotten, read_tombstones
        self._fencing = [""] * store.shards
        self._applied_offsets: list[AppliedOffsets] = [{} for _ in range(store.shards)]
        self._published: list[list[int]] = [[] for _ in range(store.shards)]
        self._former: list[list[str]] = [[] for _ in range(store.shards)]
        self._former_until = 0.0
        self._items = KnownItems(store)
        self._late = LateFields(store)
        self.catalogue: tuple[Place, ...] = ()
        self.follow_catalogue(store.spec.shards.kafka_partitions)
        self._catalogue_offsets: list[tuple[int, ...]] = [()] * store.shards
        layout = store.layout
        self._reads_fields = bool(layout.item_fields.fields)
        counts_impressions = any(layout.plan(kind, IMPRESSION) for kind in ("item", "user", "global"))
        self._size_of = _items_shown if counts_impressions else None
        self._repeats = [
            RepeatFilter(store.names.duplicates_s, counts_impressions=counts_impressions, forgotten=forgotten)
            for _ in range(store.shards)
        ]

    def follow_catalogue(self, partitions: int) -> None:
        """Set how many partitions `catalog.items` has, which may be more than `gyre.yaml` says.

        `catalogue` then names them.

        Nothing is read here.
        """
        name = topic(self.store.spec.loop, "catalog.items")
        self.catalogue = tuple((name, partition) for partition in range(partitions))

    async def checkpoints(self, places: Iterable[Place]) -> dict[Place, list[Checkpoint]]:
        """Read up to where the virtual shards hold topic partitions: of each the checkpoints, without repeats.

        This stream then takes these for the store's state, drops what it had cached, and applies events from there on.

        Raises:
            Unavailable: the store does not answer.
        """
        wanted = list(places)
        stored = await self.store.checkpoints(wanted)
        for applied_offsets, repeats, found in zip(self._applied_offsets, self._repeats, stored, strict=True):
            applied_offsets.update({place: each.offset for place, each in found.items()})
            repeats.restart(found)
        self._former = [await self.store.former_duplicates(shard) for shard in range(self.store.shards)]
        self._former_until = time.monotonic() + 2 * self.store.names.duplicates_s
        self._forget_catalogue()
        return {place: list(dict.fromkeys(found[place] for found in stored)) for place in wanted}

    async def assigned(self, places: Iterable[Place]) -> AppliedOffsets:
        """As `checkpoints`.

        Answers for each topic partition the offset to begin at: the lowest applied one of all shards.

        Raises:
            Unavailable: the store does not answer.
        """
        found = await self.checkpoints(places)
        return {place: min(each.offset for each in stored) for place, stored in found.items()}

    async def unpublished(self) -> list[BatchApplied]:
        """The applied batches that stand in the store's outbox, since nobody is known to have published them.

        Reads alone. Each shard's are in the order of their numbers.

        Raises:
            Unavailable: the store does not answer.
        """
        shards = range(self.store.shards)
        return [restored(*each) for shard in shards for each in (await self.store.outbox(shard)).items()]

    def published(self, batch: BatchApplied) -> None:
        """Note that Kafka has a batch: the shard's next script or `clear_outbox` takes it from the store's outbox."""
        self._published[batch.shard].append(batch.batch)

    async def clear_outbox(self) -> None:
        """Remove the batches that were noted as published from the store's outbox now, without waiting for a batch.

        Raises:
            Unavailable: the store does not answer.
        """
        for shard, published in enumerate(self._published):
            if published:
                await self.store.clear_outbox(shard, published)
                published.clear()

    async def apply(self, events: Sequence[Event], ends: Mapping[Place, Checkpoint] | None = None) -> None:
        """Apply decoded events to all virtual shards; within a topic partition they are in the order of their offsets.

        What a shard holds already is skipped, so that a repeated call changes nothing.

        Args:
            events: what counts.
            ends: the checkpoints after them and after what counts for nothing; by default those after the events.

        Raises:
            Unavailable: the store does not answer; nothing is known to be lost, call again with the same events.
            StoreLostState: the store lost what it held; call `checkpoints` and read on from there.
        """
        batch = Batch(events, (), checkpoints_after(events) if ends is None else ends)
        if self.store.shards > 1 and self._changes_fields(events):
            await self._announce(events)
        for shard in range(self.store.shards):
            await self._apply_to(shard, batch)

    async def _announce(self, events: Sequence[Event]) -> None:
        changes = (feature_event(event) for event in events if isinstance(event.message, behavior.ItemChanged))
        changed = _of_items(changes)
        items = await self.store.versions(list({change.id for change in changed}))
        self._items.update(await self._late.store_versions(changed, items))

    async def _apply_to(self, shard: int, whole: Batch) -> None:
        """Apply batch after batch; while the store takes one in, the next is prepared."""
        running: asyncio.Task[None] | None = None
        try:
            for batch in whole.parts(self.max_events, size_of=self._size_of, max_size=_MAX_WRITTEN):
                if running is not None:
                    # So that the batch before is on its way to the store when this one takes the processor.
                    await asyncio.wait([running], timeout=_SENDING_S)
                if running is not None and self._changes_fields(batch.events):
                    await running
                prepared = await self._prepare(shard, batch.events, frozenset())
                if running is not None:
                    await running
                running = asyncio.create_task(self._apply_batch(shard, batch, prepared), name="apply a batch")
            if running is not None:
                await running
        finally:
            if running is not None:
                await asyncio.gather(running, return_exceptions=True)

    async def _apply_batch(self, shard: int, own: Batch, prepared: PreparedBatch) -> None:
        applied_offsets, known, events = self._applied_offsets[shard], frozenset[RepeatedIdentity](), own.events
        repeats = self._repeats[shard]
        while True:
            following = {place: end for place, end in own.ends.items() if end.offset > applied_offsets.get(place, 0)}
            if not following:
                return
            fresh = self._fresh(shard, events)
            if not self._still_good(shard, prepared, fresh):
                prepared = await self._prepare(shard, events, known)
            batch, published = self._described(shard, fresh, prepared), tuple(self._published[shard])
            write = Write(
                expected={place: applied_offsets.get(place, 0) for place in following},
                following=repeats.with_append_windows(following),
                deltas=prepared.deltas,
                changed=prepared.changes.keys(),
                identities=repeats.identities(prepared.selected, applied_offsets, following),
                watched=self.catalogue,
                description=batch.SerializeToString(),
                published=published,
                base=prepared.base,
                catalogue=None if prepared.items_version is None else self._catalogue_offsets[shard],
                whole=prepared.whole,
                versions=prepared.older,
                buffers=prepared.buffers,
                former=self._former[shard] if time.monotonic() < self._former_until else (),
                fencing=prepared.fencing,
            )
            outcome = await self.store.apply(shard, write)
            if isinstance(outcome, Applied):
                applied_offsets.update({place: end.offset for place, end in following.items()})
                del self._published[shard][: len(published)]
                # Unless the windows were read from the store meanwhile, before or after this.
                if repeats.version == prepared.selected.version:
                    repeats.applied(following)
                else:
                    repeats.restart(write.following)
                self._note_applied(shard, outcome, prepared)
                if fresh:
                    await self._on_batch(completed(batch, outcome.batch, outcome.time), prepared.selected.kept)
                return
            if isinstance(outcome, AlreadyApplied):
                known |= outcome.identities
                prepared = await self._prepare(shard, events, known)
            elif isinstance(outcome, TombstonesUnread):
                await self._read_tombstones()
                self._fencing[shard] = outcome.token
                prepared = await self._prepare(shard, events, known)
            elif isinstance(outcome, StaleInput):
                self._forget_catalogue()
                prepared = await self._prepare(shard, events, known)
            else:
                self._slice(shard, outcome.checkpoints)
                known = frozenset()

    def _fresh(self, shard: int, events: Sequence[Event]) -> list[Event]:
        applied_offsets = self._applied_offsets[shard]
        return [event for event in events if event.offset >= applied_offsets.get((event.topic, event.partition), 0)]

    async def _prepare(self, shard: int, events: Sequence[Event], known: frozenset[RepeatedIdentity]) -> PreparedBatch:
        fresh, layout, fencing = self._fresh(shard, events), self.store.layout, self._fencing[shard]
        selected = self._repeats[shard].select(fresh, known)
        changes = [feature_event(event) for event in selected.kept]
        needed = items_needed(layout, changes) if self._reads_fields else []
        if needed and not self._catalogue_offsets[shard]:
            # Before the items are looked up: what changes between the two is noticed.
            applied_offsets = (await self.store.applied_offsets(self.catalogue))[shard]
            self._catalogue_offsets[shard] = tuple(applied_offsets[place] for place in self.catalogue)
        items = await self._items.lookup(needed)
        version = self._items.version if needed else None
        prior = await self._late.prior_state(shard, _of_items(changes) if needed else [], items)
        batch = aggregate_batch(layout, changes, prior)
        whole = await self._late.corrected_values(shard, batch) if batch.corrections else {}
        waiting, arrived = (
            sum(not contribution.is_known for contribution in contributions)
            for contributions in (batch.contributions, dict(batch.corrections))
        )
        return PreparedBatch(
            fresh=len(fresh),
            selected=selected,
            deltas=self._packed(shard, batch.deltas, whole),
            changes={
                entity: times for entity, times in field_changes(layout, changes).items() if self._owns(shard, entity)
            },
            fencing=fencing,
            items_version=version,
            base=prior.base,
            whole=whole,
            versions=batch.versions,
            older=self._late.older_versions(shard, batch, prior),
            buffers=self._late.buffer_changes(shard, batch, prior, newest=newest_seen(selected.kept)) if needed else (),
            late={"waiting": waiting, "came": arrived, "corrected": len(batch.corrections) - arrived},
        )

    def _packed(
        self, shard: int, deltas: Mapping[EntityId, Delta], whole: Collection[EntityId]
    ) -> dict[EntityId, bytes]:
        """The deltas of a virtual shard's own entities, without those of which the whole value is written.

        They are packed while the store is busy with the batch before, which waits for nothing else then.
        """
        return {
            entity: delta.pack(0)
            for entity, delta in deltas.items()
            if entity not in whole and self._owns(shard, entity)
        }

    def _owns(self, shard: int, entity: EntityId) -> bool:
        """Whether an entity is on a virtual shard."""
        names = self.store.names
        return names.shards == 1 or names.shard_of(*entity) == shard

    def _changes_fields(self, events: Sequence[Event]) -> bool:
        """Whether a batch is prepared from all that the one before it did."""
        return self._reads_fields and any(isinstance(event.message, behavior.ItemChanged) for event in events)

    def _still_good(self, shard: int, prepared: PreparedBatch, fresh: Sequence[Event]) -> bool:
        """Whether nothing that a preparation was made from has changed; applied offsets only cut off more."""
        is_same = prepared.fresh == len(fresh) and prepared.selected.version == self._repeats[shard].version
        is_same = is_same and prepared.fencing == self._fencing[shard]
        return is_same and prepared.items_version in (None, self._items.version)

    def _slice(self, shard: int, checkpoints: Mapping[Place, Checkpoint]) -> None:
        """Take the applied offsets as they are: somebody else applied events of this batch, or the store lost some."""
        applied_offsets = self._applied_offsets[shard]
        found = {place: each.offset for place, each in checkpoints.items()}
        lost = [place for place, applied_offset in found.items() if applied_offset < applied_offsets.get(place, 0)]
        _LOG.info("the applied offsets are others", extra={"loop": self.store.spec.loop, "shard": shard})
        applied_offsets.update(found)
        self._repeats[shard].restart(checkpoints)
        self._forget_catalogue()
        if lost:
            raise StoreLostState(f"{self.store.spec.loop}: the online store lost events of {len(lost)} partitions")

    def _forget_catalogue(self) -> None:
        self._items.clear()
        self._catalogue_offsets = [()] * self.store.shards

    def _note_applied(self, shard: int, applied: Applied, prepared: PreparedBatch) -> None:
        """Keep what is known of items: nobody else changed some, or the script would not have applied the batch."""
        if prepared.items_version is not None:
            self._catalogue_offsets[shard] = applied.watched
            self._items.update(prepared.versions)
        loop = self.store.spec.loop
        count_left_out(loop, prepared.selected.repeats)
        count_late_fields(loop, prepared.late)
        count_superseded(loop, self.store.layout.hash, prepared.changes, applied.fields_before)

    def _described(self, shard: int, fresh: Sequence[Event], prepared: PreparedBatch) -> BatchApplied:
        store = self.store
        if not fresh:
            return BatchApplied()
        return described(store.spec.loop, store.layout.hash, shard, fresh=fresh, count=len(prepared.selected.kept))
