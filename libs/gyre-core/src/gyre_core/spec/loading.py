"""Reads `gyre.yaml`: YAML nodes keep the line of every field, so that pydantic's errors can name it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from gyre_core.spec.checks import cross_checks
from gyre_core.spec.issues import Loc, SpecError, SpecIssue, SpecViolation, shown
from gyre_core.spec.loop import LoopSpec

ModelT = TypeVar("ModelT", bound=BaseModel)
_RULES = {"missing": "is required", "extra_forbidden": "is not a known field here"}


def load_loop(path: str | Path) -> LoopSpec:
    """Read and check a `gyre.yaml`; raises `SpecError` with every issue found, OSError when it cannot be read."""
    return parse_loop(Path(path).read_text(encoding="utf-8"), source=str(path))


def parse_loop(text: str, *, source: str = "gyre.yaml") -> LoopSpec:
    """Read and check the text of a `gyre.yaml`; raises `SpecError` with every issue, `source` being its file."""
    return parse_yaml(LoopSpec, text, source=source, checks=cross_checks)


def parse_yaml(
    model: type[ModelT],
    text: str,
    *,
    source: str,
    checks: Callable[[ModelT], Iterable[SpecViolation]] = lambda _made: (),
) -> ModelT:
    """Read a YAML text as a strict model: unknown and repeated keys are errors.

    Args:
        model: the class.
        text: the text.
        source: the file name that issues carry.
        checks: what one part of a valid model breaks against another.

    Raises:
        SpecError: with every issue found, each with its line; keys given twice, what breaks the model, and what
            `checks` finds are looked for in turn, the next only where the one before found nothing.
    """
    root = _compose(text, source)
    tree = _Tree(source, root)
    duplicates = list(_duplicate_keys(root, tree, ()))
    if duplicates:
        raise SpecError(duplicates)
    try:
        made = model.model_validate(yaml.safe_load(text))
    except ValidationError as error:
        found = [detail for detail in error.errors() if not _is_consequence(detail)]
        raise SpecError([_issue_of(tree, detail) for detail in found]) from error
    issues = [tree.issue(each.loc, value=each.value, rule=each.rule) for each in checks(made)]
    if issues:
        raise SpecError(issues)
    return made


def json_schema() -> dict[str, Any]:
    """The JSON Schema of `gyre.yaml`, for editors; it does not hold what one part must say about another."""
    schema = LoopSpec.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "gyre.yaml", **schema}


def _compose(text: str, source: str) -> yaml.Node:
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        rule = f"is not YAML: {error.problem or error.context}"
        raise SpecError([SpecIssue(source, line, column, "(file)", "", rule)]) from error
    if not isinstance(root, yaml.MappingNode):
        raise SpecError([SpecIssue(source, 1, 1, "(file)", "", "must be a mapping with version, loop, events, ...")])
    return root


@dataclass(frozen=True, slots=True)
class _Tree:
    """The YAML nodes of one file, found by a pydantic error location."""

    source: str
    root: yaml.Node

    def issue(self, loc: Loc, *, value: object, rule: str, missing: bool = False) -> SpecIssue:
        mark, path = self.root.start_mark, list[str]()
        node: yaml.Node | None = self.root
        for position, part in enumerate(loc):
            # The tag `field` of a union is also a key of what it tags; a tag alone has parts after it.
            is_tag = position < len(loc) - 1 and _is_kind(node, part)
            found = None if is_tag else _child(node, part)
            if found is None:
                # Union tags and validator names stand in the location but not in the file.
                if missing and position == len(loc) - 1:
                    path.append(f".{part}")
                continue
            mark, node = found
            path.append(f"[{part}]" if isinstance(part, int) else f".{part}")
        field = "".join(path).lstrip(".") or "(file)"
        return SpecIssue(self.source, mark.line + 1, mark.column + 1, field, shown(value), rule)


def _is_kind(node: yaml.Node | None, part: str | int) -> bool:
    kind = _child(node, "kind")
    return kind is not None and kind[1].value == part


def _child(node: yaml.Node | None, part: str | int) -> tuple[yaml.Mark, yaml.Node] | None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == str(part):
                return key.start_mark, value
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        child = node.value[part]
        return child.start_mark, child
    return None


def _issue_of(tree: _Tree, detail: ErrorDetails) -> SpecIssue:
    kind = detail["type"]
    rule = _RULES.get(kind) or _rule_of(detail)
    if kind == "union_tag_invalid":
        context: dict[str, Any] = detail.get("ctx", {})
        return tree.issue((*detail["loc"], "kind"), value=context["tag"], rule=rule)
    missing = kind == "missing"
    return tree.issue(detail["loc"], value=None if missing else detail["input"], rule=rule, missing=missing)


def _rule_of(detail: ErrorDetails) -> str:
    context: dict[str, Any] = detail.get("ctx", {})
    if detail["type"] == "literal_error":
        return f"must be {context['expected']}"
    if detail["type"] == "union_tag_invalid":
        near = get_close_matches(context["tag"], context["expected_tags"].replace("'", "").split(", "), n=1)
        return f"must be one of {context['expected_tags']}{f': did you mean {near[0]}?' if near else ''}"
    if detail["type"] == "union_tag_not_found":
        return "kind is required"
    if detail["type"] == "string_pattern_mismatch":
        return f"must match {context['pattern']}"
    message = detail["msg"]
    _, should, rest = message.partition(" should ")
    rule = rest if should else message
    return rule if rule.startswith("must") else f"must {rule[:1].lower()}{rule[1:]}"


def _is_consequence(detail: ErrorDetails) -> bool:
    """A list whose items are all wrong counts as empty, which says nothing new."""
    return detail["type"] == "too_short" and bool(detail["input"])


def _duplicate_keys(node: yaml.Node, tree: _Tree, loc: tuple[str | int, ...]) -> Sequence[SpecIssue]:
    """YAML lets a later key silently win over an earlier one; here that is an error."""
    issues: list[SpecIssue] = []
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if key.value in seen:
                issue = tree.issue((*loc, key.value), value=None, rule="is given twice")
                mark = key.start_mark
                issues.append(SpecIssue(issue.file, mark.line + 1, mark.column + 1, issue.field, "", issue.rule))
            seen.add(key.value)
            issues.extend(_duplicate_keys(value, tree, (*loc, key.value)))
    elif isinstance(node, yaml.SequenceNode):
        for index, child in enumerate(node.value):
            issues.extend(_duplicate_keys(child, tree, (*loc, index)))
    return issues
