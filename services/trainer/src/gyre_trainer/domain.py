"""A training run, its states, and what is fixed once so that it can begin anew and make the same."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any


class RunState(StrEnum):
    """How far a run is; the names are those of the proto."""

    QUEUED = "QUEUED"
    SNAPSHOT = "SNAPSHOT"
    GATE = "GATE"
    TRAINING = "TRAINING"
    EVALUATING = "EVALUATING"
    REGISTERED = "REGISTERED"
    REFUSED = "REFUSED"
    FAILED = "FAILED"

    @property
    def is_final(self) -> bool:
        """Whether nothing follows."""
        return self in (RunState.REGISTERED, RunState.REFUSED, RunState.FAILED)


@dataclass(frozen=True, slots=True)
class Trigger:
    """Why a run is wanted; `traceparent` is the trace context of whoever asked, empty for none."""

    trigger_id: str
    loop: str
    traceparent: str = ""

    @property
    def run_id(self) -> str:
        """The id of the one run that this trigger starts."""
        return f"run-{_digest(self.loop, self.trigger_id)[:16]}"


@dataclass(frozen=True, slots=True)
class Pins:
    """What a run reads, whenever it is started.

    Attributes:
        snapshots: Iceberg snapshot ids by table; an empty table is not named.
        now: the loop's time then, unix seconds, which decides which attribution windows are open.
    """

    snapshots: Mapping[str, int]
    now: float


@dataclass(frozen=True, slots=True)
class Erasure:
    """Rows of a table went with a forgotten user, from all the snapshots that there were.

    Attributes:
        table: its name.
        snapshots: ids of those that were expired.
        time: wall time, unix seconds.
    """

    table: str
    snapshots: frozenset[int]
    time: float


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        run_id: its id.
        loop: the loop.
        trigger_id: the trigger that started it.
        traceparent: trace context of the trigger, empty for none.
        state: how far it is.
        create_time: wall time at which it was queued, unix seconds.
        update_time: wall time of the last change of its state, unix seconds.
        pins: what it reads; None before its first snapshot.
        version: that it makes; empty before its first snapshot.
        progress: 0 to 1.
        reason: why it was refused or failed.
        measurements: of the candidate, by name.
        mlflow_run_id: of its record in MLflow; empty when there is none.
        alerting: the data-quality checks that fire after it, with the time since they do, unix seconds; None where its
            data was not checked.
        erased_time: wall time at which rows that it used were erased, so that it cannot be repeated exactly, unix
            seconds; None while it can.
        erased_recorded: whether its record in MLflow says so, and neither that nor its artefact names events any more.
        removed_time: wall time at which the removal of its model began, which nothing named any more, unix seconds;
            None while all of it is there.
        is_removed: whether that has ended: neither artefact nor record in MLflow is left.
        incumbent: version of the model that it is compared with, whose artefact stays until the run is over; empty for
            none.
    """

    run_id: str
    loop: str
    trigger_id: str
    traceparent: str
    state: RunState
    create_time: float
    update_time: float
    pins: Pins | None = None
    version: str = ""
    progress: float = 0.0
    reason: str = ""
    measurements: Mapping[str, float] = field(default_factory=dict)
    mlflow_run_id: str = ""
    alerting: Mapping[str, float] | None = None
    erased_time: float | None = None
    erased_recorded: bool = False
    removed_time: float | None = None
    is_removed: bool = False
    incumbent: str = ""

    @classmethod
    def queued(cls, trigger: Trigger, *, now: float) -> Run:
        """The run of a trigger, at its beginning."""
        return cls(trigger.run_id, trigger.loop, trigger.trigger_id, trigger.traceparent, RunState.QUEUED, now, now)

    def erased_at(self, erasures: Collection[Erasure]) -> float | None:
        """When the first of the rows that it read were erased, unix seconds; None where all are there.

        A run that is over read what an erasure took also where its snapshot had expired before: an erasure takes a
        user from every older snapshot of a table.
        """
        read = self.pins.snapshots if self.pins is not None else {}
        return min(
            (
                each.time
                for each in erasures
                if each.table in read
                and (read[each.table] in each.snapshots or (self.state.is_final and self.update_time < each.time))
            ),
            default=None,
        )

    def pinned(self, pins: Pins) -> Run:
        """With what it reads, and the version that it is to make of it."""
        return replace(self, pins=pins, version=version_of(self.run_id, pins.now))


