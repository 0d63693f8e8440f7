"""What callers of the SDK give, checked before it goes into a message.

A value of a wrong kind is a TypeError, one that no message can hold a ValueError; both name field, value and rule. The
loop's own rules are the gateway's to check.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import TypeGuard

from gyre_core.event_time import in_range
from gyre_core.shown import shown

_MAX_COUNT = 1000


def text(field: str, value: object) -> str:
    """The value itself, where it is a text that UTF-8 can write; raises as the module says, like all checks here."""
    if not isinstance(value, str):
        raise wrong_kind(field, value, "must be a text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{field} = {shown(value)}: must be UTF-8 text") from error
    return value


def texts(field: str, values: object) -> list[str]:
    """The values as a list of texts, in their order; a single text is no list."""
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise wrong_kind(field, values, "must be a list of texts")
    return [text(f"{field}[{index}]", each) for index, each in enumerate(values)]


def number(field: str, value: object) -> float:
    """The value as a float; a truth value is no number, infinities and NaN are."""
    if not is_number(value):
        raise wrong_kind(field, value, "must be a number")
    try:
        return float(value)
    except OverflowError as error:
        raise ValueError(f"{field} = {shown(value)}: must fit into a double") from error


def is_number(value: object) -> TypeGuard[Real]:
    """Whether a value is a number, Python's or numpy's."""
    return isinstance(value, Real) and not isinstance(value, bool)


def count(field: str, value: object) -> int:
    """The value as an int of 0 to 2^32 - 1; that more are wanted than the gateway answers is its own to refuse."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise wrong_kind(field, value, "must be a whole number")
    given = int(value)
    if not 0 <= given < 2**32:
        raise ValueError(f"{field} = {given}: must be 0 to {_MAX_COUNT}")
    return given


def unix_time(field: str, value: object) -> float:
    """The value as unix seconds, from year 1 to 9999."""
    unix_s = number(field, value)
    if not in_range(unix_s):
        raise ValueError(f"{field} = {unix_s:g}: must be a time from year 1 to 9999, in unix seconds")
    return unix_s


def numbers_by_name(field: str, values: object) -> dict[str, float]:
    """A mapping of texts to numbers, as a dict of floats."""
    return {name: number(f"{field}[{name}]", value) for name, value in _items(field, values)}


def texts_by_name(field: str, values: object) -> dict[str, str]:
    """A mapping of texts to texts, as a dict."""
    return {name: text(f"{field}[{name}]", value) for name, value in _items(field, values)}


def _items(field: str, values: object) -> Iterable[tuple[str, object]]:
    if not isinstance(values, Mapping):
        raise wrong_kind(field, values, "must be a mapping of names to values")
    return [(text(f"a name in {field}", name), value) for name, value in values.items()]


def wrong_kind(field: str, value: object, rule: str) -> TypeError:
    """Make the error for a value of a wrong kind; the caller raises it."""
    return TypeError(f"{field} = {shown(value)}: {rule}")
