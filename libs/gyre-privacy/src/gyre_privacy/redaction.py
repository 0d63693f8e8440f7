"""Takes personal data out of free text: what is found is replaced by the name of its kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Redactor = Callable[[str], str]


def redactor(entities: Sequence[str] = (), regions: Sequence[str] = ()) -> Redactor:
    """What replaces every finding in a text by its entity in angle brackets; once more changes nothing.

    Args:
        entities: what is looked for; those of `gyre_privacy.detection.PERSONAL` when empty. Others need
            `gyre-privacy[presidio]` and take seconds to make.
        regions: the states whose national formats are looked for, ISO 3166-1; all when empty.

    Raises:
        ValueError: an entity or a region is unknown.
        ImportError: it needs the extra, which is not installed.
    """
    from gyre_privacy.detection import covering, scanner

    search = scanner(tuple(entities) or None, regions=tuple(regions) or None)

    def redact(text: str) -> str:
        # What is left beside a replaced value can look like another one, so the text is searched until nothing is
        # found: each round takes signs away and adds none that a finding is made of.
        while findings := covering(search.scan(text)):
            parts, end = [], 0
            for finding in findings:
                parts += [text[end : finding.start], f"<{finding.entity}>"]
                end = finding.end
            text = "".join([*parts, text[end:]])
        return text

    return redact
