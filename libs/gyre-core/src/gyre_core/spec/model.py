"""The strict, frozen pydantic model that every part of the loop spec derives from, and the names it allows."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, StringConstraints
from pydantic_core import PydanticCustomError

from gyre_core.float32 import FLOAT32_MAX


def _fitting(value: float) -> float:
    if not -FLOAT32_MAX <= value <= FLOAT32_MAX:
        raise PydanticCustomError("float32", "must fit into float32, at most 3.4e38 either way")
    return value


Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,62}$")]
EventName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,31}$")]
# No double hyphen: it parts loop and version in the names of served models.
LoopName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9]*(-[a-z0-9]+)*$", max_length=31)]


Float32 = Annotated[float, AfterValidator(_fitting)]
"""A number that reaches a feature or a label as it stands."""


class SpecModel(BaseModel):
    """Immutable, and an unknown field is an error: a misspelt setting must never pass unnoticed."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, serialize_by_alias=True)
