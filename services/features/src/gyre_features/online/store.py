"""Redis as the online store of one loop: fenced batches in, packed values out."""

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from gyre_core import keys
from gyre_core.features import ENTITY_KINDS, GLOBAL_ID, Delta, EntityId, EntityKind, Layout
from gyre_core.spec import LoopSpec
from gyre_runtime import Unavailable
from redis.asyncio import Redis
from redis.exceptions import RedisError

from gyre_features.online.outbox import time_of
from gyre_features.online.plan import LETTER, id_offset, popularity_of, script_plan

Fences = dict[tuple[str, int], int]
"""The next offset to apply, by (topic, partition)."""

_SCRIPT = (Path(__file__).parent / "apply.lua").read_text()
_IDENTITY_BYTES = 8
_DUPLICATES = 2
"""The script's answer for events that were applied before."""


@dataclass(frozen=True, slots=True)
class Write:
    """What one script does, or nothing of it.

    Attributes:
        expected: the fences as the worker knows them.
        following: the fences after the batch, of the same partitions.
        deltas: what the batch changes; on a virtual shard only its own entities' are applied.
        identities: of its events, to be remembered; each once.
        watched: topic partitions whose fences the answer tells.
        description: of the batch, kept in the outbox.
        told: numbers of batches that leave the outbox.
    """

    expected: Fences
    following: Fences
    deltas: Mapping[EntityId, Delta]
    identities: Sequence[bytes]
    watched: Sequence[tuple[str, int]] = ()
    description: bytes = b""
    told: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class Applied:
    """A batch stands in the store, under this number and since this time (unix seconds).

    `watched` are the fences of the watched places after it.
    """

    batch: int
    time: float
    watched: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Known:
    """Nothing was applied: the events of these identities were applied before."""

    identities: frozenset[bytes]


@dataclass(frozen=True, slots=True)
class Behind:
    """Nothing was applied: the fences stand elsewhere."""

    fences: Fences


@dataclass(frozen=True, slots=True)
class Values:
    """The packed values of one read; None for what the store does not know."""

    user: bytes | None
    everyone: bytes | None
    items: Sequence[bytes | None]


def identity(source: str, event_id: str) -> bytes:
    """Eight bytes that stand for an event in the window of duplicates."""
    return blake2b(f"{source}\0{event_id}".encode(), digest_size=_IDENTITY_BYTES).digest()


def unavailable(error: RedisError) -> Unavailable:
    """Our error for one of Redis."""
    return Unavailable("STORE_UNAVAILABLE", f"the online store does not answer: {type(error).__name__}")


