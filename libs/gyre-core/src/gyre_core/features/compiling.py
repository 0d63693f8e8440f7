"""From feature definitions to slots: what each kind of entity has to remember, each thing once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from gyre_core.features.encoding import slot_of
from gyre_core.features.events import EntityKind
from gyre_core.features.slots import EntityLayout, FieldSlot, Measure, RingSlot, SumSlot, WindowSlot
from gyre_core.spec import (
    AffinityFeature,
    AgeFeature,
    DecayedCountFeature,
    DecayedMeanFeature,
    DecayedRateFeature,
    Feature,
    FieldFeature,
    HistoryFeature,
    LoopSpec,
    WindowedCountFeature,
    WindowedRateFeature,
)

DecayedFeature = DecayedCountFeature | DecayedMeanFeature | DecayedRateFeature

_BY_CATEGORY: Mapping[Measure, Measure] = {"count": "affinity", "value": "value_by", "valued": "valued_by"}


def events_key(events: tuple[str, ...]) -> tuple[str, ...]:
    """Event types as slots name them: two features over the same types share their slots, however they list them."""
    return tuple(sorted(set(events)))


def compile_kind(kind: EntityKind, spec: LoopSpec) -> EntityLayout:
    """The slots of one kind of entity; sums are ordered by half-life, so that a decay is computed once for each."""
    mine = [feature for feature in spec.features if getattr(feature, "scope", None) == kind]
    sums = dict.fromkeys(slot for feature in mine for slot in sums_of(feature, spec))
    ages = [feature for feature in mine if isinstance(feature, AgeFeature)]
    firsts = (events_key(age.events) for age in ages if age.of == "first_event")
    lasts = (events_key(age.events) for age in ages if age.of == "last_event")
    windows = (slot for feature in mine for slot in windows_of(feature))
    rings = (ring_of(feature) for feature in mine if isinstance(feature, HistoryFeature))
    return EntityLayout(
        kind=kind,
        sums=tuple(sorted(sums, key=lambda slot: slot.half_life_s)),
        mins=tuple(dict.fromkeys(firsts)),
        maxs=tuple(dict.fromkeys(lasts)),
        fields=tuple(_field_slots(kind, spec)),
        rings=tuple(dict.fromkeys(rings)),
        windows=tuple(dict.fromkeys(windows)),
    )


def sums_of(feature: Feature, spec: LoopSpec) -> Iterator[SumSlot]:
    """The decayed sums that a feature is computed from, half-life by half-life; those of categories side by side."""
    if not isinstance(feature, AffinityFeature | DecayedCountFeature | DecayedMeanFeature | DecayedRateFeature):
        return
    for each in feature.half_lives:
        if not isinstance(feature, AffinityFeature) and feature.by is None:
            yield from plain_slots(feature, each.seconds)
            continue
        for first in first_slots(feature, each.seconds):
            yield from (replace(first, category=index) for index in range(_categories(first.field, spec)))


def plain_slots(feature: DecayedFeature, half_life_s: float) -> tuple[SumSlot, ...]:
    """The slots of a feature over all events: of a count one, else numerator and denominator."""
    if isinstance(feature, DecayedMeanFeature):
        return value_slots(feature.events, half_life_s)
    counted = [feature.events, feature.per] if isinstance(feature, DecayedRateFeature) else [feature.events]
    return tuple(count_slot(events, half_life_s) for events in counted)


def first_slots(feature: AffinityFeature | DecayedFeature, half_life_s: float) -> tuple[SumSlot, ...]:
    """Of a feature that keeps categories apart, the slots of the first; its other categories' follow each."""
    if isinstance(feature, AffinityFeature):
        return (SumSlot("affinity", events_key(feature.events), half_life_s, feature.field, 0),)
    return tuple(
        SumSlot(_BY_CATEGORY[slot.measure], slot.events, half_life_s, feature.by or "", 0)
        for slot in plain_slots(feature, half_life_s)
    )


def windows_of(feature: Feature) -> Iterator[WindowSlot]:
    """The windows that a feature is computed from: of a count one for each span, of a rate numerator and denominator.

    A sliding window needs one bucket more than it has parts, for the part that it has left but for a share; a tumbling
    one the bucket that fills and the last complete one.
    """
    if not isinstance(feature, WindowedCountFeature | WindowedRateFeature):
        return
    counted = [feature.events, feature.per] if isinstance(feature, WindowedRateFeature) else [feature.events]
    parts = feature.buckets if feature.mode == "sliding" else 1
    for each in feature.windows:
        yield from (WindowSlot(events_key(events), each.seconds / parts, parts + 1) for events in counted)


def count_slot(events: tuple[str, ...], half_life_s: float) -> SumSlot:
    """The decayed count of events."""
    return _sum("count", events, half_life_s)


def value_slots(events: tuple[str, ...], half_life_s: float) -> tuple[SumSlot, SumSlot]:
    """The decayed sum of the events' values, and the decayed count of the events that had one."""
    return _sum("value", events, half_life_s), _sum("valued", events, half_life_s)


def _categories(field: str, spec: LoopSpec) -> int:
    return len(getattr(spec.items.fields[field], "categories", ()))


def ring_of(feature: HistoryFeature) -> RingSlot:
    """The history that a feature reads."""
    return RingSlot(events_key(feature.events), feature.length, feature.field or "")


def _sum(measure: Measure, events: tuple[str, ...], half_life_s: float) -> SumSlot:
    return SumSlot(measure, events_key(events), half_life_s)


def _field_slots(kind: EntityKind, spec: LoopSpec) -> Iterator[FieldSlot]:
    """The fields that some feature needs: of the entity itself, and of items for what users did with them."""
    needed = [_field_needed(kind, feature) for feature in spec.features]
    first = 0
    for name in dict.fromkeys(name for name in needed if name):
        field = spec.fields(kind)[name]
        slot = slot_of(name, field, first=first)
        yield slot
        first += slot.count


def _field_needed(kind: EntityKind, feature: Feature) -> str | None:
    if isinstance(feature, FieldFeature | AgeFeature):
        return feature.field if feature.scope == kind else None
    if kind != "item":
        return None
    return feature.field if isinstance(feature, AffinityFeature | HistoryFeature) else getattr(feature, "by", None)
