"""What data-quality checks say: `Check` is one finding against one threshold, `Report` all of them for one data set."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gyre_quality.figures import STYLE, Figure, escape

Rows = NDArray[np.int64]
Action = Literal["warn", "quarantine", "block"]

_PLAIN_BELOW = 1e9
NO_ROWS: Rows = np.empty(0, dtype=np.int64)

_STYLE = (
    f"{STYLE}:root{{color-scheme:light dark}}body{{font:14px system-ui,sans-serif;margin:1.5em;max-width:1200px}}"
    "h1{font-size:1.5em;overflow-wrap:anywhere}.wide{overflow-x:auto}table{border-collapse:collapse}"
    "td,th{padding:.25em .8em;border-bottom:1px solid #8884;text-align:left}td:last-child{min-width:16em}"
    "td.n,th.n{text-align:right;white-space:nowrap}"
    ".failed{color:var(--bad);font-weight:600}.passed{color:var(--c2)}"
    ".figures{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,480px),1fr));gap:2em;margin-top:2em}"
    "figure{margin:0}figcaption{font-weight:600;margin-bottom:.4em;overflow-wrap:anywhere}"
)


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check, passed or failed; what follows a failed one is the report's `action`.

    Attributes:
        name: dotted, the family first: `drift.psi`, `labels.noise`; actions are given by family or by name.
        column: what it is about, or empty for the whole data set.
        value: what was measured.
        threshold: the bound that `value` was held against.
        passed: whether the data is as it should be.
        detail: one sentence for a person. Never holds a value of the data, since reports travel further than data does.
        rows: indices of the rows at fault, increasing, of a passed check too; empty where the check has no rows.
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
    """All checks of one data set; nothing is carried out here.

    Attributes:
        subject: which data, for example a snapshot's id.
        checks: passed and failed ones.
        actions: what follows a failed check, by its name or by its leading parts (`drift` of `drift.psi`); `warn` where
            nothing is given.
        figures: plots for a person.
    """

    subject: str
    checks: tuple[Check, ...]
    actions: Mapping[str, Action] = field(default_factory=dict)
    figures: tuple[Figure, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every check passed, also of those whose action is `warn`; whether training may go on is `blocks`."""
        return all(check.passed for check in self.checks)

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that did not pass."""
        return tuple(check for check in self.checks if not check.passed)

    @property
    def blocks(self) -> bool:
        """Whether a failed check has the action `block`: the caller then must not train."""
        return any(self.action(check) == "block" for check in self.failed)

    def action(self, check: Check) -> Action:
        """What follows when the check fails, whether it did or not: the action of its longest leading part."""
        parts = check.name.split(".")
        names = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
        return next((self.actions[name] for name in names if name in self.actions), "warn")

    def quarantined(self) -> Rows:
        """The rows that failed checks with the action `quarantine` name, increasing and each once; removes none."""
        rows = [check.rows for check in self.failed if self.action(check) == "quarantine"]
        return np.unique(np.concatenate(rows)) if rows else NO_ROWS

    def joined(self, others: Iterable[Report]) -> Report:
        """A new report with the checks and figures of others, too; subject and actions are this one's."""
        others = tuple(others)
        return replace(
            self,
            checks=self.checks + tuple(check for other in others for check in other.checks),
            figures=self.figures + tuple(figure for other in others for figure in other.figures),
        )

    def to_json(self) -> str:
        """The report as JSON, without its figures and with rows as counts; each check has its action, passed or not."""
        checks = [{**check.as_dict(), "action": self.action(check)} for check in self.checks]
        body = {"subject": self.subject, "passed": self.passed, "blocks": self.blocks, "checks": checks}
        return json.dumps(body, ensure_ascii=False, allow_nan=False)

    def to_html(self) -> str:
        """One HTML page with the checks, failed ones first, and the figures as inline SVG; it loads nothing."""
        ordered = sorted(self.checks, key=lambda check: (check.passed, check.name, check.column))
        rows = "".join(self._row(check) for check in ordered)
        figures = "".join(figure.to_html() for figure in self.figures)
        outcome = "passed" if self.passed else f"{len(self.failed)} of {len(self.checks)} checks failed"
        return (
            f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(self.subject)}</title>'
            '<meta name="viewport" content="width=device-width,initial-scale=1">'
            f"<style>{_STYLE}</style><h1>Data quality of {escape(self.subject)}</h1>"
            f'<p class="{"passed" if self.passed else "failed"}">{outcome}</p>'
            '<div class="wide"><table><tr><th>check</th><th>column</th><th class="n">value</th>'
            '<th class="n">threshold</th><th>outcome</th><th class="n">rows</th><th></th></tr>'
            f'{rows}</table></div><div class="figures">{figures}</div></html>'
        )

    def _row(self, check: Check) -> str:
        outcome = '<td class="passed">passed</td>' if check.passed else f'<td class="failed">{self.action(check)}</td>'
        return (
            f"<tr><td>{escape(check.name)}</td><td>{escape(check.column)}</td>"
            f'<td class="n">{_number(check.value)}</td><td class="n">{_number(check.threshold)}</td>{outcome}'
            f'<td class="n">{check.rows.size or ""}</td><td>{escape(check.detail)}</td></tr>'
        )


def _number(value: float) -> str:
    """Four digits; whole numbers as they are, and a dash for what was not measured."""
    if not math.isfinite(value):
        return "–"
    return f"{value:,.0f}" if value == round(value) and abs(value) < _PLAIN_BELOW else f"{value:.4g}"


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
