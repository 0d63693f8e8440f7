"""Plain decisions: which candidate comes next, what a rollout does next, which change that is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from hashlib import blake2b

from gyre_core.spec import RolloutStep

from gyre_deployer.domain.guardrails import Outcome, Verdict
from gyre_deployer.domain.rollouts import Candidate, Change, Kind, LoopState, Rollout, RolloutState


class Step(StrEnum):
    """What a rollout needs next."""

    VALIDATE = "validate"
    LOAD = "load"
    WARM = "warm"
    OPEN = "open"
    OBSERVE = "observe"
    RETURN = "return"
    """Give traffic again to a candidate from which it was withdrawn."""
    NOTHING = "nothing"


class Decision(StrEnum):
    """What to do with a candidate that takes traffic."""

    HOLD = "hold"
    OBSERVE_ANEW = "observe anew"
    ADVANCE = "advance"
    ROLL_BACK = "roll back"


@dataclass(frozen=True, slots=True)
class StepProgress:
    """How a step has been watched so far.

    Attributes:
        seconds: how long.
        requests: of the candidate that count.
        spoiled: intervals that do not count against the candidate, since the live model suffered in them.
        tripped: gateways that keep requests from the candidate at the moment.
        requests_in_all: of the candidate, also those in spoiled intervals.
        spoiled_s: from the first to the last of the candidate's requests in spoiled intervals, seconds.
        without_features: of the candidate, further requests, which got no features though the live model's do.
    """

    seconds: float
    requests: int
    spoiled: int = 0
    tripped: int = 0
    requests_in_all: int = 0
    spoiled_s: float = 0.0
    without_features: int = 0

    def remarks(self) -> str:
        """What a person has to know beside a verdict; empty for nothing."""
        spoiled = f"; {self.spoiled} intervals spoiled: live suffered" if self.spoiled else ""
        tripped = f"; {self.tripped} gateway(s) keep requests from the candidate" if self.tripped else ""
        return spoiled + tripped


_FEW_REQUESTS = 10
"""So many without features, or in spoiled intervals, say nothing yet."""
_STEPS = {
    RolloutState.STARTED: Step.VALIDATE,
    RolloutState.VALIDATED: Step.LOAD,
    RolloutState.LOADED: Step.WARM,
    RolloutState.WARMED: Step.OPEN,
}


def rollout_id(loop: str, version: str, offer: str = "") -> str:
    """The id of a version's rollout: its first, or the one that a request of this id began after that had ended."""
    name = f"{loop}/{version}/{offer}" if offer else f"{loop}/{version}"
    return f"rollout-{blake2b(name.encode(), digest_size=8).hexdigest()}"


def next_step(rollout: Rollout) -> Step:
    """What a rollout needs next; a paused one is still watched while it has users, and gets them back."""
    if rollout.is_on_traffic:
        return Step.OBSERVE
    if rollout.is_withdrawn:
        return Step.RETURN
    return _STEPS.get(rollout.state, Step.NOTHING)


def pending(candidates: Iterable[Candidate], state: LoopState) -> list[Candidate]:
    """The candidates that were never rolled out nor refused, oldest first."""
    known = {rollout.version for rollout in state.rollouts.values()}
    return [each for each in candidates if each.version not in known]


def begin(waiting: Sequence[Candidate], chosen: Candidate, state: LoopState, offer: str = "") -> list[Change]:
    """The changes that start the rollout of `chosen` and refuse those that waited longer.

    A candidate whose rollout has ended is offered again by the id of the request that asks for it; nobody waits longer.
    """
    if offer:
        return [_first(chosen, Kind.STARTED, state, "offered again", offer)]
    older = waiting[: waiting.index(chosen)]
    refusals = [_first(each, Kind.REFUSED, state, f"superseded by {chosen.version}") for each in older]
    return [*refusals, _first(chosen, Kind.STARTED, state, "a candidate was registered")]


def refuse_waiting(candidate: Candidate, state: LoopState, reason: str) -> Change:
    """Refuse a candidate whose rollout has not begun."""
    return _first(candidate, Kind.REFUSED, state, reason)


def _first(candidate: Candidate, kind: Kind, state: LoopState, reason: str, offer: str = "") -> Change:
    return Change(
        rollout_id=rollout_id(state.loop, candidate.version, offer),
        kind=kind,
        version=candidate.version,
        live_version=state.live,
        reason=reason,
        candidate=candidate,
    )


def follow(rollout: Rollout, kind: Kind, reason: str, *, share: float | None = None, step: int | None = None) -> Change:
    """The next change of a rollout, whose share and step stay unless they are given."""
    return Change(
        rollout_id=rollout.id,
        kind=kind,
        version=rollout.version,
        live_version=rollout.live_version,
        share=rollout.share if share is None else share,
        step=rollout.step if step is None else step,
        reason=reason,
    )


def refuse(rollout: Rollout, reason: str) -> Change:
    """Refuse a candidate before it takes traffic."""
    return follow(rollout, Kind.REFUSED, reason, share=0.0)


def roll_back(rollout: Rollout, reason: str) -> Change:
    """Give all traffic back to the model that was live before."""
    return follow(rollout, Kind.ROLLED_BACK, reason, share=0.0)


def promote(rollout: Rollout, reason: str) -> Change:
    """Make the candidate the live model."""
    return follow(rollout, Kind.PROMOTED, reason, share=1.0)


