"""Deletes what the online store holds of layouts that are not maintained any more."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from gyre_core import keys
from redis.asyncio import Redis
from redis.exceptions import RedisError

from gyre_features.online.errors import unavailable

_KEYS_AT_ONCE = 1000


async def delete_stores(redis: Redis, loop: str, stores: Collection[str]) -> int:
    """Delete every key of some stores of a loop's layouts, which nobody writes any more; answer how many keys went.

    Looks at all keys of the loop. Stores without keys are ignored, so a second call answers 0.

    Args:
        redis: a client that returns bytes.
        loop: whose stores.
        stores: as `keys.layout_store` names them.

    Raises:
        Unavailable: the store does not answer; what is left goes with the next call.
    """
    deleted, found = 0, list[bytes]()
    try:
        async for key in redis.scan_iter(keys.pattern(loop), count=_KEYS_AT_ONCE):
            if keys.layout_store_of(key.decode(errors="replace")) in stores:
                found.append(key)
            if len(found) == _KEYS_AT_ONCE:
                deleted += await _unlink(redis, found)
                found.clear()
        return deleted + await _unlink(redis, found)
    except RedisError as error:
        raise unavailable(error) from error


async def _unlink(redis: Redis, names: Sequence[bytes]) -> int:
    """Delete keys, each by a command of its own, since they may lie on several nodes."""
    pipe = redis.pipeline(transaction=False)
    for name in names:
        pipe.unlink(name)
    return sum(await pipe.execute())
