"""Values as errors show them: short enough for one line."""

import math

MAX_CHARS = 64
_MAX_DIGITS = 1e16
"""Beyond it a whole number is written with its exponent."""


def cut(text: str, max_chars: int = MAX_CHARS) -> str:
    """A text of at most so many characters, an ellipsis that stands for what was cut off included."""
    return text if len(text) <= max_chars else text[: max_chars - 1] + "…"


def number(value: float) -> str:
    """A number as text, exactly, whole ones below 1e16 without a fraction: a rounded bound would name another rule."""
    return str(int(value)) if math.isfinite(value) and value == int(value) and abs(value) < _MAX_DIGITS else repr(value)


def shown(value: object, max_chars: int = MAX_CHARS) -> str:
    """The `repr` of a value, cut as `cut` does.

    The whole `repr` is made first: it spares no time, and what it raises is raised.
    """
    return cut(repr(value), max_chars)
