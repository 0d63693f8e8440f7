"""The Redis keys of one loop's layout."""

from __future__ import annotations

from collections.abc import Sequence

from gyre_core import keys
from gyre_core.features import ENTITY_KINDS, EntityKind
from gyre_runtime.checkpoints import Place

_FORMER_WINDOWS = 3
"""Earlier versions let a window of duplicates expire when nothing had been written to it for the time of two."""


class Names:
    """The Redis keys of one layout: each method makes a name, and asks Redis nothing.

    Args:
        loop: the loop.
        layout: hash of its layout, with the generation of its store where that is not the first.
        shards: count of virtual shards.
        duplicates_s: length of a window of append times, seconds.
        categories: that have popular items of their own.
    """

    def __init__(self, loop: str, layout: str, *, shards: int, duplicates_s: int, categories: Sequence[str]) -> None:
        self.shards = shards
        self._own = (loop, layout)
        self.duplicates_s = duplicates_s
        self._categories = tuple(categories)
        self.prefixes: dict[EntityKind, list[str]] = {
            kind: [keys.entity_key(loop, layout, shard=shard, kind=kind, id="") for shard in range(shards)]
            for kind in ENTITY_KINDS
        }

    def shard_of(self, kind: EntityKind, id: str) -> int:  # noqa: A002 - the field's name
        """The number of the virtual shard that holds an entity; no key."""
        return keys.shard_of(kind, id, shards=self.shards)

    def entity(self, kind: EntityKind, id: str) -> str:  # noqa: A002 - the field's name
        """The key of the packed value of an entity."""
        return self.prefixes[kind][0 if self.shards == 1 else self.shard_of(kind, id)] + id

    def former_entity(self, kind: EntityKind, id: str) -> str:  # noqa: A002 - the field's name
        """The key of an entity's packed value in the store's former format."""
        return keys.former_entity_key(*self._own, shard=self.shard_of(kind, id), kind=kind, id=id)

    def applied_offset(self, shard: int, place: Place) -> str:
        """The key of the checkpoint that holds the next offset to apply of a topic partition."""
        return keys.applied_offset_key(*self._own, shard=shard, topic=place[0], partition=place[1])

    def applied_offsets(self, shard: int) -> str:
        """The prefix of the keys of a shard's applied offsets."""
        return keys.applied_offset_prefix(*self._own, shard=shard)

    @property
    def pattern(self) -> str:
        """The glob pattern, as Redis writes them, that every key of the layout matches."""
        return keys.pattern(*self._own)

    def batch(self, shard: int) -> str:
        """The key of the number of a shard's last batch."""
        return keys.batch_key(*self._own, shard=shard)

    def outbox(self, shard: int) -> str:
        """The key of the hash with the batches that nobody is known to have published."""
        return keys.outbox_key(*self._own, shard=shard)

    def lease(self, shard: int) -> str:
        """The key of the mark, which expires, that the times to live of a virtual shard's keys were renewed."""
        return keys.lease_key(*self._own, shard=shard)

    def contributions(self, shard: int, *, known: bool) -> str:
        """The key of the buffered contributions of a shard, on known items or on unknown ones."""
        return keys.contributions_key(*self._own, shard=shard, known=known)

    def versions(self, item_id: str) -> str:
        """The key of an item's field versions before its newest, each with its time, for late events."""
        shard = 0 if self.shards == 1 else self.shard_of("item", item_id)
        return keys.versions_key(*self._own, shard=shard, id=item_id)

    def fencing(self, shard: int) -> str:
        """The key of the fencing token, one for all layouts of the loop, that changes when somebody is forgotten."""
        return keys.fencing_key(self._own[0], shard=shard)

    def popular(self, shard: int) -> list[str]:
        """The keys of a shard's popular items: of all of them, then of those of each category."""
        whole = keys.popular_key(*self._own, shard=shard)
        return [whole, *(f"{whole}:{category}" for category in self._categories)]

    def duplicates(self, shard: int, place: Place) -> tuple[str, str]:
        """The keys of a topic partition's applied identities: of its newest append window, and of the one before."""
        newest, before = (
            keys.duplicates_key(*self._own, shard=shard, topic=place[0], partition=place[1], window=window)
            for window in ("newest", "before")
        )
        return newest, before

    def identities(self, shard: int) -> str:
        """The prefix of the keys of a shard's applied identities."""
        return keys.duplicates_prefix(*self._own, shard=shard)

    def former_duplicates(self, shard: int, now: float) -> list[str]:
        """The keys of identities by windows of wall time that earlier versions may have left at `now`, unix seconds."""
        newest = int(now // self.duplicates_s)
        windows = range(newest - _FORMER_WINDOWS, newest + 1)
        return [keys.former_duplicates_key(*self._own, shard=shard, window=window) for window in windows]
