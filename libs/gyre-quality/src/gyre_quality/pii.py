"""Finds personal data in text with Presidio's pattern and checksum recognisers, without its language models.

Presidio's engine runs a language pipeline, fifty recognisers and deep copies on every text. Here the same patterns and
checksums run directly, and only those whose gate the text passes (see `pii_gates`). Nothing is downloaded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

from gyre_quality.pii_gates import ANY, GATES, Gate, digits_in, may_hold_personal_data
from gyre_quality.pii_numbers import NUMBERS

# Presidio's defaults for context words (LemmaContextAwareEnhancer): what one of the five words before a finding adds.
_CONTEXT_WORDS, _CONTEXT_SCORE, _CONTEXT_LEAST = 5, 0.35, 0.4
_WORD = re.compile(r"\w+[#]?")
_LONGEST_CONTEXT = 200
_PHONE_LIKE = re.compile(r"[+＋(（]?\d(?:[^\w\n]{0,4}\d){6,}")
_PHONE_REGIONS = ("US", "GB", "DE", "IL", "IN", "CA", "BR")

# Presidio 2.2.362 drops the last digit of many version 6 addresses.
_REPLACED = frozenset({"IpRecognizer"})

IMPERSONAL = frozenset({"DATE_TIME", "URL"})
"""Entities that say nothing about a person by themselves; left out by default."""

Span = tuple[int, int, float]


@dataclass(frozen=True, slots=True)
class Finding:
    """A span of a text: which entity, from where to where (exclusive), and how sure, 0 to 1."""

    entity: str
    start: int
    end: int
    score: float


class _Recogniser(Protocol):
    """Finds the spans of one entity."""

    @property
    def entity(self) -> str:
        """Presidio's name of it."""

    @property
    def context(self) -> tuple[str, ...]:
        """Words that speak for a weak match, in lower case."""

    def spans(self, text: str) -> Iterable[Span]:
        """Every span with its score."""


class Scanner:
    """Finds personal data in texts. Building one takes seconds and costs 60 MB, so `scanner` keeps it."""

    def __init__(self, entities: Iterable[str] | None = None, *, min_score: float = 0.4) -> None:
        """Use the recognisers of these entities, or of all personal ones.

        Raises:
            ValueError: an entity is unknown.
        """
        known = _recognisers()
        wanted = set(known) - IMPERSONAL if entities is None else set(entities)
        if unknown := wanted - set(known):
            raise ValueError(f"entities = {sorted(unknown)}: must be of {', '.join(sorted(known))}")
        self._min_score = min_score
        self._recognisers: list[tuple[Gate, _Recogniser]] = [
            (GATES.get(entity, ANY), recogniser) for entity in sorted(wanted) for recogniser in known[entity]
        ]

    @property
    def entities(self) -> tuple[str, ...]:
        """What is looked for."""
        return tuple(dict.fromkeys(recogniser.entity for _, recogniser in self._recognisers))

    def scan(self, text: str) -> list[Finding]:
        """The findings of at least `min_score`, by position; those inside another of the same entity are left out."""
        if not may_hold_personal_data(text):
            return []
        digits = digits_in(text)
        found: dict[str, list[Span]] = {}
        for gate, recogniser in self._recognisers:
            if gate.admits(text, digits):
                spans = found.setdefault(recogniser.entity, [])
                spans.extend(self._sure(text, recogniser, span) for span in recogniser.spans(text))
        findings = [
            Finding(entity, *span)
            for entity, spans in found.items()
            for span in _widest(spans)
            if span[2] >= self._min_score
        ]
        return sorted(findings, key=lambda finding: (finding.start, -finding.end, -finding.score))

    def _sure(self, text: str, recogniser: _Recogniser, span: Span) -> Span:
        """The span with what a word of context before it adds."""
        start, end, score = span
        if score < self._min_score and _has_context(text, start, recogniser.context):
            return start, end, max(min(score + _CONTEXT_SCORE, 1.0), _CONTEXT_LEAST)
        return span


@cache
def scanner(entities: tuple[str, ...] | None = None, min_score: float = 0.4) -> Scanner:
    """The scanner of these entities, built once for each process."""
    return Scanner(entities, min_score=min_score)


def covering(findings: Sequence[Finding]) -> list[Finding]:
    """Findings that do not overlap: of several that do, one over all of their span, named like the surest of them."""
    merged: list[Finding] = []
    for finding in findings:
        if not merged or finding.start >= merged[-1].end:
            merged.append(finding)
            continue
        last = merged[-1]
        best = max(last, finding, key=lambda each: (each.score, each.end - each.start))
        merged[-1] = Finding(best.entity, last.start, max(last.end, finding.end), best.score)
    return merged


