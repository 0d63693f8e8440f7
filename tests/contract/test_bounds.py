"""Every text, list and map that a caller or a producer gives has a bound in its proto."""

import importlib
from collections.abc import Iterator
from pathlib import Path

import gyre
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.descriptor_pool import Default
from gyre.gateway.v1 import gateway_pb2
from gyre.options.v1 import constraints_pb2
from gyre_core.admission import MAX_ID_CHARS
from gyre_core.topics import TOPICS

_TEXTS = (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES)


def _requests() -> Iterator[str]:
    """The full names of all requests of all services."""
    root = Path(next(iter(gyre.__path__)))
    for file in sorted(root.rglob("*_pb2.py")):
        name = ".".join(("gyre", *file.relative_to(root).with_suffix("").parts))
        for service in importlib.import_module(name).DESCRIPTOR.services_by_name.values():
            yield from (method.input_type.full_name for method in service.methods)


def _unbounded(descriptor: Descriptor, seen: set[str]) -> Iterator[str]:
    """The fields of a message, and of those within it, that lack a bound, each with the rule that it lacks."""
    if descriptor.full_name in seen or descriptor.full_name.startswith("google."):
        return
    seen.add(descriptor.full_name)
    for field in descriptor.fields:
        rules, nested = field.GetOptions().Extensions[constraints_pb2.rules], field.message_type
        is_map = nested is not None and nested.GetOptions().map_entry
        value = nested.fields_by_name["value"] if is_map else field
        lacks = {
            "max_items": field.is_repeated and not rules.max_items,
            "max_key_len": is_map and not (rules.max_key_len or rules.max_len),
            "max_len": value.type in _TEXTS and not (rules.max_len or rules.pattern),
        }
        yield from (f"{field.full_name}: {rule}" for rule, missing in lacks.items() if missing)
        if value.message_type is not None:
            yield from _unbounded(value.message_type, seen)


def test_an_events_id_has_one_bound() -> None:
    """What `Track` takes as an id is as long as what is admitted from Kafka."""
    field = gateway_pb2.TrackedEvent.DESCRIPTOR.fields_by_name["event_id"]
    assert field.GetOptions().Extensions[constraints_pb2.rules].max_len == MAX_ID_CHARS


@pytest.mark.parametrize("name", sorted({*_requests(), *(decl.payload for decl in TOPICS)}))
def test_what_is_given_is_bounded(name: str) -> None:
    """Each text has a greatest length, each list and map a greatest number, and each map's keys a greatest length."""
    assert list(_unbounded(Default().FindMessageTypeByName(name), set())) == []
