"""Values as errors show them: short enough for one line."""

import math

MAX_CHARS = 64
_MAX_DIGITS = 1e16
"""Beyond it a whole number is written with its exponent."""


def cut(text: str, max_chars: int = MAX_CHARS) -> str:
    """A text of at most so many characters; an ellipsis stands for what was cut off."""
    return text if len(text) <= max_chars else text[: max_chars - 1] + "…"


def number(value: float) -> str:
    """A number exactly, whole ones without a fraction: a bound that is rounded would name another rule."""
    return str(int(value)) if math.isfinite(value) and value == int(value) and abs(value) < _MAX_DIGITS else repr(value)


def shown(value: object, max_chars: int = MAX_CHARS) -> str:
    """A value as Python writes it, of at most so many characters."""
    return cut(repr(value), max_chars)