class OnlineStore:
    """The values of one loop's layout.

    Args:
        redis: a client that returns bytes.
        spec: the loop.
        layout: the layout whose values these are.
        duplicates_s: how long identities are remembered at least, seconds.
        popular_kept: how many popular items are kept.
    """

    def __init__(
        self, redis: Redis, spec: LoopSpec, layout: Layout, *, duplicates_s: int = 300, popular_kept: int = 2000
    ) -> None:
        self.spec, self.layout = spec, layout
        self.shards = spec.shards.online_shards
        self.popularity = popularity_of(spec, layout)
        self._redis = redis
        self._prefixes = {
            kind: [
                keys.entity_key(spec.loop, layout.hash, shard=shard, kind=kind, id="") for shard in range(self.shards)
            ]
            for kind in ENTITY_KINDS
        }
        self._duplicates_s = duplicates_s
        self._script = redis.register_script(_SCRIPT)
        plan = json.loads(script_plan(spec, layout, kept=popular_kept))
        self._plans = [json.dumps(self._plan_of(plan, shard)) for shard in range(self.shards)]

    def _plan_of(self, plan: dict[str, Any], shard: int) -> dict[str, Any]:
        if self.popularity is None:
            return plan
        at = id_offset(self.spec.loop, self.layout.hash, shard=shard)
        return {**plan, "popular": {**plan["popular"], "id_at": at}}

    def shard_of(self, kind: EntityKind, id: str) -> int:  # noqa: A002 - the field's name
        """The virtual shard that holds an entity."""
        return keys.shard_of(kind, id, shards=self.shards)

    def key(self, kind: EntityKind, id: str) -> str:  # noqa: A002 - the field's name
        """The key of an entity."""
        return self._prefixes[kind][0 if self.shards == 1 else self.shard_of(kind, id)] + id

    def _fence_key(self, shard: int, place: tuple[str, int]) -> str:
        return keys.fence_key(self.spec.loop, self.layout.hash, shard=shard, topic=place[0], partition=place[1])

    def _outbox_key(self, shard: int) -> str:
        return keys.outbox_key(self.spec.loop, self.layout.hash, shard=shard)

    def _popular_keys(self, shard: int) -> list[str]:
        whole = keys.popular_key(self.spec.loop, self.layout.hash, shard=shard)
        categories = self.popularity.categories if self.popularity else ()
        return [whole, *(f"{whole}:{category}" for category in categories)]

    def _duplicate_keys(self, shard: int) -> tuple[str, str]:
        window = int(time.time() // self._duplicates_s)
        name = keys.duplicates_key(self.spec.loop, self.layout.hash, shard=shard)
        return f"{name}:{window}", f"{name}:{window - 1}"

    async def ping(self) -> None:
        """Check that Redis answers; for a `Dependency`."""
        await self._redis.ping()

    async def fences(self, places: Iterable[tuple[str, int]]) -> list[Fences]:
        """The fences of topic partitions, for each virtual shard; 0 where nothing was applied yet."""
        wanted = list(places)
        found: list[Fences] = []
        try:
            for shard in range(self.shards):
                stand = await self._redis.mget([self._fence_key(shard, place) for place in wanted]) if wanted else []
                found.append({place: int(value or 0) for place, value in zip(wanted, stand, strict=True)})
        except RedisError as error:
            raise unavailable(error) from error
        return found

    async def items(self, ids: Sequence[str]) -> dict[str, bytes | None]:
        """The packed values of items."""
        return dict(zip(ids, await self._mget([self.key("item", id_) for id_ in ids]), strict=True))

    async def read(self, user_id: str, item_ids: Sequence[str]) -> Values:
        """The packed values of a user, of everyone and of items, in one round trip for each virtual shard."""
        wanted = [self.key("user", user_id), self.key("global", GLOBAL_ID)]
        wanted.extend(self.key("item", id_) for id_ in item_ids)
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

    async def apply(self, shard: int, write: Write) -> Applied | Behind | Known:
        """Apply a batch to a virtual shard: all of it, or nothing when the fences are not the expected ones.

        What a producer sent twice is refused as a whole, too, so that the caller leaves it out of the deltas.

        Raises:
            Unavailable: the store does not answer, and may have applied the batch or not.
        """
        own, expected, identities = write.deltas, write.expected, write.identities
        if self.shards > 1:
            own = {entity: delta for entity, delta in own.items() if self.shard_of(*entity) == shard}
        places = list(expected)
        call = {
            "expected": [str(expected[place]) for place in places],
            "next": [str(write.following[place]) for place in places],
            "kinds": "".join(LETTER[kind] for kind, _ in own),
            "window_s": 2 * self._duplicates_s,
            "watched": len(write.watched),
            "told": [str(number) for number in write.told],
        }
        names = [
            *(self._fence_key(shard, place) for place in places),
            keys.batch_key(self.spec.loop, self.layout.hash, shard=shard),
            self._outbox_key(shard),
            *self._duplicate_keys(shard),
            *self._popular_keys(shard),
            *(self._fence_key(shard, place) for place in write.watched),
            *(self._prefixes[kind][shard] + id_ for kind, id_ in own),
        ]
        arguments: list[str | bytes] = [
            self._plans[shard],
            json.dumps(call),
            b"".join(identities),
            write.description,
            *(delta.pack(0) for delta in own.values()),
        ]
        try:
            done, *answer = await self._script(keys=names, args=arguments)
        except RedisError as error:
            raise unavailable(error) from error
        if done == _DUPLICATES:
            return Known(frozenset(identities[index] for index in answer))
        if done:
            return Applied(int(answer[0]), time_of(answer[1]), tuple(map(int, answer[2:])))
        return Behind({place: int(value) for place, value in zip(places, answer, strict=True)})

    async def outbox(self, shard: int) -> dict[int, bytes]:
        """The descriptions of batches that nobody is known to have told, by number."""
        try:
            found: Any = await self._redis.hgetall(self._outbox_key(shard))
        except RedisError as error:
            raise unavailable(error) from error
        return {int(number): kept for number, kept in sorted(found.items())}

    async def clear_outbox(self, shard: int, told: Sequence[int]) -> None:
        """Let batches leave the outbox."""
        try:
            await self._redis.hdel(self._outbox_key(shard), *map(str, told))
        except RedisError as error:
            raise unavailable(error) from error

    async def popular(self, limit: int, *, category: str | None = None) -> list[tuple[str, float]]:
        """(item id, score) of the most popular items, best first; scores grow with log2 of the decayed count."""
        suffix = f":{category}" if category else ""
        try:
            pipe = self._redis.pipeline(transaction=False)
            for shard in range(self.shards):
                pipe.zrevrange(self._popular_keys(shard)[0] + suffix, 0, limit - 1, withscores=True)
            found = [(item.decode(), score) for answer in await pipe.execute() for item, score in answer]
        except RedisError as error:
            raise unavailable(error) from error
        return sorted(found, key=lambda each: -each[1])[:limit]

    async def delete(self, kind: EntityKind, id: str) -> int:  # noqa: A002 - the field's name
        """Forget an entity; answer how many keys went."""
        try:
            pipe = self._redis.pipeline(transaction=False)
            pipe.delete(self.key(kind, id))
            if kind == "item":
                for name in self._popular_keys(self.shard_of(kind, id)):
                    pipe.zrem(name, id)
            deleted, *_ = await pipe.execute()
        except RedisError as error:
            raise unavailable(error) from error
        return int(deleted)
