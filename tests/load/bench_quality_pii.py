"""Finding personal data, measured on Presidio's own expectations and on public texts, beside Presidio's engine."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.csv as arrow_csv
from bench_report import Row, timed
from gyre_privacy.detection import PERSONAL, Scanner, scanner
from gyre_privacy.presidio import presidio_searches


def personal_data(data: Path) -> Iterator[Row]:
    """Presidio's own expectations, and documents a second on its texts, on headlines and on titles."""
    lines = (data / "pii" / "expected_findings.jsonl").read_text(encoding="utf-8").splitlines()
    cases = [case for case in map(json.loads, lines) if case["recognizer"] not in ("spacy", "stanza", "transformers")]
    engine = plain_engine()
    known = set(engine.get_supported_entities(language="en"))
    systems: dict[str, Callable[[str, str], set[tuple[int, int]]]] = {
        "gyre": lambda entity, text: {(each.start, each.end) for each in scanner((entity,), 0.0).scan(text)},
        "Presidio AnalyzerEngine": lambda entity, text: {
            (each.start, each.end) for each in engine.analyze(text, "en", entities=[entity])
        },
    }
    for scope in ("entities of both", "all patterns"):
        for system, find in systems.items():
            yield from _pii_rows(system, scope, find, [*_spans(cases, known, both=scope == "entities of both")])
    texts = {
        "Presidio's texts": [case["text"] for case in cases],
        "Upworthy headlines": arrow_csv.read_csv(data / "headlines" / "tests.csv")["headline"].to_pylist()[:3000],
        "MovieTweetings titles": _titles(data / "movietweetings" / "movies.dat")[:3000],
    }
    personal: Scanner = scanner()
    asked = [entity for entity in personal.entities if entity in known]
    for case, documents in texts.items():
        for system, find_all, sample in (
            ("gyre", personal.scan, documents),
            ("Presidio AnalyzerEngine", lambda text: engine.analyze(text, "en", entities=asked), documents[:300]),
        ):
            find_all(sample[0])
            found, spent = timed(lambda find_all=find_all, sample=sample: [find_all(text) for text in sample])
            yield Row(system, case, "documents", len(sample) / spent, "documents/s")
            if case != "Presidio's texts":
                sure = sum(any(each.score >= 0.4 for each in each_found) for each_found in found)
                yield Row(system, case, "documents with findings", sure, f"of {len(sample)}, score >= 0.4")


def _spans(cases: Sequence[Mapping[str, Any]], known: set[str], *, both: bool) -> Iterator[tuple[str, str, set]]:
    """Entity, text and expected spans of the cases that tell spans of one entity."""
    ours = {*PERSONAL, *presidio_searches()}
    for case in cases:
        spans = case.get("expected_positions", case.get("expected_res"))
        entities = set(case["entities"])
        if spans is None or len(entities) != 1 or len(spans) != case.get("expected_len", len(spans)):
            continue
        (entity,) = entities
        if not both or (entity in known and entity in ours):
            yield entity, case["text"], {tuple(span) for span in spans}


def _pii_rows(
    system: str, scope: str, find: Callable[[str, str], set[tuple[int, int]]], cases: Sequence[tuple[str, str, set]]
) -> Iterator[Row]:
    counts: dict[str, list[int]] = {}
    for entity, text, want in cases:
        try:
            got = find(entity, text)
        except ValueError:
            got = set()  # an entity that the system does not know
        for key in ("", entity):
            tally = counts.setdefault(key, [0, 0, 0])
            tally[0] += len(got & want)
            tally[1] += len(want - got)
            tally[2] += len(got - want)
    hits, missed, wrong = counts.pop("")
    case = f"{scope}: {len(cases)} texts"
    yield Row(system, case, "recall of exact spans", hits / max(hits + missed, 1), f"of {hits + missed}")
    yield Row(system, case, "precision", hits / max(hits + wrong, 1), f"of {hits + wrong}")
    if scope == "all patterns":
        for entity, (hit, miss, extra) in sorted(counts.items()):
            if hit + miss:
                yield Row(system, entity, "recall of exact spans", hit / (hit + miss), f"of {hit + miss}")
            if hit + extra:
                yield Row(system, entity, "precision", hit / (hit + extra), f"of {hit + extra}")


def plain_engine() -> Any:
    """Presidio's engine as it comes, with all its pattern recognisers and a language pipeline that does nothing."""
    import tldextract.tldextract as suffixes
    from presidio_analyzer import AnalyzerEngine, PatternRecognizer, RecognizerRegistry, predefined_recognizers
    from presidio_analyzer.nlp_engine import NlpArtifacts, NlpEngine

    class NoLanguage(NlpEngine):
        """Gives no words and no entities."""

        def load(self) -> None:
            """Nothing to load."""

        def is_loaded(self) -> bool:
            return True

        def process_text(self, text: str, language: str) -> NlpArtifacts:
            return NlpArtifacts([], [], [], [], self, language)

        def process_batch(self, texts: Iterable[str], language: str, *_: Any, **__: Any) -> Any:
            return ((text, self.process_text(text, language)) for text in texts)

        def is_stopword(self, word: str, language: str) -> bool:
            return False

        def is_punct(self, word: str, language: str) -> bool:
            return False

        def get_supported_entities(self) -> list[str]:
            return []

        def get_supported_languages(self) -> list[str]:
            return ["en"]

    # The engine would fetch the public suffix list at its first address.
    suffixes.TLD_EXTRACTOR = suffixes.TLDExtract(suffix_list_urls=(), cache_dir=None)
    kinds = [
        kind
        for kind in vars(predefined_recognizers).values()
        if isinstance(kind, type) and issubclass(kind, PatternRecognizer)
    ]
    recognisers = [kind(supported_language="en") for kind in kinds]
    registry = RecognizerRegistry([*recognisers, predefined_recognizers.PhoneRecognizer()], supported_languages=["en"])
    return AnalyzerEngine(registry, NoLanguage(), supported_languages=["en"])


def _titles(path: Path) -> list[str]:
    return [line.split("::")[1] for line in path.read_text(encoding="utf-8").splitlines()]
