"""From a batch of events to one delta for each entity that they touch; replay folds events by the same code."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import nan
from typing import Protocol

from gyre_core.features.encoding import encode_all
from gyre_core.features.events import (
    ENTITY_KINDS,
    GLOBAL_ID,
    EntityKind,
    Event,
    FieldsChanged,
    Impression,
    UserInteraction,
)
from gyre_core.features.identity import id_group, item_hash
from gyre_core.features.layout import Layout
from gyre_core.features.plans import Plan
from gyre_core.features.slots import ID_GROUPS
from gyre_core.features.state import Categories, State
from gyre_core.features.versions import Contribution, ItemCategories, Versions, with_version
from gyre_core.spec import IMPRESSION

ItemLookup = Callable[[str], bytes | None]
EntityId = tuple[EntityKind, str]

Delta = State
"""A delta is the state that a batch alone would make of nothing; `pack(batch)` gives the bytes to ship."""

_NO_CATEGORIES: Categories = {}


class States(Protocol):
    """Where folding finds the states to change and what items hold, and leaves what late fields may correct."""

    def state(self, kind: EntityKind, id: str) -> State:  # noqa: A002 (the field's name)
        """The state of an entity, made where there is none; the caller changes it in place."""

    def held(self, item_id: str, time: float) -> ItemCategories:
        """What an item held at a time, unix seconds; nothing, and not known, for an item without fields so far."""

    def add_version(self, item_id: str, time: float, numbers: list[float]) -> None:
        """Add a version of an item's encoded fields from a time (unix seconds) on, for `held`.

        One of the same time is replaced; an older one is added, too. The item's `state` is left as it is.
        """

    def remember(self, contribution: Contribution) -> None:
        """Buffer what an event read of an item, so that a version that comes later can correct it."""


class PriorState(Protocol):
    """What is known of items from before a batch; asking changes nothing."""

    def versions(self, item_id: str) -> Versions:
        """The versions of an item's fields, oldest first; empty for an unknown item."""

    def contributions(self, item_id: str) -> Iterable[Contribution]:
        """The buffered contributions of earlier batches on an item; asked only where a batch changes its fields."""


@dataclass(frozen=True, slots=True)
class AggregatedBatch:
    """What a batch adds and corrects; nothing of it is stored yet.

    Attributes:
        deltas: what it adds, by entity.
        versions: of the items whose fields it changes, as they are then.
        contributions: to be buffered: all that the batch's events read, and `corrections` as they are then.
        corrections: buffered contributions that would read other fields now, each with what it should have read: to be
            dropped from the buffer, and made up for by `reapply`.
    """

    deltas: dict[EntityId, Delta]
    versions: dict[str, Versions]
    contributions: list[Contribution]
    corrections: list[tuple[Contribution, ItemCategories]]


def aggregate(layout: Layout, events: Iterable[Event], item_fields: ItemLookup) -> dict[EntityId, Delta]:
    """The deltas of a batch, by (kind, id), without corrections of earlier batches for fields that come late.

    `item_fields` gives the packed value of an item as it stands before the batch, or None; changes of an item within
    the batch are seen by its events that are not older. Raises ValueError for a field value that is not of its kind.
    """
    return aggregate_batch(layout, list(events), _Packed(layout, item_fields)).deltas


def aggregate_batch(layout: Layout, events: Iterable[Event], known: PriorState) -> AggregatedBatch:
    """All that a batch adds and corrects: field changes count first, whatever the order of its events.

    Nothing is stored. Raises ValueError for a field value that is not of its kind.
    """
    states, behaviour = _Deltas(layout, known), list[Event]()
    for event in events:
        if isinstance(event, FieldsChanged):
            fold_event(layout, event, states)
        else:
            behaviour.append(event)
    newest = max((event.time for event in behaviour if _counts_for_all(layout, event)), default=None)
    if newest is not None:
        # To decay the many sums of everyone once, and what each event adds, is cheaper than all sums with each event.
        states.state("global", GLOBAL_ID).reference_time = newest
    for event in behaviour:
        fold_event(layout, event, states)
    contributions, corrections = states.contributions, list[tuple[Contribution, ItemCategories]]()
    for item_id, versions in states.versions.items():
        for contribution in known.contributions(item_id):
            held = layout.item_fields.as_of(versions, contribution.time)
            if not contribution.has_read(held):
                corrections.append((contribution, held))
                contributions.append(contribution.again(held))
    return AggregatedBatch(states.states, states.versions, contributions, corrections)


