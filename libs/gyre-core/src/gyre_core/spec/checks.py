"""Rules between the parts of a loop spec: names that must exist, and names that must not exist twice."""

from __future__ import annotations

from collections.abc import Iterator

from gyre_core.spec.feature_checks import feature_checks
from gyre_core.spec.features import IMPRESSION
from gyre_core.spec.fields import NumberField, TextField
from gyre_core.spec.issues import Loc, SpecViolation
from gyre_core.spec.loop import LoopSpec
from gyre_core.spec.privacy_checks import privacy_checks
from gyre_core.spec.quality import CHECKS


def cross_checks(spec: LoopSpec) -> Iterator[SpecViolation]:
    """Every rule that one part of the spec breaks against another, those of features and privacy included."""
    yield from _interaction_names(spec)
    yield from _category_values(spec)
    yield from feature_checks(spec)
    yield from _model(spec)
    yield from _training(spec)
    yield from _experiment(spec)
    yield from _serving(spec)
    yield from _quality(spec)
    yield from privacy_checks(spec)


def _interaction_names(spec: LoopSpec) -> Iterator[SpecViolation]:
    if IMPRESSION in spec.events.interactions:
        rule = "is reserved for shown items and cannot name an interaction type"
        yield SpecViolation(("events", "interactions", IMPRESSION), None, rule)


def _category_values(spec: LoopSpec) -> Iterator[SpecViolation]:
    for scope in ("items", "users"):
        for name, field in getattr(spec, scope).fields.items():
            values = getattr(field, "values", ())
            if len(set(values)) != len(values):
                yield SpecViolation((scope, "fields", name, "values"), None, "must not list a value twice")


def _model(spec: LoopSpec) -> Iterator[SpecViolation]:
    known = {feature.name for feature in spec.features} | set(spec.columns())
    seen: set[str] = set()
    for position, name in enumerate(spec.model.features):
        if name not in known:
            yield SpecViolation(("model", "features", position), name, "must be a declared feature or column")
        elif name in seen:
            yield SpecViolation(("model", "features", position), name, "is given twice")
        seen.add(name)


def _training(spec: LoopSpec) -> Iterator[SpecViolation]:
    label = spec.training.label
    at: Loc = ("training", "label")
    for position, event in enumerate(label.events):
        if event not in spec.events.interactions:
            yield SpecViolation((*at, "events", position), event, "must be a declared interaction type")
    for event in label.weights:
        if event not in label.events:
            yield SpecViolation((*at, "weights", event), None, "must be one of the label's events")
    if label.events and not any(label.weight(event) for event in label.events):
        yield SpecViolation((*at, "weights"), None, "must give at least one of the label's events a weight above 0")
    if label.half_life is not None and label.credit != "decay":
        yield SpecViolation(
            (*at, "half_life"), label.half_life.text, "goes with credit: decay; set that, or leave it out"
        )


def _experiment(spec: LoopSpec) -> Iterator[SpecViolation]:
    for key in ("clicks", "conversions"):
        for position, event in enumerate(getattr(spec.experiment, key)):
            if event not in spec.events.interactions:
                yield SpecViolation(("experiment", key, position), event, "must be a declared interaction type")


def _serving(spec: LoopSpec) -> Iterator[SpecViolation]:
    serving = spec.serving
    fallback = serving.fallback_feature
    if fallback is not None and fallback not in spec.columns():
        yield SpecViolation(("serving", "fallback_feature"), fallback, "must be a feature column")
    for key in ("feature_timeout", "inference_timeout"):
        if getattr(serving, key).seconds >= serving.deadline_s:
            yield SpecViolation(("serving", key), getattr(serving, key).text, "must be shorter than the deadline")
    field = serving.recommend.genre_field
    if field is not None:
        declared = spec.items.fields.get(field)
        if declared is None or isinstance(declared, TextField) or not getattr(declared, "values", ()):
            rule = "must be an item field of kind category or categories that lists its values"
            yield SpecViolation(("serving", "recommend", "genre_field"), field, rule)


_CHECKED = ("impressions.user_id", "interactions.user_id", "interactions.item_id", "interactions.value")


def _quality(spec: LoopSpec) -> Iterator[SpecViolation]:
    at: Loc = ("quality", "checks")
    checks, fields = spec.quality.checks, spec.items.fields
    known = {*CHECKS, *(name.partition(".")[0] for name in CHECKS)}
    for name in spec.quality.actions:
        if name not in known:
            yield SpecViolation(("quality", "actions", name), None, f"must be a check or a family: {', '.join(CHECKS)}")
    for name in checks.completeness.columns:
        if name not in _CHECKED and name.removeprefix("items.") not in fields:
            rule = f"must be {', '.join(_CHECKED)} or items.<field>"
            yield SpecViolation((*at, "completeness", "columns", name), None, rule)
    numbers = {f"items.{name}" for name, field in fields.items() if isinstance(field, NumberField)}
    for name in checks.ranges.columns:
        if name not in numbers and name not in spec.columns():
            rule = "must be a feature column or a number field as items.<field>"
            yield SpecViolation((*at, "ranges", "columns", name), None, rule)
    texts = {name for name, field in fields.items() if isinstance(field, TextField)}
    texts |= {f"items.{name}" for name in texts} | {"interactions.user_id", "interactions.item_id"}
    texts |= {f"users.{name}" for name, field in spec.users.fields.items() if isinstance(field, TextField)}
    for position, name in enumerate(checks.personal_data.fields):
        if name not in texts:
            rule = "must be an item field of kind text, users.<field> of kind text, interactions.user_id or .item_id"
            yield SpecViolation((*at, "personal_data", "fields", position), name, rule)
