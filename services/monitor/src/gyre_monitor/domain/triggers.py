"""Whether a training run is due: enough new interactions, or enough time on the loop's clock."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from gyre_core.spec.operations import TriggerSpec


class Reason(IntEnum):
    """Why a run is asked for; the numbers are those of `gyre.events.v1.TriggerReason`."""

    MANUAL = 1
    VOLUME = 2
    SCHEDULE = 3
    DRIFT = 4
    QUALITY = 5


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a loop stands between two triggers.

    Attributes:
        interactions: those since the last trigger that were not imported.
        elapsed_s: time on the loop's clock since the last trigger, or since the loop began; None when not known.
    """

    interactions: int
    elapsed_s: float | None


@dataclass(frozen=True, slots=True)
class Due:
    """A run is due: the measured value has reached the threshold, in the unit of the reason (events or seconds)."""

    reason: Reason
    value: float
    threshold: float


def due(triggers: TriggerSpec, standing: Standing) -> Due | None:
    """What asks for a run now, volume before schedule, or None."""
    if triggers.volume is not None and standing.interactions >= triggers.volume.events:
        return Due(Reason.VOLUME, standing.interactions, triggers.volume.events)
    wait_s = triggers.schedule_s
    if wait_s is not None and standing.elapsed_s is not None and standing.elapsed_s >= wait_s:
        return Due(Reason.SCHEDULE, standing.elapsed_s, wait_s)
    return None
