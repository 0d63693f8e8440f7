"""The one declaration of Gyre's Redis keys; `{<loop>:<shard>}` is the hash tag that keeps a virtual shard on one node.

Loops have tags of their own, so that their shards spread over a Redis Cluster. Every key begins with `gyre` and the
version of the format that its value is packed in.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from hashlib import blake2b

STORE_FORMAT = 2
"""The version of what the online store holds, in every key: a new one begins an empty store beside the old one.

1 had float32 sums and the keys `gyre:<loop>:<layout hash>:{<shard>}:…`; 2 has float64 sums and window counts.
"""


_PATTERN_SIGNS = frozenset("*?[]^\\")
"""What has a meaning in a pattern of Redis (https://redis.io/docs/latest/commands/keys/)."""

_ENTITY_KEY = re.compile(
    r"gyre(?:\d+:\{(?P<loop>[^:{}]+):\d+\}:[^:{}]+|:(?P<former_loop>[^:{}]+):[^:{}]+:\{\d+\})"
    r":(?P<kind>item|user|global):(?P<id>.*)",
    re.DOTALL,
)
"""The key of an entity's packed features, of the formats since 2 and of format 1."""


@dataclass(frozen=True, slots=True)
class KeyDecl:
    """A family of keys, for the reference: its pattern, what a key holds, who writes it and how long it lives."""

    name: str
    pattern: str
    holds: str
    owner: str
    ttl: str


_PREFIX = f"gyre{STORE_FORMAT}:{{<loop>:<shard>}}:<layout>:"

KEYS: tuple[KeyDecl, ...] = (
    KeyDecl(
        name="entity",
        pattern=f"{_PREFIX}<entity kind>:<id>",
        holds="the packed features of an item, a user, or the one `global` entity",
        owner="features",
        ttl="from the feature definitions; the lease where a stored field has none, since nobody sends it again",
    ),
    KeyDecl(
        name="fence",
        pattern=f"{_PREFIX}fence:<topic>:<partition>",
        holds="the next offset to apply",
        owner="features",
        ttl="the lease, which outlives every value that it keeps from counting twice",
    ),
    KeyDecl(
        name="batch",
        pattern=f"{_PREFIX}batch",
        holds="the number of the last applied batch",
        owner="features",
        ttl="the lease: numbers begin again only when nothing is left",
    ),
    KeyDecl(
        name="outbox",
        pattern=f"{_PREFIX}outbox",
        holds="a hash of applied batches by number that Kafka has not acknowledged in `features.applied` yet",
        owner="features",
        ttl="the lease; Kafka's acknowledgement empties it",
    ),
    KeyDecl(
        name="lease",
        pattern=f"{_PREFIX}lease",
        holds="that the leases of the shard's keys were renewed, which the layout's stream does once this is gone",
        owner="features",
        ttl="a third of the lease: 90 days, or a day more than the longest time to live of a value",
    ),
    KeyDecl(
        name="folds",
        pattern=f"{_PREFIX}folds:<known or unknown>",
        holds="what recent events read of items' fields, by event time, to be made up for where fields come late",
        owner="features",
        ttl="`max_field_lateness` of the loop for known items, its lateness bound for unknown ones, and a day",
    ),
    KeyDecl(
        name="versions",
        pattern=f"{_PREFIX}versions:<item id>",
        holds="the fields that an item had before its newest ones, by time; only of items that changed",
        owner="features",
        ttl="the loop's lateness bound (`max_lateness`, on the replay clock at least `max_future`) and a day",
    ),
    KeyDecl(
        name="duplicates",
        pattern=f"{_PREFIX}duplicates:<topic>:<partition>:<newest or before>",
        holds="the (ce_source, ce_id) and the (user, request) that were applied of the newest window of append times, "
        "and of the one before",
        owner="features",
        ttl="the lease, as the applied offset has it: the log's own times say when a window goes, and a layout's "
        "retirement takes both",
    ),
    KeyDecl(
        name="fencing",
        pattern=f"gyre{STORE_FORMAT}:{{<loop>:<shard>}}:fencing",
        holds="a token that is new each time that somebody is forgotten: a batch of another one is refused, "
        "in every layout, until its writer has read the tombstones",
        owner="features",
        ttl="the lease",
    ),
    KeyDecl(
        name="popular",
        pattern=f"{_PREFIX}popular",
        holds="a sorted set of item ids by decayed count, for candidates",
        owner="features",
        ttl="that of items; bounded by a count",
    ),
)


def layout_store(layout_hash: str, generation: int) -> str:
    """The name of a layout's store in its keys: the hash, and from generation 1 on `<hash>.<generation>`.

    A layout that is filled again after a retirement is filled into the store of the next generation. All functions here
    that take a `layout_hash` take such a name.
    """
    return f"{layout_hash}.{generation}" if generation else layout_hash


def layout_store_of(key: str) -> str:
    """The name of the store that a key belongs to, as `layout_store` gives it; empty where it is not of this format.

    Of a key that all layouts share (`fencing_key`) it is a text that names no store.
    """
    return key.partition("}:")[2].partition(":")[0] if key.startswith(f"gyre{STORE_FORMAT}:") else ""


def prefix(loop: str, layout_hash: str, *, shard: int) -> str:
    """What all keys of a loop's layout on one virtual shard begin with: `gyre2:{<loop>:<shard>}:<layout>:`.

    The number is `STORE_FORMAT`. No part is checked or escaped.
    """
    return f"gyre{STORE_FORMAT}:{{{loop}:{shard}}}:{layout_hash}:"


def pattern(loop: str, layout_hash: str = "") -> str:
    """A glob pattern for Redis's SCAN that every key of a loop's layout matches, by default every key of the loop.

    Only keys of this `STORE_FORMAT` match it.
    """
    return f"gyre{STORE_FORMAT}:{{{loop}:*}}:{layout_hash and f'{layout_hash}:'}*"


def entity_key(loop: str, layout_hash: str, *, shard: int, kind: str, id: str) -> str:  # noqa: A002 (the field's name)
    """The key of an entity's packed features; `kind` is `item`, `user` or `global`."""
    return f"{prefix(loop, layout_hash, shard=shard)}{kind}:{id}"


def former_entity_key(loop: str, layout_hash: str, *, shard: int, kind: str, id: str) -> str:  # noqa: A002
    """The key that an entity had in format 1: not written any more, but deleted with the entity."""
    return f"gyre:{loop}:{layout_hash}:{{{shard}}}:{kind}:{id}"


def entity_pattern(loop: str, *, kind: str, id: str) -> str:  # noqa: A002 (the field's name)
    """A glob pattern for Redis's SCAN that an entity's keys match in every layout, shard and format.

    Keys of other entities may match it, too: what SCAN finds is to be checked by `is_entity_key`.
    """
    escaped = "".join(f"\\{sign}" if sign in _PATTERN_SIGNS else sign for sign in id)
    return f"gyre*:*{loop}:*:{kind}:{escaped}"


def is_entity_key(key: str, loop: str, *, kind: str, id: str) -> bool:  # noqa: A002 (the field's name)
    """Whether a key is that of an entity, in whichever layout, shard and format.

    What stands before the id holds none of what ids may hold, so that no id is taken for another one's end.
    """
    found = _ENTITY_KEY.fullmatch(key)
    return found is not None and (found["loop"] or found["former_loop"], found["kind"], found["id"]) == (loop, kind, id)


def applied_offset_prefix(loop: str, layout_hash: str, *, shard: int) -> str:
    """What the keys of all applied offsets of a virtual shard begin with."""
    return f"{prefix(loop, layout_hash, shard=shard)}fence:"


def applied_offset_key(loop: str, layout_hash: str, *, shard: int, topic: str, partition: int) -> str:
    """The key of the next offset to apply from a topic partition on a virtual shard."""
    return f"{applied_offset_prefix(loop, layout_hash, shard=shard)}{topic}:{partition}"


def batch_key(loop: str, layout_hash: str, *, shard: int) -> str:
    """The key of the batch counter of a virtual shard."""
    return f"{prefix(loop, layout_hash, shard=shard)}batch"


def outbox_key(loop: str, layout_hash: str, *, shard: int) -> str:
    """The key of the applied batches of a virtual shard that are still to be published."""
    return f"{prefix(loop, layout_hash, shard=shard)}outbox"


def lease_key(loop: str, layout_hash: str, *, shard: int) -> str:
    """The key that says that the leases of a virtual shard were renewed."""
    return f"{prefix(loop, layout_hash, shard=shard)}lease"


def contributions_key(loop: str, layout_hash: str, *, shard: int, known: bool) -> str:
    """The key of the buffered contributions of a virtual shard, on known items or on unknown ones."""
    return f"{prefix(loop, layout_hash, shard=shard)}folds:{'known' if known else 'unknown'}"


def versions_key(loop: str, layout_hash: str, *, shard: int, id: str) -> str:  # noqa: A002 (the field's name)
    """The key of the versions of an item's fields before the newest."""
    return f"{prefix(loop, layout_hash, shard=shard)}versions:{id}"


def duplicates_prefix(loop: str, layout_hash: str, *, shard: int) -> str:
    """What the keys of all applied identities of a virtual shard begin with."""
    return f"{prefix(loop, layout_hash, shard=shard)}duplicates:"


def duplicates_key(loop: str, layout_hash: str, *, shard: int, topic: str, partition: int, window: str) -> str:
    """The key of applied identities of a topic partition on a virtual shard; `window` is `newest` or `before`."""
    return f"{duplicates_prefix(loop, layout_hash, shard=shard)}{topic}:{partition}:{window}"


def former_duplicates_key(loop: str, layout_hash: str, *, shard: int, window: int) -> str:
    """The key of all identities that earlier versions applied in a window of wall time, by the window's number."""
    return f"{prefix(loop, layout_hash, shard=shard)}duplicates:{window}"


def fencing_key(loop: str, *, shard: int) -> str:
    """The key of the fencing token of a virtual shard, one for all layouts of a loop."""
    return f"gyre{STORE_FORMAT}:{{{loop}:{shard}}}:fencing"


def popular_key(loop: str, layout_hash: str, *, shard: int) -> str:
    """The key of the most popular items of a virtual shard."""
    return f"{prefix(loop, layout_hash, shard=shard)}popular"


def shard_of(kind: str, id: str, *, shards: int) -> int:  # noqa: A002 (the field's name)
    """The virtual shard of an entity, 0 to `shards` - 1: stable for ever, so it must not use Python's seeded hash.

    With another number of shards an entity may be on another one.
    """
    if shards == 1:
        return 0
    digest = blake2b(f"{kind}:{id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % shards
