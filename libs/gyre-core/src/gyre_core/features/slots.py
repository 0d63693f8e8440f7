"""Where everything stands in a packed value, for each kind of entity.

A value is little-endian and has one form, online and as a delta:

    offset  type                 what
    0       f64                  reference time: newest behaviour event, unix seconds; -inf before the first
    8       u64                  number of the last batch
    16      f64 × mins           first event times; +inf where there is none
    ...     f64 × maxs           last event times; -inf where there is none
    ...     f64 × windows        number of the newest bucket of each window; -inf before the first
    ...     f64 × (0 or 1)       time of the newest `FieldsChanged`; -inf before the first; only when fields are stored
    ...     f64 × sums           decayed sums, as of the reference time, ordered by half-life
    ...     f64 × buckets        events of each window by bucket; bucket b stands at b mod `length`
    ...     f32 × lasts          encoded fields; defaults before the first
    ...     0 or 4 zero bytes    up to a multiple of 8: `fixed_bytes` end here
    then for each ring: u64 count, then count × (f64 time, u64 item hash[, u64 category mask]), newest first

What is summed is float64, since each merge rounds it: float32 sums stop decaying where the decay between two merges is
less than half a unit in the last place, and float32 counts stop at 2^24. What is written whole is float32. A change of
this format needs another `gyre_core.keys.STORE_FORMAT`, so that no process reads what another one packed otherwise.

A delta is the value that a batch alone would make of nothing, so there is one operation, and it is associative and, but
for fields of one time, commutative (forward decay: Cormode et al., ICDE 2009). `merge(a, b)`, with t the greater
reference time:

    sums    a × 2^-((t - ta) / h) + b × 2^-((t - tb) / h), the factor being 1 where the times are equal
    mins    the lesser          maxs    the greater
    lasts   all from the side with the later fields time; at equal times from b, which comes later in the log: an item's
            changes are in one partition, so of two the greater (event time, offset) stands
    rings   the `length` greatest of both, ordered by (time, hash, mask) descending, duplicates kept
    windows the greater newest bucket n; of the buckets after n - `length` the sum, events before them being forgotten
    batch   the greater
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate, groupby
from math import floor
from struct import Struct
from typing import Any, Literal

from gyre_core.features.events import EntityKind

HEADER_BYTES = 16
ID_GROUPS: Mapping[str, str] = {"item": "#item", "user": "#user"}
"""In place of a category field: events are kept apart by the group that a hash of the item's or user's id falls in."""
Measure = Literal["count", "valued", "value", "affinity", "valued_by", "value_by"]


@dataclass(frozen=True, slots=True)
class SumSlot:
    """A decayed sum: of events, of events with a value, of their values; or of those on one category of a field.

    On one category, `affinity` counts events, `valued_by` those with a value, and `value_by` sums their values. A field
    of `ID_GROUPS` has the groups of ids as its categories.
    """

    measure: Measure
    events: tuple[str, ...]
    half_life_s: float
    field: str = ""
    category: int = -1


@dataclass(frozen=True, slots=True)
class FieldSlot:
    """Where an encoded field is: `count` numbers from index `first` on in the region `lasts` of a packed value.

    Attributes:
        name: of the field.
        kind: of the field, as in gyre.yaml.
        first: index of its first number in `lasts`.
        count: of its numbers.
        values: the categories that the numbers stand for, one each; where `hashed`, the numbers of the buckets as
            text; empty for other kinds.
        default: the encoded numbers of an absent value.
        hashed: whether a category is known by the bucket that its hash falls in.
    """

    name: str
    kind: str
    first: int
    count: int
    values: tuple[str, ...]
    default: tuple[float, ...]
    hashed: bool = False


@dataclass(frozen=True, slots=True)
class RingSlot:
    """The `length` newest events of some types; with a `field`, entries carry the mask of the item's categories."""

    events: tuple[str, ...]
    length: int
    field: str

    @property
    def entry_bytes(self) -> int:
        """The size of one entry in a packed value, bytes."""
        return 24 if self.field else 16


@dataclass(frozen=True, slots=True)
class WindowSlot:
    """Events counted in the `length` newest buckets of `bucket_s` seconds; buckets are numbered from 1970 on."""

    events: tuple[str, ...]
    bucket_s: float
    length: int


