"""Whether an event may enter a loop at all: the rules that decide between the stream and the dead letters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite

from gyre_core.clock import LoopClock
from gyre_core.features import FieldValue
from gyre_core.features.encoding import encode, slot_of
from gyre_core.spec import LoopSpec


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an event is refused: a reason for machines (UPPER_SNAKE) and a sentence for people."""

    reason: str
    detail: str


def refuse_interaction(spec: LoopSpec, type: str, value: float | None) -> Refusal | None:  # noqa: A002 (the field)
    """What is wrong with an interaction's type or value, or None."""
    declared = spec.events.interactions.get(type)
    if declared is None:
        known = ", ".join(spec.events.interactions)
        return Refusal("UNKNOWN_TYPE", f"type {type!r}: must be one of {known}")
    if declared.value is None:
        return None
    if value is not None and declared.value.min <= value <= declared.value.max:
        return None
    allowed = f"must be {declared.value.min:g} to {declared.value.max:g}"
    if value is None:
        return Refusal("VALUE_MISSING", f"{type} without a value: {allowed}")
    return Refusal("VALUE_OUT_OF_RANGE", f"{type} value {value:g}: {allowed}")


def refuse_fields(spec: LoopSpec, scope: str, fields: Mapping[str, FieldValue]) -> Refusal | None:
    """What is wrong with the fields of an `item` or `user`, or None."""
    declared = spec.fields(scope)
    for name, value in fields.items():
        field = declared.get(name)
        if field is None:
            return Refusal("UNKNOWN_FIELD", f"field {name!r}: must be one of {', '.join(declared) or 'none'}")
        try:
            encode(slot_of(name, field), value)
        except ValueError as error:
            return Refusal("FIELD_INVALID", str(error))
    return None


def refuse_time(spec: LoopSpec, clock: LoopClock, event_time: float) -> Refusal | None:
    """Whether an event is too old or in the future for the loop's clock, or None.

    On the replay clock an event moves the clock itself, so only the wall can say what is in the future. Observe the
    event after it was admitted, never before: one stray time would make everything after it late.
    """
    if not isfinite(event_time):
        return Refusal("TIME_INVALID", "the event time is no number")
    ahead_s = event_time - clock.wall()
    if ahead_s > spec.events.max_future_s:
        return Refusal("IN_THE_FUTURE", f"{ahead_s:.0f} s ahead: at most {spec.events.max_future} is allowed")
    late_s = clock.now() - event_time
    if late_s > spec.events.max_lateness_s:
        return Refusal("TOO_OLD", f"{late_s:.0f} s late: at most {spec.events.max_lateness} is allowed")
    return None
