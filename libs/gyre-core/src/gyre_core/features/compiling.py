"""From feature definitions to slots: what each kind of entity has to remember, each thing once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from gyre_core.features.encoding import slot_of
from gyre_core.features.events import EntityKind
from gyre_core.features.slots import ID_GROUPS, EntityLayout, FieldSlot, Measure, RingSlot, SumSlot, WindowSlot
from gyre_core.spec import (
    PRIOR_BUCKETS,
    AffinityFeature,
    AgeFeature,
    DecayedCountFeature,
    DecayedMeanFeature,
    DecayedRateFeature,
    DiversityFeature,
    Feature,
    FieldFeature,
    HistoryFeature,
    LoopSpec,
    SmoothedRateFeature,
    VectorFeature,
    WindowedCountFeature,
    WindowedRateFeature,
)

DecayedFeature = DecayedCountFeature | DecayedMeanFeature | DecayedRateFeature

_DECAYED = AffinityFeature | DecayedCountFeature | DecayedMeanFeature | DecayedRateFeature | SmoothedRateFeature
_BY_CATEGORY: Mapping[Measure, Measure] = {"count": "affinity", "value": "value_by", "valued": "valued_by"}


def events_key(events: tuple[str, ...]) -> tuple[str, ...]:
    """Event types as slots name them: two features over the same types share their slots, however they list them."""
    return tuple(sorted(set(events)))


def compile_kind(kind: EntityKind, spec: LoopSpec) -> EntityLayout:
    """The slots of one kind of entity; sums are ordered by half-life, so that a decay is computed once for each."""
    mine = [feature for feature in spec.features if getattr(feature, "scope", None) == kind]
    sums = dict.fromkeys(slot for feature in spec.features for slot in sums_of(feature, spec, kind))
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


def kinds_of(feature: Feature) -> tuple[EntityKind, ...]:
    """The kinds of entities whose values hold something for a feature; none for one of the request alone."""
    scope: EntityKind | None = getattr(feature, "scope", None)
    if isinstance(feature, SmoothedRateFeature):
        return feature.scope, "global"
    if isinstance(feature, VectorFeature) and feature.with_ is not None:
        return "item", "user"
    return (scope,) if scope else ()


def sums_of(feature: Feature, spec: LoopSpec, kind: EntityKind) -> Iterator[SumSlot]:
    """The slots of the decayed sums that a feature is computed from in one kind of entity, half-life by half-life.

    Those of categories are side by side. A feature without sums in that kind has none.
    """
    if kind not in kinds_of(feature) or not isinstance(feature, _DECAYED):
        return
    for each in feature.half_lives:
        if isinstance(feature, SmoothedRateFeature):
            yield from _smoothed(feature, spec, kind, each.seconds)
        elif not isinstance(feature, AffinityFeature) and feature.by is None:
            yield from plain_slots(feature, each.seconds)
        else:
            yield from _side_by_side(first_slots(feature, each.seconds), spec)


def _side_by_side(firsts: Iterable[SumSlot], spec: LoopSpec) -> Iterator[SumSlot]:
    for first in firsts:
        yield from (replace(first, category=index) for index in range(_categories(first.field, spec)))


def _smoothed(feature: SmoothedRateFeature, spec: LoopSpec, kind: EntityKind, half_life_s: float) -> Iterator[SumSlot]:
    if kind != "global":
        yield from plain_slots(feature, half_life_s)
        return
    yield from _side_by_side(group_slots(feature, half_life_s, ID_GROUPS[feature.scope]), spec)
    if feature.by is not None:
        yield from _side_by_side(group_slots(feature, half_life_s, feature.by), spec)
    yield squares_slot(feature, half_life_s)


def group_slots(feature: SmoothedRateFeature, half_life_s: float, field: str) -> tuple[SumSlot, SumSlot]:
    """Of everybody's events of a smoothed rate, the slots of the first category or group: numerator, denominator."""
    above, below = (
        SumSlot("affinity", events_key(events), half_life_s, field, 0) for events in (feature.events, feature.per)
    )
    return above, below


def squares_slot(feature: SmoothedRateFeature, half_life_s: float) -> SumSlot:
    """The slot of the sum of the `per` events' squared weights: a weight that decays twice as fast is its square."""
    return count_slot(feature.per, half_life_s / 2)


def plain_slots(feature: DecayedFeature | SmoothedRateFeature, half_life_s: float) -> tuple[SumSlot, ...]:
    """The slots of a feature over all events: of a count one, else numerator and denominator."""
    if isinstance(feature, DecayedMeanFeature):
        return value_slots(feature.events, half_life_s)
    counted = [feature.events] if isinstance(feature, DecayedCountFeature) else [feature.events, feature.per]
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
    """The window slots that a feature is computed from: of a count one for each span, of a rate two; of others none.

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
    """The slot of the decayed count of events."""
    return _sum("count", events, half_life_s)


def value_slots(events: tuple[str, ...], half_life_s: float) -> tuple[SumSlot, SumSlot]:
    """The slots of the decayed sum of the events' values, and of the decayed count of the events that had one."""
    return _sum("value", events, half_life_s), _sum("valued", events, half_life_s)


def _categories(field: str, spec: LoopSpec) -> int:
    if field in ID_GROUPS.values():
        return PRIOR_BUCKETS
    return len(getattr(spec.items.fields[field], "categories", ()))


def ring_of(feature: HistoryFeature) -> RingSlot:
    """The slot of the history that a feature reads."""
    return RingSlot(events_key(feature.events), feature.length, feature.field or "")


def _sum(measure: Measure, events: tuple[str, ...], half_life_s: float) -> SumSlot:
    return SumSlot(measure, events_key(events), half_life_s)


def _field_slots(kind: EntityKind, spec: LoopSpec) -> Iterator[FieldSlot]:
    """The fields that some feature needs: of the entity itself, and of items for what users did with them."""
    needed = [field_of(kind, feature) for feature in spec.features]
    first = 0
    for name in dict.fromkeys(name for name in needed if name):
        field = spec.fields(kind)[name]
        slot = slot_of(name, field, first=first)
        yield slot
        first += slot.count


def field_of(kind: EntityKind, feature: Feature) -> str | None:
    """The name of the field that a feature needs stored in one kind of entity, or None."""
    if isinstance(feature, VectorFeature) and kind == "user" and feature.with_ is not None:
        return feature.with_
    if isinstance(feature, FieldFeature | AgeFeature | VectorFeature):
        return feature.field if feature.scope == kind else None
    if kind != "item":
        return None
    if isinstance(feature, AffinityFeature | HistoryFeature | DiversityFeature):
        return feature.field
    return getattr(feature, "by", None)
