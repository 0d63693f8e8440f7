"""Redaction at the deployed threshold, on texts from a seed given at run time: recall, precision, the worst cost.

    python tests/load/bench_redaction.py [--texts 20000] [--fuzzed 100000] [--seed N]

Beside it Presidio's pattern recognisers with its own engine and threshold, as they come.
"""

from __future__ import annotations

import argparse
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from bench_quality_pii import plain_engine
from bench_report import Row, show, write
from gyre_privacy.detection import MIN_SCORE, PERSONAL, covering, scanner
from gyre_privacy.redaction import redactor
from redaction_texts import Labelled, bare_numbers, fuzzed_texts, impersonal_texts, personal_texts

Find = Callable[[str], list[tuple[int, int]]]
_LENGTH = 10_000
_PEER_TEXTS = 1000


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--texts", type=int, default=20_000)
    parser.add_argument("--fuzzed", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32))
    options = parser.parse_args()
    rows = [*_rows(options.seed, options.texts, options.fuzzed)]
    show("redaction at the deployed threshold", rows)
    write("redaction", rows)


def _rows(seed: int, count: int, fuzzed: int) -> Iterator[Row]:
    yield Row("gyre", "texts", "seed", seed, "")
    search, engine = scanner(), plain_engine()
    known = [entity for entity in PERSONAL if entity in set(engine.get_supported_entities(language="en"))]
    texts = [*personal_texts(seed, count), *impersonal_texts(seed, count)]
    peer = random.Random(seed).sample(texts, min(_PEER_TEXTS, len(texts)))
    yield from _quality("gyre", lambda text: [(each.start, each.end) for each in covering(search.scan(text))], texts)

    def presidio(text: str) -> list[tuple[int, int]]:
        found = engine.analyze(text, "en", entities=known)
        return [(each.start, each.end) for each in found if each.score >= MIN_SCORE]

    yield from _quality("Presidio AnalyzerEngine", presidio, peer)
    seen, flagged = Counter[str](), Counter[str]()
    for kind, text in bare_numbers(seed, count // 4):
        seen[kind] += 1
        flagged[kind] += bool(search.scan(text))
    for kind, total in seen.items():
        yield Row("gyre", f"bare {kind}", "flagged", flagged[kind] / total, f"of {total}")
    yield from _cost(seed, fuzzed)


def _quality(system: str, find: Find, texts: Sequence[Labelled]) -> Iterator[Row]:
    hits, total, wrong = Counter[str](), Counter[str](), 0
    for each in texts:
        spans = find(each.text)
        start = each.text.index(each.value) if each.value else -1
        end = start + len(each.value)
        if each.value:
            total[each.entity] += 1
            hits[each.entity] += any(first <= start and last >= end for first, last in spans)
        wrong += sum(last <= start or first >= end for first, last in spans)
    found = sum(hits.values())
    case = f"{len(texts)} texts of 21 locales"
    yield Row(system, case, "recall", found / sum(total.values()), f"of {sum(total.values())}")
    yield Row(system, case, "precision", found / max(found + wrong, 1), f"of {found + wrong}")
    for entity in sorted(total):
        yield Row(system, entity, "recall", hits[entity] / total[entity], f"of {total[entity]}")


def _cost(seed: int, count: int) -> Iterator[Row]:
    """Processor time of redacting fuzzed texts; what is slow is timed again, since the machine is shared."""
    redact, costs = redactor(), []
    for text in fuzzed_texts(seed, count, _LENGTH):
        spent = _timed(redact, text)
        costs.append(min(spent, *(_timed(redact, text) for _ in range(3))) if spent > 0.02 else spent)
    costs.sort()
    case = f"{count} fuzzed texts of {_LENGTH} characters"
    for name, value in (("median", costs[len(costs) // 2]), ("p99", costs[-len(costs) // 100]), ("worst", costs[-1])):
        yield Row("gyre", case, f"processor time, {name}", value * 1e3, "ms")


def _timed(redact: Callable[[str], str], text: str) -> float:
    started = time.process_time()
    redact(text)
    return time.process_time() - started


if __name__ == "__main__":
    main()
