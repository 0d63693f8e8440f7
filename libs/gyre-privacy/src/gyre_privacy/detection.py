"""Finds personal data in texts.

Kinds that every loop is searched for are found by patterns of our own, each linear in the text: see `PERSONAL`. Other
kinds, which a loop names itself, are found by Presidio's recognisers where they are installed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol

from gyre_privacy.contact import Phones, Search, emails, ip_addresses, mac_addresses
from gyre_privacy.context import SearchedText
from gyre_privacy.finance import accounts, cards, wallets
from gyre_privacy.gates import ANY, GATES, Gate, digits_in, may_hold_identity, may_hold_personal_data
from gyre_privacy.identity import IDENTITIES, IdentitySearch
from gyre_privacy.plain import plain
from gyre_privacy.regions import national_lengths

# Presidio's defaults for context words (LemmaContextAwareEnhancer): what one of the five words before a finding adds.
_CONTEXT_WORDS, _CONTEXT_SCORE, _CONTEXT_LEAST = 5, 0.35, 0.4
_WORD = re.compile(r"\w+[#]?")
_LONGEST_CONTEXT = 200
MIN_SCORE = 0.4
"""Findings of at least this score count, everywhere that texts are searched or redacted."""

CONTACT = ("EMAIL_ADDRESS", "PHONE_NUMBER", "IP_ADDRESS", "MAC_ADDRESS")
FINANCE = ("CREDIT_CARD", "IBAN_CODE", "CRYPTO")
PERSONAL = (*CONTACT, *FINANCE, *(each.entity for each in IDENTITIES))
"""The kinds that are searched for by default."""
IMPERSONAL = frozenset({"DATE_TIME", "URL"})
"""Kinds that say nothing about a person by themselves."""

Span = tuple[int, int, float]


@dataclass(frozen=True, slots=True)
class Finding:
    """A span of a text: which entity, from which to which character (exclusive), and how sure, 0 to 1."""

    entity: str
    start: int
    end: int
    score: float


class _Recogniser(Protocol):
    """Finds the spans of one entity."""

    @property
    def entity(self) -> str:
        """Presidio's name of it."""

    def spans(self, text: str) -> Iterable[Span]:
        """Every span with its score."""


class Scanner:
    """Finds personal data in texts.

    Args:
        entities: the kinds to look for; those of `PERSONAL` when None. Others need Presidio, and take seconds to build.
        regions: the states, ISO 3166-1, whose national telephone formats and numbers of people are looked for; all of
            `gyre_privacy.identity.REGIONS`, and telephones of every country, when None. International numbers are
            found in any case.
        min_score: the least score of a finding.

    Raises:
        ValueError: an entity or a region is unknown.
        ImportError: an entity needs Presidio, which is not installed.
    """

    def __init__(
        self,
        entities: Iterable[str] | None = None,
        *,
        regions: Iterable[str] | None = None,
        min_score: float = MIN_SCORE,
    ) -> None:
        self._min_score = min_score
        chosen = None if regions is None else frozenset(regions)
        own = _own(chosen)
        wanted = list(dict.fromkeys(PERSONAL if entities is None else entities))
        foreign = _presidio() if set(wanted) - set(PERSONAL) else {}
        if unknown := set(wanted) - set(PERSONAL) - set(foreign):
            raise ValueError(f"entities = {sorted(unknown)}: must be of {', '.join(sorted({*PERSONAL, *foreign}))}")
        self._masked = re.compile(rf"<(?:{'|'.join(sorted({*PERSONAL, *wanted}))})>")
        self._recognisers: list[tuple[Gate, _Recogniser]] = []
        for entity in wanted:
            if entity in own:
                self._recognisers.append((ANY, own[entity]))
            elif entity not in PERSONAL:
                self._recognisers += [(GATES.get(entity, ANY), each) for each in foreign[entity]]
        self._identities = IdentitySearch(
            (each for each in IDENTITIES if each.entity in wanted and (chosen is None or each.region in chosen)),
            min_score,
        )

    @property
    def entities(self) -> tuple[str, ...]:
        """The kinds that this scanner looks for, each once; without those that its regions exclude."""
        own = (each.entity for each in self._identities.kinds)
        return tuple(dict.fromkeys((*(recogniser.entity for _, recogniser in self._recognisers), *own)))

    def scan(self, text: str) -> list[Finding]:
        """The findings of at least `min_score`, by position; findings of several entities may overlap (see `covering`).

        Of one entity those inside another that is as sure are left out.

        What lies between two masked values, such as `<IBAN_CODE>`, is searched by itself: a finding depends on nothing
        beyond them, so that masking a value never makes another one found farther away.
        """
        findings, start = [], 0
        for masked in self._masked.finditer(text):
            findings += self._scan(text[start : masked.start()], start)
            start = masked.end()
        return findings + self._scan(text[start:] if start else text, start)

    def _scan(self, part: str, offset: int) -> list[Finding]:
        """The findings of a text without masked values, which begins at an offset of the whole."""
        text = SearchedText(plain(part))
        if not may_hold_personal_data(text):
            return []
        digits = digits_in(text)
        found: dict[str, list[Span]] = {}
        for gate, recogniser in self._recognisers:
            if gate.admits(text, digits) and (spans := list(recogniser.spans(text))):
                context = getattr(recogniser, "context", ())
                words = context if isinstance(context, tuple) else ()
                found.setdefault(recogniser.entity, []).extend(self._sure(text, words, span) for span in spans)
        if may_hold_identity(text, digits):
            for entity, span in self._identities.spans(text):
                found.setdefault(entity, []).append(span)
        findings = [
            Finding(entity, offset + start, offset + end, score)
            for entity, spans in found.items()
            for start, end, score in _widest(span for span in spans if span[2] >= self._min_score)
        ]
        return sorted(findings, key=lambda finding: (finding.start, -finding.end, -finding.score))

    def _sure(self, text: str, context: tuple[str, ...], span: Span) -> Span:
        """The span with what a word of context before it adds."""
        start, end, score = span
        if score < self._min_score and _has_context(text, start, context):
            return start, end, max(min(score + _CONTEXT_SCORE, 1.0), _CONTEXT_LEAST)
        return span


