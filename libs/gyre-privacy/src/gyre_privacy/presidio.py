"""Presidio's pattern and checksum recognisers, without its language models, for kinds that a loop names itself.

Presidio's engine runs a language pipeline, fifty recognisers and deep copies on every text. Here the same patterns and
checksums run directly. Nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

from gyre_privacy.numbers import NUMBERS, CheckedNumber

Span = tuple[int, int, float]
# Presidio 2.2.362 drops the last digit of many version 6 addresses.
_REPLACED = frozenset({"IpRecognizer"})


class PatternSearch:
    """A Presidio pattern recogniser, its patterns compiled once and its checksum asked for each match."""

    def __init__(self, presidio: Any) -> None:
        import regex

        self.entity: str = presidio.supported_entities[0]
        self.context = tuple(word.lower() for word in presidio.context or ())
        self._presidio = presidio
        flags = presidio.global_regex_flags
        self._patterns = [(regex.compile(pattern.regex, flags=flags), pattern.score) for pattern in presidio.patterns]

    def spans(self, text: str) -> Iterable[Span]:
        """Yield (start, end, score) of each pattern match that the checksum does not refute; the score is 0 to 1."""
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


class AnalysedSearch:
    """A Presidio recogniser that overrides Presidio's search by patterns: its own `analyze` is called."""

    def __init__(self, presidio: Any) -> None:
        self.entity: str = presidio.supported_entities[0]
        self.context = tuple(word.lower() for word in presidio.context or ())
        self._presidio = presidio

    def spans(self, text: str) -> Iterable[Span]:
        """Yield (start, end, score) of each of Presidio's results; the score is 0 to 1."""
        for result in self._presidio.analyze(text, [self.entity], None):
            yield result.start, result.end, result.score


@cache
def presidio_searches() -> dict[str, list[PatternSearch | AnalysedSearch | CheckedNumber]]:
    """Presidio's recognisers that need no model, and the numbers it misses, by entity; takes seconds to make.

    Raises:
        ImportError: Presidio is not installed (the extra `gyre-privacy[presidio]`).
    """
    from presidio_analyzer import PatternRecognizer, predefined_recognizers

    built: list[PatternSearch | AnalysedSearch | CheckedNumber] = [*NUMBERS]
    for name, kind in sorted(vars(predefined_recognizers).items()):
        if isinstance(kind, type) and issubclass(kind, PatternRecognizer) and name not in _REPLACED:
            make: Any = _offline_email if name == "EmailRecognizer" else kind
            plain = kind.analyze is PatternRecognizer.analyze
            built.append(PatternSearch(make()) if plain else AnalysedSearch(make()))
    by_entity: dict[str, list[PatternSearch | AnalysedSearch | CheckedNumber]] = {}
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
