"""Which events may enter a loop: the rules of `gyre.yaml` about types, values, fields and times, without any I/O.

Each function answers a `Refusal`, or None for what is admitted. What they say follows from the event, the spec and the
partition's clock alone, so that every reader of a topic says the same, whenever it reads.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, NamedTuple, Self

from gyre_core.event_time import format_time, in_range
from gyre_core.features import FieldValue
from gyre_core.features.encoding import encode, slot_of
from gyre_core.float32 import FLOAT32_MAX
from gyre_core.shown import number, shown
from gyre_core.spec import Duration, LoopSpec

MAX_ID_CHARS = 256
"""Greatest length of an event's id and of its source, each. CloudEvents sets none; what stores remember needs one."""
_IDENTITY = re.compile(rf"(?=.*\S)[^\x00-\x1f\x7f-\x9f]{{1,{MAX_ID_CHARS}}}")


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
        """A refusal with the detail `<found>: <rule>`."""
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
        """The clock once an event of that time was admitted, a new one; an older event leaves it as it is."""
        return PartitionClock(event_time) if event_time > self.newest else self


class EventTimes(NamedTuple):
    """What `refuse_times` judges an event by.

    Attributes:
        event_time: when it happened, by its producer, unix seconds.
        append_time: when Kafka first took it in, unix seconds.
        source: its CloudEvents source.
        is_behavior: whether it is an interaction or impression; only these have a limit on lateness.
        name: of the header or field that holds the event time.
    """

    event_time: float
    append_time: float
    source: str
    is_behavior: bool
    name: str = "ce_time"


def refuse_identity(event_id: str, source: str) -> Refusal | None:
    """What is wrong with an event's id or its source (`ce_id`, `ce_source`), or None.

    CloudEvents' texts hold no control characters
    (https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/spec.md#type-system).
    """
    for name, value in (("ce_id", event_id), ("ce_source", source)):
        if not _is_identity(value):
            count = f"{name} of {len(value):,} characters"
            rule = f"must have at most {MAX_ID_CHARS} characters, one of them not blank and none a control character"
            return Refusal.of("INVALID_FIELD", count, rule, name)
    return None


def _is_identity(text: str) -> bool:
    """Whether a text may be an event's id or source; most are printable, and those need no regular expression."""
    if text.isprintable():
        return 0 < len(text) <= MAX_ID_CHARS and not text.isspace()
    return _IDENTITY.fullmatch(text) is not None


def first_repeat(ids: Sequence[str]) -> int | None:
    """The index of the first id that equals an earlier one; None where all differ."""
    if len(set(ids)) == len(ids):
        return None
    known: set[str] = set()
    for index, each in enumerate(ids):
        if each in known:
            return index
        known.add(each)
    return None


def refuse_interaction(spec: LoopSpec, type: str, value: float | None) -> Refusal | None:  # noqa: A002 (the field)
    """What is wrong with an interaction's type or value, or None; the ids of user and item are not looked at."""
    declared = spec.events.interactions.get(type)
    if declared is None:
        known = ", ".join(spec.events.interactions)
        return Refusal.of("UNKNOWN_TYPE", f"type {type!r}", f"must be one of {known}", "type")
    if declared.value is None and value is None:
        return None
    if declared.value is None:
        rule = "must be unset, as gyre.yaml declares no value of it"
        return Refusal.of("VALUE_UNEXPECTED", f"{type} value {value:g}", rule, "value")
    if value is not None and declared.value.min <= value <= declared.value.max:
        return None
    allowed = f"must be {number(declared.value.min)} to {number(declared.value.max)}"
    if value is None:
        return Refusal.of("VALUE_MISSING", f"{type} without a value", allowed, "value")
    return Refusal.of("VALUE_OUT_OF_RANGE", f"{type} value {number(value)}", allowed, "value")


def refuse_fields(spec: LoopSpec, scope: str, fields: Mapping[str, FieldValue]) -> Refusal | None:
    """What is wrong with the fields of an `item` or `user`, or None; of several faults the first one's by name.

    Fields may be left out; one that is not declared is refused. A map of protobuf has no order: two processes that
    parse one record may iterate over it differently.
    """
    declared = spec.fields(scope)
    for name, value in sorted(fields.items(), key=lambda each: each[0]):
        field, path = declared.get(name), f"fields[{name}]"
        if field is None:
            known = f"must be one of {', '.join(declared)}" if declared else f"gyre.yaml declares no field of {scope}s"
            return Refusal.of("UNKNOWN_FIELD", f"field {name!r}", known, path)
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
    """What is wrong with an event's time, TOO_OLD, IN_THE_FUTURE or TIME_INVALID (no time that can be stored), or None.

    The clock is not moved here: who admits the event calls `PartitionClock.after`. No event may be further than
    `max_future` ahead of the time at which Kafka took it in. On the replay clock behaviour may not be so far ahead of
    the partition's newest event either. Behaviour may be `LoopSpec.max_lateness` late: on the wall clock after the time
    at which Kafka took it in, on the replay clock after the newest event, where it is at least `max_future`, so that
    one event ahead makes no other too old; the history of `events.history_sources` may be as old as it is.
    """
    event_time, append_time, source, is_behavior, name = times
    if not in_range(event_time):
        return Refusal.of("TIME_INVALID", f"{name} = {event_time:g}", "must be a time from year 1 to 9999", "time")
    events, replays = spec.events, spec.clock == "replay" and is_behavior
    ahead_s = event_time - append_time
    if ahead_s > events.max_future_s:
        return _out_of_time("IN_THE_FUTURE", times, f"{ahead_s:.0f} s ahead", events.max_future)
    ahead_s = event_time - clock.newest
    if replays and clock.is_set and ahead_s > events.max_future_s:
        how_far = f"{ahead_s:.0f} s ahead of its partition's newest event"
        way = f"; `gyre clock {spec.loop} --to {event_time:.0f}` where the gap is true"
        return _out_of_time("IN_THE_FUTURE", times, how_far, events.max_future, way)
    late_s = (clock.newest if replays else append_time) - event_time
    if is_behavior and late_s > spec.max_lateness_s and source not in events.history_sources:
        way = f"; `gyre clock {spec.loop} --to {event_time:.0f} --back` where the clock is wrong" if replays else ""
        return _out_of_time("TOO_OLD", times, f"{late_s:.0f} s late", spec.max_lateness, way)
    return None


def _out_of_time(reason: str, times: EventTimes, how_far: str, allowed: Duration, way: str = "") -> Refusal:
    found = f"{times.name} = {format_time(times.event_time)}, {how_far}"
    return Refusal.of(reason, found, f"at most {allowed} is allowed{way}", "time")
