"""Rules between a loop's `privacy` and the rest of it: fields that exist, and values that features can still read."""

from __future__ import annotations

from collections.abc import Iterator

from gyre_core.spec.fields import CategoriesField, CategoryField, TextField
from gyre_core.spec.issues import Loc, SpecViolation
from gyre_core.spec.loop import LoopSpec
from gyre_core.spec.privacy import MaskRule


def privacy_checks(spec: LoopSpec) -> Iterator[SpecViolation]:
    """Every privacy rule that cannot work: of no declared field, of a wrong kind, or of one that a feature reads."""
    for path, rule in spec.privacy.fields.items():
        at: Loc = ("privacy", "fields", path)
        scope, _, name = path.partition(".")
        if scope in ("items", "users"):
            problem = _field_problem(spec, scope, name, rule)
            if problem is not None:
                yield SpecViolation(at, path if problem.startswith("must be") else rule.action, problem)
                continue
        if _is_read(spec, scope, name) and (rule.action == "drop" or rule.key == "rotating"):
            yield SpecViolation(
                at, rule.action, "must not be dropped or hashed by a rotating key, since a feature reads it"
            )


def _field_problem(spec: LoopSpec, scope: str, name: str, rule: MaskRule) -> str | None:
    field = spec.fields(scope.removesuffix("s")).get(name)
    if field is None:
        return f"must be a declared field of {scope}"
    if rule.action == "redact" and not isinstance(field, TextField):
        return "must have the kind text to be redacted"
    hashable = isinstance(field, TextField) or (isinstance(field, CategoryField | CategoriesField) and not field.values)
    if rule.action == "hash" and not hashable:
        return "must have the kind text, or be a category without listed values, to be hashed"
    return None


def _is_read(spec: LoopSpec, scope: str, name: str) -> bool:
    """Whether a feature or the candidates are made from the values of a field."""
    if scope == "items" and spec.serving.recommend.genre_field == name:
        return True
    for feature in spec.features:
        of_user = feature.kind in ("field", "age", "vector") and getattr(feature, "scope", "item") == "user"
        read = "labels" if feature.kind == "context" else "users" if of_user else "items"
        if scope == read and getattr(feature, "field", None) == name:
            return True
        if scope == "users" and getattr(feature, "with_", None) == name:
            return True
    return False
