"""From a batch of events to one delta for each entity that they touch; replay folds events by the same code."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from gyre_core.features.encoding import encode_all
from gyre_core.features.events import (
    ENTITY_KINDS,
    GLOBAL_ID,
    EntityKind,
    Event,
    FieldsChanged,
    Impression,
    Interaction,
)
from gyre_core.features.identity import id_group, item_hash
from gyre_core.features.layout import Layout
from gyre_core.features.slots import ID_GROUPS, EntityLayout
from gyre_core.features.state import Categories, State, unpack_fields
from gyre_core.spec import IMPRESSION

ItemLookup = Callable[[str], bytes | None]
EntityId = tuple[EntityKind, str]

Delta = State
"""A delta is the state that a batch alone would make of nothing; `pack(batch)` gives the bytes to ship."""


class States(Protocol):
    """Where folding finds the states to change and the items' categories."""

    def state(self, kind: EntityKind, id: str) -> State:  # noqa: A002 (the field's name)
        """The state to fold into; it is changed."""

    def categories(self, item_id: str, field: str) -> tuple[int, ...]:
        """The indices of the item's categories in a field, as of now; empty for an unknown item."""


def aggregate(layout: Layout, events: Iterable[Event], item_fields: ItemLookup) -> dict[EntityId, Delta]:
    """The deltas of a batch, by (kind, id).

    `item_fields` gives the packed value of an item as it stands before the batch, or None; changes of an item within
    the batch are seen by the events after them. Raises ValueError for a field value that is not of its kind.
    """
    deltas = _Deltas(layout, item_fields)
    for event in events:
        fold_event(layout, event, deltas)
    return deltas.states


def items_needed(layout: Layout, events: Iterable[Event]) -> list[str]:
    """The items whose packed values `aggregate` will ask for, each once, so that they can be read in one round trip."""
    plans = ((event, plan) for event in layout.events for _, plan in layout.plans(event))
    reading = {event for event, plan in plans if plan.fields}
    found: dict[str, None] = {}
    for event in events:
        if isinstance(event, Interaction) and event.type in reading:
            found[event.item_id] = None
        elif isinstance(event, Impression) and IMPRESSION in reading:
            found.update(dict.fromkeys(event.item_ids))
    found.pop("", None)
    return list(found)


def fold_event(layout: Layout, event: Event, states: States) -> None:
    """Fold one event into every entity that it touches."""
    if isinstance(event, Interaction):
        _fold_interaction(layout, event, states)
    elif isinstance(event, Impression):
        _fold_impression(layout, event, states)
    else:
        _fold_fields(layout, event, states)


def _fold_interaction(layout: Layout, event: Interaction, states: States) -> None:
    for kind, plan in layout.plans(event.type):
        id_ = event.item_id if kind == "item" else event.user_id if kind == "user" else GLOBAL_ID
        if not id_:
            continue
        categories: Categories = {}
        for field in plan.fields:
            categories[field] = states.categories(event.item_id, field)
        for group in plan.groups:
            grouped = event.item_id if group == "item" else event.user_id
            categories[ID_GROUPS[group]] = (id_group(grouped),) if grouped else ()
        item = item_hash(event.item_id) if plan.rings else 0
        states.state(kind, id_).fold(plan, event.time, value=event.value, item=item, categories=categories)


def _fold_impression(layout: Layout, event: Impression, states: States) -> None:
    plan = layout.plan("item", IMPRESSION)
    if plan is not None:
        for item_id in event.item_ids:
            states.state("item", item_id).fold_count(plan, event.time, count=1)
    shown: tuple[EntityId, ...] = (("user", event.user_id), ("global", GLOBAL_ID))
    for kind, id_ in shown:
        plan = layout.plan(kind, IMPRESSION)
        if plan is not None and id_ and event.item_ids:
            shown_of = {field: _shown_categories(event, field, states) for field in plan.fields}
            for group in plan.groups:
                ids = event.item_ids if group == "item" else [event.user_id] * len(event.item_ids)
                shown_of[ID_GROUPS[group]] = tuple([id_group(each) for each in ids if each])
            states.state(kind, id_).fold_count(plan, event.time, count=len(event.item_ids), categories=shown_of)


def _shown_categories(event: Impression, field: str, states: States) -> tuple[int, ...]:
    return tuple(category for item_id in event.item_ids for category in states.categories(item_id, field))


def _fold_fields(layout: Layout, event: FieldsChanged, states: States) -> None:
    slots = layout.slots(event.kind).fields
    if slots:
        states.state(event.kind, event.id).set_fields(event.time, encode_all(slots, event.fields))


def categories_of(entity: EntityLayout, lasts: Sequence[float], field: str) -> tuple[int, ...]:
    """The indices of the categories that a field holds, from all the encoded fields of an item."""
    first, end = entity.field_spans[field]
    numbers = lasts[first:end]
    return tuple([index for index, number in enumerate(numbers) if number > 0])


class _Deltas:
    """New states for what the batch touches, over the stored items that it only reads."""

    def __init__(self, layout: Layout, lookup: ItemLookup) -> None:
        self.states: dict[EntityId, State] = {}
        self._layout = layout
        self._lookup = lookup
        self._entities = {kind: layout.slots(kind) for kind in ENTITY_KINDS}
        self._stored: dict[str, tuple[float, tuple[float, ...]]] = {}
        self._stored_categories: dict[tuple[str, str], tuple[int, ...]] = {}

    def state(self, kind: EntityKind, id: str) -> State:  # noqa: A002 (the field's name)
        key = (kind, id)
        found = self.states.get(key)
        if found is None:
            found = self.states[key] = State(self._entities[kind])
        return found

    def categories(self, item_id: str, field: str) -> tuple[int, ...]:
        stored = self._stored.get(item_id)
        if stored is None:
            stored = self._stored[item_id] = unpack_fields(self._entities["item"], self._lookup(item_id))
        delta = self.states.get(("item", item_id))
        # As the store will merge them: the later fields stand.
        if delta is not None and delta.fields_time > stored[0]:
            return categories_of(self._entities["item"], delta.lasts, field)
        key = (item_id, field)
        found = self._stored_categories.get(key)
        if found is None:
            found = self._stored_categories[key] = categories_of(self._entities["item"], stored[1], field)
        return found
