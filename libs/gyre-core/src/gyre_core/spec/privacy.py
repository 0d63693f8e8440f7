"""Which personal data a loop takes in, and what is made of it before anything else sees it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from gyre_core.spec.model import SpecModel

MaskAction = Literal["drop", "redact", "hash"]
KeyKind = Literal["stable", "rotating"]
MaskedField = Annotated[str, StringConstraints(pattern=r"^(items|users|labels)\..{1,128}$")]
EntityName = Annotated[str, StringConstraints(pattern=r"^[A-Z][A-Z0-9_]{1,63}$")]
Region = Annotated[str, StringConstraints(pattern=r"^[A-Z]{2}$")]
Domain = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,31}$")]


class MaskRule(SpecModel):
    """What happens to the values of one field.

    `drop` leaves the field out; `redact` replaces what is found in a text by its kind in angle brackets; `hash`
    replaces the whole value by its keyed hash. `key: rotating` is for fields that nothing is joined by. Fields of one
    `domain` share hashes, by default each has its own; that of user ids is `user`. `entities` is what `redact` looks
    for, all personal ones by default.
    """

    action: MaskAction
    key: KeyKind = "stable"
    domain: Domain | None = None
    entities: tuple[EntityName, ...] = Field(default=(), max_length=64)

    @model_validator(mode="after")
    def _fits_its_action(self) -> MaskRule:
        if self.action != "hash" and (self.key != "stable" or self.domain is not None):
            raise PydanticCustomError("mask", "must not give `key` or `domain` unless the action is hash")
        if self.action != "redact" and self.entities:
            raise PydanticCustomError("mask", "must not give `entities` unless the action is redact")
        return self


class PrivacySpec(SpecModel):
    """Rules for ids and free text, applied wherever events are taken in.

    `user_id: hmac` replaces user ids by their keyed hash with the stable key. `fields` has rules for `items.<field>`,
    `users.<field>` and for labels of a request's context, `labels.<name>`. `regions` are the states (ISO 3166-1, such
    as DE) whose national telephone formats and numbers of people `redact` and the checks of personal data look for;
    all documented ones when empty. What is international is found in any case.
    """

    user_id: Literal["plain", "hmac"] = "plain"
    fields: dict[MaskedField, MaskRule] = Field(default_factory=dict)
    regions: tuple[Region, ...] = Field(default=(), max_length=64)

    @property
    def declared(self) -> bool:
        """Whether anything is masked at all."""
        return self.user_id == "hmac" or bool(self.fields)

    @property
    def hashes(self) -> bool:
        """Whether a key is needed."""
        return self.user_id == "hmac" or any(rule.action == "hash" for rule in self.fields.values())