def _counts_for_all(layout: Layout, event: Event) -> bool:
    if isinstance(event, Impression):
        return bool(event.item_ids) and layout.plan("global", IMPRESSION) is not None
    return isinstance(event, UserInteraction) and layout.plan("global", event.type) is not None


def reapply(
    layout: Layout, contribution: Contribution, held: ItemCategories, stored: Callable[[EntityKind, str], State | None]
) -> None:
    """Correct a contribution for late fields: in place, in every state that it changed and that `stored` still gives.

    A second call would correct again: the caller buffers `contribution.again(held)` in its place.
    """
    change = (layout.item_fields.held(contribution.mask).categories, held.categories)
    for entity, plan in touched(layout, contribution):
        state = stored(*entity)
        if state is not None:
            item = item_hash(contribution.item_id) if plan.rings else 0
            state.reapply(plan, contribution.time, value=contribution.given, item=item, change=change)


def touched(layout: Layout, contribution: Contribution) -> list[tuple[EntityId, Plan]]:
    """The entities whose values a contribution changed by what it read of the item's fields."""
    found: list[tuple[EntityId, Plan]] = []
    for kind, plan in layout.plans(contribution.type):
        id_ = contribution.item_id if kind == "item" else contribution.user_id if kind == "user" else GLOBAL_ID
        if plan.fields and id_:
            found.append(((kind, id_), plan))
    return found


def items_needed(layout: Layout, events: Iterable[Event]) -> list[str]:
    """The ids of items whose fields `aggregate_batch` will ask for, each once, so that one round trip can read them.

    In the order of their first event; none where no feature keeps events apart by an item's field.
    """
    plans = ((event, plan) for event in layout.events for _, plan in layout.plans(event))
    reading = {event for event, plan in plans if plan.fields}
    if not reading:
        return []
    found: dict[str, None] = {}
    for event in events:
        if isinstance(event, UserInteraction):
            if event.type in reading:
                found[event.item_id] = None
        elif isinstance(event, FieldsChanged):
            if event.kind == "item":
                found[event.id] = None
        elif IMPRESSION in reading:
            found.update(dict.fromkeys(event.item_ids))
    found.pop("", None)
    return list(found)


def fold_event(layout: Layout, event: Event, states: States) -> None:
    """Fold one event into the state of every entity that it touches, in place; one of an unknown type touches none.

    Raises ValueError for a field value that is not of its kind.
    """
    if isinstance(event, UserInteraction):
        _fold_interaction(layout, event, states)
    elif isinstance(event, Impression):
        _fold_impression(layout, event, states)
    else:
        _fold_fields(layout, event, states)


def _fold_interaction(layout: Layout, event: UserInteraction, states: States) -> None:
    held = None
    for kind, plan in layout.plans(event.type):
        id_ = event.item_id if kind == "item" else event.user_id if kind == "user" else GLOBAL_ID
        if not id_:
            continue
        categories = _NO_CATEGORIES
        if plan.fields:
            held = held or states.held(event.item_id, event.time)
            categories = held.categories
        if plan.groups:
            categories = {**categories, **_groups(plan, event)}
        item = item_hash(event.item_id) if plan.rings else 0
        states.state(kind, id_).fold(plan, event.time, value=event.value, item=item, categories=categories)
    if held is not None:
        value = nan if event.value is None else event.value
        states.remember(
            Contribution(event.item_id, event.user_id, event.type, event.time, value, held.mask, held.is_known)
        )


