"""The kinds of catalogue and user fields a loop may declare."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field as PydanticField
from pydantic import StringConstraints

from gyre_core.spec.model import SpecModel

Category = Annotated[str, StringConstraints(min_length=1, max_length=100)]


class TextField(SpecModel):
    """Free text; as a feature it gives its length in characters."""

    kind: Literal["text"]


class NumberField(SpecModel):
    """A number, with the value that stands in while the entity is unknown."""

    kind: Literal["number"]
    default: float = 0.0


class BooleanField(SpecModel):
    """True or false; as a feature 1 or 0."""

    kind: Literal["boolean"]
    default: bool = False


class CategoryField(SpecModel):
    """One of the listed values; as a feature one column for each value."""

    kind: Literal["category"]
    values: tuple[Category, ...] = PydanticField(default=(), max_length=256)


class CategoriesField(SpecModel):
    """Any number of the listed values; as a feature one column for each value."""

    kind: Literal["categories"]
    values: tuple[Category, ...] = PydanticField(default=(), max_length=256)


class TimeField(SpecModel):
    """A moment, unix seconds; used by `age`."""

    kind: Literal["time"]


Field = Annotated[
    TextField | NumberField | BooleanField | CategoryField | CategoriesField | TimeField,
    PydanticField(discriminator="kind"),
]
