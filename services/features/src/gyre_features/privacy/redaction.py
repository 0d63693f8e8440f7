"""Redaction of free text; what recognises personal data is imported only where a loop asks for it."""

from collections.abc import Callable, Sequence


def redactor(entities: Sequence[str]) -> Callable[[str], str]:
    """What replaces personal data of some kinds, of all for none, by its kind; takes seconds to make."""
    from gyre_quality.masking import redactor as make

    return make(entities)
