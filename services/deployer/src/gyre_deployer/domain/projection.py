"""What follows from the log for everybody else: who gets which model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from gyre_core.layouts import ModelRole, NamedModel

from gyre_deployer.domain.rollouts import Candidate, LoopState

LIVE, CANDIDATE = "live", "candidate"


@dataclass(frozen=True, slots=True)
class TrafficArm:
    """One arm of the traffic split: `live` or `candidate`, its model and its share of users."""

    name: str
    candidate: Candidate
    share: float


def arms(state: LoopState) -> tuple[TrafficArm, ...]:
    """The traffic split, whose shares sum to 1; empty before the first model.

    The live model keeps its arm when the candidate has all traffic, so that requests can still fall back to it.
    """
    live = state.of_version(state.live) if state.live else None
    if live is None:
        return ()
    under_way = state.under_way
    if under_way is None or not under_way.is_on_traffic:
        return (TrafficArm(LIVE, live.candidate, 1.0),)
    share = under_way.share
    return (TrafficArm(LIVE, live.candidate, 1.0 - share), TrafficArm(CANDIDATE, under_way.candidate, share))


def named_models(state: LoopState, waiting: Iterable[Candidate]) -> list[NamedModel]:
    """Every model that requests are sent to, or may be sent to soon: nothing that one of them reads may be removed.

    Args:
        state: of the loop.
        waiting: registered candidates whose rollout has not begun.
    """
    under_way = state.under_way
    roles = (
        (state.live, ModelRole.LIVE),
        (state.last_good, ModelRole.LAST_GOOD),
        (under_way.version if under_way is not None else "", ModelRole.CANDIDATE),
    )
    named = [
        NamedModel(version, role, rollout.candidate.layout)
        for version, role in roles
        if version and (rollout := state.of_version(version)) is not None
    ]
    return [*named, *(NamedModel(each.version, ModelRole.WAITING, each.layout) for each in waiting)]