@dataclass(frozen=True, slots=True)
class Task:
    """What the job of a run is to do.

    Attributes:
        run_id: of the run.
        trigger_id: that started it.
        version: that it is to make.
        spec: the loop, as JSON.
        snapshots: Iceberg snapshot ids by table; an empty table is not named.
        now: the loop's time, unix seconds.
        incumbent: folder of the live model's artefact; empty for none.
    """

    run_id: str
    trigger_id: str
    version: str
    spec: str
    snapshots: Mapping[str, int]
    now: float
    incumbent: str


@dataclass(frozen=True, slots=True)
class CheckOutcome:
    """What a data-quality check found, in its worst column.

    Attributes:
        name: of the check, such as `drift.psi`.
        value: what was measured; None where there was nothing.
        threshold: the bound.
        passed: whether the data is as it should be.
        action: what follows when it is not: `warn`, `quarantine` or `block`.
        message: for a person; holds no value of the data.
    """

    name: str
    value: float | None
    threshold: float | None
    passed: bool
    action: str
    message: str


@dataclass(frozen=True, slots=True)
class Quality:
    """What the gate found.

    Attributes:
        checks: one of each name.
        quarantined: how many rows were left out of training, by their kind.
    """

    checks: tuple[CheckOutcome, ...] = ()
    quarantined: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> Quality:
        """What `dataclasses.asdict` made of one."""
        return cls(tuple(CheckOutcome(**check) for check in body["checks"]), body["quarantined"])

    @property
    def failed(self) -> tuple[CheckOutcome, ...]:
        """The checks that did not pass."""
        return tuple(check for check in self.checks if not check.passed)

    @property
    def measurements(self) -> dict[str, float]:
        """Its summary; empty where nothing was checked."""
        if not self.checks:
            return {}
        return {
            "quality_checks": float(len(self.checks)),
            "quality_failed": float(len(self.failed)),
            "quality_quarantined_rows": float(sum(self.quarantined.values())),
        }


@dataclass(frozen=True, slots=True)
class QualityAlert:
    """A check of a loop's data failed, or passes again.

    Attributes:
        loop: the loop.
        outcome: what it found.
        start_time: when it began to fail, unix seconds.
        end_time: when it passed again, unix seconds; None while it fails.
    """

    loop: str
    outcome: CheckOutcome
    start_time: float
    end_time: float | None = None

    @property
    def alert_id(self) -> str:
        """The same as long as it fails, and each time that it does."""
        return f"{self.loop}-quality-{self.outcome.name}"


def quality_alerts(
    loop: str, firing: Mapping[str, float], quality: Quality, *, now: float
) -> tuple[list[QualityAlert], dict[str, float]]:
    """What to say after a run, and which checks fire then, each with the time since it does.

    A check that the run could not make keeps firing.

    Args:
        loop: the loop.
        firing: the checks that fired before, with the time since they do, unix seconds.
        quality: what the run found.
        now: unix seconds.
    """
    said, after = [], dict(firing)
    for outcome in quality.checks:
        since = firing.get(outcome.name)
        if not outcome.passed:
            after[outcome.name] = now if since is None else since
            said.append(QualityAlert(loop, outcome, after[outcome.name]))
        elif since is not None:
            del after[outcome.name]
            said.append(QualityAlert(loop, outcome, since, now))
    return said, after


@dataclass(frozen=True, slots=True)
class TrainedCandidate:
    """A model that passed.

    Attributes:
        folder: holds its artefact.
        layout: hash of the feature layout that it reads.
        columns: of the layout, in the order of the graph's input.
        sha256: of the graph, hexadecimal.
        measurements: by name.
        mlflow_run_id: of its record in MLflow; empty when there is none.
        quality: what the gate found in its data.
    """

    folder: Path
    layout: str
    columns: tuple[str, ...]
    sha256: str
    measurements: Mapping[str, float]
    mlflow_run_id: str = ""
    quality: Quality = field(default_factory=Quality)


class TrainingRefused(Exception):  # noqa: N818 - reads as what happened
    """The data or the model did not pass; the message names what was measured, its value and the rule.

    Attributes:
        quality: what the gate had found by then.
    """

    def __init__(self, reason: str, quality: Quality | None = None) -> None:
        super().__init__(reason)
        self.quality = quality or Quality()


class JobFailed(Exception):  # noqa: N818 - reads as what happened
    """The job broke; the message says how."""


def manual_trigger_id(loop: str, request_id: str) -> str:
    """The id of the trigger that a call of `StartRun` makes: the same for the same request."""
    return f"manual-{_digest(loop, request_id)[:32]}"


def version_of(run_id: str, now: float) -> str:
    """The version that a run makes: the loop's time in UTC and what tells its run from others of that second."""
    return f"{datetime.fromtimestamp(now, UTC):%Y%m%d-%H%M%S}-{_digest(run_id)[:6]}"


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
