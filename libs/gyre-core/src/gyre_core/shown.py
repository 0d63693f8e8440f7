"""Values as errors show them: short enough for one line."""

MAX_CHARS = 64


def cut(text: str, most: int = MAX_CHARS) -> str:
    """A text of at most so many characters; an ellipsis stands for what was cut off."""
    return text if len(text) <= most else text[: most - 1] + "…"


def shown(value: object, most: int = MAX_CHARS) -> str:
    """A value as Python writes it, of at most so many characters."""
    return cut(repr(value), most)
