"""Names the field of a JSON payload that has another shape than its message, which protobuf's own error does not."""

import json
from collections.abc import Iterator
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from gyre_core.shown import cut

_WELL_KNOWN = "google.protobuf."
_JSON_NAMES = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}


def misshapen_field(body: bytes, kind: Any) -> str:
    """The first field of a JSON payload that is no object, list or map where its message has one, with what is wanted.

    Args:
        body: the payload.
        kind: the descriptor of the message that it is read as.

    Returns:
        The field's path, what was found (never a value, as it may name people) and the rule; empty where each has the
        shape that is wanted, or the payload is no JSON.
    """
    try:
        return next(_problems("", json.loads(body), kind), "")
    except (ValueError, RecursionError):
        return ""


def _problems(path: str, value: Any, kind: Any) -> Iterator[str]:
    if kind.full_name.startswith(_WELL_KNOWN):
        return
    if not isinstance(value, dict):
        names = ", ".join(field.json_name for field in kind.fields)
        yield f"{path or 'payload'} = {_found(value)}: must be an object of {kind.name} with {names}"
        return
    fields = {name: field for field in kind.fields for name in (field.json_name, field.name)}
    for name, inner in value.items():
        if name in fields and inner is not None:
            yield from _of_field(f"{path}.{name}".lstrip("."), inner, fields[name])


def _of_field(path: str, value: Any, field: FieldDescriptor) -> Iterator[str]:
    kind = field.message_type
    if kind is not None and kind.GetOptions().map_entry:
        if not isinstance(value, dict):
            yield f"{path} = {_found(value)}: must be an object"
            return
        element = kind.fields_by_name["value"].message_type
        inner = [(f"{path}[{cut(key)}]", each) for key, each in value.items()]
    elif field.is_repeated:
        if not isinstance(value, list):
            yield f"{path} = {_found(value)}: must be a list"
            return
        element, inner = kind, [(f"{path}[{index}]", each) for index, each in enumerate(value)]
    else:
        element, inner = kind, [(path, value)]
    if element is not None:
        for where, each in inner:
            yield from _problems(where, each, element)


def _found(value: Any) -> str:
    return _JSON_NAMES.get(type(value), "a number")
