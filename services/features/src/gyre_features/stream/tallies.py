"""What a batch's events came to besides features: repeats, late fields, changes that lost against a newer one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from gyre_core.features import EntityId, EntityKind, FieldsChanged, Layout
from gyre_core.features import Event as FeatureEvent
from gyre_core.topics import topic
from gyre_runtime import instrument

_NEVER = float("-inf")
_CATALOGUE: Mapping[EntityKind, str] = {"item": "catalog.items", "user": "catalog.users"}


def field_changes(layout: Layout, events: Iterable[FeatureEvent]) -> dict[EntityId, list[float]]:
    """The event times, unix seconds, of the changes of fields that a layout stores, by entity, in the events' order."""
    found: dict[EntityId, list[float]] = {}
    for event in events:
        if isinstance(event, FieldsChanged) and layout.slots(event.kind).fields:
            found.setdefault((event.kind, event.id), []).append(event.time)
    return found


def count_superseded(
    loop: str, layout: str, changes: Mapping[EntityId, Sequence[float]], before: Mapping[EntityId, float]
) -> None:
    """Add to `gyre_features_superseded_total` the changes older than what was stored, or than one before in the batch.

    A change of the same time as the one before it is not older: the later one wins.

    Args:
        loop: its name.
        layout: hash of the layout.
        changes: event times in their order, by entity.
        before: the event time of the fields that the store held, by entity; -inf where it held none.
    """
    lost = Counter[EntityKind]()
    for entity, times in changes.items():
        newest = before.get(entity, _NEVER)
        for time in times:
            lost[entity[0]] += time < newest
            newest = max(newest, time)
    for kind, count in (+lost).items():
        labels = {"loop": loop, "layout": layout, "topic": topic(loop, _CATALOGUE[kind])}
        instrument("gyre_features_superseded_total").add(count, **labels)


def count_left_out(loop: str, duplicates: Mapping[str, int]) -> None:
    """Add to the metric `gyre_features_duplicates_total` the events that were left out as repeats, by reason."""
    for reason, count in duplicates.items():
        instrument("gyre_features_duplicates_total").add(count, loop=loop, reason=reason)


def count_late_fields(loop: str, late: Mapping[str, int]) -> None:
    """Add to `gyre_features_late_fields_total` events whose items' fields were unknown or changed later, by outcome."""
    for outcome, count in late.items():
        if count:
            instrument("gyre_features_late_fields_total").add(count, loop=loop, outcome=outcome)
