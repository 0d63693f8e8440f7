"""Durations as people write them: 200ms, 30m, 7d."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}
_PATTERN = re.compile(r"^(\d+(?:\.\d+)?)(ms|s|m|h|d|w)$")


@dataclass(frozen=True, slots=True)
class Duration:
    """A positive span of time that remembers how it was written, because column names carry that text.

    Two are equal only where they are written alike: 60s is not 1m.
    """

    text: str
    seconds: float

    @classmethod
    def parse(cls, text: str) -> Duration:
        """Read `30m` or `7d` (ms, s, m, h, d, w); raises ValueError for anything else, zero included."""
        match = _PATTERN.match(text)
        seconds = float(match[1]) * _UNIT_S[match[2]] if match else 0.0
        if seconds <= 0:
            raise ValueError("must be a duration like 30m, 7d")
        return cls(text=text, seconds=seconds)

    def __str__(self) -> str:
        return self.text

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            _validate, serialization=core_schema.plain_serializer_function_ser_schema(str)
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"type": "string", "pattern": _PATTERN.pattern, "examples": ["200ms", "30m", "7d"]}


def _validate(value: object) -> Duration:
    if isinstance(value, Duration):
        return value
    try:
        return Duration.parse(value if isinstance(value, str) else "")
    except ValueError as error:
        raise PydanticCustomError("duration", "must be a duration like 30m, 7d") from error