class _Patterns:
    """A Presidio pattern recogniser, its patterns compiled once and its checksum asked for each match."""

    def __init__(self, presidio: Any) -> None:
        import regex

        self.entity: str = presidio.supported_entities[0]
        self.context = tuple(word.lower() for word in presidio.context or ())
        self._presidio = presidio
        flags = presidio.global_regex_flags
        self._patterns = [(regex.compile(pattern.regex, flags=flags), pattern.score) for pattern in presidio.patterns]

    def spans(self, text: str) -> Iterable[Span]:
        for pattern, score in self._patterns:
            for match in pattern.finditer(text):
                start, end = match.span()
                if start < end and (sure := self._score(text[start:end], score)) > 0:
                    yield start, end, sure

    def _score(self, found: str, score: float) -> float:
        valid = self._presidio.validate_result(found)
        if valid is not None:
            score = 1.0 if valid else 0.0
        return 0.0 if self._presidio.invalidate_result(found) else score


class _Analysed:
    """A Presidio recogniser with a search of its own."""

    def __init__(self, presidio: Any) -> None:
        self.entity: str = presidio.supported_entities[0]
        self.context = tuple(word.lower() for word in presidio.context or ())
        self._presidio = presidio

    def spans(self, text: str) -> Iterable[Span]:
        for result in self._presidio.analyze(text, [self.entity], None):
            yield result.start, result.end, result.score


class _Phones(_Analysed):
    """Presidio's phone recogniser, asked only where a run of digits is a number of some region.

    Its search costs a millisecond a text. A run with separators may hold several numbers, so that is searched always.
    """

    def spans(self, text: str) -> Iterable[Span]:
        runs = [match.group() for match in _PHONE_LIKE.finditer(text)]
        if all(run.isdigit() and not _is_phone_number(run) for run in runs):
            return []
        return super().spans(text)


def _is_phone_number(digits: str) -> bool:
    from phonenumbers import NumberParseException, is_valid_number, parse

    for region in _PHONE_REGIONS:
        try:
            if is_valid_number(parse(digits, region)):
                return True
        except NumberParseException:
            continue
    return False


@cache
def _recognisers() -> dict[str, list[_Recogniser]]:
    """Presidio's recognisers that need no model, and ours, by entity."""
    from presidio_analyzer import PatternRecognizer, predefined_recognizers

    phones = predefined_recognizers.PhoneRecognizer(supported_regions=_PHONE_REGIONS)
    built: list[_Recogniser] = [*NUMBERS, _Phones(phones)]
    for name, kind in sorted(vars(predefined_recognizers).items()):
        if isinstance(kind, type) and issubclass(kind, PatternRecognizer) and name not in _REPLACED:
            make: Any = _offline_email if name == "EmailRecognizer" else kind
            plain = kind.analyze is PatternRecognizer.analyze
            built.append(_Patterns(make()) if plain else _Analysed(make()))
    by_entity: dict[str, list[_Recogniser]] = {}
    for each in built:
        by_entity.setdefault(each.entity, []).append(each)
    return by_entity


def _offline_email() -> Any:
    """Presidio's recogniser of addresses with the public suffix list that tldextract ships, never fetched."""
    from presidio_analyzer.predefined_recognizers import EmailRecognizer
    from tldextract import TLDExtract

    extract = TLDExtract(suffix_list_urls=(), cache_dir=None)

    class OfflineEmailRecognizer(EmailRecognizer):
        def validate_result(self, pattern_text: str) -> bool:
            return extract(pattern_text).fqdn != ""

    return OfflineEmailRecognizer()


def _widest(spans: Iterable[Span]) -> list[Span]:
    """The spans that lie in no surer one, nor in a wider one that is as sure."""
    kept: list[Span] = []
    for span in sorted(spans, key=lambda span: (-span[2], span[0], -span[1])):
        if not any(other[0] <= span[0] and span[1] <= other[1] for other in kept):
            kept.append(span)
    return kept


def _has_context(text: str, start: int, context: tuple[str, ...]) -> bool:
    """Whether one of the words shortly before the finding speaks for it."""
    if not context:
        return False
    words = _WORD.findall(text[max(start - _LONGEST_CONTEXT, 0) : start].lower())[-_CONTEXT_WORDS:]
    before = f" {' '.join(words)} "
    return any(f" {word} " in before for word in context)
