"""What the monitor needs from other services."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class TriggerToSend:
    """A decided trigger; `links` are the traceparents of what tipped it, `trigger_time` is unix seconds."""

    loop: str
    trigger_id: str
    reason: int
    value: float
    threshold: float
    trigger_time: float
    links: tuple[str, ...]


class TriggerPublisher(Protocol):
    """Where triggers are sent."""

    async def send(self, trigger: TriggerToSend) -> None:
        """Send a trigger; a second one with the same id starts nothing.

        Raises:
            Unavailable: it is not known whether it was sent.
        """


@dataclass(frozen=True, slots=True)
class RunOfTrigger:
    """What the trainer says of the run of a trigger; `failed` means that no candidate will come of it."""

    trigger_id: str
    run_id: str
    state: str
    failed: bool


class TrainingRuns(Protocol):
    """Who knows how far training runs are."""

    async def of_loop(self, loop: str) -> Sequence[RunOfTrigger]:
        """The newest runs of a loop.

        Raises:
            GyreError: the trainer does not answer.
        """
