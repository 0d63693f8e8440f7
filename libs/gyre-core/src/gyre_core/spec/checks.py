"""Rules between the parts of a loop spec: names that must exist, and names that must not exist twice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gyre_core.spec.columns import feature_columns
from gyre_core.spec.features import (
    IMPRESSION,
    AffinityFeature,
    AgeFeature,
    DecayedCountFeature,
    DecayedMeanFeature,
    DecayedRateFeature,
    Feature,
    FieldFeature,
    HistoryFeature,
    RankFeature,
    WindowedCountFeature,
    WindowedRateFeature,
    ZScoreFeature,
)
from gyre_core.spec.fields import CategoriesField, CategoryField, NumberField, TextField, TimeField
from gyre_core.spec.loop import LoopSpec
from gyre_core.spec.quality import CHECKS

Loc = tuple[str | int, ...]

_MASK_BITS = 64
_MOST_NUMBERS = 7000
"""In one value: Redis gives Lua a stack of 8,000, and the fields need some of it."""
_COUNTING = DecayedCountFeature | DecayedRateFeature | WindowedCountFeature | WindowedRateFeature


@dataclass(frozen=True, slots=True)
class Violation:
    """A rule broken at a location of the spec, given as keys and indices."""

    loc: Loc
    value: object
    rule: str


def cross_checks(spec: LoopSpec) -> Iterator[Violation]:
    """Every rule that one part of the spec breaks against another."""
    yield from _interaction_names(spec)
    yield from _category_values(spec)
    yield from _feature_names(spec)
    for index, feature in enumerate(spec.features):
        yield from _feature_events(spec, feature, ("features", index))
        yield from _feature_field(spec, feature, ("features", index))
        yield from _feature_by(spec, feature, ("features", index))
        yield from _feature_encoding(spec, feature, ("features", index))
    yield from _sizes(spec)
    yield from _relative_features(spec)
    yield from _model(spec)
    yield from _training(spec)
    yield from _experiment(spec)
    yield from _serving(spec)
    yield from _quality(spec)


def _interaction_names(spec: LoopSpec) -> Iterator[Violation]:
    if IMPRESSION in spec.events.interactions:
        rule = "is reserved for shown items and cannot name an interaction type"
        yield Violation(("events", "interactions", IMPRESSION), None, rule)


def _category_values(spec: LoopSpec) -> Iterator[Violation]:
    for scope in ("items", "users"):
        for name, field in getattr(spec, scope).fields.items():
            values = getattr(field, "values", ())
            if len(set(values)) != len(values):
                yield Violation((scope, "fields", name, "values"), None, "must not list a value twice")


def _feature_names(spec: LoopSpec) -> Iterator[Violation]:
    names: set[str] = set()
    owners: dict[str, str] = {}
    for index, feature in enumerate(spec.features):
        if feature.name in names:
            yield Violation(("features", index, "name"), feature.name, "is the name of an earlier feature")
            continue
        names.add(feature.name)
        for column in feature_columns(feature, spec.fields):
            if column in owners:
                rule = f"gives the column {column}, which {owners[column]} gives already"
                yield Violation(("features", index, "name"), feature.name, rule)
            owners.setdefault(column, feature.name)


def _feature_events(spec: LoopSpec, feature: Feature, loc: Loc) -> Iterator[Violation]:
    interactions = spec.events.interactions
    counts_shown = isinstance(feature, _COUNTING)
    for key in ("events", "per"):
        for position, event in enumerate(getattr(feature, key, ())):
            if event in interactions or (event == IMPRESSION and counts_shown):
                continue
            known = ", ".join([*interactions, *([IMPRESSION] if counts_shown else [])])
            yield Violation((*loc, key, position), event, f"must be one of the declared event types: {known}")
    if isinstance(feature, DecayedMeanFeature):
        for position, event in enumerate(feature.events):
            if event in interactions and interactions[event].value is None:
                yield Violation((*loc, "events", position), event, "must be an interaction type that declares a value")


def _feature_field(spec: LoopSpec, feature: Feature, loc: Loc) -> Iterator[Violation]:
    if not isinstance(feature, FieldFeature | AffinityFeature | AgeFeature | HistoryFeature) or feature.field is None:
        return
    # Affinity and history belong to the user but read the field of the item.
    scope = "item" if isinstance(feature, AffinityFeature | HistoryFeature) else feature.scope
    declared = spec.fields(scope)
    at = (*loc, "field")
    field = declared.get(feature.field)
    if field is None:
        known = ", ".join(declared) or "none"
        yield Violation(at, feature.field, f"must be a declared {scope} field: {known}")
    elif isinstance(feature, AgeFeature):
        if not isinstance(field, TimeField):
            yield Violation(at, feature.field, "must be a field of kind time")
    elif isinstance(field, CategoryField | CategoriesField):
        if not field.categories:
            yield Violation(at, feature.field, "must be a field that lists its values, or gives buckets")
        elif isinstance(feature, HistoryFeature) and len(field.categories) > _MASK_BITS:
            yield Violation(at, feature.field, f"must be a field of at most {_MASK_BITS} values")
    elif isinstance(feature, FieldFeature):
        if isinstance(field, TimeField) and not feature.parts:
            yield Violation(at, feature.field, "is of kind time: give parts, or use a feature of kind age")
    else:
        yield Violation(at, feature.field, "must be a field of kind category or categories")


def _feature_by(spec: LoopSpec, feature: Feature, loc: Loc) -> Iterator[Violation]:
    name: str | None = getattr(feature, "by", None)
    if name is None:
        return
    if getattr(feature, "scope", None) == "item":
        rule = "must be left out with scope item, whose events all fall on its own categories: use user or global"
        yield Violation((*loc, "by"), name, rule)
    declared = spec.fields("item")
    field = declared.get(name)
    if field is None:
        yield Violation((*loc, "by"), name, f"must be a declared item field: {', '.join(declared) or 'none'}")
    elif not isinstance(field, CategoryField | CategoriesField):
        yield Violation((*loc, "by"), name, "must be a field of kind category or categories")
    elif not field.categories:
        yield Violation((*loc, "by"), name, "must be a field that lists its values, or gives buckets")


def _feature_encoding(spec: LoopSpec, feature: Feature, loc: Loc) -> Iterator[Violation]:
    field = spec.fields(feature.scope).get(feature.field) if isinstance(feature, FieldFeature) else None
    if not isinstance(feature, FieldFeature) or field is None:
        return
    if feature.encoding == "index" and not (isinstance(field, CategoryField) and field.values):
        rule = "must be one_hot, except for a field of kind category that lists its values"
        yield Violation((*loc, "encoding"), feature.encoding, rule)
    if feature.parts and not isinstance(field, TimeField):
        yield Violation((*loc, "parts"), None, f"must be left out for a field of kind {field.kind}: it is no time")
    if len(set(feature.parts)) != len(feature.parts):
        yield Violation((*loc, "parts"), None, "must not list a part twice")


def _sizes(spec: LoopSpec) -> Iterator[Violation]:
    """What behaviour needs in the value of an entity, slots that features share counted for each of them."""
    needed: dict[str, int] = {}
    for index, feature in enumerate(spec.features):
        scope, own = getattr(feature, "scope", "request"), _numbers(spec, feature)
        needed[scope] = needed.get(scope, 0) + own
        if own and needed[scope] > _MOST_NUMBERS:
            rule = (
                f"needs {own} numbers in a value of scope {scope}, which would then hold {needed[scope]} of at most "
                f"{_MOST_NUMBERS}: use fewer half_lives, windows, buckets or categories"
            )
            yield Violation(("features", index, "name"), feature.name, rule)


def _numbers(spec: LoopSpec, feature: Feature) -> int:
    name = feature.field if isinstance(feature, AffinityFeature) else getattr(feature, "by", None)
    categories = len(getattr(spec.items.fields.get(name), "categories", ())) if name else 1
    sums = len(getattr(feature, "half_lives", ())) * categories
    if isinstance(feature, WindowedCountFeature | WindowedRateFeature):
        sums = len(feature.windows) * (feature.buckets + 2 if feature.mode == "sliding" else 3)
    return sums * (2 if isinstance(feature, DecayedRateFeature | DecayedMeanFeature | WindowedRateFeature) else 1)


def _relative_features(spec: LoopSpec) -> Iterator[Violation]:
    columns: set[str] = set()
    for index, feature in enumerate(spec.features):
        if isinstance(feature, RankFeature | ZScoreFeature) and feature.of not in columns:
            yield Violation(("features", index, "of"), feature.of, "must be a column of an earlier feature")
        columns.update(feature_columns(feature, spec.fields))


def _model(spec: LoopSpec) -> Iterator[Violation]:
    known = {feature.name for feature in spec.features} | set(spec.columns())
    seen: set[str] = set()
    for position, name in enumerate(spec.model.features):
        if name not in known:
            yield Violation(("model", "features", position), name, "must be a declared feature or column")
        elif name in seen:
            yield Violation(("model", "features", position), name, "is given twice")
        seen.add(name)


def _training(spec: LoopSpec) -> Iterator[Violation]:
    label = spec.training.label
    at: Loc = ("training", "label")
    for position, event in enumerate(label.events):
        if event not in spec.events.interactions:
            yield Violation((*at, "events", position), event, "must be a declared interaction type")
    for event in label.weights:
        if event not in label.events:
            yield Violation((*at, "weights", event), None, "must be one of the label's events")


def _experiment(spec: LoopSpec) -> Iterator[Violation]:
    for key in ("clicks", "conversions"):
        for position, event in enumerate(getattr(spec.experiment, key)):
            if event not in spec.events.interactions:
                yield Violation(("experiment", key, position), event, "must be a declared interaction type")


def _serving(spec: LoopSpec) -> Iterator[Violation]:
    serving = spec.serving
    fallback = serving.fallback_feature
    if fallback is not None and fallback not in spec.columns():
        yield Violation(("serving", "fallback_feature"), fallback, "must be a feature column")
    for key in ("feature_timeout", "inference_timeout"):
        if getattr(serving, key).seconds >= serving.deadline_s:
            yield Violation(("serving", key), getattr(serving, key).text, "must be shorter than the deadline")
    field = serving.recommend.genre_field
    if field is not None:
        declared = spec.items.fields.get(field)
        if declared is None or isinstance(declared, TextField) or not getattr(declared, "values", ()):
            rule = "must be an item field of kind category or categories that lists its values"
            yield Violation(("serving", "recommend", "genre_field"), field, rule)


_CHECKED = ("impressions.user_id", "interactions.user_id", "interactions.item_id", "interactions.value")


def _quality(spec: LoopSpec) -> Iterator[Violation]:
    at: Loc = ("quality", "checks")
    checks, fields = spec.quality.checks, spec.items.fields
    known = {*CHECKS, *(name.partition(".")[0] for name in CHECKS)}
    for name in spec.quality.actions:
        if name not in known:
            yield Violation(("quality", "actions", name), None, f"must be a check or a family: {', '.join(CHECKS)}")
    for name in checks.completeness.columns:
        if name not in _CHECKED and name.removeprefix("items.") not in fields:
            rule = f"must be {', '.join(_CHECKED)} or items.<field>"
            yield Violation((*at, "completeness", "columns", name), None, rule)
    numbers = {f"items.{name}" for name, field in fields.items() if isinstance(field, NumberField)}
    for name in checks.ranges.columns:
        if name not in numbers and name not in spec.columns():
            rule = "must be a feature column or a number field as items.<field>"
            yield Violation((*at, "ranges", "columns", name), None, rule)
    for position, name in enumerate(checks.personal_data.fields):
        if not isinstance(fields.get(name), TextField):
            rule = "must be an item field of kind text"
            yield Violation((*at, "personal_data", "fields", position), name, rule)
