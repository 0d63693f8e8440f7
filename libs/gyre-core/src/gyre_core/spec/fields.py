"""The kinds of catalogue and user fields a loop may declare."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field as PydanticField
from pydantic import StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from gyre_core.spec.model import Float32, SpecModel

Category = Annotated[str, StringConstraints(min_length=1, max_length=100)]


class TextField(SpecModel):
    """Free text; as a feature it gives its length in characters."""

    kind: Literal["text"]


class NumberField(SpecModel):
    """A number, with the value that stands in where an entity has none or is unknown."""

    kind: Literal["number"]
    default: Float32 = 0.0


class BooleanField(SpecModel):
    """True or false, as a feature 1 or 0, with the value that stands in where an entity has none or is unknown."""

    kind: Literal["boolean"]
    default: bool = False


class _Categories(SpecModel):
    values: tuple[Category, ...] = PydanticField(default=(), max_length=256)
    buckets: int | None = PydanticField(default=None, ge=2, le=256)

    @model_validator(mode="after")
    def _listed_or_hashed(self) -> _Categories:
        if self.values and self.buckets:
            raise PydanticCustomError("categories", "must give either `values` or `buckets`")
        return self

    @property
    def categories(self) -> tuple[str, ...]:
        """What the field's columns stand for: the listed values, or the numbers of the buckets."""
        return self.values or tuple(map(str, range(self.buckets or 0)))


class CategoryField(_Categories):
    """A listed value, or any, hashed into `buckets`; as a feature one column for each value or bucket."""

    kind: Literal["category"]


class CategoriesField(_Categories):
    """Any number of values, listed or hashed as in a category; as a feature one column for each value or bucket."""

    kind: Literal["categories"]


class TimeField(SpecModel):
    """A moment, unix seconds; used by `age`, and by `field` with `parts`."""

    kind: Literal["time"]


class VectorField(SpecModel):
    """Numbers in a fixed order, such as an embedding; used by `vector`."""

    kind: Literal["vector"]
    length: int = PydanticField(ge=1, le=1024)


Field = Annotated[
    TextField | NumberField | BooleanField | CategoryField | CategoriesField | TimeField | VectorField,
    PydanticField(discriminator="kind"),
]
