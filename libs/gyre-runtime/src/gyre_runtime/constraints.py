"""Checks a message against the constraints that its proto declares, compiled once for each message type.

The options are `gyre.options.v1.rules` (proto/gyre/options/v1/constraints.proto). A rule on a repeated field holds for
each element; rules on a map field hold for its values, and a bound on their length for keys without a bound of their
own. What is unset and not required is not looked at, except that a number without presence is always in its range. A
`google.protobuf.Timestamp` is always within what its own definition allows.
"""

import math
import re
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import lru_cache
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from gyre.options.v1 import constraints_pb2
from gyre_core.event_time import END_TIME_S, FIRST_TIME_S
from gyre_core.float32 import FLOAT32_MAX
from gyre_core.shown import cut, number, shown

from gyre_runtime.errors import UNSET, Invalid, Violation

__all__ = ["Checker", "Violation", "checker_for", "max_length", "require_valid"]

Checker = Callable[[Message], list[Violation]]
Rule = Callable[[Any], str | None]
FieldCheck = Callable[[Message], Sequence[Violation]]

_MAX_VIOLATIONS = 32
_FLOATS = (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT)
_OK: tuple[Violation, ...] = ()
_MAX_NANOS = 999_999_999
_MUST_MATCH = "must match "


@lru_cache(maxsize=1024)
def checker_for(descriptor: Descriptor) -> Checker:
    """The checker of a message type, compiled once a process; it returns the broken rules, at most 32, [] for none."""
    checks = _compile(descriptor, {})

    def check(message: Message) -> list[Violation]:
        broken: list[Violation] = []
        for field_check in checks:
            found = field_check(message)
            if found:
                broken.extend(found)
                if len(broken) >= _MAX_VIOLATIONS:
                    return broken[:_MAX_VIOLATIONS]
        return broken

    return check


def require_valid(message: Message) -> None:
    """Return nothing where a message breaks no rule of its proto, else raise.

    Raises:
        Invalid: with reason INVALID_FIELD and the violations, at most 32.
    """
    broken = checker_for(message.DESCRIPTOR)(message)
    if broken:
        raise invalid(broken)


def max_length(descriptor: Descriptor, field: str) -> int:
    """The most characters that a message's text may have, or each of its texts; 0 where that is not bounded.

    Raises:
        KeyError: the message has no such field.
    """
    return int(descriptor.fields_by_name[field].GetOptions().Extensions[constraints_pb2.rules].max_len)


def invalid(broken: Sequence[Violation]) -> Invalid:
    """Build, and do not raise, the error for broken field rules, of which there is at least one."""
    return Invalid("INVALID_FIELD", str(broken[0]), violations=broken)


def _compile(descriptor: Descriptor, known: dict[str, list[FieldCheck]]) -> list[FieldCheck]:
    if descriptor.full_name in known:
        return known[descriptor.full_name]
    checks = known.setdefault(descriptor.full_name, [])
    if descriptor.full_name == Timestamp.DESCRIPTOR.full_name:
        checks.append(_timestamp_check)
    for field in descriptor.fields:
        checks.extend(_field_checks(field, known))
    return checks


def _field_checks(field: FieldDescriptor, known: dict[str, list[FieldCheck]]) -> Iterable[FieldCheck]:
    rules = field.GetOptions().Extensions[constraints_pb2.rules]
    is_map = _is_map(field)
    if rules.required:
        yield _presence_check(field)
    if rules.min_items or rules.max_items:
        yield _count_check(field.name, rules)
    element = field.message_type.fields_by_name["value"] if is_map and field.message_type else field
    key_len = rules.max_key_len or rules.max_len
    if is_map and key_len:
        yield _key_check(field.name, key_len)
    rule = _element_rule(element, rules)
    if rule is not None:
        yield _value_check(field, rule, rules)
    if element.message_type is not None:
        yield from _nested_check(field, element.message_type, known)


def _timestamp_check(message: Any) -> Sequence[Violation]:
    """Whether a Timestamp is a time at all: others cannot be converted, and protobuf's JSON has no text for them."""
    if not FIRST_TIME_S <= message.seconds < END_TIME_S:
        return (Violation("seconds", _shown(message.seconds), "must be a time from year 1 to 9999"),)
    if not 0 <= message.nanos <= _MAX_NANOS:
        return (Violation("nanos", _shown(message.nanos), f"must be 0 to {_MAX_NANOS:,}"),)
    return _OK


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)


def _shown(value: object) -> str:
    return shown(value) if isinstance(value, str | bytes | int | float) else type(value).__name__


def _found(value: object, rule: str) -> str:
    """What a violation shows of a value: of a text of a wrong length no more than the length, as it may name people."""
    if isinstance(value, str) and not rule.startswith(_MUST_MATCH):
        return _count(len(value), "character")
    return _shown(value)


