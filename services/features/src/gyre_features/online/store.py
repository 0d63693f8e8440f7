"""Redis as the online store of one loop: fenced batches in, packed values out."""

import json
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gyre_core import keys
from gyre_core.features import GLOBAL_ID, Contribution, EntityId, EntityKind, Layout, Versions
from gyre_core.spec import LoopSpec
from gyre_runtime.checkpoints import Checkpoint, Place
from redis.asyncio import Redis
from redis.exceptions import RedisError

from gyre_features.online.errors import unavailable
from gyre_features.online.fencing import set_tokens
from gyre_features.online.files import rewrite_files
from gyre_features.online.keys import Names
from gyre_features.online.layout_program import lease_s, popularity_of, script_plan
from gyre_features.online.script import AppliedOffsets, Outcome, Write, outcome_of, packed

_SCRIPT, _REPLACE_MEMBER = ((Path(__file__).parent / name).read_text() for name in ("apply.lua", "replace_member.lua"))
_SCANNED = 1000
"""Keys that one step of a search looks at, so that no other command waits long."""
MEMBER_PREFIX_BYTES = 12
"""What the script puts before a batch's contributions, so that no two members are equal."""


@dataclass(frozen=True, slots=True)
class Values:
    """The packed values of one read, `items` in the order asked; None for what the store does not know."""

    user: bytes | None
    everyone: bytes | None
    items: Sequence[bytes | None]


def _beginning(names: Iterable[bytes], prefixes: Iterable[str]) -> list[bytes]:
    """The names that begin with one of some prefixes."""
    wanted = tuple(each.encode() for each in prefixes)
    return [name for name in names if name.startswith(wanted)]


