"""What the handlers need from the outside."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from gyre_core.spec import LoopSpec

from gyre_trainer.domain import Pins, QualityAlert, Run, RunState, Task, TrainedCandidate, Trigger

OnProgress = Callable[[RunState, float], None]


class RunStore(Protocol):
    """Keeps runs for ever; each call is durable when it returns."""

    def save(self, run: Run) -> None:
        """Keep a run as it is now."""

    def get(self, run_id: str) -> Run | None:
        """A run by its id."""

    def newest(self, loop: str, limit: int) -> list[Run]:
        """The runs of a loop, newest first."""

    def next_due(self) -> Run | None:
        """The run under way, else the one that waits longest, else None."""

    def repeatable(self, loop: str) -> list[Run]:
        """The runs of a loop whose rows are all there, as far as is known."""

    def unrecorded(self) -> list[Run]:
        """The ended runs of any loop, rows of which were erased, whose artefact and record in MLflow are to follow."""


class Warehouse(Protocol):
    """The loop's tables."""

    async def pin(self, loop: str) -> Pins:
        """Fix what a run reads, once the tables hold what Kafka holds now, or the time for that is over.

        Raises:
            Unavailable: Kafka or the catalogue does not answer.
        """

    async def hold(self, run: Run) -> None:
        """Let what a run is pinned to stay, whatever its age, until `release`."""

    async def release(self, run: Run) -> None:
        """Let it go: the run is over, and what it made names what it read."""


class MaintainedLayouts(Protocol):
    """The feature layouts that the mesh maintains."""

    async def refusal(self, spec: LoopSpec) -> str:
        """Why the layout of a loop's gyre.yaml cannot be maintained, with the reason first; empty where it can.

        Raises:
            Unavailable: Kafka does not answer.
        """


class Job(Protocol):
    """Does the work of a run somewhere else."""

    async def run(self, task: Task, on_progress: OnProgress) -> TrainedCandidate:
        """Train; the same task leads to the same candidate. Cancelled, it leaves nothing running.

        Raises:
            TrainingRefused: the data or the model did not pass.
            JobFailed: it broke.
        """


class Incumbents(Protocol):
    """The models that serve now."""

    async def folder(self, loop: str) -> Path | None:
        """Where the artefact of the live model lies; None when there is no such model or artefact."""


class Announcer(Protocol):
    """Tells the mesh; the current trace context goes along."""

    async def trigger(self, trigger: Trigger) -> None:
        """Say that a person or client asked for a run.

        Raises:
            Unavailable: Kafka does not take it.
        """

    async def candidate(self, run: Run, candidate: TrainedCandidate) -> None:
        """Say that a candidate is there; consumers take a version once.

        Raises:
            Unavailable: Kafka does not take it.
        """

    async def alert(self, alert: QualityAlert) -> None:
        """Say that a check of a loop's data fails or passes again; the same may be said more than once.

        Raises:
            Unavailable: Kafka does not take it.
        """
