"""The mapping file of an import: which columns of a file are a user, an item, a type, a value, a time or a field."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, Self
from zoneinfo import ZoneInfo

from gyre_core.spec import LoopSpec, SpecViolation, parse_yaml
from gyre_core.spec.model import EventName, Name, SpecModel
from pydantic import AwareDatetime, Field, RootModel, StringConstraints, field_validator, model_validator
from pydantic_core import PydanticCustomError

Column = Annotated[str, StringConstraints(min_length=1)]
NAMED_FORMATS = ("unix", "unix_ms", "iso")


class TypeSource(SpecModel):
    """The interaction's type: the same for all rows (`value`), or from a column, whose words `names` translates.

    Either `value` or `column` is given. A word that `names` lacks stands for itself; a row whose type the loop does not
    declare is rejected.
    """

    value: EventName | None = None
    column: Column | None = None
    names: dict[str, EventName] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one(self) -> TypeSource:
        if (self.value is None) == (self.column is None):
            raise PydanticCustomError("one_of", "must have either value or column")
        return self


class TimeSource(SpecModel):
    """The time of the event.

    `format` is `unix` (seconds), `unix_ms`, `iso` (ISO 8601), or a strptime pattern; `zone` is the time zone of times
    that carry no UTC offset, without which rows with such times are rejected. Columns of Parquet that hold timestamps
    need no format.
    """

    column: Column
    format: Annotated[str, StringConstraints(min_length=1)] = "iso"
    zone: str | None = None

    @field_validator("format")
    @classmethod
    def _known(cls, given: str) -> str:
        if given not in NAMED_FORMATS and "%" not in given:
            raise PydanticCustomError("format", "must be unix, unix_ms, iso, or a pattern like %Y-%m-%d %H:%M:%S")
        return given

    @field_validator("zone")
    @classmethod
    def _zone(cls, given: str | None) -> str | None:
        if given is not None:
            try:
                ZoneInfo(given)
            except (KeyError, OSError, ValueError) as error:
                raise PydanticCustomError("zone", "must be a time zone like UTC or Europe/Vienna") from error
        return given


class FieldSource(SpecModel):
    """A field of the entity: its column, and what separates several categories, or a vector's numbers, in one text.

    Without a separator a text is one category, and the numbers of a vector are separated by commas.
    """

    column: Column
    separator: Annotated[str, StringConstraints(min_length=1)] | None = None


class CsvFormat(SpecModel):
    """How a CSV file is written: its delimiter, and its columns' names in order where the file has no heading.

    Of a `.tsv` file the default is a tab. With `columns` the first line is a row.
    """

    delimiter: Annotated[str, StringConstraints(min_length=1, max_length=1)] = ","
    columns: tuple[Column, ...] | None = None


class InteractionMapping(SpecModel):
    """Each row is an interaction; `user`, `item` and `value` name columns, of which `value` may be left out."""

    kind: Literal["interactions"]
    user: Column
    item: Column
    type: TypeSource
    value: Column | None = None
    time: TimeSource
    csv: CsvFormat = CsvFormat()

    def columns(self) -> dict[str, str]:
        """The column of each part of an interaction that has one: `user`, `item`, `time`, `type`, `value`."""
        found = {"user": self.user, "item": self.item, "time": self.time.column}
        if self.type.column is not None:
            found["type"] = self.type.column
        if self.value is not None:
            found["value"] = self.value
        return found


class _FieldsMapping(SpecModel):
    time: TimeSource | None = None
    at: AwareDatetime | None = None
    fields: dict[Name, Column | FieldSource] = Field(default_factory=dict)
    csv: CsvFormat = CsvFormat()

    @model_validator(mode="after")
    def _one_time(self) -> Self:
        if (self.time is None) == (self.at is None):
            raise PydanticCustomError("one_of", "must have either time, or at: one time for all rows")
        return self

    def sources(self) -> dict[str, FieldSource]:
        """The source of each mapped field, by the field's name; of one that is given as a column alone, too."""
        return {
            name: FieldSource(column=source) if isinstance(source, str) else source
            for name, source in self.fields.items()
        }

    def _columns(self, kind: str, column: str) -> dict[str, str]:
        found = {kind: column, **{name: source.column for name, source in self.sources().items()}}
        if self.time is not None:
            found["time"] = self.time.column
        return found


class ItemMapping(_FieldsMapping):
    """Each row is an item with all of its fields at one time: one that is empty or not mapped takes its default."""

    kind: Literal["items"]
    item: Column

    def columns(self) -> dict[str, str]:
        """The column of `item`, of `time` where it has one, and of each mapped field by its name."""
        return self._columns("item", self.item)


class UserMapping(_FieldsMapping):
    """Each row is a user with all known fields at one time: one that is empty or not mapped takes its default."""

    kind: Literal["users"]
    user: Column

    def columns(self) -> dict[str, str]:
        """The column of `user`, of `time` where it has one, and of each mapped field by its name."""
        return self._columns("user", self.user)


Mapping = InteractionMapping | ItemMapping | UserMapping


class _Kind(RootModel[Annotated[Mapping, Field(discriminator="kind")]], frozen=True):
    """The file as a whole."""


def load_mapping(path: Path, spec: LoopSpec) -> Mapping:
    """Read a mapping, a YAML file, and check it against the loop; the file of rows is not looked at.

    Raises:
        SpecError: it breaks a rule, or names types or fields that the loop does not declare; every issue with its line.
        OSError: the file cannot be read.
    """
    return parse_yaml(
        _Kind, path.read_text(encoding="utf-8"), source=str(path), checks=lambda made: _checks(made, spec)
    ).root


def _checks(made: _Kind, spec: LoopSpec) -> Iterator[SpecViolation]:
    mapping = made.root
    if not isinstance(mapping, InteractionMapping):
        declared = spec.fields("item" if isinstance(mapping, ItemMapping) else "user")
        for name in mapping.fields:
            if name not in declared:
                yield SpecViolation(
                    ("fields", name),
                    None,
                    f"must be one of {', '.join(declared)}" if declared else "gyre.yaml declares no such field",
                )
        return
    known = ", ".join(spec.events.interactions)
    if mapping.type.value is not None and mapping.type.value not in spec.events.interactions:
        yield SpecViolation(("type", "value"), mapping.type.value, f"must be one of {known}")
    for word, name in mapping.type.names.items():
        if name not in spec.events.interactions:
            yield SpecViolation(("type", "names", word), name, f"must be one of {known}")
