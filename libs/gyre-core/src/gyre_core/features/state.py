"""The unpacked value of an entity: folding events in, merging, packing; the reference for the online store."""

from __future__ import annotations

from collections.abc import Mapping
from math import copysign, isfinite
from struct import Struct
from typing import Any

from gyre_core.features.plans import Plan
from gyre_core.features.slots import HEADER_BYTES, EntityLayout, bucket_of, mask_of
from gyre_core.float32 import FLOAT32_MAX

_COUNT = Struct("<Q")
_NEVER = float("-inf")
_ROUNDING = 1e-10

Entry = tuple[Any, ...]
"""One ring entry: (time, item hash) or (time, item hash, category mask)."""

Categories = Mapping[str, tuple[int, ...]]
"""The category indices of the event's item, by field."""

Change = tuple[Categories, Categories]
"""The categories with which an event was folded, and those with which it should be."""


class State:
    """The value of one entity, unpacked; mutable, at first without events and with default fields.

    The methods that fold and merge change it in place. Its regions are those of `gyre_core.features.slots`.
    """

    __slots__ = (
        "batch",
        "buckets",
        "fields_time",
        "lasts",
        "layout",
        "maxs",
        "mins",
        "newest",
        "reference_time",
        "rings",
        "sums",
    )

    def __init__(self, layout: EntityLayout) -> None:
        self.layout = layout
        self.reference_time = _NEVER
        self.batch = 0
        self.mins = [float("inf")] * len(layout.mins)
        self.maxs = [_NEVER] * len(layout.maxs)
        self.fields_time = _NEVER
        self.sums = [0.0] * len(layout.sums)
        self.lasts = list(layout.default_lasts)
        self.rings: list[list[Entry]] = [[] for _ in layout.rings]
        self.newest = [_NEVER] * len(layout.windows)
        self.buckets = [0.0] * layout.bucket_starts[-1]

    @classmethod
    def unpack(cls, layout: EntityLayout, value: bytes) -> State:
        """A new state of a packed value; raises ValueError where its size does not fit the layout."""
        if len(value) < layout.fixed_bytes:
            raise ValueError(f"{layout.kind} value of {len(value)} bytes: expected at least {layout.fixed_bytes}")
        state = cls(layout)
        state.reference_time, state.batch, *numbers = layout.struct.unpack_from(value)
        first, times = len(layout.mins), layout.times
        state.mins = numbers[:first]
        state.maxs = numbers[first : first + len(layout.maxs)]
        state.newest = numbers[first + len(layout.maxs) : first + len(layout.maxs) + len(layout.windows)]
        state.fields_time = numbers[times - 1] if layout.fields else _NEVER
        buckets = times + len(layout.sums)
        lasts = buckets + layout.bucket_starts[-1]
        state.sums, state.buckets, state.lasts = numbers[times:buckets], numbers[buckets:lasts], numbers[lasts:]
        state.rings = unpack_rings(layout, value)
        return state

    def pack(self, batch: int | None = None) -> bytes:
        """The packed value; `batch`, where given, stands in it in place of the state's own number, which stays."""
        layout = self.layout
        fields_time = (self.fields_time,) if layout.fields else ()
        number = self.batch if batch is None else batch
        times = (*self.mins, *self.maxs, *self.newest, *fields_time)
        fixed = layout.struct.pack(self.reference_time, number, *times, *self.sums, *self.buckets, *self.lasts)
        if not self.rings:
            return fixed
        parts = [fixed]
        for ring, entry in zip(self.rings, layout.ring_structs, strict=True):
            parts.append(_COUNT.pack(len(ring)))
            parts.extend(entry.pack(*each) for each in ring)
        return b"".join(parts)

    def fold(self, plan: Plan, time: float, *, value: float | None, item: int, categories: Categories) -> None:
        """Add one event (time in unix seconds) that `plan` covers; a late one adds its already decayed weight.

        A second call counts it again. A value that is not finite counts as none.
        """
        if time > self.reference_time:
            self._decay_to(time)
        if value is not None and not -FLOAT32_MAX <= value <= FLOAT32_MAX:
            value = _bounded(value)
        if time < self.reference_time:
            self._fold_late(plan, time, value, categories)
        else:
            sums = self.sums
            for slot, _ in plan.counts:
                sums[slot] += 1.0
            if value is not None:
                for slot, _ in plan.valued:
                    sums[slot] += 1.0
                for slot, _ in plan.values:
                    sums[slot] += value
            if categories:
                self._fold_by_category(plan, 0.0, value, categories)
        self._fold_times(plan, time, item, categories)

    def _fold_late(self, plan: Plan, time: float, value: float | None, categories: Categories) -> None:
        lag, sums = self.reference_time - time, self.sums
        for slot, half_life_s in plan.counts:
            sums[slot] += 2.0 ** (-lag / half_life_s)
        if value is not None:
            for slot, half_life_s in plan.valued:
                sums[slot] += 2.0 ** (-lag / half_life_s)
            for slot, half_life_s in plan.values:
                sums[slot] += value * 2.0 ** (-lag / half_life_s)
        if categories:
            self._fold_by_category(plan, lag, value, categories)

    def _fold_by_category(self, plan: Plan, lag: float, value: float | None, categories: Categories) -> None:
        self._add_by_category(plan.affinities, 1.0, lag, categories)
        if value is not None:
            self._add_by_category(plan.valued_by, 1.0, lag, categories)
            self._add_by_category(plan.values_by, value, lag, categories)

    def _add_by_category(
        self, slots: tuple[tuple[int, float, str], ...], added: float, lag: float, categories: Categories
    ) -> None:
        sums = self.sums
        for first, half_life_s, field in slots:
            weight = _decayed(added, lag, half_life_s)
            for category in categories[field]:
                sums[first + category] += weight

    def _fold_times(self, plan: Plan, time: float, item: int, categories: Categories) -> None:
        for slot in plan.mins:
            self.mins[slot] = min(self.mins[slot], time)
        for slot in plan.maxs:
            self.maxs[slot] = max(self.maxs[slot], time)
        for slot, field in plan.rings:
            entry = (time, item, mask_of(categories[field])) if field else (time, item)
            ring = self.rings[slot]
            self.rings[slot] = _newest([entry], ring, self.layout.rings[slot].length) if ring else [entry]
        for slot in plan.windows:
            self._count_in_window(slot, time, 1.0)

    def _count_in_window(self, slot: int, time: float, count: float) -> None:
        """Add events to their bucket; those before the window's oldest are forgotten."""
        window = self.layout.windows[slot]
        bucket = float(bucket_of(time, window.bucket_s))
        if bucket > self.newest[slot]:
            self._advance(slot, bucket)
        if bucket > self.newest[slot] - window.length:
            self.buckets[self.layout.bucket_starts[slot] + int(bucket % window.length)] += count

    def _advance(self, slot: int, bucket: float) -> None:
        """Make a bucket the newest of a window, and those empty that the window has not seen yet."""
        first, length = self.layout.bucket_starts[slot], self.layout.windows[slot].length
        for age in range(int(min(bucket - self.newest[slot], length))):
            self.buckets[first + int((bucket - age) % length)] = 0.0
        self.newest[slot] = bucket

    def _merge_windows(self, delta: State) -> None:
        for slot, window in enumerate(self.layout.windows):
            newest, first = delta.newest[slot], self.layout.bucket_starts[slot]
            if newest > self.newest[slot]:
                self._advance(slot, newest)
            lag = self.newest[slot] - newest
            # Both -inf gives NaN, and a delta without events an infinite lag: neither is less.
            if lag < window.length:
                for age in range(window.length - int(lag)):
                    at = first + int((newest - age) % window.length)
                    self.buckets[at] += delta.buckets[at]

    def fold_count(self, plan: Plan, time: float, *, count: int, categories: Categories | None = None) -> None:
        """Add `count` events to counts and windows at once: the shown items of an impression.

        `categories` holds those of all shown items, one after the other, for the fields that the plan reads.
        """
        if time > self.reference_time:
            self._decay_to(time)
        lag = self.reference_time - time
        for slot, half_life_s in plan.counts:
            self.sums[slot] += _decayed(float(count), lag, half_life_s)
        if categories:
            self._fold_by_category(plan, lag, None, categories)
        for slot in plan.windows:
            self._count_in_window(slot, time, float(count))

    def reapply(self, plan: Plan, time: float, *, value: float | None, item: int, change: Change) -> None:
        """Take back what an event added for the categories that it read (`change[0]`), and add it for `change[1]`.

        What an event adds without categories stays, and so does the reference time.
        """
        before, after = change
        if value is not None and not -FLOAT32_MAX <= value <= FLOAT32_MAX:
            value = _bounded(value)
        lag = max(self.reference_time - time, 0.0)
        self._move_by_category(plan.affinities, 1.0, lag, change)
        if value is not None:
            self._move_by_category(plan.valued_by, 1.0, lag, change)
            self._move_by_category(plan.values_by, value, lag, change)
        for slot, field in plan.rings:
            if field and before[field] != after[field]:
                entry = (time, item, mask_of(after[field]))
                self.rings[slot] = [entry if each[:2] == entry[:2] else each for each in self.rings[slot]]

    def _move_by_category(
        self, slots: tuple[tuple[int, float, str], ...], added: float, lag: float, change: Change
    ) -> None:
        before, after = change
        for first, half_life_s, field in slots:
            if field in before:
                weight = _decayed(added, lag, half_life_s)
                for category in before[field]:
                    self.sums[first + category] = _without(self.sums[first + category], weight)
                for category in after[field]:
                    self.sums[first + category] += weight

    def set_fields(self, time: float, numbers: list[float]) -> None:
        """Replace all encoded fields, unless these are older than those it has: of one time the later call counts."""
        if time >= self.fields_time:
            self.fields_time, self.lasts = time, numbers

    def merge(self, delta: State) -> None:
        """Add to this state what another one saw, a delta of the same layout, which stays as it is.

        Merging one delta twice counts it twice. The order and the grouping of merges do not matter, but for fields of
        one time: those merged later win.
        """
        if delta.reference_time > self.reference_time:
            self._decay_to(delta.reference_time)
        lag, offset = self.reference_time - delta.reference_time, 0
        sums, added = self.sums, delta.sums
        # Both -inf gives NaN, and -inf on one side an infinite lag: in either case the delta has no sums.
        if delta.reference_time > _NEVER:
            for half_life_s, count in self.layout.half_lives:
                factor = 2.0 ** (-lag / half_life_s) if lag else 1.0
                for slot in range(offset, offset + count):
                    sums[slot] += added[slot] * factor
                offset += count
        self.mins = [min(pair) for pair in zip(self.mins, delta.mins, strict=True)]
        self.maxs = [max(pair) for pair in zip(self.maxs, delta.maxs, strict=True)]
        self.set_fields(delta.fields_time, delta.lasts)
        for slot, ring in enumerate(self.layout.rings):
            self.rings[slot] = _newest(delta.rings[slot], self.rings[slot], ring.length)
        self._merge_windows(delta)
        self.batch = max(self.batch, delta.batch)

    def _decay_to(self, time: float) -> None:
        if self.reference_time == _NEVER:
            self.reference_time = time  # there is nothing to decay yet
            return
        elapsed, offset, sums = time - self.reference_time, 0, self.sums
        for half_life_s, count in self.layout.half_lives:
            factor = 2.0 ** (-elapsed / half_life_s)
            for slot in range(offset, offset + count):
                sums[slot] *= factor
            offset += count
        self.reference_time = time


