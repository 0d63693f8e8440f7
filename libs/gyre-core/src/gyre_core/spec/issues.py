"""What is wrong with a loop spec, said so that a person finds it at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gyre_core.shown import cut

Loc = tuple[str | int, ...]
"""Where something stands in a spec: keys and indices."""


@dataclass(frozen=True, slots=True)
class SpecIssue:
    """One broken rule: where it is (1-based line and column), which field, its value as `shown` gives it, the rule."""

    file: str
    line: int
    column: int
    field: str
    value: str
    rule: str

    def __str__(self) -> str:
        value = f" = {self.value}" if self.value else ""
        return f"{self.file}:{self.line}: {self.field}{value}: {self.rule}"


@dataclass(frozen=True, slots=True)
class SpecViolation:
    """A rule broken at a location of the spec, given as keys and indices."""

    loc: Loc
    value: object
    rule: str


class SpecError(ValueError):
    """A YAML file of ours, such as gyre.yaml, that breaks one or more rules; `issues` has them all."""

    def __init__(self, issues: Sequence[SpecIssue]) -> None:
        self.issues = tuple(issues)
        super().__init__("\n".join(str(issue) for issue in self.issues))


def shown(value: object) -> str:
    """A value as an error shows it: short, and empty for None, a mapping or a list, which the line already names."""
    if isinstance(value, dict | list | tuple) or value is None:
        return ""
    return cut(repr(value))
