"""The 64-bit hash under which histories remember items, and the groups that it parts ids into."""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b

from gyre_core.spec import PRIOR_BUCKETS


@lru_cache(maxsize=1 << 18)
def item_hash(item_id: str) -> int:
    """The first 8 bytes of BLAKE2b over the id, as an unsigned little-endian number."""
    return int.from_bytes(blake2b(item_id.encode(), digest_size=8).digest(), "little")


def id_group(id: str) -> int:  # noqa: A002 (the field's name)
    """The group, of `PRIOR_BUCKETS`, that an item or user falls in for ever."""
    return item_hash(id) % PRIOR_BUCKETS