def unpack_fields(layout: EntityLayout, value: bytes | None) -> tuple[float, tuple[float, ...]]:
    """The time of the newest fields and the encoded fields of a packed value, without the rest of it.

    -inf and the defaults where there is no value, or the layout stores no fields. Raises ValueError where the value is
    too short for the layout.
    """
    if value is None or not layout.fields:
        return _NEVER, layout.default_lasts
    if len(value) < layout.fixed_bytes:
        raise ValueError(f"{layout.kind} value of {len(value)} bytes: expected at least {layout.fixed_bytes}")
    time, *numbers = layout.fields_struct.unpack_from(value, layout.fields_offset)
    return time, tuple(numbers)


def unpack_rings(layout: EntityLayout, value: bytes) -> list[list[Entry]]:
    """The rings of a packed value, each newest first; raises ValueError where they do not fit the value's size."""
    rings: list[list[Entry]] = []
    offset = layout.fixed_bytes
    for entry in layout.ring_structs:
        if offset + 8 > len(value):
            raise ValueError(f"{layout.kind} value of {len(value)} bytes: cut short at a history")
        end = offset + 8 + _COUNT.unpack_from(value, offset)[0] * entry.size
        if end > len(value):
            raise ValueError(f"{layout.kind} value of {len(value)} bytes: cut short in a history")
        rings.append(list(entry.iter_unpack(value[offset + 8 : end])))
        offset = end
    if offset != len(value):
        raise ValueError(f"{layout.kind} value of {len(value)} bytes: expected {offset}")
    return rings