def _count(count: float, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _presence_check(field: FieldDescriptor) -> FieldCheck:
    name = field.name
    broken = (Violation(name, UNSET, "is required"),)
    if field.has_presence:
        if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
            return lambda message: _OK if getattr(message, name) else broken
        return lambda message: _OK if message.HasField(name) else broken
    return lambda message: _OK if getattr(message, name) else broken


def _count_check(name: str, rules: constraints_pb2.FieldRules) -> FieldCheck:
    minimum, maximum = rules.min_items, rules.max_items or math.inf

    def check(message: Message) -> Sequence[Violation]:
        count = len(getattr(message, name))
        if minimum <= count <= maximum or (count == 0 and rules.required):  # that it is required is said already
            return _OK
        bound = f"at least {_count(minimum, 'item')}" if count < minimum else f"at most {_count(maximum, 'item')}"
        return (Violation(name, _count(count, "item"), f"must have {bound}"),)

    return check


def _element_rule(field: FieldDescriptor, rules: constraints_pb2.FieldRules) -> Rule | None:
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return _text_rule(rules, elements_required=rules.required and field.is_repeated)
    if field.cpp_type not in (FieldDescriptor.CPPTYPE_MESSAGE, FieldDescriptor.CPPTYPE_BOOL):
        return _number_rule(field, rules)
    return None


def _text_rule(rules: constraints_pb2.FieldRules, *, elements_required: bool) -> Rule | None:
    minimum = max(rules.min_len, 1 if elements_required else 0)
    maximum, pattern = rules.max_len or math.inf, re.compile(rules.pattern) if rules.pattern else None
    if not (minimum or rules.max_len or pattern):
        return None

    def rule(value: Any) -> str | None:
        if len(value) < minimum:
            return f"must have at least {_count(minimum, 'character')}"
        if len(value) > maximum:
            return f"must have at most {_count(maximum, 'character')}"
        if pattern is not None and value and not pattern.fullmatch(value):
            return f"{_MUST_MATCH}{pattern.pattern}"
        return None

    return rule


def _number_rule(field: FieldDescriptor, rules: constraints_pb2.FieldRules) -> Rule | None:
    minimum = rules.min if rules.HasField("min") else -math.inf
    maximum = rules.max if rules.HasField("max") else math.inf
    finite = rules.finite and field.cpp_type in _FLOATS
    fits = FLOAT32_MAX if rules.float32 and field.cpp_type in _FLOATS else math.inf
    if minimum == -math.inf and maximum == math.inf and not finite and fits == math.inf:
        return None

    def rule(value: Any) -> str | None:
        if finite and not math.isfinite(value):
            return "must be finite"
        if not -fits <= value <= fits:
            return "must fit into float32"
        if not value >= minimum:
            return f"must be at least {number(minimum)}"
        if not value <= maximum:
            return f"must be at most {number(maximum)}"
        return None

    return rule


def _value_check(field: FieldDescriptor, rule: Rule, rules: constraints_pb2.FieldRules) -> FieldCheck:
    name = field.name
    if _is_map(field):
        return lambda message: _each(name, rule, getattr(message, name).items())
    if field.is_repeated:
        return _repeated_check(name, rule, rules)
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return _text_check(name, rule, rules)
    has_presence = field.has_presence

    def check(message: Message) -> Sequence[Violation]:
        if has_presence and not message.HasField(name):
            return _OK
        value = getattr(message, name)
        problem = rule(value)
        return (Violation(name, _found(value, problem), problem),) if problem else _OK

    return check


def _text_check(name: str, rule: Rule, rules: constraints_pb2.FieldRules) -> FieldCheck:
    """Check a single text; one that is unset or empty is not looked at."""
    shortest = 0 if rules.pattern else rules.min_len
    longest = -1 if rules.pattern else rules.max_len or sys.maxsize

    def check(message: Message) -> Sequence[Violation]:
        value = getattr(message, name)
        if not value or shortest <= len(value) <= longest:
            return _OK
        problem = rule(value)
        return (Violation(name, _found(value, problem), problem),) if problem else _OK

    return check


def _key_check(name: str, maximum: int) -> FieldCheck:
    rule = f"must have keys of at most {maximum} characters"

    def check(message: Message) -> Sequence[Violation]:
        bad = next((key for key in getattr(message, name) if len(key) > maximum), None)
        return _OK if bad is None else (Violation(name, f"a key of {len(bad)} characters", rule),)

    return check


def _repeated_check(name: str, rule: Rule, rules: constraints_pb2.FieldRules) -> FieldCheck:
    lengths_only = bool(rules.max_len) and not rules.pattern
    minimum, maximum = max(rules.min_len, 1 if rules.required else 0), rules.max_len

    def check(message: Message) -> Sequence[Violation]:
        values: Collection[Any] = getattr(message, name)
        if not values:
            return _OK
        if lengths_only:
            lengths = set(map(len, values))
            if min(lengths) >= minimum and max(lengths) <= maximum:
                return _OK
        return _each(name, rule, enumerate(values))

    return check


def _each(name: str, rule: Rule, entries: Iterable[tuple[Any, Any]]) -> list[Violation]:
    broken = []
    for key, value in entries:
        problem = rule(value)
        if problem:
            broken.append(Violation(f"{name}[{cut(str(key))}]", _found(value, problem), problem))
            if len(broken) >= _MAX_VIOLATIONS:
                break
    return broken


def _nested_check(
    field: FieldDescriptor, nested: Descriptor, known: dict[str, list[FieldCheck]]
) -> Iterable[FieldCheck]:
    checks = _compile(nested, known)
    recursive = nested == field.containing_type
    if not checks and not recursive:
        return
    name = field.name

    def below(path: str, message: Message) -> list[Violation]:
        return [
            Violation(f"{path}.{broken.field}", broken.value, broken.rule)
            for check in checks
            for broken in check(message)
        ]

    def check_many(message: Message) -> Sequence[Violation]:
        values = getattr(message, name)
        pairs = values.items() if _is_map(field) else enumerate(values)
        return [broken for key, value in pairs for broken in below(f"{name}[{key}]", value)]

    def check_one(message: Message) -> Sequence[Violation]:
        return below(name, getattr(message, name)) if message.HasField(name) else _OK

    yield check_many if field.is_repeated else check_one
