"""Turns rows into events of the loop, by the mapping; what does not fit is reported by field, value and rule."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from math import isfinite
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from gyre_core.admission import refuse_fields, refuse_interaction
from gyre_core.event_time import parse_moment
from gyre_core.features import EntityKind, Event, FieldsChanged, FieldValue, UserInteraction
from gyre_core.spec import LoopSpec

from gyre_client.history import refusal_of
from gyre_client.importing.mapping import FieldSource, InteractionMapping, ItemMapping, TimeSource, UserMapping
from gyre_client.importing.mapping import Mapping as FileMapping
from gyre_client.importing.rows import Rejected, Row, shown

_LONGEST_ID = 128
_MAX_EXACT = 2**53
"""Up to which a float holds every whole number, so that it may stand for an id."""
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(nan|inf|infinity)", re.ASCII | re.IGNORECASE)
_BOOLEANS = {"true": True, "false": False, "1": True, "0": False, "yes": True, "no": False}
_LATEST = 253402300799.0
AMBIGUOUS, SKIPPED = "ambiguous", "skipped"
"""Local times that the end of summer time has twice, of which the first is taken, and those that its beginning skips,
which are taken as if it had not begun."""
ToEvent = Callable[[Row], Event | Rejected]


class _DoesNotFit(Exception):  # noqa: N818 (reads as what it says)
    """A value that breaks a rule."""

    def __init__(self, field: str, value: object, rule: str) -> None:
        super().__init__(field, value, rule)
        self.field, self.value, self.rule = field, value, rule


def events_by(mapping: FileMapping, spec: LoopSpec, odd_times: Counter[str] | None = None) -> ToEvent:
    """Make the function that turns a row into an event, or into what says why it is none; nothing is sent.

    The first rule that a row breaks is reported; nothing is raised for a row.

    Args:
        mapping: which column is what.
        spec: the loop.
        odd_times: is added to: the count of local times that are `AMBIGUOUS` or `SKIPPED`.
    """
    reads = _interactions if isinstance(mapping, InteractionMapping) else _fields
    make = reads(mapping, spec, Counter() if odd_times is None else odd_times)  # type: ignore[arg-type]
    at = mapping.time.column if mapping.time else "at"

    def turn(row: Row) -> Event | Rejected:
        try:
            event = make(row.values)
        except _DoesNotFit as error:
            return Rejected(row.line, error.field, shown(error.value), error.rule)
        refusal = refusal_of(spec, event)
        if refusal is None:
            return event
        column = at if refusal.field == "time" else refusal.field
        return Rejected(row.line, column, shown(row.values.get(column, "")), f"{refusal.reason}: {refusal.detail}")

    return turn


def _interactions(
    mapping: InteractionMapping, spec: LoopSpec, odd_times: Counter[str]
) -> Callable[[Mapping[str, Any]], Event]:
    time, kind = _time(mapping.time, odd_times), mapping.type

    def make(values: Mapping[str, Any]) -> UserInteraction:
        type_ = kind.value or ""
        if kind.column is not None:
            word = _id(values, kind.column)
            type_ = kind.names.get(word, word)
        given = values.get(mapping.value) if mapping.value is not None else None
        value = None if given in (None, "") else _number(str(mapping.value), given)
        refusal = refuse_interaction(spec, type_, value)
        if refusal is not None:
            column = kind.column if refusal.reason == "UNKNOWN_TYPE" else mapping.value
            raise _DoesNotFit(column or "value", type_ if refusal.reason == "UNKNOWN_TYPE" else given, refusal.detail)
        return UserInteraction(_id(values, mapping.user), _id(values, mapping.item), type_, time(values), value)

    return make


def _fields(
    mapping: ItemMapping | UserMapping, spec: LoopSpec, odd_times: Counter[str]
) -> Callable[[Mapping[str, Any]], Event]:
    entity: EntityKind = "item" if isinstance(mapping, ItemMapping) else "user"
    column = mapping.item if isinstance(mapping, ItemMapping) else mapping.user
    declared = spec.fields(entity)
    sources = [(name, source, declared[name].kind) for name, source in mapping.sources().items()]
    time = _time(mapping.time, odd_times) if mapping.time else None
    at = mapping.at.timestamp() if mapping.at else 0.0

    def make(values: Mapping[str, Any]) -> FieldsChanged:
        fields: dict[str, FieldValue] = {}
        for name, source, kind in sources:
            given = values.get(source.column)
            if given is not None and given != "":
                fields[name] = _field(source, kind, given)
                refusal = refuse_fields(spec, entity, {name: fields[name]})
                if refusal is not None:
                    raise _DoesNotFit(source.column, given, refusal.detail)
        return FieldsChanged(entity, _id(values, column), time(values) if time else at, fields)

    return make


def _field(source: FieldSource, kind: str, given: Any) -> FieldValue:
    reader = _FIELDS.get(kind)
    return reader(source, given) if reader else _text(source.column, given)


def _boolean(source: FieldSource, given: Any) -> FieldValue:
    truth = given if isinstance(given, bool) else _BOOLEANS.get(str(given).strip().lower())
    if truth is None:
        raise _DoesNotFit(source.column, given, f"must be one of {', '.join(_BOOLEANS)}")
    return truth


def _categories(source: FieldSource, given: Any) -> FieldValue:
    if isinstance(given, list):
        return [_text(source.column, each) for each in given]
    text = _text(source.column, given)
    return [each.strip() for each in text.split(source.separator) if each.strip()] if source.separator else [text]


def _vector(source: FieldSource, given: Any) -> FieldValue:
    parts = given if isinstance(given, list) else str(given).strip(" []").split(source.separator or ",")
    return [_number(source.column, part) for part in parts]


def _point(source: FieldSource, given: Any) -> FieldValue:
    if isinstance(given, datetime | date):
        return _moment(TimeSource(column=source.column), given, Counter())
    return given if isinstance(given, str) else _number(source.column, given)


_FIELDS: Mapping[str, Callable[[FieldSource, Any], FieldValue]] = {
    "number": lambda source, given: _number(source.column, given),
    "boolean": _boolean,
    "categories": _categories,
    "time": _point,
    "vector": _vector,
}


def _id(values: Mapping[str, Any], column: str) -> str:
    given = values.get(column)
    if given is None or given == "":
        raise _DoesNotFit(column, "", "is required")
    # A table without nulls reads numbers as floats where it had some: 7.0 is the user 7.
    if isinstance(given, float | Decimal):
        number = Decimal(given)
        if number.is_finite() and number == number.to_integral_value() and abs(number) <= _MAX_EXACT:
            given = int(number)
    if isinstance(given, bool) or not isinstance(given, str | int | UUID):
        raise _DoesNotFit(column, given, "must be a text or a whole number")
    text = str(given)
    if len(text) > _LONGEST_ID:
        raise _DoesNotFit(column, text, f"must have at most {_LONGEST_ID} characters")
    return _utf8(column, text)


def _text(column: str, given: Any) -> str:
    """A value that is a text, or has one form as a text: a number, a time, a UUID."""
    has_text = isinstance(given, str | int | Decimal | date | UUID) or (isinstance(given, float) and isfinite(given))
    if isinstance(given, bool) or not has_text:
        raise _DoesNotFit(column, given, "must be a text or a number")
    return _utf8(column, str(given))


def _utf8(column: str, text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise _DoesNotFit(column, ascii(text), "must be UTF-8 text") from error
    return text


def _number(column: str, given: Any) -> float:
    if isinstance(given, str) and not _NUMBER.fullmatch(given.strip()):
        raise _DoesNotFit(column, given, "must be a number")
    if isinstance(given, bool) or not isinstance(given, str | int | float | Decimal):
        raise _DoesNotFit(column, given, "must be a number")
    try:
        number = float(given)
    except OverflowError as error:
        raise _DoesNotFit(column, given, "must fit into a float64") from error
    if not isfinite(number):
        raise _DoesNotFit(column, given, "must be a finite number")
    return number


def _time(source: TimeSource, odd_times: Counter[str]) -> Callable[[Mapping[str, Any]], float]:
    def read(values: Mapping[str, Any]) -> float:
        given = values.get(source.column)
        if given is None or given == "":
            raise _DoesNotFit(source.column, "", "is required")
        return _moment(source, given, odd_times)

    return read


def _moment(source: TimeSource, given: Any, odd_times: Counter[str]) -> float:
    """Unix seconds of a value.

    Raises:
        _DoesNotFit: it is no time, or has no UTC offset and the mapping names no zone.
    """
    if source.format in ("unix", "unix_ms") and not isinstance(given, datetime | date):
        seconds = _number(source.column, given) / (1000.0 if source.format == "unix_ms" else 1.0)
    else:
        seconds = _parsed(source, given, odd_times).timestamp()
    if not 0.0 <= seconds <= _LATEST:
        raise _DoesNotFit(source.column, given, "must be a time from 1970 to 9999")
    return seconds


def _parsed(source: TimeSource, given: Any, odd_times: Counter[str]) -> datetime:
    try:
        if isinstance(given, datetime):
            moment = given
        elif isinstance(given, date):
            moment = datetime(given.year, given.month, given.day)  # noqa: DTZ001 (its zone follows below)
        elif source.format in ("iso", "unix", "unix_ms"):
            moment = parse_moment(str(given))
        else:
            moment = datetime.strptime(str(given), source.format)  # noqa: DTZ007 (its zone follows below)
    except ValueError as error:
        wanted = "an ISO 8601 time" if source.format == "iso" else f"a time like {source.format}"
        raise _DoesNotFit(source.column, given, f"must be {wanted}") from error
    if moment.tzinfo is not None:
        return moment
    if source.zone is None:
        raise _DoesNotFit(source.column, given, "must carry its UTC offset, or the mapping a zone")
    if source.zone == "UTC":
        return moment.replace(tzinfo=UTC)
    local = moment.replace(tzinfo=ZoneInfo(source.zone))
    first, second = local.utcoffset(), local.replace(fold=1).utcoffset()
    if first != second and first is not None and second is not None:
        odd_times[AMBIGUOUS if first > second else SKIPPED] += 1
    return local