@cache
def scanner(
    entities: tuple[str, ...] | None = None, min_score: float = MIN_SCORE, regions: tuple[str, ...] | None = None
) -> Scanner:
    """The scanner of these entities and regions, built once for each process; arguments and errors as of `Scanner`."""
    return Scanner(entities, min_score=min_score, regions=regions)


def _own(regions: frozenset[str] | None) -> dict[str, _Recogniser]:
    """Our recognisers of `CONTACT` and `FINANCE`, by entity."""
    return {
        "EMAIL_ADDRESS": Search("EMAIL_ADDRESS", emails),
        "PHONE_NUMBER": Phones(None if regions is None else national_lengths(regions)),
        "IP_ADDRESS": Search("IP_ADDRESS", ip_addresses),
        "MAC_ADDRESS": Search("MAC_ADDRESS", mac_addresses),
        "CREDIT_CARD": Search("CREDIT_CARD", cards),
        "IBAN_CODE": Search("IBAN_CODE", accounts),
        "CRYPTO": Search("CRYPTO", wallets),
    }


def _presidio() -> dict[str, list[_Recogniser]]:
    from gyre_privacy.presidio import presidio_searches

    return {entity: list(searches) for entity, searches in presidio_searches().items()}


def covering(findings: Sequence[Finding]) -> list[Finding]:
    """Findings that do not overlap: of several that do, one over all of their span, named like the surest of them.

    Args:
        findings: of one text, by position as `Scanner.scan` gives them.
    """
    merged: list[Finding] = []
    for finding in findings:
        if not merged or finding.start >= merged[-1].end:
            merged.append(finding)
            continue
        last = merged[-1]
        best = max(last, finding, key=lambda each: (each.score, each.end - each.start))
        merged[-1] = Finding(best.entity, last.start, max(last.end, finding.end), best.score)
    return merged


def _widest(spans: Iterable[Span]) -> list[Span]:
    """The spans that lie in no surer one, nor in a wider one that is as sure; n log n for n spans of few scores."""
    kept: list[Span] = []
    ends: dict[float, int] = {}  # by score, where the spans so far end at the latest
    for span in sorted(spans, key=lambda span: (span[0], -span[1], -span[2])):
        _, end, score = span
        if not any(last >= end for other, last in ends.items() if other >= score):
            kept.append(span)
            ends[score] = end
    return kept


def _has_context(text: str, start: int, context: tuple[str, ...]) -> bool:
    """Whether one of the words shortly before the finding speaks for it."""
    if not context:
        return False
    words = _WORD.findall(text[max(start - _LONGEST_CONTEXT, 0) : start].lower())[-_CONTEXT_WORDS:]
    before = f" {' '.join(words)} "
    return any(f" {word} " in before for word in context)
