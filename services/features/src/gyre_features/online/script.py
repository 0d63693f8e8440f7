"""What one call of the apply script is asked to do, what it answers, and how both are packed for it."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from struct import Struct
from typing import Any

from gyre_core.features import MAX_BUFFERED_BATCHES, EntityId
from gyre_runtime.checkpoints import Checkpoint, Place

from gyre_features.online.keys import Names
from gyre_features.online.layout_program import LETTER

AppliedOffsets = dict[Place, int]
"""The next offset to apply, by (topic, partition); see `Checkpoint.offset`."""

OUTBOX_TIME = Struct("<d")
"""What stands before a batch's description in the outbox: when the store had the batch, unix seconds."""
_FIELDS_TIME = Struct("<d")
_BEHIND, _APPLIED, _DUPLICATES, _STALE, _TOMBSTONES_UNREAD = range(5)


@dataclass(frozen=True, slots=True)
class BufferChange:
    """What a script changes in one sorted set of buffered contributions.

    Attributes:
        drop: members to remove, as they are stored.
        add: members to add, each with its score: the newest event time of its contributions, unix seconds.
        cut: members whose score is less are removed.
        ttl_s: the time to live that the whole buffer gets, seconds.
    """

    drop: Sequence[bytes]
    add: Sequence[tuple[float, bytes]]
    cut: float
    ttl_s: int


@dataclass(frozen=True, slots=True)
class Identities:
    """The identities of a batch's events that the store is to remember of one topic partition.

    They are grouped by the number of their window of append times.

    Attributes:
        stored: number of the window that the applied log has reached.
        reached: number of the window that the log reaches with the batch.
        runs: (number, identities), in the order of the log; in one run each identity is there once.
    """

    stored: int
    reached: int
    runs: Sequence[tuple[int, Sequence[bytes]]] = ()


RepeatedIdentity = tuple[Place, int, bytes]
"""An identity that counted before: of which topic partition, and in or just before which of its windows."""


@dataclass(frozen=True, slots=True)
class Write:
    """What one call of the apply script is to do on a virtual shard: all of it, or nothing.

    Attributes:
        expected: the applied offsets as the worker knows them; where the store has others nothing is done.
        following: the checkpoints after the batch, of the same partitions.
        deltas: packed with batch number 0, to be merged into the stored values.
        identities: of its events, to be remembered, by topic partition.
        watched: topic partitions whose applied offsets the answer holds.
        description: of the batch, kept in the outbox; empty where no event came, which makes no batch.
        published: numbers of batches that leave the outbox.
        base: the last batch when the worker read the buffers; a later one makes it stale. None where nothing was read.
        catalogue: the watched applied offsets as they were when items were looked up; None where that does not matter.
        whole: packed values that replace the stored ones.
        changed: entities of `deltas` and `whole` of which the answer has the event time of the fields before.
        versions: packed field versions of items, without the newest, with their time to live, s; empty ones go.
        buffers: the change of the buffer on known items, then that on unknown ones; empty for none.
        former: keys of identities as earlier versions kept them, which are looked into, too.
        fencing: the token that the batch was prepared under; empty where there was none.
    """

    expected: AppliedOffsets
    following: Mapping[Place, Checkpoint]
    deltas: Mapping[EntityId, bytes]
    identities: Mapping[Place, Identities]
    watched: Sequence[Place] = ()
    description: bytes = b""
    published: Sequence[int] = ()
    base: int | None = None
    catalogue: Sequence[int] | None = None
    whole: Mapping[EntityId, bytes] = field(default_factory=dict)
    changed: Collection[EntityId] = ()
    versions: Mapping[str, tuple[bytes, int]] = field(default_factory=dict)
    buffers: Sequence[BufferChange] = ()
    former: Sequence[str] = ()
    fencing: str = ""