class OnlineStore:
    """Redis's keys of one loop's layout: values, applied offsets, buffers, popular items. It holds no state of its own.

    Args:
        redis: a client that returns bytes.
        spec: the loop.
        layout: the layout whose values these are.
        duplicates_s: how long identities are remembered at least, seconds between the append times of two events.
        max_popular: how many popular items are kept.
        generation: which of the layout's stores it is, as `KnownLayout` says.
    """

    def __init__(
        self,
        redis: Redis,
        spec: LoopSpec,
        layout: Layout,
        *,
        duplicates_s: int = 300,
        max_popular: int = 2000,
        generation: int = 0,
    ) -> None:
        self.spec, self.layout, self.generation = spec, layout, generation
        self.shards = spec.shards.online_shards
        self.popularity = popularity_of(spec, layout)
        self._redis = redis
        self.names = Names(
            spec.loop,
            keys.layout_store(layout.hash, generation),
            shards=self.shards,
            duplicates_s=duplicates_s,
            categories=self.popularity.categories if self.popularity else (),
        )
        self._script = redis.register_script(_SCRIPT)
        self._replace = redis.register_script(_REPLACE_MEMBER)
        plan = json.loads(script_plan(spec, layout, kept=max_popular))
        self._plans = [json.dumps(self._plan_of(plan, shard)) for shard in range(self.shards)]

    def _plan_of(self, plan: dict[str, Any], shard: int) -> dict[str, Any]:
        if self.popularity is None:
            return plan
        at = len(self.names.prefixes["item"][shard].encode()) + 1
        return {**plan, "popular": {**plan["popular"], "id_at": at}}

    async def ping(self) -> None:
        """Return where Redis answers, else raise RedisError; for a `Dependency`."""
        await self._redis.ping()

    async def checkpoints(self, places: Iterable[Place]) -> list[dict[Place, Checkpoint]]:
        """Up to where each virtual shard, in their order, holds topic partitions; from the start where it has none.

        Raises:
            Unavailable: the store does not answer.
        """
        wanted = list(places)
        found: list[dict[Place, Checkpoint]] = []
        try:
            for shard in range(self.shards):
                values = (
                    await self._redis.mget([self.names.applied_offset(shard, place) for place in wanted])
                    if wanted
                    else []
                )
                found.append(
                    {place: Checkpoint.decoded(value or "0") for place, value in zip(wanted, values, strict=True)}
                )
        except RedisError as error:
            raise unavailable(error) from error
        return found

    async def applied_offsets(self, places: Iterable[Place]) -> list[AppliedOffsets]:
        """The next offset to apply of topic partitions, for each virtual shard; 0 where nothing was applied yet.

        Raises:
            Unavailable: the store does not answer.
        """
        return [{place: each.offset for place, each in own.items()} for own in await self.checkpoints(places)]

    async def former_duplicates(self, shard: int) -> list[str]:
        """The keys of identities that an earlier version applied a moment ago, before it was replaced by this one.

        Raises:
            Unavailable: the store does not answer.
        """
        try:
            wanted = self.names.former_duplicates(shard, time.time())
            return [name for name in wanted if await self._redis.exists(name)]
        except RedisError as error:
            raise unavailable(error) from error

    async def versions(self, ids: Sequence[str]) -> dict[str, Versions]:
        """The versions of items' fields, oldest first, by id; empty for items that the store does not know."""
        fields, names = self.layout.item_fields, self.names
        wanted = [name for id_ in ids for name in (names.entity("item", id_), names.versions(id_))]
        found = await self._mget(wanted)
        pairs = zip(ids, found[::2], found[1::2], strict=True)
        return {id_: fields.unpack(value, older) for id_, value, older in pairs}

    async def put_versions(self, versions: Mapping[str, bytes], *, ttl_s: int) -> None:
        """Replace the packed field versions that are stored beside items' values; those of other items stay."""
        try:
            pipe = self._redis.pipeline(transaction=False)
            for item_id, each in versions.items():
                pipe.set(self.names.versions(item_id), each, ex=ttl_s)
            await pipe.execute()
        except RedisError as error:
            raise unavailable(error) from error

    async def values(self, entities: Sequence[EntityId]) -> dict[EntityId, bytes | None]:
        """The packed values of entities; None for those that the store does not know."""
        return dict(zip(entities, await self._mget([self.names.entity(*each) for each in entities]), strict=True))

    async def last_batch(self, shard: int) -> int:
        """The number of a shard's last batch, 0 before the first."""
        try:
            return int(await self._redis.get(self.names.batch(shard)) or 0)
        except RedisError as error:
            raise unavailable(error) from error

    async def contributions(self, shard: int, *, known: bool, since: float) -> list[tuple[bytes, list[Contribution]]]:
        """The members of a buffer with a contribution at `since` (unix seconds) or later, and all that each holds."""
        fields = self.layout.item_fields
        try:
            found: Any = await self._redis.zrangebyscore(self.names.contributions(shard, known=known), since, "+inf")
        except RedisError as error:
            raise unavailable(error) from error
        return [(member, fields.unpack_contributions(member, MEMBER_PREFIX_BYTES)) for member in found]

    async def read(self, user_id: str, item_ids: Sequence[str]) -> Values:
        """The packed values of a user, of the whole loop and of items, in one round trip for each virtual shard."""
        wanted = [self.names.entity("user", user_id), self.names.entity("global", GLOBAL_ID)]
        wanted.extend(self.names.entity("item", id_) for id_ in item_ids)
        user, everyone, *items = await self._mget(wanted)
        return Values(user, everyone, items)

    async def _mget(self, wanted: Sequence[str]) -> list[bytes | None]:
        if not wanted:
            return []
        try:
            if self.shards == 1:
                found: Any = await self._redis.mget(wanted)
                return list(found)
            by_tag: dict[str, list[int]] = {}
            for index, key in enumerate(wanted):
                by_tag.setdefault(key[key.index("{") : key.index("}")], []).append(index)
            pipe = self._redis.pipeline(transaction=False)
            for indices in by_tag.values():
                pipe.mget([wanted[index] for index in indices])
            values: list[bytes | None] = [None] * len(wanted)
            for indices, answers in zip(by_tag.values(), await pipe.execute(), strict=True):
                for index, value in zip(indices, answers, strict=True):
                    values[index] = value
        except RedisError as error:
            raise unavailable(error) from error
        return values

    async def apply(self, shard: int, write: Write) -> Outcome:
        """Apply a batch to a virtual shard by one script: all of it, or nothing; the outcome says which, and why.

        One with what a producer sent twice is refused as a whole, so that the caller leaves that out of the deltas.

        Raises:
            Unavailable: the store does not answer, and may have applied the batch or not.
        """
        names, arguments = packed(write, shard, self.names, plan=self._plans[shard])
        try:
            answer = await self._script(keys=names, args=arguments)
        except RedisError as error:
            raise unavailable(error) from error
        return outcome_of(answer, write)

    async def outbox(self, shard: int) -> dict[int, bytes]:
        """The entries of batches that nobody is known to have published, by number, ascending: time and description."""
        try:
            found: Any = await self._redis.hgetall(self.names.outbox(shard))
        except RedisError as error:
            raise unavailable(error) from error
        return dict(sorted((int(number), kept) for number, kept in found.items()))

    async def clear_outbox(self, shard: int, published: Sequence[int]) -> None:
        """Remove batches by number, at least one, from the outbox; those that are not in it are ignored."""
        try:
            await self._redis.hdel(self.names.outbox(shard), *map(str, published))
        except RedisError as error:
            raise unavailable(error) from error

    async def renew_leases(self) -> int:
        """Renew the keys that have no time to live of their own; answer how many, 0 while less than a third is over.

        Values come before applied offsets and the identities of their windows, which so outlive them.

        Raises:
            Unavailable: the store does not answer.
        """
        names, shards, kinds = self.names, range(self.shards), self.names.prefixes
        marks = [names.lease(shard) for shard in shards]
        leased = [prefix for kind in kinds if self.layout.ttl_s(kind) is None for prefix in kinds[kind]]
        if self.layout.ttl_s("item") is None:
            leased += [names.popular(shard)[0] for shard in shards]
        guards = [
            name
            for shard in shards
            for name in (names.identities(shard), names.applied_offsets(shard), names.batch(shard), names.outbox(shard))
        ]
        renewed, last = 0, list[bytes]()
        try:
            if None not in await self._mget(marks):
                return 0
            async for found in self._scanned(names.pattern):
                renewed += await self._expire(_beginning(found, leased))
                last += _beginning(found, guards)
            renewed += await self._expire(last)
            await self._mark(marks)
        except RedisError as error:
            raise unavailable(error) from error
        return renewed

    async def _scanned(self, pattern: str) -> AsyncIterator[list[bytes]]:
        cursor = None
        while cursor != 0:
            answer: Any = await self._redis.scan(cursor or 0, match=pattern, count=_SCANNED)
            cursor, found = answer
            yield found

    async def _expire(self, names: Sequence[bytes]) -> int:
        pipe = self._redis.pipeline(transaction=False)
        for name in names:
            pipe.expire(name, lease_s(self.layout))
        return sum(await pipe.execute())

    async def _mark(self, marks: Sequence[str]) -> None:
        pipe = self._redis.pipeline(transaction=False)
        for mark in marks:
            pipe.set(mark, 1, ex=lease_s(self.layout) // 3)
        await pipe.execute()

    async def popular(self, limit: int, *, category: str | None = None) -> list[tuple[str, float]]:
        """(item id, score) of the most popular items, best first; score = log2(decayed count) + time / half-life."""
        suffix = f":{category}" if category else ""
        try:
            pipe = self._redis.pipeline(transaction=False)
            for shard in range(self.shards):
                pipe.zrevrange(self.names.popular(shard)[0] + suffix, 0, limit - 1, withscores=True)
            found = [(item.decode(), score) for answer in await pipe.execute() for item, score in answer]
        except RedisError as error:
            raise unavailable(error) from error
        return sorted(found, key=lambda each: -each[1])[:limit]

    async def refuse_prepared_batches(self) -> None:
        """Refuse what anybody has prepared for any layout of the loop until they have read the tombstones.

        A batch of a process that was stopped before it sent it brings nobody back then, however long that was. All who
        are forgotten within 2 s share one refusal, so that streams apply something between two; so long this may take.

        Raises:
            Unavailable: the store does not answer.
        """
        try:
            names = [self.names.fencing(shard) for shard in range(self.shards)]
            await set_tokens(self._redis, names, ttl_s=lease_s(self.layout))
        except RedisError as error:
            raise unavailable(error) from error

    async def delete_late_events(self, user_id: str) -> int:
        """Take a user's events out of the buffers that late item fields are applied from; answer how many events went.

        A member of a buffer holds events of many users, so it is written again without the user's. Where a batch puts
        another in its place meanwhile, the buffers are looked through again.

        Raises:
            Unavailable: the store does not answer; what is left goes with the next call.
        """
        deleted, is_done = 0, False
        try:
            while not is_done:
                is_done = True
                async for name, member, score, events in self._late_events(user_id):
                    others = [each for each in events if each.user_id != user_id]
                    packed = self.layout.item_fields.pack_contributions(others)
                    left = member[:MEMBER_PREFIX_BYTES] + packed if others else b""
                    is_replaced = await self._replace(keys=[name], args=[member, left, repr(score)])
                    deleted += is_replaced * (len(events) - len(others))
                    is_done = is_done and bool(is_replaced)
        except RedisError as error:
            raise unavailable(error) from error
        return deleted

    async def _late_events(self, user_id: str) -> AsyncIterator[tuple[str, bytes, float, list[Contribution]]]:
        """The members of buffers that hold events of a user: buffer, member, score, all events of the member."""
        for shard, known in ((shard, known) for shard in range(self.shards) for known in (True, False)):
            name = self.names.contributions(shard, known=known)
            found: Any = await self._redis.zrange(name, 0, -1, withscores=True)
            for member, score in found:
                events = self.layout.item_fields.unpack_contributions(member, MEMBER_PREFIX_BYTES)
                if any(each.user_id == user_id for each in events):
                    yield name, member, score, events

    async def count_late_events(self, user_id: str) -> int:
        """How many members of the layout's buffers hold events of a user.

        Raises:
            Unavailable: the store does not answer.
        """
        try:
            return len([name async for name, *_ in self._late_events(user_id)])
        except RedisError as error:
            raise unavailable(error) from error

    async def keys_of_user(self, *ids: str) -> list[str]:
        """Every key under some ids of a user, by a look at all keys: also of former layouts, shards and formats.

        Raises:
            Unavailable: the store does not answer.
        """
        found: list[str] = []
        try:
            for each in ids:
                pattern = keys.entity_pattern(self.spec.loop, kind="user", id=each)
                names = [key.decode() async for key in self._redis.scan_iter(pattern, count=_SCANNED)]
                found += [name for name in names if keys.is_entity_key(name, self.spec.loop, kind="user", id=each)]
        except RedisError as error:
            raise unavailable(error) from error
        return found

    async def delete_keys(self, names: Sequence[str]) -> int:
        """Delete keys, one by one since they may lie on several nodes; answer how many there were.

        Raises:
            Unavailable: the store does not answer.
        """
        try:
            return sum([await self._redis.delete(name) for name in names])
        except RedisError as error:
            raise unavailable(error) from error

    async def rewrite_file(self) -> None:
        """Have Redis begin to write its files again, in which what was deleted still stands; see `rewrite_files`."""
        await rewrite_files(self._redis)

    async def delete(self, kind: EntityKind, id: str) -> int:  # noqa: A002 - the field's name
        """Delete an entity's value, in the former format, too, and an item's ranks; answer how many values went."""
        try:
            pipe = self._redis.pipeline(transaction=False)
            pipe.delete(self.names.entity(kind, id))
            pipe.delete(self.names.former_entity(kind, id))
            if kind == "item":
                pipe.delete(self.names.versions(id))
                for name in self.names.popular(self.names.shard_of(kind, id)):
                    pipe.zrem(name, id)
            deleted, former, *_ = await pipe.execute()
        except RedisError as error:
            raise unavailable(error) from error
        return int(deleted) + int(former)