@dataclass(frozen=True)
class EntityLayout:
    """The slots of one kind of entity and their byte offsets; see the module for the format.

    `mins` and `maxs` are the event types of each first and last event time.
    """

    kind: EntityKind
    sums: tuple[SumSlot, ...]
    mins: tuple[tuple[str, ...], ...]
    maxs: tuple[tuple[str, ...], ...]
    fields: tuple[FieldSlot, ...]
    rings: tuple[RingSlot, ...]
    windows: tuple[WindowSlot, ...] = ()

    @cached_property
    def lasts(self) -> int:
        """How many encoded field numbers there are."""
        return sum(field.count for field in self.fields)

    @cached_property
    def times(self) -> int:
        """How many f64 times and bucket numbers follow the header, before the sums."""
        return len(self.mins) + len(self.maxs) + len(self.windows) + (1 if self.fields else 0)

    @cached_property
    def bucket_starts(self) -> tuple[int, ...]:
        """Where each window begins among the buckets, and at last how many buckets there are."""
        return tuple(accumulate((window.length for window in self.windows), initial=0))

    @cached_property
    def _doubles(self) -> int:
        return self.times + len(self.sums) + self.bucket_starts[-1]

    @cached_property
    def fixed_bytes(self) -> int:
        """The bytes before the rings, a multiple of 8; the whole size where there are no rings."""
        return HEADER_BYTES + 8 * self._doubles + 4 * self.lasts + self._pad_bytes

    @cached_property
    def _pad_bytes(self) -> int:
        return 4 * (self.lasts % 2)

    @cached_property
    def half_lives(self) -> tuple[tuple[float, int], ...]:
        """Runs of sums: (half-life in seconds, how many)."""
        return tuple((half_life, len(list(run))) for half_life, run in groupby(slot.half_life_s for slot in self.sums))

    @cached_property
    def struct(self) -> Struct:
        """Packs the fixed part."""
        return Struct(f"<dQ{self._doubles}d{self.lasts}f{self._pad_bytes}x")

    @cached_property
    def ring_structs(self) -> tuple[Struct, ...]:
        """Pack one entry of each ring."""
        return tuple(Struct("<dQQ" if ring.field else "<dQ") for ring in self.rings)

    @cached_property
    def empty(self) -> bytes:
        """The packed value of an entity without events and fields: merging it into another changes nothing."""
        mins = [float("inf")] * len(self.mins)
        negative = [float("-inf")] * (self.times - len(self.mins))
        sums = [0.0] * len(self.sums)
        buckets = [0.0] * self.bucket_starts[-1]
        fixed = self.struct.pack(float("-inf"), 0, *mins, *negative, *sums, *buckets, *self.default_lasts)
        return fixed + bytes(8 * len(self.rings))

    @cached_property
    def default_lasts(self) -> tuple[float, ...]:
        """The encoded fields before the first `FieldsChanged`: all defaults."""
        return tuple(number for field in self.fields for number in field.default)

    @cached_property
    def fields_struct(self) -> Struct:
        """Unpacks from `fields_offset` the fields' time and, past the sums and windows, the encoded fields."""
        return Struct(f"<d{8 * (len(self.sums) + self.bucket_starts[-1])}x{self.lasts}f")

    @cached_property
    def fields_offset(self) -> int:
        """The byte offset of the newest `FieldsChanged`'s time; without meaning where no fields are stored."""
        return HEADER_BYTES + 8 * (self.times - 1)

    @cached_property
    def field_spans(self) -> dict[str, tuple[int, int]]:
        """By field, where its numbers begin and end (exclusive) among the lasts."""
        return {field.name: (field.first, field.first + field.count) for field in self.fields}

    @property
    def is_stored(self) -> bool:
        """Whether the layout stores anything for this kind of entity; nothing is looked up."""
        return bool(self.sums or self.times or self.rings)

    def field(self, name: str) -> FieldSlot:
        """The slot of a stored field; raises KeyError for one that no feature needs."""
        for slot in self.fields:
            if slot.name == name:
                return slot
        raise KeyError(name)

    def program(self) -> dict[str, Any]:
        """What a merge needs to know, as plain JSON: the counts of each region in order.

        `sums` is a list of [half-life in seconds, count] runs, `rings` of [length, entry bytes], `windows` of lengths.
        """
        # Named only where there are some: layouts from before there were windows keep their hash.
        windows = {"windows": [window.length for window in self.windows]} if self.windows else {}
        return {
            **windows,
            "mins": len(self.mins),
            "maxs": len(self.maxs),
            "fields": 1 if self.fields else 0,
            "sums": [list(run) for run in self.half_lives],
            "lasts": self.lasts,
            "pad_bytes": self._pad_bytes,
            "rings": [[ring.length, ring.entry_bytes] for ring in self.rings],
            "fixed_bytes": self.fixed_bytes,
        }


def bucket_of(time: float, bucket_s: float) -> int:
    """The number of the bucket that a time (unix seconds) falls in, its start included; 0 begins in 1970."""
    return floor(time / bucket_s)


@lru_cache(maxsize=4096)
def mask_of(categories: tuple[int, ...]) -> int:
    """Category indices, 0 to 63, as a mask: bit i is set for index i."""
    mask = 0
    for index in categories:
        mask |= 1 << index
    return mask
