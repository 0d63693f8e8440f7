"""Identifiers use the field's terms: retired words come back nowhere, and the list of exceptions only shrinks."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
EXCEPTIONS = Path(__file__).with_name("retired_words.txt")
RETIRED_WORDS = frozenset(
    [
        "tell",
        "tells",
        "told",
        "untold",
        "shelf",
        "shelves",
        "refold",
        "folds",
        "patience",
        "patiently",
        "fence",
        "fences",
        "stretch",
        "touch",
        "touches",
        "begin",
        "begins",
        "began",
        "anew",
        "stand",
        "stands",
        "standing",
        "acted",
        "enough",
        "came",
    ]
)
"""Parts of an identifier that the field has another term for: publish, buffer, apply, timeout, applied offset, …"""
RETIRED_NAMES = re.compile(r"^_*(?:most|least|MOST|LEAST)(?:_|$)|_(?:kept|KEPT)$|^_*(?:however_long)")
"""Bounds are `max_…` and `min_…`, and what is kept has a `…_retention_s`."""
RETIRED_CLASSES = frozenset(
    [
        "Behind",
        "Known",
        "Stale",
        "Moved",
        "Replaced",
        "Rewound",
        "Past",
        "Asked",
        "Before",
        "Standing",
        "Held",
        "Work",
        "Period",
        "Book",
        "Fold",
        "Stretch",
    ]
)
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")


def is_retired(name: str) -> bool:
    """Whether an identifier is one, or holds a word, that is retired."""
    words = {word.lower() for word in _WORD.findall(name)}
    return bool(words & RETIRED_WORDS) or RETIRED_NAMES.search(name) is not None or name.lstrip("_") in RETIRED_CLASSES


def sources() -> Iterator[tuple[str, Path]]:
    """Every module of the product with its package, without the generated stubs."""
    for pattern in ("libs/*/src/**/*.py", "services/*/src/**/*.py", "infra/local/src/**/*.py"):
        for path in ROOT.glob(pattern):
            package = path.relative_to(ROOT).parts[1]
            if package != "gyre-proto":
                yield package, path


def identifiers(source: str) -> Iterator[str]:
    """Names that a module gives: classes, functions, arguments, variables, attributes."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


def found() -> set[str]:
    """`package identifier` of every retired one in the sources."""
    retired = set()
    for package, path in sources():
        retired |= {f"{package} {name}" for name in identifiers(path.read_text()) if is_retired(name)}
    return retired


def contracts() -> set[str]:
    """Names of settings, which are contracts and keep theirs."""
    lines = (ROOT / "docs" / "reference" / "contract-names.txt").read_text().splitlines()
    return {line.removeprefix("setting GYRE_").lower() for line in lines if line.startswith("setting ")}


def test_retired_words_do_not_come_back() -> None:
    """No identifier outside the exceptions uses a retired word."""
    allowed = set(EXCEPTIONS.read_text().splitlines())
    assert {each for each in found() - allowed if each.split(" ")[1] not in contracts()} == set()


def test_exceptions_only_shrink() -> None:
    """An exception whose identifier is gone is taken off the list."""
    assert set(EXCEPTIONS.read_text().splitlines()) - found() == set()


def test_the_search_finds_them() -> None:
    """Each kind of retired identifier is recognised, and ordinary ones are not."""
    assert all(
        map(is_retired, ("_told_at", "Shelf", "most_events", "snapshots_kept", "_MOST_IDS", "apply_patiently", "Known"))
    )
    assert not any(
        map(is_retired, ("almost", "known", "unfolded", "understand", "max_events", "retention_s", "before"))
    )


def test_class_names_are_unique() -> None:
    """A class's name says which class it is, in whatever package it is met."""
    places: dict[str, list[str]] = {}
    for _, path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    assert {name: found for name, found in places.items() if len(found) > 1} == {}
