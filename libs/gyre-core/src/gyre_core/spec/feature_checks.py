"""Rules about features: names, events and fields that must be declared, and values that the online store can merge."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches

from gyre_core.spec.columns import feature_columns
from gyre_core.spec.features import (
    IMPRESSION,
    PRIOR_BUCKETS,
    AffinityFeature,
    AgeFeature,
    ContextFeature,
    DecayedCountFeature,
    DecayedMeanFeature,
    DecayedRateFeature,
    DiversityFeature,
    Feature,
    FieldFeature,
    HistoryFeature,
    RankFeature,
    SmoothedRateFeature,
    VectorFeature,
    WindowedCountFeature,
    WindowedRateFeature,
    ZScoreFeature,
)
from gyre_core.spec.fields import CategoriesField, CategoryField, Field, TimeField, VectorField
from gyre_core.spec.issues import Loc, SpecViolation
from gyre_core.spec.loop import LoopSpec

_MASK_BITS = 64
_MAX_NUMBERS = 7000
"""In one value: Redis gives Lua a stack of 8,000, and the fields need some of it."""
_COUNTING = DecayedCountFeature | DecayedRateFeature | SmoothedRateFeature | WindowedCountFeature | WindowedRateFeature
_BY_CATEGORY = AffinityFeature | HistoryFeature | DiversityFeature


def feature_checks(spec: LoopSpec) -> Iterator[SpecViolation]:
    """Every rule that a feature breaks by itself, beside others, or against the declared events and fields."""
    yield from _feature_names(spec)
    for index, feature in enumerate(spec.features):
        for check in (_feature_events, _feature_field, _feature_with, _feature_by, _feature_encoding):
            yield from check(spec, feature, ("features", index))
    yield from _sizes(spec)
    yield from _relative_features(spec)


def _feature_names(spec: LoopSpec) -> Iterator[SpecViolation]:
    names: set[str] = set()
    owners: dict[str, str] = {}
    for index, feature in enumerate(spec.features):
        if feature.name in names:
            yield SpecViolation(("features", index, "name"), feature.name, "is the name of an earlier feature")
            continue
        names.add(feature.name)
        for column in feature_columns(feature, spec.fields):
            if column in owners:
                rule = f"gives the column {column}, which {owners[column]} gives already"
                yield SpecViolation(("features", index, "name"), feature.name, rule)
            owners.setdefault(column, feature.name)


def _feature_events(spec: LoopSpec, feature: Feature, loc: Loc) -> Iterator[SpecViolation]:
    interactions = spec.events.interactions
    counts_shown = isinstance(feature, _COUNTING)
    for key in ("events", "per"):
        for position, event in enumerate(getattr(feature, key, ())):
            if event in interactions or (event == IMPRESSION and counts_shown):
                continue
            known = ", ".join([*interactions, *([IMPRESSION] if counts_shown else [])])
            yield SpecViolation((*loc, key, position), event, f"must be one of the declared event types: {known}")
    if isinstance(feature, DecayedMeanFeature):
        for position, event in enumerate(feature.events):
            if event in interactions and interactions[event].value is None:
                yield SpecViolation(
                    (*loc, "events", position), event, "must be an interaction type that declares a value"
                )


def _feature_field(spec: LoopSpec, feature: Feature, loc: Loc) -> Iterator[SpecViolation]:
    name: str | None = getattr(feature, "field", None)
    if name is None or isinstance(feature, ContextFeature):
        return
    # What belongs to the user or to the whole list reads the field of the item all the same.
    scope = "item" if isinstance(feature, _BY_CATEGORY) else getattr(feature, "scope", "item")
    field = spec.fields(scope).get(name)
    rule = _undeclared(spec, scope) if field is None else _field_rule(feature, field)
    if rule is not None:
        yield SpecViolation((*loc, "field"), name, rule)


def _undeclared(spec: LoopSpec, scope: str) -> str:
    return f"must be a declared {scope} field: {', '.join(spec.fields(scope)) or 'none'}"


def _field_rule(feature: Feature, field: Field) -> str | None:
    """What is wrong with reading a field of this kind, or None."""
    if isinstance(feature, AgeFeature):
        return None if isinstance(field, TimeField) else "must be a field of kind time"
    if isinstance(feature, VectorFeature):
        return None if isinstance(field, VectorField) else f"is of kind {field.kind}: must be a field of kind vector"
    if isinstance(feature, FieldFeature) and isinstance(field, VectorField):
        return "is of kind vector: use a feature of kind vector"
    if isinstance(feature, FieldFeature) and isinstance(field, TimeField) and not feature.parts:
        return "is of kind time: give parts, or use a feature of kind age"
    return _category_rule(feature, field)


def _category_rule(feature: Feature, field: Field) -> str | None:
    if not isinstance(field, CategoryField | CategoriesField):
        return None if isinstance(feature, FieldFeature) else "must be a field of kind category or categories"
    if isinstance(feature, HistoryFeature) and len(field.categories) > _MASK_BITS:
        return f"must be a field of at most {_MASK_BITS} values"
    return None if field.categories else "must be a field that lists its values, or gives buckets"


def _feature_with(spec: LoopSpec, feature: Feature, loc: Loc) -> Iterator[SpecViolation]:
    if not isinstance(feature, VectorFeature) or feature.with_ is None:
        return
    at, own, other = (*loc, "with"), spec.items.fields.get(feature.field), spec.users.fields.get(feature.with_)
    if other is None:
        yield SpecViolation(at, feature.with_, _undeclared(spec, "user"))
    elif not isinstance(other, VectorField):
        yield SpecViolation(at, feature.with_, f"is of kind {other.kind}: must be a user field of kind vector")
    elif isinstance(own, VectorField) and own.length != other.length:
        rule = f"must have the length of the item field {feature.field}: {own.length} numbers, not {other.length}"
        yield SpecViolation(at, feature.with_, rule)


def _feature_by(spec: LoopSpec, feature: Feature, loc: Loc) -> Iterator[SpecViolation]:
    name: str | None = getattr(feature, "by", None)
    if name is None:
        return
    if getattr(feature, "scope", None) == "item" and not isinstance(feature, SmoothedRateFeature):
        rule = "must be left out with scope item, whose events all fall on its own categories: use user or global"
        yield SpecViolation((*loc, "by"), name, rule)
    field = spec.fields("item").get(name)
    problem = _undeclared(spec, "item") if field is None else _category_rule(feature, field)
    if problem is not None:
        yield SpecViolation((*loc, "by"), name, problem)


def _feature_encoding(spec: LoopSpec, feature: Feature, loc: Loc) -> Iterator[SpecViolation]:
    field = spec.fields(feature.scope).get(feature.field) if isinstance(feature, FieldFeature) else None
    if not isinstance(feature, FieldFeature) or field is None:
        return
    if feature.encoding == "index" and not (isinstance(field, CategoryField) and field.values):
        rule = "must be one_hot, except for a field of kind category that lists its values"
        yield SpecViolation((*loc, "encoding"), feature.encoding, rule)
    if feature.parts and not isinstance(field, TimeField):
        yield SpecViolation((*loc, "parts"), None, f"must be left out for a field of kind {field.kind}: it is no time")
    if len(set(feature.parts)) != len(feature.parts):
        yield SpecViolation((*loc, "parts"), None, "must not list a part twice")


def _sizes(spec: LoopSpec) -> Iterator[SpecViolation]:
    """What behaviour and vectors need in the value of an entity, slots that features share counted for each of them."""
    held: dict[str, int] = {}
    for index, feature in enumerate(spec.features):
        for scope, needed in _numbers(spec, feature):
            held[scope] = held.get(scope, 0) + needed
            if needed and held[scope] > _MAX_NUMBERS:
                rule = (
                    f"needs {needed} numbers in a value of scope {scope}, which would then hold {held[scope]} of at "
                    f"most {_MAX_NUMBERS}: use fewer half_lives, windows, buckets or categories, or shorter vectors"
                )
                yield SpecViolation(("features", index, "name"), feature.name, rule)


def _numbers(spec: LoopSpec, feature: Feature) -> Iterator[tuple[str, int]]:
    """How many numbers a feature keeps in the values of each scope."""
    scope = getattr(feature, "scope", "request")
    if isinstance(feature, VectorFeature):
        yield scope, _length(spec, scope, feature.field)
        yield "user", _length(spec, "user", feature.with_)
    elif isinstance(feature, SmoothedRateFeature):
        yield scope, 2 * len(feature.half_lives)
        yield "global", (2 * (PRIOR_BUCKETS + _categories(spec, feature.by)) + 1) * len(feature.half_lives)
    elif isinstance(feature, WindowedCountFeature | WindowedRateFeature):
        length = feature.buckets + 2 if feature.mode == "sliding" else 3
        yield scope, len(feature.windows) * length * (2 if isinstance(feature, WindowedRateFeature) else 1)
    else:
        name = feature.field if isinstance(feature, AffinityFeature) else getattr(feature, "by", None)
        sums = len(getattr(feature, "half_lives", ())) * (_categories(spec, name) if name else 1)
        yield scope, sums * (2 if isinstance(feature, DecayedRateFeature | DecayedMeanFeature) else 1)


def _length(spec: LoopSpec, scope: str, name: str | None) -> int:
    found: int = getattr(spec.fields(scope).get(name or ""), "length", 0)
    return found


def _categories(spec: LoopSpec, name: str | None) -> int:
    return len(getattr(spec.items.fields.get(name or ""), "categories", ()))


def _relative_features(spec: LoopSpec) -> Iterator[SpecViolation]:
    """A column is computed from those before it, so that no two can wait for one another."""
    owners: dict[str, int] = {}
    for index, feature in enumerate(spec.features):
        for column in feature_columns(feature, spec.fields):
            owners.setdefault(column, index)
    for index, feature in enumerate(spec.features):
        of: str | None = getattr(feature, "of", None) if isinstance(feature, RankFeature | ZScoreFeature) else None
        if of is not None and owners.get(of, index) >= index:
            rule = f"must be a column of an earlier feature{_reason(spec, index, owners)}"
            yield SpecViolation(("features", index, "of"), of, rule)


def _reason(spec: LoopSpec, index: int, owners: Mapping[str, int]) -> str:
    """Why what a feature refers to is none, and what to do about it."""
    path, of = [spec.features[index].name], getattr(spec.features[index], "of", "")
    if of not in owners:
        near = get_close_matches(of, owners, n=1)
        return f": did you mean {near[0]}?" if near else ""
    at = owners[of]
    while at != index and spec.features[at].name not in path:
        path.append(spec.features[at].name)
        at = owners.get(str(getattr(spec.features[at], "of", "")), -1)
        if at < 0:
            return f": move it behind {path[1]}"
    return f", and this is a cycle: {' of '.join([*path, spec.features[at].name])}"
