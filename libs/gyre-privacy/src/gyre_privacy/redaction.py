"""Takes personal data out of free text: what is found is replaced by the name of its kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gyre_privacy.detection import Finding

Redactor = Callable[[str], str]


def redactor(entities: Sequence[str] = (), regions: Sequence[str] = ()) -> Redactor:
    """Make the function that returns a text with every finding replaced by its entity in angle brackets.

    What it returned it returns again as it is: redacting twice changes nothing.

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
        # What is left beside a masked value can look like another one, so the texts between masked values are searched
        # again until nothing is found in them. A part in which nothing was found stays as it is: scan() looks at each
        # by itself, so redacting the result finds nothing. Between like values stand like parts: each is searched once.
        searched: dict[str, list[Finding]] = {}
        done, left = [], [(text, False)]
        while left:
            part, masked = left.pop()
            if not masked and part not in searched:
                searched[part] = covering(search.scan(part))
            findings = [] if masked else searched[part]
            if not findings:
                done.append(part)
                continue
            parts, end = [], 0
            for finding in findings:
                parts += [(part[end : finding.start], False), (f"<{finding.entity}>", True)]
                end = finding.end
            left += reversed([*parts, (part[end:], False)])
        return "".join(done)

    return redact