def merge(layout: EntityLayout, value: bytes | None, delta: bytes) -> bytes:
    """The packed value after a packed delta, as `State.merge` has it: what the online store's script does, bit for bit.

    Without a value the delta is the value. Raises ValueError where a size does not fit. `HEADER_BYTES` and the rest of
    the format are described in `gyre_core.features.slots`.
    """
    if value is None:
        return delta
    state = State.unpack(layout, value)
    state.merge(State.unpack(layout, delta))
    return state.pack()


def batch_of(value: bytes) -> int:
    """The number of the last batch that was merged into a packed value, from its header."""
    return int(_COUNT.unpack_from(value, HEADER_BYTES - 8)[0])


def _bounded(value: float) -> float | None:
    """None for a value that is not finite; else the nearest that float32 holds, so that means can be read as such."""
    return copysign(FLOAT32_MAX, value) if isfinite(value) else None


def _decayed(weight: float, lag: float, half_life_s: float) -> float:
    return weight * 2.0 ** (-lag / half_life_s) if lag else weight


def _without(total: float, weight: float) -> float:
    """The difference; what is left of rounding alone counts as nothing, since shares are made of these sums."""
    left = total - weight
    return 0.0 if abs(left) < _ROUNDING * max(abs(total), abs(weight)) else left


def _newest(added: list[Entry], ring: list[Entry], length: int) -> list[Entry]:
    if not added:
        return ring
    if len(added) == 1 and (not ring or added[0] >= ring[0]):
        return [added[0], *ring[: length - 1]]
    return sorted([*added, *ring], reverse=True)[:length]
