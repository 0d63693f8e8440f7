"""Which events may enter a loop: the rules of `gyre.yaml` about types, values, fields and times, without any I/O.

Each function answers a `Refusal`, or None for what is admitted. What they say follows from the event, the spec and the
partition's clock alone, so that every reader of a topic says the same, whenever it reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, NamedTuple, Self

from gyre_core.event_time import in_range
from gyre_core.features import FieldValue
from gyre_core.features.encoding import FLOAT32_MAX, encode, slot_of
from gyre_core.shown import shown
from gyre_core.spec import LoopSpec


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an event is refused.

    Attributes:
        reason: for machines, UPPER_SNAKE.
        detail: a sentence for people: field, value and rule.
        field: path of the field within the event, such as `value` or `fields[year]`; empty where it is no one field.
        rule: the rule alone, for who names field and value by themselves; empty where `detail` says no more.
    """

    reason: str
    detail: str
    field: str = ""
    rule: str = ""

    @classmethod
    def of(cls, reason: str, found: str, rule: str, field: str) -> Self:
        """A refusal of what was found in a field, by a rule."""
        return cls(reason, f"{found}: {rule}", field, rule)


@dataclass(frozen=True, slots=True)
class PartitionClock:
    """The replay clock of one topic partition; it is stored with the applied offset, so that a restart decides alike.

    Attributes:
        newest: the newest admitted event time, or the mark that set the clock, unix seconds; -inf before the first.
    """

    newest: float = -inf

    @property
    def is_set(self) -> bool:
        """Whether the clock has a time at all."""
        return self.newest > -inf

    def after(self, event_time: float) -> PartitionClock:
        """The clock once an event was admitted; it never runs backwards."""
        return PartitionClock(event_time) if event_time > self.newest else self


class EventTimes(NamedTuple):
    """What the bounds of time look at.

    Attributes:
        event_time: when it happened, by its producer, unix seconds.
        append_time: when Kafka first took it in, unix seconds.
        source: its CloudEvents source.
        is_behavior: whether it is an interaction or impression; only these have a limit on lateness.
    """

    event_time: float
    append_time: float
    source: str
    is_behavior: bool


def refuse_interaction(spec: LoopSpec, type: str, value: float | None) -> Refusal | None:  # noqa: A002 (the field)
    """What is wrong with an interaction's type or value, or None."""
    declared = spec.events.interactions.get(type)
    if declared is None:
        known = ", ".join(spec.events.interactions)
        return Refusal.of("UNKNOWN_TYPE", f"type {type!r}", f"must be one of {known}", "type")
    if declared.value is None:
        return None
    if value is not None and declared.value.min <= value <= declared.value.max:
        return None
    allowed = f"must be {declared.value.min:g} to {declared.value.max:g}"
    if value is None:
        return Refusal.of("VALUE_MISSING", f"{type} without a value", allowed, "value")
    return Refusal.of("VALUE_OUT_OF_RANGE", f"{type} value {value:g}", allowed, "value")


def refuse_fields(spec: LoopSpec, scope: str, fields: Mapping[str, FieldValue]) -> Refusal | None:
    """What is wrong with the fields of an `item` or `user`, or None; of several faults the first one's by name.

    A map of protobuf has no order: two processes that parse one record may iterate over it differently.
    """
    declared = spec.fields(scope)
    for name, value in sorted(fields.items(), key=lambda each: each[0]):
        field, path = declared.get(name), f"fields[{name}]"
        if field is None:
            known = ", ".join(declared) or "none"
            return Refusal.of("UNKNOWN_FIELD", f"field {name!r}", f"must be one of {known}", path)
        # Stricter than `encode`, which reads what tables hold from before a rule was made.
        rule = _kind_rule(field, value)
        if rule is not None:
            return Refusal.of("FIELD_INVALID", f"{name} = {shown(value)}", rule, path)
        try:
            encode(slot_of(name, field), value)
        except (ValueError, OverflowError) as error:
            found, _, rule = str(error).rpartition(": ")  # no rule of `encode` holds a colon
            return Refusal.of("FIELD_INVALID", found, rule, path)
    return None


def _kind_rule(field: Any, value: FieldValue) -> str | None:
    """The rule that a value breaks by its kind, its size or a category that is not listed; or None."""
    if field.kind == "boolean":
        return None if isinstance(value, bool) else "must be true or false"
    if field.kind in ("number", "time", "vector"):
        return _number_rule(field, value)
    if field.kind in ("category", "categories") and field.values:
        given = (value,) if isinstance(value, str) else value if isinstance(value, Sequence) else ()
        # An empty category stands for none.
        unlisted = [each for each in given if each not in field.values and (each or field.kind == "categories")]
        return f"must be of {', '.join(field.values)}" if unlisted else None
    return None


def _number_rule(field: Any, value: FieldValue) -> str | None:
    numbers = value if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
    if any(isinstance(each, bool) for each in numbers):
        return f"must be a {field.kind}, and not a truth value"
    reals = [each for each in numbers if isinstance(each, int | float)]
    if field.kind == "time":
        return None if all(map(in_range, reals)) else "must be a time from year 1 to 9999"
    return None if all(abs(each) <= FLOAT32_MAX for each in reals) else "must be finite and fit into float32"


def refuse_times(spec: LoopSpec, clock: PartitionClock, times: EventTimes) -> Refusal | None:
    """Whether an event is too old (TOO_OLD) or in the future (IN_THE_FUTURE), or None.

    No event may be further than `max_future` ahead of the time at which Kafka took it in. On the replay clock behaviour
    may not be so far ahead of the partition's newest event either. Behaviour may be `max_lateness` late: on the wall
    clock after the time at which Kafka took it in, on the replay clock after the newest event; the history of
    `events.history_sources` may be as old as it is.
    """
    event_time, append_time, source, is_behavior = times
    if not in_range(event_time):
        return Refusal("TIME_INVALID", "the event time must be from year 1 to 9999 in UTC", "time")
    replays = spec.clock == "replay" and is_behavior
    ahead_s = event_time - append_time
    if ahead_s > spec.events.max_future_s:
        return Refusal.of(
            "IN_THE_FUTURE", f"{ahead_s:.0f} s ahead", f"at most {spec.events.max_future} is allowed", "time"
        )
    if replays and clock.is_set and event_time - clock.newest > spec.events.max_future_s:
        ahead = f"{event_time - clock.newest:.0f} s ahead of its partition's newest event"
        way = f"`gyre clock {spec.loop} --to {event_time:.0f}` where the gap is true"
        return Refusal.of("IN_THE_FUTURE", ahead, f"at most {spec.events.max_future} is allowed; {way}", "time")
    now = clock.newest if replays else append_time
    late_s = now - event_time
    if is_behavior and late_s > spec.events.max_lateness_s and source not in spec.events.history_sources:
        return Refusal.of("TOO_OLD", f"{late_s:.0f} s late", f"at most {spec.events.max_lateness} is allowed", "time")
    return None
