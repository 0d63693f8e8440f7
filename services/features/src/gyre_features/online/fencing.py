"""Sets the fencing tokens of virtual shards: batches that were prepared under others are refused."""

import asyncio
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from redis.asyncio import Redis

_SET = """
local held, time = redis.call('GET', KEYS[1]) or '', redis.call('TIME')
if ARGV[2] ~= '' and held ~= '' and held ~= ARGV[2] then return {held, 0} end
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local left = (tonumber(string.match(held, ' (%d+)$')) or 0) + ARGV[3] - now
if left > 0 and left <= tonumber(ARGV[3]) then return {held, left} end
redis.call('SET', KEYS[1], string.format('%s %.0f', ARGV[1], now), 'EX', ARGV[4])
return {held, 0}
"""
"""KEYS: the token's. ARGV: a new token, the one that the caller saw first or empty, how long one stands (ms), TTL (s).

Sets the token once the one that stands has stood that long, and not where it was set since the caller's first look.
Answers the token that it found, and in how many milliseconds to call again, 0 for no more.
"""
_TOKEN_INTERVAL_MS = 2000
"""Within this time a stream reads the tombstones and applies a batch, however many users are forgotten meanwhile."""


async def set_tokens(redis: Redis, names: Sequence[str], *, ttl_s: int) -> None:
    """Return once the token of each key is one that was set after the call.

    All calls of 2 s share one, so long it takes.

    Args:
        redis: a client that returns bytes.
        names: of the keys.
        ttl_s: after which a token goes, seconds.

    Raises:
        RedisError: Redis does not answer.
    """
    await asyncio.gather(*(_set_token(redis, name, ttl_s) for name in names))


async def _set_token(redis: Redis, name: str, ttl_s: int) -> None:
    script, token, seen = redis.register_script(_SET), uuid4().hex, b""
    while True:
        answer: Any = await script(keys=[name], args=[token, seen, _TOKEN_INTERVAL_MS, ttl_s])
        found, left_ms = answer
        if not left_ms:
            return
        seen = seen or found
        await asyncio.sleep(left_ms / 1000)
