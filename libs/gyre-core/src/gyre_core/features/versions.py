"""Item fields as of an event's time: the newest version not newer than the event, or the oldest known one.

An event's contribution depends on an item's fields only by the categories that the item holds. Contributions are
buffered with what they read, so that a late version corrects them: the contribution is subtracted as it was and
applied again as it should be. An unknown item holds no category; its events count at once for all that needs no
fields, and stay buffered longer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, isnan
from struct import Struct
from typing import NamedTuple

from gyre_core.features.slots import EntityLayout
from gyre_core.features.state import unpack_fields

_HEAD = Struct("<ddBBHH")
_NEVER = float("-inf")


@dataclass(frozen=True, slots=True, eq=False)
class ItemCategories:
    """Which categories an item holds, in every field that contributions read: as bits, and as indices by field.

    It is not `is_known` where no version of its fields was there; then it holds none.
    """

    mask: int
    categories: Mapping[str, tuple[int, ...]]
    is_known: bool = True


class Version(NamedTuple):
    """An item's encoded fields from a time (unix seconds) on."""

    time: float
    numbers: tuple[float, ...]
    held: ItemCategories


Versions = tuple[Version, ...]
"""Oldest first; empty for an unknown item."""


@dataclass(slots=True, eq=False)
class Contribution:
    """One event, of one item, and what it read of that item's fields, from which late fields correct what it added.

    `time` is in unix seconds, `value` NaN where the event has none; `mask` and `is_known` are those of
    `ItemCategories`. Two are equal only where they are one object.
    """

    item_id: str
    user_id: str
    type: str
    time: float
    value: float
    mask: int
    is_known: bool

    def has_read(self, held: ItemCategories) -> bool:
        """Whether the event read just these categories, so that nothing is to be corrected."""
        return held.mask == self.mask and held.is_known == self.is_known

    def again(self, held: ItemCategories) -> Contribution:
        """A copy that says that the event read these categories; what was added to states is not changed."""
        return Contribution(self.item_id, self.user_id, self.type, self.time, self.value, held.mask, held.is_known)

    @property
    def given(self) -> float | None:
        """The event's value, None where it has none."""
        return None if isnan(self.value) else self.value


class ItemFields:
    """What contributions read of an item's fields; compiled once for each layout.

    Args:
        entity: the item's slots.
        fields: the category fields that contributions read; none where no feature keeps categories apart.
        events: the event types, in the layout's order.
    """

    def __init__(self, entity: EntityLayout, fields: Sequence[str], events: Sequence[str]) -> None:
        self.fields = tuple(fields)
        self._entity, self._events = entity, tuple(events)
        self._type_of = {event: index for index, event in enumerate(events)}
        self._spans = [entity.field_spans[field] for field in fields]
        self._starts = [sum(end - first for first, end in self._spans[:index]) for index in range(len(self._spans))]
        self._mask_bytes = (sum(end - first for first, end in self._spans) + 7) // 8
        self._numbers = Struct(f"<{entity.lasts}f")
        self._older = Struct(f"<d{entity.lasts}f")
        self._held: dict[int, ItemCategories] = {}
        self.unknown = ItemCategories(0, dict.fromkeys(fields, ()), is_known=False)

    def held(self, mask: int) -> ItemCategories:
        """What a known item with these bits holds."""
        found = self._held.get(mask)
        if found is None:
            named = {
                field: tuple(index for index in range(end - first) if mask >> (start + index) & 1)
                for field, start, (first, end) in zip(self.fields, self._starts, self._spans, strict=True)
            }
            found = self._held[mask] = ItemCategories(mask, named)
        return found

    def version(self, time: float, numbers: Sequence[float]) -> Version:
        """A version of encoded fields from a time (unix seconds) on, rounded to float32 as it will be stored."""
        stored = self._numbers.unpack(self._numbers.pack(*numbers))
        mask = 0
        for start, (first, end) in zip(self._starts, self._spans, strict=True):
            for index in range(end - first):
                if stored[first + index] > 0:
                    mask |= 1 << (start + index)
        return Version(time, stored, self.held(mask))

    def as_of(self, versions: Versions, time: float) -> ItemCategories:
        """What an item held at a time (unix seconds), its start included: before the oldest version what that says."""
        if not versions:
            return self.unknown
        for version in reversed(versions):
            if version.time <= time:
                return version.held
        return versions[0].held

    def unpack(self, value: bytes | None, older: bytes | None = None) -> Versions:
        """The versions of an item from its packed value and from what `pack` gave of those that it does not hold."""
        time, numbers = unpack_fields(self._entity, value)
        versions = tuple([self.version(each[0], each[1:]) for each in self._older.iter_unpack(older or b"")])
        if time == _NEVER:
            return versions
        newest = self.version(time, numbers)
        return with_version(versions, newest, kept_s=inf) if versions else (newest,)

    def pack(self, versions: Versions) -> bytes:
        """The versions given, as bytes: to be stored beside an item's value, which holds the newest."""
        return b"".join([self._older.pack(each.time, *each.numbers) for each in versions])

    def pack_contributions(self, contributions: Iterable[Contribution]) -> bytes:
        """Contributions as bytes, for `unpack_contributions` of the same layout."""
        parts: list[bytes] = []
        pack, size, types = _HEAD.pack, self._mask_bytes, self._type_of
        for contribution in contributions:
            item, user = contribution.item_id.encode(), contribution.user_id.encode()
            parts.append(
                pack(
                    contribution.time,
                    contribution.value,
                    types[contribution.type],
                    contribution.is_known,
                    len(item),
                    len(user),
                )
            )
            parts += (contribution.mask.to_bytes(size, "little"), item, user)
        return b"".join(parts)

    def unpack_contributions(self, packed: bytes, offset: int = 0) -> list[Contribution]:
        """What `pack_contributions` packed, in its order, from an offset in bytes on."""
        found: list[Contribution] = []
        while offset < len(packed):
            time, value, type_, known, item, user = _HEAD.unpack_from(packed, offset)
            offset += _HEAD.size
            mask = int.from_bytes(packed[offset : offset + self._mask_bytes], "little")
            offset += self._mask_bytes
            names = packed[offset : offset + item].decode(), packed[offset + item : offset + item + user].decode()
            offset += item + user
            found.append(Contribution(*names, self._events[type_], time, value, mask, bool(known)))
        return found


def with_version(versions: Versions, added: Version, *, kept_s: float) -> Versions:
    """The versions with one more, oldest first; it replaces one of the same time, since it comes later in the log.

    The same object where nothing changes. A version goes once the one after it has been there for `kept_s` seconds of
    event time: no event that may come still is so old.
    """
    same = [each for each in versions if each.time == added.time]
    if same and same[0].numbers == added.numbers:
        return versions
    found = sorted([*(each for each in versions if each.time != added.time), added], key=lambda each: each.time)
    while len(found) > 1 and found[1].time <= found[-1].time - kept_s:
        del found[0]
    kept = tuple(found)
    return versions if kept == versions else kept
