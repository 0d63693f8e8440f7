"""One loop's stream: decoded events become deltas, and deltas one fenced script for each virtual shard."""

import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass

from gyre.events.v1 import behavior_pb2 as behavior
from gyre_core.features import (
    Delta,
    EntityId,
    FieldsChanged,
    FieldValue,
    Impression,
    Interaction,
    aggregate,
    items_needed,
)
from gyre_core.features import Event as FeatureEvent
from gyre_core.spec import IMPRESSION
from gyre_runtime.events import Event

from gyre_features.online.store import Applied, Fences, OnlineStore, identity

_LOG = logging.getLogger(__name__)

Place = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Batch:
    """What one script applied.

    Attributes:
        shard: the virtual shard.
        number: of the batch within the shard.
        ranges: (first, end) offsets by (topic, partition).
        events: count of events applied, duplicates not among them.
        newest_event_time: unix seconds.
        applied_time: wall time at which the store had it, unix seconds.
    """

    shard: int
    number: int
    ranges: dict[Place, tuple[int, int]]
    events: int
    newest_event_time: float
    applied_time: float


OnBatch = Callable[[Batch, Sequence[Event]], Awaitable[None]]


def field_value(value: behavior.FieldValue) -> FieldValue:
    """A field as the feature algebra takes it."""
    kind = value.WhichOneof("kind")
    if kind == "categories":
        return list(value.categories.values)
    found: float | bool | str = getattr(value, kind) if kind else ""
    return found


def feature_event(event: Event) -> FeatureEvent:
    """A decoded event as the feature algebra takes it."""
    message = event.message
    if isinstance(message, behavior.Interaction):
        value = message.value if message.HasField("value") else None
        return Interaction(message.user_id, message.item_id, message.type, event.time, value)
    if isinstance(message, behavior.Impression):
        return Impression(message.user_id, message.item_ids[: message.shown], event.time)
    fields = {name: field_value(value) for name, value in message.fields.items()}
    return FieldsChanged("item", message.item_id, event.time, fields)


class LoopStream:
    """Applies the events of one loop, whatever batches they come in, exactly once.

    The fences say what every virtual shard holds already. A batch that begins before a fence is sliced there, so a
    redelivery with other boundaries changes nothing.
    """

    def __init__(self, store: OnlineStore, *, on_batch: OnBatch) -> None:
        self.store = store
        self._on_batch = on_batch
        self._fences: list[Fences] = [{} for _ in range(store.shards)]
        layout = store.layout
        self._counts_impressions = any(layout.plan(kind, IMPRESSION) for kind in ("item", "user", "global"))

    async def assigned(self, places: Iterable[Place]) -> Fences:
        """Take over topic partitions; answer for each the offset to begin at: the lowest fence of all shards."""
        wanted = list(places)
        for own, found in zip(self._fences, await self.store.fences(wanted), strict=True):
            own.update(found)
        return {place: min(fences[place] for fences in self._fences) for place in wanted}

    async def apply(self, events: Sequence[Event]) -> None:
        """Apply decoded events; within a topic partition they are in the order of their offsets.

        Raises:
            Unavailable: the store does not answer; nothing is known to be lost, call again with the same events.
        """
        for shard in range(self.store.shards):
            await self._apply_to(shard, events)

    async def _apply_to(self, shard: int, events: Sequence[Event]) -> None:
        while True:
            fences = self._fences[shard]
            fresh = [event for event in events if event.offset >= fences.get((event.topic, event.partition), 0)]
            if not fresh:
                return
            places = {(event.topic, event.partition) for event in fresh}
            expected = {place: fences.get(place, 0) for place in places}
            following = {(event.topic, event.partition): event.offset + 1 for event in fresh}
            kept, identities = await self._without_duplicates(shard, fresh)
            deltas = await self._aggregate(kept)
            outcome = await self.store.apply(
                shard, expected=expected, following=following, deltas=deltas, identities=identities
            )
            if isinstance(outcome, Applied):
                fences.update(following)
                await self._tell(shard, outcome.batch, fresh, kept)
                return
            _LOG.info("the fences stand elsewhere", extra={"loop": self.store.spec.loop, "shard": shard})
            fences.update(outcome.fences)

    async def _tell(self, shard: int, number: int, fresh: Sequence[Event], kept: Sequence[Event]) -> None:
        ranges: dict[Place, tuple[int, int]] = {}
        for event in fresh:
            place = (event.topic, event.partition)
            ranges[place] = (ranges.get(place, (event.offset, 0))[0], event.offset + 1)
        newest = max(event.time for event in fresh)
        batch = Batch(
            shard=shard,
            number=number,
            ranges=ranges,
            events=len(kept),
            newest_event_time=newest,
            applied_time=time.time(),
        )
        await self._on_batch(batch, kept)

    async def _without_duplicates(self, shard: int, events: Sequence[Event]) -> tuple[list[Event], list[bytes]]:
        """Drop what a producer sent twice; answer the rest and its identities."""
        behaviour = [event for event in events if self._counts(event)]
        identities = [identity(event.source, event.id) for event in behaviour]
        known = await self.store.seen(shard, identities)
        kept: dict[bytes, Event] = {}
        for event, mark, seen in zip(behaviour, identities, known, strict=True):
            if not seen:
                kept.setdefault(mark, event)
        others = [event for event in events if isinstance(event.message, behavior.ItemChanged)]
        return [*others, *kept.values()], list(kept)

    def _counts(self, event: Event) -> bool:
        if isinstance(event.message, behavior.Impression):
            return self._counts_impressions
        return isinstance(event.message, behavior.Interaction)

    async def _aggregate(self, events: Sequence[Event]) -> dict[EntityId, Delta]:
        changes = [feature_event(event) for event in events]
        layout = self.store.layout
        items = await self.store.items(items_needed(layout, changes))
        return aggregate(layout, changes, items.get)