@dataclass(frozen=True, slots=True)
class Applied:
    """The batch was applied, under this number, at this time of Redis's clock (unix seconds).

    `watched` are the applied offsets of the watched places after it, `fields_before` the event times of the fields that
    its changed entities had before it, -inf for none.
    """

    batch: int
    time: float
    watched: tuple[int, ...] = ()
    fields_before: Mapping[EntityId, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AlreadyApplied:
    """Nothing was applied: the events of these identities were applied before. Send the batch again without them."""

    identities: frozenset[RepeatedIdentity]


@dataclass(frozen=True, slots=True)
class OffsetMismatch:
    """Nothing was applied: the applied offsets are not the expected ones; the checkpoints of all expected places."""

    checkpoints: Mapping[Place, Checkpoint]


@dataclass(frozen=True, slots=True)
class StaleInput:
    """Nothing was applied: the catalogue or the buffers that the batch was made from have changed. Prepare it again."""


@dataclass(frozen=True, slots=True)
class TombstonesUnread:
    """Nothing was applied: somebody was forgotten since. Read the tombstones, and prepare the batch again.

    Attributes:
        token: the fencing token that is set now, to prepare it under.
    """

    token: str


Outcome = Applied | OffsetMismatch | AlreadyApplied | StaleInput | TombstonesUnread


def packed(write: Write, shard: int, names: Names, *, plan: str) -> tuple[list[str], list[str | bytes]]:
    """The keys and arguments of the apply script that does a write, in the order of `apply.lua`; sends nothing."""
    kinds = [LETTER[kind] for kind, _ in write.deltas] + [LETTER[kind].upper() for kind, _ in write.whole]
    call: dict[str, Any] = {
        "expected": [str(applied_offset) for applied_offset in write.expected.values()],
        "next": [write.following[place].encoded() for place in write.expected],
        "fencing": write.fencing,
        "kinds": "".join(kinds),
        "watched": len(write.watched),
        "published": [str(number) for number in write.published],
        "puts": [ttl_s for _, ttl_s in write.versions.values()],
        "windows": [_windows(each) for each in write.identities.values()],
        "former": len(write.former),
        "max_batches": MAX_BUFFERED_BATCHES,
    }
    if write.changed:
        call["changed"] = [number for number, entity in enumerate(_entities(write), start=1) if entity in write.changed]
    if write.base is not None:
        call["base"] = str(write.base)
    if write.catalogue:
        call["catalogue"] = [str(applied_offset) for applied_offset in write.catalogue]
    if write.buffers:
        call["buffers"] = [_buffer_change(each) for each in write.buffers]
    identities = [code for each in write.identities.values() for _, codes in each.runs for code in codes]
    arguments: list[str | bytes] = [plan, json.dumps(call), b"".join(identities), write.description]
    for buffer in write.buffers:
        arguments += [*buffer.drop, *(member for _, member in buffer.add)]
    arguments += [value for value, _ in write.versions.values()]
    arguments += write.deltas.values()
    arguments += write.whole.values()
    return _keys(write, shard, names), arguments


def _keys(write: Write, shard: int, names: Names) -> list[str]:
    prefixes = {kind: each[shard] for kind, each in names.prefixes.items()}
    return [
        *[names.applied_offset(shard, place) for place in write.expected],
        names.batch(shard),
        names.outbox(shard),
        names.contributions(shard, known=True),
        names.contributions(shard, known=False),
        names.fencing(shard),
        *names.popular(shard),
        *[names.applied_offset(shard, place) for place in write.watched],
        *map(names.versions, write.versions),
        *[name for place in write.identities for name in names.duplicates(shard, place)],
        *write.former,
        *[prefixes[kind] + id_ for kind, id_ in write.deltas],
        *[prefixes[kind] + id_ for kind, id_ in write.whole],
    ]


def _windows(own: Identities) -> dict[str, Any]:
    """By how many windows a topic partition moves on, and of each run how many windows ahead it is and its length."""
    runs = [[number - own.stored, len(codes)] for number, codes in own.runs]
    return {"moves": own.reached - own.stored, "runs": runs}


def _entities(write: Write) -> Iterator[EntityId]:
    """The entities that a script writes, in its order."""
    yield from write.deltas
    yield from write.whole


def _buffer_change(change: BufferChange) -> dict[str, Any]:
    scores = [repr(time) for time, _ in change.add]
    return {"drop": len(change.drop), "scores": scores, "cut": repr(change.cut), "ttl": change.ttl_s}


def outcome_of(answer: Sequence[Any], write: Write) -> Outcome:
    """The outcome that the apply script's answer to a write says; a refusal is an outcome, too, and not raised."""
    done, *rest = answer
    if done == _DUPLICATES:
        sent = [
            (place, number, code)
            for place, each in write.identities.items()
            for number, codes in each.runs
            for code in codes
        ]
        return AlreadyApplied(frozenset(sent[index] for index in rest))
    if done == _STALE:
        return StaleInput()
    if done == _TOMBSTONES_UNREAD:
        return TombstonesUnread(rest[0].decode())
    if done == _BEHIND:
        return OffsetMismatch(
            {place: Checkpoint.decoded(text) for place, text in zip(write.expected, rest, strict=True)}
        )
    number, time, fields_times, *watched = rest
    changed = (entity for entity in _entities(write) if entity in write.changed)
    before = {entity: at for entity, (at,) in zip(changed, _FIELDS_TIME.iter_unpack(fields_times), strict=True)}
    return Applied(int(number), time_of(time), tuple(map(int, watched)), before)


def time_of(kept: bytes) -> float:
    """When the store applied a batch, unix seconds, read from the first 8 bytes of its outbox entry."""
    return float(OUTBOX_TIME.unpack_from(kept)[0])
