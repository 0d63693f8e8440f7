"""Which output columns a feature declares, by name."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from gyre_core.spec.features import ContextFeature, Feature, FieldFeature, HistoryFeature, VectorFeature
from gyre_core.spec.fields import CategoriesField, CategoryField, VectorField

FieldsOf = Callable[[str], Mapping[str, Any]]


def feature_columns(feature: Feature, fields_of: FieldsOf) -> tuple[str, ...]:
    """The names of the feature's columns in order; `fields_of(scope)` gives the declared fields of a scope, by name.

    Nothing is checked: where the field is not declared, names may be missing.
    """
    if isinstance(feature, FieldFeature):
        return _field_columns(feature, fields_of)
    if isinstance(feature, HistoryFeature):
        overlap = (f"{feature.name}_overlap",) if feature.field else ()
        return (f"{feature.name}_seen", *overlap)
    if isinstance(feature, VectorFeature) and feature.with_ is None:
        field = fields_of(feature.scope).get(feature.field)
        length = field.length if isinstance(field, VectorField) else 0
        return tuple(f"{feature.name}_{place}" for place in range(length))
    if isinstance(feature, ContextFeature) and feature.values:
        return tuple(f"{feature.name}_{_slug(value)}" for value in feature.values)
    spans = getattr(feature, "half_lives", ()) or getattr(feature, "windows", ())
    if spans:
        return tuple(f"{feature.name}_{_slug(span.text)}" for span in spans)
    return (feature.name,)


def _field_columns(feature: FieldFeature, fields_of: FieldsOf) -> tuple[str, ...]:
    field = fields_of(feature.scope).get(feature.field)
    if feature.parts:
        return tuple(f"{feature.name}_{part}" for part in feature.parts)
    if isinstance(field, CategoryField | CategoriesField) and feature.encoding == "one_hot":
        return tuple(f"{feature.name}_{_slug(value)}" for value in field.categories)
    return (feature.name,)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")
