"""What data-quality checks say: `Check` is one finding against one threshold, `Report` all of them for one data set."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gyre_quality.figures import Figure, escape

Rows = NDArray[np.int64]
Action = Literal["warn", "quarantine", "block"]

NO_ROWS: Rows = np.empty(0, dtype=np.int64)

_STYLE = (
    "body{font:14px system-ui,sans-serif;margin:2em;color:#222}table{border-collapse:collapse}"
    "td,th{padding:.25em .8em;border-bottom:1px solid #ddd;text-align:left}td.n{text-align:right}"
    ".failed{color:#b00020;font-weight:600}.passed{color:#1b6e3c}figure{display:inline-block;margin:1em}"
)


@dataclass(frozen=True, slots=True)
class Check:
    """One finding.

    Attributes:
        name: dotted, the family first: `drift.psi`, `labels.noise`; actions are given by family or by name.
        column: what it is about, or empty for the whole data set.
        value: what was measured.
        threshold: the bound that `value` was held against.
        passed: whether the data is as it should be.
        detail: one sentence for a person. Never holds a value of the data, since reports travel further than data does.
        rows: indices of the rows at fault, increasing; empty where the finding has no rows.
    """

    name: str
    column: str
    value: float
    threshold: float
    passed: bool
    detail: str = ""
    rows: Rows = field(default_factory=lambda: NO_ROWS, compare=False, repr=False)

    def as_dict(self) -> dict[str, Any]:
        """The finding as JSON has it: rows are counted, and what is not finite is null."""
        return {
            "name": self.name,
            "column": self.column,
            "value": _finite(self.value),
            "threshold": _finite(self.threshold),
            "passed": self.passed,
            "detail": self.detail,
            "rows": int(self.rows.size),
        }


@dataclass(frozen=True, slots=True)
class Report:
    """All findings about one data set.

    Attributes:
        subject: which data, for example a snapshot's id.
        checks: the findings.
        actions: what follows a failed check, by its name or by a leading part of it; `warn` where nothing is given.
        figures: plots for a person.
    """

    subject: str
    checks: tuple[Check, ...]
    actions: Mapping[str, Action] = field(default_factory=dict)
    figures: tuple[Figure, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that did not pass."""
        return tuple(check for check in self.checks if not check.passed)

    @property
    def blocks(self) -> bool:
        """Whether a failed check forbids training."""
        return any(self.action(check) == "block" for check in self.failed)

    def action(self, check: Check) -> Action:
        """What follows when the check fails: the rule of its longest leading part."""
        parts = check.name.split(".")
        names = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
        return next((self.actions[name] for name in names if name in self.actions), "warn")

    def quarantined(self) -> Rows:
        """The rows that failed checks with the action `quarantine` name, increasing and each once."""
        rows = [check.rows for check in self.failed if self.action(check) == "quarantine"]
        return np.unique(np.concatenate(rows)) if rows else NO_ROWS

    def joined(self, others: Iterable[Report]) -> Report:
        """This report with the checks and figures of others about the same data."""
        others = tuple(others)
        return replace(
            self,
            checks=self.checks + tuple(check for other in others for check in other.checks),
            figures=self.figures + tuple(figure for other in others for figure in other.figures),
        )

    def to_json(self) -> str:
        """The report without its figures."""
        checks = [{**check.as_dict(), "action": self.action(check)} for check in self.checks]
        body = {"subject": self.subject, "passed": self.passed, "blocks": self.blocks, "checks": checks}
        return json.dumps(body, ensure_ascii=False, allow_nan=False)

    def to_html(self) -> str:
        """One page with the findings, failed ones first, and the figures as inline SVG; it loads nothing."""
        ordered = sorted(self.checks, key=lambda check: (check.passed, check.name, check.column))
        rows = "".join(self._row(check) for check in ordered)
        figures = "".join(figure.to_html() for figure in self.figures)
        outcome = "passed" if self.passed else f"{len(self.failed)} of {len(self.checks)} checks failed"
        return (
            f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(self.subject)}</title>'
            f"<style>{_STYLE}</style><h1>Data quality of {escape(self.subject)}</h1>"
            f'<p class="{"passed" if self.passed else "failed"}">{outcome}</p>'
            "<table><tr><th>check</th><th>column</th><th>value</th><th>threshold</th><th>outcome</th><th>rows</th>"
            f"<th></th></tr>{rows}</table>{figures}</html>"
        )

    def _row(self, check: Check) -> str:
        outcome = '<td class="passed">passed</td>' if check.passed else f'<td class="failed">{self.action(check)}</td>'
        return (
            f"<tr><td>{escape(check.name)}</td><td>{escape(check.column)}</td>"
            f'<td class="n">{check.value:.4g}</td><td class="n">{check.threshold:.4g}</td>{outcome}'
            f'<td class="n">{check.rows.size or ""}</td><td>{escape(check.detail)}</td></tr>'
        )


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
