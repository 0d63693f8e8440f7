"""Fields of items and users: as events carry them in protobuf, and as the feature algebra takes them."""

from collections.abc import Mapping

from gyre.events.v1.behavior_pb2 import FieldValue as FieldMessage
from gyre_core.features import FieldValue


def field_value(message: FieldMessage) -> FieldValue:
    """One field as the feature algebra takes it: a number, boolean, text or list; the empty text where it is unset."""
    kind = message.WhichOneof("kind")
    if kind == "categories":
        return list(message.categories.values)
    if kind == "vector":
        return list(message.vector.values)
    found: float | bool | str = getattr(message, kind) if kind else ""
    return found


def field_values(fields: Mapping[str, FieldMessage]) -> dict[str, FieldValue]:
    """All fields of an entity by name, each as `field_value` has it; none is checked against a spec."""
    return {name: field_value(message) for name, message in fields.items()}
