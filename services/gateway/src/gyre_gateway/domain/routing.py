"""Which model a user gets: the rollout state, the arms, and the local circuit that trips a failing candidate."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import inf, isnan, nan

from gyre_core.experiments import Arm, assign, bucket

from gyre_gateway.domain.circuit import Circuit, Passage

LATENCY_BOUNDS_S = (0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0)
LIVE, CANDIDATE = "live", "candidate"
STALL_FACTOR = 10.0
"""An answer that takes so many times the median of the recent ones is late, as behind something that stood still."""
_MEDIAN_STEP = 1.05
"""By how much each answer moves the running median, as a factor: it follows a change of ten times within 50 answers."""


@dataclass(frozen=True, slots=True)
class Target:
    """A model version, and the hash of the layout that it reads; empty when that is not known."""

    version: str
    layout: str = ""


@dataclass(frozen=True, slots=True)
class RolloutArm:
    """One arm of the traffic split: `live` or `candidate`, with its share of users."""

    name: str
    target: Target
    share: float


@dataclass(frozen=True, slots=True)
class TrafficSplit:
    """Who gets which model under an epoch; without arms before the first model."""

    epoch: int = 0
    arms: tuple[RolloutArm, ...] = ()
    last_good: Target | None = None
    rollout_id: str = ""
    traceparent: str = ""


@dataclass(frozen=True, slots=True)
class Route:
    """Where a request goes.

    Attributes:
        epoch: of the rollout state.
        arm: `live`, `candidate`, or empty before the first model.
        propensity: of the arm.
        targets: the version to ask, then those to fall back to, in order; empty before the first model.
        tripped: the user's own arm is the candidate, which this gateway does not ask at the moment.
        is_probe: the candidate is asked although the circuit is open, to learn whether it answers again.
        traceparent: of the rollout.
        rollout_id: of the rollout.
    """

    epoch: int = 0
    arm: str = ""
    propensity: float = 1.0
    targets: tuple[Target, ...] = ()
    tripped: bool = False
    is_probe: bool = False
    traceparent: str = ""
    rollout_id: str = ""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One version that a request is to be scored by.

    Attributes:
        version: that is asked.
        route: under which it is asked.
        had_time: the version was given the time that the loop grants it. Only then is the outcome evidence, whatever
            it is: to count what an impatient caller gets in time, and not what comes later, would favour the version.
        timeout_s: the time that it was given, seconds.
    """

    version: str
    route: Route
    had_time: bool
    timeout_s: float = inf

    @property
    def is_fallback(self) -> bool:
        """Whether another version was to score the request first."""
        return bool(self.route.targets) and self.route.targets[0].version != self.version


@dataclass
class ObservedCounts:
    """What this gateway saw of a version since it started: `latency_counts` has one bucket more than bounds.

    Attributes:
        left_out: requests that are in no other count, since their outcome says nothing of the version.
        without_features: of those left out, requests with time enough that got no features of the version's layout.
        paced: of fallbacks and those left out, requests whose pace says whether the version stood still.
        stalled: of these, those that failed or were late.
        median_s: running median of the time that answers took, seconds; NaN before the first.
    """

    requests: int = 0
    failures: int = 0
    left_out: int = 0
    without_features: int = 0
    paced: int = 0
    stalled: int = 0
    median_s: float = nan
    latency_counts: list[int] = field(default_factory=lambda: [0] * (len(LATENCY_BOUNDS_S) + 1))

    def note_median(self, seconds: float) -> None:
        """Move the median towards an answer's time: as many steps up as down hold it where half of them are slower."""
        if isnan(self.median_s):
            self.median_s = max(seconds, LATENCY_BOUNDS_S[0])
        else:
            self.median_s *= _MEDIAN_STEP if seconds > self.median_s else 1 / _MEDIAN_STEP


