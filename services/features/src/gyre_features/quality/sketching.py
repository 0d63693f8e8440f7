"""The sketches of the partitions that this process has: counted beside the windows, published in time, and resumed."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

from gyre.events.v1 import features_pb2 as pb
from gyre_core.spec import LoopSpec
from gyre_runtime.checkpoints import Place
from gyre_runtime.events import Event

from gyre_features.quality.live import LiveReference, PartitionSketch

IMPRESSIONS = "behavior.impressions"
ReferenceOf = Callable[[str], LiveReference | None]
StoredOf = Callable[[str, int], pb.LiveSketch | None]
PublishSketches = Callable[[Sequence[pb.LiveSketch]], Awaitable[None]]


class LiveSketches:
    """Counts impressions of loops whose live model has a reference, and publishes the counts; its state is in memory.

    Args:
        loops: by name.
        reference: of a loop's live model, or None.
        stored: what was published last of a loop's partition, or None.
        publish: sends sketches and returns when Kafka has them.
        every_s: wall seconds between two sketches of a partition.
    """

    def __init__(
        self,
        loops: Mapping[str, LoopSpec],
        *,
        reference: ReferenceOf,
        stored: StoredOf,
        publish: PublishSketches,
        every_s: float,
    ) -> None:
        self._loops, self._reference, self._stored = loops, reference, stored
        self._publish, self._every_s = publish, every_s
        self._parts: dict[Place, PartitionSketch] = {}
        self._published_at: dict[Place, float] = {}

    def count(self, place: Place, offset: int, event: Event | None) -> None:
        """Count the record at an offset of any topic, None for one that cannot be read; only impressions count.

        With a new live model the partition begins anew from that model's published sketch; without a reference its
        counts are dropped.
        """
        loop, _, suffix = place[0].partition(".")
        if suffix != IMPRESSIONS:
            return
        reference, part = self._reference(loop), self._parts.get(place)
        if reference is None:
            self.forget([place])
            return
        if part is None or part.reference is not reference:
            part = self._parts[place] = self._begun(loop, place[1], reference)
        part.count(offset, event)

    def _begun(self, loop: str, partition: int, reference: LiveReference) -> PartitionSketch:
        spec = self._loops[loop]
        rule = spec.quality.checks.drift
        # Kafka may have more partitions than are declared.
        partitions = max(spec.shards.kafka_partitions, partition + 1)
        pane_rows = max(rule.max_rows // 2, rule.min_rows) // partitions
        known = self._stored(loop, partition)
        return PartitionSketch(loop, partition, reference, pane_rows=max(pane_rows, 1), known=known)

    def resume_offset(self, place: Place, offset: int) -> int:
        """The offset at which a successor must begin so that no sketch loses rows, at most `offset`."""
        part = self._parts.get(place)
        return offset if part is None else min(offset, part.resume_offset)

    async def publish_due(self, places: Collection[Place], idle: Callable[[Place], bool]) -> None:
        """Publish the changed partitions whose turn it is by `every_s`, idle ones at once; returns when Kafka has them.

        Args:
            places: the partitions that are looked at.
            idle: whether no record of a partition came for a while.
        """
        now = time.monotonic()
        due = [
            (place, part)
            for place in places
            if (part := self._parts.get(place)) is not None and part.changed
            if now - self._published_at.setdefault(place, now) >= self._every_s or idle(place)
        ]
        if not due:
            return
        messages = [part.message() for _, part in due]
        await self._publish(messages)
        for (place, part), message in zip(due, messages, strict=True):
            part.published(message)
            self._published_at[place] = now

    def forget(self, places: Collection[Place]) -> None:
        """Drop partitions that went to another process, unpublished counts included.

        The other process goes on from what was published.
        """
        for place in places:
            self._parts.pop(place, None)
            self._published_at.pop(place, None)
