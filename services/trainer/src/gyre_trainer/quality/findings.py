"""What the gate found in one run: what it sets aside, why it refuses, and the files that tell of it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from gyre_core.models import QUALITY_FILE, QUALITY_PAGE, QUARANTINE_FILE
from gyre_core.spec import LoopSpec
from gyre_quality.figures import Figure, bars
from gyre_quality.report import Check, Report

from gyre_trainer.domain import CheckOutcome, Quality, Task, TrainingRefused
from gyre_trainer.quality.tables import Subject

Rows = npt.NDArray[np.int64]
_AT_LEAST = frozenset({"labels.consistency"})
"""Checks whose value must not be below the threshold; that of all others must not be above."""


@dataclass
class Findings:
    """The findings of a run so far.

    Attributes:
        spec: the loop.
        task: of the run.
        subjects: findings by what they are rows of.
        figures: plots of them.
        set_aside: what was left out of training: for each kind of rows, one entry with the ids of each row.
    """

    spec: LoopSpec
    task: Task
    subjects: list[Subject] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    set_aside: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def rows_to_leave_out(self, subject: str) -> Rows:
        """The rows of a kind that failed checks with the action `quarantine` name."""
        checks = tuple(check for each in self.subjects if each.name == subject for check in each.checks)
        return Report(subject, checks, self.spec.quality.actions).quarantined()

    def quarantine(self, subject: str, table: pa.Table, rows: Rows) -> None:
        """Note which rows were left out, by the columns of `table`."""
        self.set_aside[subject] = table.take(pa.array(rows, pa.int64())).to_pylist()

    def require(self) -> None:
        """Check that no failed check forbids training.

        Raises:
            TrainingRefused: one does; the message names check, value and threshold.
        """
        report = self._report()
        blocking = [check for check in report.failed if report.action(check) == "block"]
        if blocking:
            more = f" (and {len(blocking) - 1} more)" if len(blocking) > 1 else ""
            raise TrainingRefused(f"quality: {_message(blocking[0])}{more}")

    def files(self) -> Mapping[str, bytes]:
        """The files of the report, by name."""
        report, task = self._report(), self.task
        body = json.loads(report.to_json()) | {
            "loop": self.spec.loop,
            "run_id": task.run_id,
            "version": task.version,
            "snapshots": dict(task.snapshots),
            "data_time": task.now,
            "quarantined": {name: len(rows) for name, rows in self.set_aside.items()},
        }
        return {
            QUALITY_FILE: json.dumps(body, ensure_ascii=False).encode(),
            QUALITY_PAGE: report.to_html().encode(),
            QUARANTINE_FILE: "".join(self._quarantine_lines()).encode(),
        }

    def summary(self) -> dict[str, float]:
        """The findings as measurements of the run."""
        return _quality(json.loads(self.files()[QUALITY_FILE])).measurements

    def _quarantine_lines(self) -> Iterator[str]:
        for name, rows in self.set_aside.items():
            for row in rows:
                yield json.dumps({"rows": name, **row}, ensure_ascii=False) + "\n"

    def _report(self) -> Report:
        checks = tuple(check for subject in self.subjects for check in subject.checks)
        ratios = {f"{check.name} {check.column}".strip(): _ratio(check) for check in checks if _ratio(check) > 0}
        worst = dict(sorted(ratios.items(), key=lambda each: -each[1])[:20])
        figures = [bars("value, in thresholds", worst, dict.fromkeys(worst, 1.0))] if worst else []
        name = f"{self.spec.loop}, run {self.task.run_id}"
        return Report(name, checks, self.spec.quality.actions, (*figures, *self.figures))


def quality_in(folder: Path) -> Quality:
    """The findings of a report that was written into a folder, the worst column of each check; none without it."""
    path = folder / QUALITY_FILE
    return _quality(json.loads(path.read_text())) if path.exists() else Quality()


def _quality(body: Mapping[str, Any]) -> Quality:
    worst: dict[str, dict[str, Any]] = {}
    for check in body["checks"]:
        known = worst.get(check["name"])
        if known is None or _badness(check) > _badness(known):
            worst[check["name"]] = check
    return Quality(tuple(_outcome(check) for check in worst.values()), body["quarantined"])


def _outcome(check: Mapping[str, Any]) -> CheckOutcome:
    value, threshold = check["value"], check["threshold"]
    made = Check(check["name"], check["column"], _number(value), _number(threshold), check["passed"], check["detail"])
    return CheckOutcome(check["name"], value, threshold, check["passed"], check["action"], _message(made))


def _badness(check: Mapping[str, Any]) -> tuple[bool, float]:
    found = Check(check["name"], "", _number(check["value"]), _number(check["threshold"]), passed=True)
    return not check["passed"], _ratio(found)


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _ratio(check: Check) -> float:
    """How many thresholds the value is; 0 where that says nothing."""
    if check.name in _AT_LEAST or not check.threshold > 0 or not np.isfinite(check.value):
        return 0.0 if check.passed else 1.0
    return check.value / check.threshold


def _message(check: Check) -> str:
    """Name, value and rule of a check."""
    about = f" of {check.column}" if check.column else ""
    rule = "at least" if check.name in _AT_LEAST else "at most"
    return f"{check.name}{about} = {check.value:.4g}: must be {rule} {check.threshold:.4g} ({check.detail})"