class Router:
    """One loop's routes and counts."""

    def __init__(self, loop: str, salt: str, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.loop = loop
        self._salt = salt
        self._monotonic = monotonic
        self._epoch = 0
        self._arms: list[Arm] = []
        self._routes: dict[Arm, Route] = {}
        self._no_model = Route()
        self._counts: dict[str, ObservedCounts] = {}
        self._candidate = ""
        self._circuit = Circuit()

    @property
    def epoch(self) -> int:
        """The epoch that every new request uses."""
        return self._epoch

    @property
    def versions(self) -> frozenset[str]:
        """The versions that requests are sent to under the epoch, or may fall back to."""
        return frozenset(target.version for route in self._routes.values() for target in route.targets)

    @property
    def counts(self) -> Mapping[str, ObservedCounts]:
        """The counts by version, of those that are in use under the epoch."""
        return self._counts

    def is_tripped(self, version: str) -> bool:
        """Whether requests are kept from a version, under this epoch, after a failure that is not long ago."""
        return version == self._candidate and self._circuit.holds(self._monotonic())

    def adopt(self, rollout: TrafficSplit) -> bool:
        """Use a rollout state from now on; a new epoch closes the circuit again.

        Returns:
            True when it is newer than what was used; an older one is ignored.

        Raises:
            ValueError: its shares are no split; what was used before stays.
        """
        if rollout.epoch < self._epoch:
            return False
        arms = [Arm(arm.target.version, arm.share, rollout.epoch) for arm in rollout.arms]
        if arms:
            assign(arms, 0.0)
        newer = rollout.epoch > self._epoch
        self._epoch, self._arms = rollout.epoch, arms
        self._routes = {arm: _route(rollout, each) for arm, each in zip(arms, rollout.arms, strict=True)}
        self._no_model = Route(epoch=rollout.epoch, traceparent=rollout.traceparent, rollout_id=rollout.rollout_id)
        self._candidate = next((arm.target.version for arm in rollout.arms if arm.name == CANDIDATE), "")
        if newer:
            self._circuit.reset()
            self._counts = {version: each for version, each in self._counts.items() if version in self.versions}
        return newer

    def route(self, user_id: str, *, asks: bool = True) -> Route:
        """Where a user's request goes now; `asks` says whether it will ask a version, and so may be the probe."""
        if not self._arms:
            return self._no_model
        arm, _ = assign(self._arms, bucket(user_id, self._salt))
        route = self._routes[arm]
        if route.arm != CANDIDATE or len(route.targets) < 2:
            return route
        passage = self._circuit.passage(self._monotonic(), asks=asks)
        if passage == Passage.AVOID:
            return replace(route, targets=route.targets[1:], tripped=True)
        return replace(route, is_probe=True) if passage == Passage.PROBE else route

    def note_scored(self, attempt: Attempt, seconds: float) -> None:
        """Count a request that a version scored in time."""
        counts = self._of(attempt.version)
        if attempt.had_time:
            counts.requests += 1
            counts.latency_counts[bisect_left(LATENCY_BOUNDS_S, seconds)] += 1
            counts.note_median(seconds)
        else:
            counts.left_out += 1
        late_s = self._late_s(attempt.version)
        if (attempt.is_fallback or not attempt.had_time) and attempt.timeout_s >= late_s:
            self._note_pace(attempt, stalled=seconds > late_s)
        self._note_outcome(attempt, failed=False)

    def note_failed(self, attempt: Attempt, *, was_reached: bool) -> None:
        """Count a request that a version failed to score.

        Args:
            attempt: the request.
            was_reached: the version itself failed; False when nobody could have been asked, which trips no candidate.
        """
        counts = self._of(attempt.version)
        if attempt.had_time:
            counts.requests += 1
            counts.failures += 1
        else:
            counts.left_out += 1
            self._note_pace(attempt, stalled=True)
        if was_reached:
            self._note_outcome(attempt, failed=True)

    def note_cut_off(self, attempt: Attempt) -> None:
        """Count a request that ran out of a time shorter than the loop grants: it is held against no version.

        It says that a version stood still where its answers, as a rule, take a small part of the time that there was.
        """
        self.note_left_out(attempt.version)
        if attempt.timeout_s >= self._late_s(attempt.version):
            self._note_pace(attempt, stalled=True)

    def note_left_out(self, version: str) -> None:
        """Count a request whose outcome says nothing of the version: no time, no features, or no sound ones."""
        self._of(version).left_out += 1

    def note_without_features(self, version: str) -> None:
        """Count a request that had the time, and got no features of the version's layout."""
        self.note_left_out(version)
        self._of(version).without_features += 1

    def _note_pace(self, attempt: Attempt, *, stalled: bool) -> None:
        """Count whether a version beside the candidate stood still."""
        if self._candidate not in ("", attempt.version):
            counts = self._of(attempt.version)
            counts.paced += 1
            counts.stalled += stalled

    def _late_s(self, version: str) -> float:
        """How long an answer of a version takes when it is late, seconds; infinite before any version answered."""
        own_s = self._of(version).median_s
        known = [own_s] if not isnan(own_s) else [each.median_s for each in self._counts.values()]
        return min((STALL_FACTOR * each for each in known if not isnan(each)), default=inf)

    def _note_outcome(self, attempt: Attempt, *, failed: bool) -> None:
        """Let the circuit know; what was asked under an earlier epoch does not concern it."""
        if attempt.version == self._candidate and attempt.route.epoch == self._epoch:
            self._circuit.note(self._monotonic(), failed=failed, is_probe=attempt.route.is_probe)

    def _of(self, version: str) -> ObservedCounts:
        counts = self._counts.get(version)
        if counts is None:
            counts = self._counts[version] = ObservedCounts()
        return counts


def _route(rollout: TrafficSplit, arm: RolloutArm) -> Route:
    """The route of an arm: its version, then the live one, then the last good one."""
    known = {each.target.version: each.target for each in rollout.arms}
    live = next((each.target for each in rollout.arms if each.name == LIVE), None)
    last_good = rollout.last_good
    wanted = [arm.target, live, known.get(last_good.version, last_good) if last_good else None]
    targets = {target.version: target for target in wanted if target is not None}
    return Route(
        epoch=rollout.epoch,
        arm=arm.name,
        propensity=arm.share,
        targets=tuple(targets.values()),
        traceparent=rollout.traceparent,
        rollout_id=rollout.rollout_id,
    )