def _groups(plan: Plan, event: UserInteraction) -> Categories:
    found: dict[str, tuple[int, ...]] = {}
    for group in plan.groups:
        grouped = event.item_id if group == "item" else event.user_id
        found[ID_GROUPS[group]] = (id_group(grouped),) if grouped else ()
    return found


def _fold_impression(layout: Layout, event: Impression, states: States) -> None:
    plan = layout.plan("item", IMPRESSION)
    if plan is not None:
        for item_id in event.item_ids:
            states.state("item", item_id).fold_count(plan, event.time, count=1)
    shown: tuple[EntityId, ...] = (("user", event.user_id), ("global", GLOBAL_ID))
    held: list[ItemCategories] = []
    for kind, id_ in shown:
        plan = layout.plan(kind, IMPRESSION)
        if plan is not None and id_ and event.item_ids:
            if plan.fields and not held:
                held = [states.held(item_id, event.time) for item_id in event.item_ids]
            shown_of = {field: tuple([i for each in held for i in each.categories[field]]) for field in plan.fields}
            for group in plan.groups:
                ids = event.item_ids if group == "item" else [event.user_id] * len(event.item_ids)
                shown_of[ID_GROUPS[group]] = tuple([id_group(each) for each in ids if each])
            states.state(kind, id_).fold_count(plan, event.time, count=len(event.item_ids), categories=shown_of)
    if held:
        for item_id, each in zip(event.item_ids, held, strict=True):
            states.remember(Contribution(item_id, event.user_id, IMPRESSION, event.time, nan, each.mask, each.is_known))


def _fold_fields(layout: Layout, event: FieldsChanged, states: States) -> None:
    slots = layout.slots(event.kind).fields
    if slots:
        numbers = encode_all(slots, event.fields)
        states.state(event.kind, event.id).set_fields(event.time, numbers)
        if event.kind == "item" and layout.item_fields.fields:
            states.add_version(event.id, event.time, numbers)


class _Packed:
    """Items by their packed values, with nothing from before them."""

    def __init__(self, layout: Layout, lookup: ItemLookup) -> None:
        self._fields, self._lookup = layout.item_fields, lookup

    def versions(self, item_id: str) -> Versions:
        return self._fields.unpack(self._lookup(item_id))

    def contributions(self, item_id: str) -> Iterable[Contribution]:  # noqa: ARG002 - nothing is remembered
        return ()


class _Deltas:
    """New states for what the batch touches, over the stored items that it only reads."""

    def __init__(self, layout: Layout, known: PriorState) -> None:
        self.states: dict[EntityId, State] = {}
        self.versions: dict[str, Versions] = {}
        self.contributions: list[Contribution] = []
        self._layout, self._known = layout, known
        self._entities = {kind: layout.slots(kind) for kind in ENTITY_KINDS}
        self._fields = layout.item_fields
        self._current: dict[str, Versions] = {}

    def state(self, kind: EntityKind, id: str) -> State:  # noqa: A002 (the field's name)
        key = (kind, id)
        found = self.states.get(key)
        if found is None:
            found = self.states[key] = State(self._entities[kind])
        return found

    def _versions(self, item_id: str) -> Versions:
        found = self._current.get(item_id)
        if found is None:
            found = self._current[item_id] = self._known.versions(item_id)
        return found

    def held(self, item_id: str, time: float) -> ItemCategories:
        versions = self._versions(item_id)
        return versions[0].held if len(versions) == 1 else self._fields.as_of(versions, time)

    def add_version(self, item_id: str, time: float, numbers: list[float]) -> None:
        before = self._versions(item_id)
        after = with_version(before, self._fields.version(time, numbers), kept_s=self._layout.max_lateness_s)
        if after is not before:
            self._current[item_id] = after
        self.versions[item_id] = after

    def remember(self, contribution: Contribution) -> None:
        self.contributions.append(contribution)
