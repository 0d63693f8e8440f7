"""A training run, its states, and what is fixed once so that it can begin anew and make the same."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path


class State(StrEnum):
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
        return self in (State.REGISTERED, State.REFUSED, State.FAILED)


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
    """

    run_id: str
    loop: str
    trigger_id: str
    traceparent: str
    state: State
    create_time: float
    update_time: float
    pins: Pins | None = None
    version: str = ""
    progress: float = 0.0
    reason: str = ""
    measurements: Mapping[str, float] = field(default_factory=dict)
    mlflow_run_id: str = ""

    @classmethod
    def queued(cls, trigger: Trigger, *, now: float) -> Run:
        """The run of a trigger, at its beginning."""
        return cls(trigger.run_id, trigger.loop, trigger.trigger_id, trigger.traceparent, State.QUEUED, now, now)

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
class Candidate:
    """A model that passed.

    Attributes:
        folder: holds its artefact.
        layout: hash of the feature layout that it reads.
        columns: of the layout, in the order of the graph's input.
        sha256: of the graph, hexadecimal.
        measurements: by name.
        mlflow_run_id: of its record in MLflow; empty when there is none.
    """

    folder: Path
    layout: str
    columns: tuple[str, ...]
    sha256: str
    measurements: Mapping[str, float]
    mlflow_run_id: str = ""


class Refused(Exception):  # noqa: N818 - reads as what happened
    """The data or the model did not pass; the message names what was measured, its value and the rule."""


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
