"""Fields of items and users as float32 numbers: how a field's value becomes those of its slot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from struct import Struct
from typing import Any

from gyre_core.event_time import parse_time
from gyre_core.features.events import FieldValue
from gyre_core.features.identity import item_hash
from gyre_core.features.slots import FieldSlot
from gyre_core.float32 import FLOAT32_MAX

_F32 = Struct("<f")
UNKNOWN_TIME = (float("-inf"), 0.0)


def round_f32(value: float) -> float:
    """The nearest float32; a value beyond its range becomes its greatest or least, infinities too."""
    return float(_F32.unpack(_F32.pack(min(max(value, -FLOAT32_MAX), FLOAT32_MAX)))[0])


def time_pair(time: float) -> tuple[float, float]:
    """A unix time as two float32, the greater first, whose sum is exact to well under a millisecond."""
    high = round_f32(time)
    return high, round_f32(time - high)


def default_of(field: Any) -> tuple[float, ...]:
    """The numbers that stand in for an absent value of a declared field."""
    if field.kind in ("category", "categories"):
        return (0.0,) * len(field.categories)
    if field.kind == "time":
        return UNKNOWN_TIME
    if field.kind == "vector":
        return (0.0,) * int(field.length)
    return (round_f32(float(getattr(field, "default", 0.0))),)


def slot_of(name: str, field: Any, *, first: int = 0) -> FieldSlot:
    """The slot of a declared field, its numbers beginning at `first`."""
    default, categories = default_of(field), tuple(getattr(field, "categories", ()))
    hashed = getattr(field, "buckets", None) is not None
    return FieldSlot(name, field.kind, first, len(default), categories, default, hashed=hashed)


def encode(slot: FieldSlot, value: FieldValue) -> tuple[float, ...]:
    """A field's value as its slot's numbers, rounded to float32; a category that is not listed is left out.

    A boolean counts as 0 or 1 where a number is expected, and a number beyond float32 becomes the greatest. Raises
    ValueError where the value is not of the field's kind or not finite, OverflowError for an int beyond float64.
    """
    if slot.kind == "text":
        return (float(len(_text(slot, value))),)
    if slot.kind == "category":
        return _held(slot, (text,)) if (text := _text(slot, value)) else slot.default
    if slot.kind == "categories":
        return _held(slot, _texts(slot, value))
    if slot.kind == "time":
        return time_pair(_time(slot, value))
    if slot.kind == "vector":
        return _vector(slot, value)
    return (round_f32(_number(slot, value)),)


def _held(slot: FieldSlot, texts: Sequence[str]) -> tuple[float, ...]:
    chosen = {str(item_hash(text) % slot.count) for text in texts} if slot.hashed else set(texts)
    return tuple(1.0 if each in chosen else 0.0 for each in slot.values)


def encode_all(slots: Sequence[FieldSlot], fields: Mapping[str, FieldValue]) -> list[float]:
    """The numbers of all slots, one after the other, defaults where a field is absent.

    Fields without a slot are ignored. Raises what `encode` raises.
    """
    numbers: list[float] = []
    for slot in slots:
        numbers.extend(encode(slot, fields[slot.name]) if slot.name in fields else slot.default)
    return numbers


def _number(slot: FieldSlot, value: FieldValue) -> float:
    number = value if isinstance(value, int | float) else float("nan")
    if not isfinite(number):
        raise ValueError(f"{slot.name} = {value!r}: must be a finite {slot.kind}")
    return float(number)


def _vector(slot: FieldSlot, value: FieldValue) -> tuple[float, ...]:
    numbers = [each for each in value if isinstance(each, int | float)] if isinstance(value, Sequence) else []
    if len(numbers) != slot.count or not all(map(isfinite, numbers)):
        given = f"{len(value)} values" if isinstance(value, Sequence) else repr(value)
        raise ValueError(f"{slot.name} = {given}: must be {slot.count} finite numbers")
    return tuple(map(round_f32, numbers))


def _time(slot: FieldSlot, value: FieldValue) -> float:
    if not isinstance(value, str):
        return _number(slot, value)
    try:
        return parse_time(value)
    except ValueError as error:
        rule = str(error) if str(error).startswith("must") else "must be unix seconds or an ISO 8601 time"
        raise ValueError(f"{slot.name} = {value!r}: {rule}") from error


def _text(slot: FieldSlot, value: FieldValue) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{slot.name} = {value!r}: must be text")  # noqa: TRY004 (bad data, no bug)
    return value


def _texts(slot: FieldSlot, value: FieldValue) -> Sequence[str]:
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, Sequence):
        raise ValueError(f"{slot.name} = {value!r}: must be categories")  # noqa: TRY004 (bad data, no bug)
    texts = [each for each in value if isinstance(each, str)]
    if len(texts) != len(value):
        raise ValueError(f"{slot.name} = {value!r}: must be categories")
    return texts
