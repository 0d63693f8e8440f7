"""Redis's files: what was deleted stands in its append-only file and its snapshot until they are written again."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial

from redis.asyncio import Redis
from redis.exceptions import RedisError

_WAIT_S, _LOOK_S = 10.0, 0.1
_LOG = logging.getLogger(__name__)


async def rewrite_files(redis: Redis) -> None:
    """Have Redis begin to write its append-only file and its snapshot again from memory; raises nothing.

    Where it makes no snapshots none is made. Where Redis refuses or does not answer it does so by its own settings;
    that a file is being written for more than 10 s is logged.
    """
    with suppress(RedisError):
        if (await redis.info("persistence")).get("aof_enabled"):
            await _write(redis, redis.bgrewriteaof, busy="aof_rewrite_in_progress")
    with suppress(RedisError):
        if await _makes_snapshots(redis):
            await _write(redis, partial(redis.bgsave, schedule=True), busy="rdb_bgsave_in_progress")


async def _write(redis: Redis, write: Callable[[], Awaitable[object]], *, busy: str) -> None:
    """Have a file written once the writing that is under way is over, since that began before the deletion."""
    end = time.monotonic() + _WAIT_S
    while (await redis.info("persistence"))[busy]:
        if time.monotonic() > end:
            _LOG.warning("Redis rewrites its file without end: deleted users are in it until it does again")
            return
        await asyncio.sleep(_LOOK_S)
    await write()


async def _makes_snapshots(redis: Redis) -> bool:
    """Whether there is a snapshot that Redis knows of, or will be: also where it does not say."""
    state = await redis.info("persistence")
    if state.get("rdb_saves", 0) or state.get("rdb_last_load_keys_loaded", 0):
        return True
    with suppress(RedisError):
        return bool((await redis.config_get("save")).get("save"))
    return True
