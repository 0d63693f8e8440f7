"""Values as errors show them: short enough for one line."""

MAX_CHARS = 64


def cut(text: str, max_chars: int = MAX_CHARS) -> str:
    """A text of at most so many characters; an ellipsis stands for what was cut off."""
    return text if len(text) <= max_chars else text[: max_chars - 1] + "…"


def shown(value: object, max_chars: int = MAX_CHARS) -> str:
    """A value as Python writes it, of at most so many characters."""
    return cut(repr(value), max_chars)