def give_up(state: LoopState, version: str, problem: str) -> list[Change]:
    """The changes that follow where the model server cannot load a version; none where nothing could take its place.

    A candidate is rolled back, a last good version is fallen back to no more, and of a live version all traffic goes
    to the last good one. What was loaded before is not any more, so that nobody needs to be waited for.
    """
    rollout = state.of_version(version)
    if rollout is None:
        return []
    changes = []
    if rollout.is_under_way:
        changes.append(roll_back(rollout, problem))
    elif version == state.live:
        if not state.last_good:
            return []
        changes.append(follow(rollout, Kind.FELL_BACK, f"{problem}: {state.last_good} is live again", share=0.0))
    elif version == state.last_good:
        changes.append(follow(rollout, Kind.DROPPED, problem))
    if version in state.loaded:
        changes.append(follow(rollout, Kind.UNLOADED, "the model server does not hold it", share=0.0))
    return changes


def open_traffic(rollout: Rollout, steps: Sequence[RolloutStep]) -> Change:
    """Give a warm candidate its first users; the first model of a loop gets all of them at once."""
    if not rollout.live_version:
        return promote(rollout, "the loop's first model")
    return _shift(rollout, steps, 0, "warm: takes its first users")


def advance(rollout: Rollout, steps: Sequence[RolloutStep], reason: str) -> Change:
    """Take the next step, or promote after the last."""
    if rollout.step + 1 >= len(steps):
        return promote(rollout, reason)
    return _shift(rollout, steps, rollout.step + 1, reason)


def withdraw_traffic(rollout: Rollout, reason: str) -> Change:
    """Send no request to a candidate for now; it stays at its step."""
    return follow(rollout, Kind.SHIFTED, reason, share=0.0)


def return_traffic(rollout: Rollout, steps: Sequence[RolloutStep], reason: str) -> Change:
    """The same step again, under an epoch from which on it is observed anew."""
    return _shift(rollout, steps, min(rollout.step, len(steps) - 1), reason)


def _shift(rollout: Rollout, steps: Sequence[RolloutStep], step: int, reason: str) -> Change:
    return follow(rollout, Kind.SHIFTED, reason, share=steps[step].share, step=step)


def unread(held: StepProgress, wait_s: float) -> str:
    """Why a candidate's rollout ends without a verdict, in words for a person; empty where it does not.

    Its users get the live model where the features of its layout cannot be read. After `wait_s` of mostly that, and of
    some requests at least, others have waited for long enough.
    """
    if held.seconds <= wait_s or held.without_features <= max(held.requests_in_all, _FEW_REQUESTS):
        return ""
    counted = f"{held.without_features} of {held.requests_in_all + held.without_features} requests"
    return f"{counted} got no features of its layout in {held.seconds:.0f} s: are they read? It may be offered again"


def unjudged(rollout: Rollout, in_all: Verdict, held: StepProgress, steps: Sequence[RolloutStep], wait_s: float) -> str:
    """Why a candidate is rolled back of whose requests none counts, in words for a person; empty where it is not.

    Where all of them are in spoiled intervals, for longer than the step is to be held and others are to wait, what was
    seen in these decides: a candidate that failed there is held to have failed, one that passed goes on, and of any
    other nobody knows whose fault it is.

    Args:
        rollout: of the candidate.
        in_all: the verdict on what was seen in all intervals.
        held: how the step was watched.
        steps: of the loop.
        wait_s: how long others wait, seconds.
    """
    longest_s = max(wait_s, _current_step(rollout, steps).hold_s)
    if held.requests or held.requests_in_all <= _FEW_REQUESTS or held.spoiled_s <= longest_s:
        return ""
    if in_all.outcome == Outcome.PASSED:
        return ""
    told = f"{in_all.reason}; live suffered beside every request for {held.spoiled_s:.0f} s"
    return told if in_all.outcome == Outcome.FAILED else f"{told}: whose fault is it? It may be offered again"


def _current_step(rollout: Rollout, steps: Sequence[RolloutStep]) -> RolloutStep:
    """The step of a rollout; gyre.yaml may have been changed to fewer: the last one then stands for what is missing."""
    return steps[min(rollout.step, len(steps) - 1)]


def decide(
    rollout: Rollout,
    verdict: Verdict,
    held: StepProgress,
    steps: Sequence[RolloutStep],
    *,
    verdict_in_all: Verdict | None = None,
) -> tuple[Decision, str]:
    """What to do with a candidate that takes traffic, and why.

    A step ends when it was held long enough, for enough requests, with every guardrail passed: without the spoiled
    intervals, or with them, since a live model that is bad for good spoils them all. Only what was seen without them
    counts against the candidate here; see `unjudged` for one of which there is nothing else. A paused rollout only ever
    goes back.

    Args:
        rollout: of the candidate.
        verdict: on what was seen without spoiled intervals.
        held: how the step was watched.
        steps: of the loop.
        verdict_in_all: on what was seen in all intervals; None for the same.
    """
    reason = verdict.reason + held.remarks()
    if verdict.outcome == Outcome.FAILED:
        return Decision.ROLL_BACK, reason
    if verdict.outcome == Outcome.SPOILED:
        return Decision.OBSERVE_ANEW, reason
    wanted = _current_step(rollout, steps)
    if rollout.state == RolloutState.PAUSED:
        return Decision.HOLD, reason
    says_something = held.requests or not held.requests_in_all  # nothing counted of what was seen is no pass
    passed = [held.requests] if verdict.outcome == Outcome.PASSED and says_something else []
    if verdict_in_all is not None and verdict_in_all.outcome == Outcome.PASSED:
        passed.append(held.requests_in_all)
    if not passed:
        return Decision.HOLD, reason
    requests = max(passed)
    if held.tripped or held.seconds < wanted.hold_s or requests < wanted.min_requests:
        progress = f"{requests} of {wanted.min_requests} requests, {held.seconds:.1f} s"
        return Decision.HOLD, progress + held.remarks()
    return Decision.ADVANCE, f"guardrails passed over {requests} requests in {held.seconds:.1f} s" + held.remarks()
