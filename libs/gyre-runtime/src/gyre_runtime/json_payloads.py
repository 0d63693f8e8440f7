"""Protobuf's JSON mapping, read by its rules: https://protobuf.dev/programming-guides/json/.

Python's parser takes more than the mapping allows and stores something else than what is written: a boolean as a
number, `"1_0"` as 10, an enum's number beyond int32 cut to its low bits, bytes that are no base64.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from gyre_core.shown import cut

from gyre_runtime._json_shape import misshapen_field

_MAX_INT32 = 2**31 - 1
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?|NaN|-?Infinity", re.ASCII)
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]*={0,2}", re.ASCII)
_WELL_KNOWN = "google.protobuf."


def parse_json(text: bytes, kind: type[Message]) -> Message:
    """Return the message that a text in protobuf's JSON mapping, UTF-8, is.

    Raises:
        json_format.ParseError: it is none, or has a field that the type lacks; with the field, its value and the rule.
        UnicodeDecodeError: it is not UTF-8.
    """
    try:
        message = json_format.Parse(text, kind())
    except json_format.ParseError as error:
        # Of a field of another shape the parser says what Python's interpreter does, and does not name it.
        problem = misshapen_field(text, kind.DESCRIPTOR) or " ".join(str(error).split())
        raise json_format.ParseError(problem) from error
    _check(json.loads(text), kind.DESCRIPTOR, "")
    return message


def _check(given: Any, descriptor: Any, path: str) -> None:
    """Check what the parser has taken as a message of some type; it takes an empty list or text for an empty one."""
    if not isinstance(given, dict):
        raise json_format.ParseError(f"{path.rstrip('.') or 'payload'} = {cut(json.dumps(given))}: must be an object")
    for name, value in given.items():
        field = descriptor.fields_by_camelcase_name.get(name) or descriptor.fields_by_name.get(name)
        if field is None or value is None:
            continue
        for place, own, each in _values(field, value, f"{path}{name}"):
            if own.message_type is None:
                rule = _broken_rule(own, each)
                if rule:
                    raise json_format.ParseError(f"{place} = {cut(json.dumps(each))}: {rule}")
            elif not own.message_type.full_name.startswith(_WELL_KNOWN):
                _check(each, own.message_type, f"{place}.")


def _values(field: FieldDescriptor, value: Any, path: str) -> Iterator[tuple[str, FieldDescriptor, Any]]:
    """The single values of a field, each with its path and the field that says what it is."""
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        of_key, of_value = field.message_type.fields_by_name["key"], field.message_type.fields_by_name["value"]
        for key, each in value.items():
            yield f"{path}[{key}] (the key)", of_key, key
            yield f"{path}[{key}]", of_value, each
    elif field.is_repeated:
        for index, each in enumerate(value):
            yield f"{path}[{index}]", field, each
    else:
        yield path, field, value


def _broken_rule(field: FieldDescriptor, value: Any) -> str | None:
    """The rule that a value of a scalar field breaks, or None."""
    kind = field.cpp_type
    if field.enum_type is not None:
        names = field.enum_type.values_by_name
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if is_number and value == int(value) and -_MAX_INT32 - 1 <= value <= _MAX_INT32:
            return None
        return None if isinstance(value, str) and value in names else f"must be {', '.join(names)}, or its number"
    if field.type == FieldDescriptor.TYPE_BYTES:
        is_base64 = _BASE64.fullmatch(value) and len(value.rstrip("=")) % 4 != 1
        return None if is_base64 else "must be base64"
    if kind in (FieldDescriptor.CPPTYPE_STRING, FieldDescriptor.CPPTYPE_BOOL):
        return None
    if isinstance(value, bool) or (isinstance(value, str) and not _NUMBER.fullmatch(value)):
        return "must be a number"
    return None
