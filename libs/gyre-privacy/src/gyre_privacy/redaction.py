"""Takes personal data out of free text: what is found is replaced by the name of its kind.

What recognises personal data is imported only where a loop asks for it: it needs the extra `gyre-privacy[redaction]`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

Redactor = Callable[[str], str]


def redactor(entities: Sequence[str] = ()) -> Redactor:
    """What replaces every finding in a text by its entity in angle brackets; once more changes nothing.

    It takes seconds to make.

    Args:
        entities: what is looked for; every personal entity when empty.

    Raises:
        ValueError: an entity is unknown.
        ImportError: the extra is not installed.
    """
    from gyre_quality.pii import covering, scanner

    search = scanner(tuple(entities) or None)

    def redact(text: str) -> str:
        parts, end = [], 0
        for finding in covering(search.scan(text)):
            parts += [text[end : finding.start], f"<{finding.entity}>"]
            end = finding.end
        return "".join([*parts, text[end:]])

    return redact
