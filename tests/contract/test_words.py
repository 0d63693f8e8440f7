"""Names use the field's terms: retired words come back nowhere, and the list of exceptions only shrinks."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from gyre_features.settings import SETTINGS_OF
from gyre_runtime.metrics import METRICS

ROOT = Path(__file__).parents[2]
EXCEPTIONS = Path(__file__).with_name("retired_words.txt")
MAX_EXCEPTIONS = 39
"""What the list had when it was begun, less what has gone since: lower it with the list, and never raise it."""
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
RETIRED_PARTS = re.compile(r"(?:^|_)(?:most|least|kept)(?:_|$)")
"""The same anywhere in the name of a setting, a metric or a command."""
STEP_3 = ("features", "gyre-runtime", "gyre-core", "gyre-quality", "gyre-client", "local")
"""Packages whose names are all in the field's terms: they have no exceptions, nor have their settings and metrics."""
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
_COMMAND = re.compile(r"-{0,2}[A-Za-z][\w-]*(?:/-{0,2}[A-Za-z][\w-]*)?")
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


def command_words(source: str) -> Iterator[str]:
    """Commands and options that a module declares, to `typer` or to `argparse`."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if called in ("command", "add_typer", "add_parser", "add_argument", "Option", "Argument", "Typer"):
            given = [*node.args, *(each.value for each in node.keywords if each.arg in ("name", "choices", "dest"))]
            for each in (part for value in given for part in ast.walk(value)):
                if isinstance(each, ast.Constant) and isinstance(each.value, str) and _COMMAND.fullmatch(each.value):
                    yield each.value


def make_targets() -> Iterator[str]:
    """Targets and variables of the Makefile."""
    yield from re.findall(r"^([A-Za-z][\w-]*)(?::(?!=)| *[?:]?=)", (ROOT / "Makefile").read_text(), re.MULTILINE)


def settings() -> Iterator[str]:
    """Environment variables of all processes, the local stack and the client, as the reference has them."""
    yield from re.findall(r"^\| `(GYRE_\w+)`", (ROOT / "docs/reference/settings.md").read_text(), re.MULTILINE)


def processes() -> Iterator[str]:
    """Names that the reference gives to processes and jobs, which are commands of their packages."""
    yield from SETTINGS_OF


def is_retired_word(name: str) -> bool:
    """Whether the name of a setting, a metric, a label or a command holds a retired word."""
    plain = name.lower().removeprefix("gyre_").strip("-").replace("-", "_")
    return is_retired(plain.replace("/", "_")) or RETIRED_PARTS.search(plain) is not None


def found() -> set[str]:
    """`package identifier` of every retired one in the sources, and `kind name` of every other retired name."""
    retired = set()
    for package, path in sources():
        source = path.read_text()
        retired |= {f"{package} {name}" for name in identifiers(source) if is_retired(name)}
        retired |= {f"command {name}" for name in command_words(source) if is_retired_word(name)}
    retired |= {f"command {name}" for name in (*make_targets(), *processes()) if is_retired_word(name)}
    retired |= {f"setting {name}" for name in settings() if is_retired_word(name)}
    retired |= {f"metric {name}" for each in METRICS for name in (each.name, *each.labels) if is_retired_word(name)}
    return retired


def excepted_settings() -> set[str]:
    """Fields of the settings that are excepted, whose names are theirs."""
    lines = EXCEPTIONS.read_text().splitlines()
    return {line.removeprefix("setting GYRE_").lower() for line in lines if line.startswith("setting ")}


def test_retired_words_do_not_come_back() -> None:
    """No identifier, command, metric or setting outside the exceptions uses a retired word."""
    allowed = set(EXCEPTIONS.read_text().splitlines())
    assert {each for each in found() - allowed if each.split(" ")[1] not in excepted_settings()} == set()


def test_the_packages_of_the_field_have_no_exceptions() -> None:
    """Of the packages that were named anew no name is excepted: identifier, command, metric or setting."""
    prefixes = ("setting GYRE_FEATURES_", "metric gyre_features_", "metric gyre_quality_")
    own = tuple(f"{package} " for package in STEP_3)
    lines = EXCEPTIONS.read_text().splitlines()
    assert [line for line in lines if line.startswith((*own, *prefixes, "command "))] == []


def test_exceptions_only_shrink() -> None:
    """An exception whose identifier is gone is taken off the list, and none is added."""
    lines = EXCEPTIONS.read_text().splitlines()
    assert set(lines) - found() == set()
    assert len(lines) <= MAX_EXCEPTIONS


def test_the_search_finds_them() -> None:
    """Each kind of retired name is recognised, and ordinary ones are not."""
    source = 'app.command("tell")(f); add_argument("--most", help="at least so many"); typer.Option("--a/--told")'
    assert list(command_words(source)) == ["--most", "--a/--told", "tell"]
    assert all(
        map(is_retired, ("_told_at", "Shelf", "most_events", "snapshots_kept", "_MOST_IDS", "apply_patiently", "Known"))
    )
    assert all(map(is_retired_word, ("GYRE_X_ROWS_KEPT_S", "--most-rows", "tell", "gyre_x_untold_total", "least")))
    assert not any(map(is_retired_word, ("GYRE_X_RETENTION_S", "--max-rows", "gyre_x_published_total", "almost")))
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
