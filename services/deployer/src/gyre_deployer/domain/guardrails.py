"""Judges a candidate by what the gateways saw of it: passed, failed, or not known yet.

Every guardrail asks whether too large a share of requests was bad: failed, or slower than a limit that one of a hundred
may pass. A share counts as too large only when the exact binomial tail says that an acceptable candidate would hardly
ever show it. That matters for small counts: one failure among ten requests happens to a candidate with a true rate of
1 % in one rollout of ten (Wilson's interval, too narrow there, would roll it back), three failures in one of ten
thousand. Since the judgement is repeated many times during a step, the level is strict.

A gateway that keeps requests from the candidate is no reason by itself: it reacts at once and can be wrong, while a
rollback cannot be undone.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from gyre_core.spec import GuardrailSpec
from gyre_core.statistics import binomial_tail, two_proportions

from gyre_deployer.domain.observation import VersionRequests

LEVEL = 0.001
"""Probability below which an observation is held against the candidate."""
BREACH_LEVEL = 0.05
"""The same for the live model in one interval, whose few requests are to show in a second what stalls both."""
SLOW_SHARE = 0.01
"""What a 99th percentile leaves: the share of requests that may be slower."""
ENOUGH = 200
"""Scored requests of both arms below which their latencies are not compared: a p99 of fewer is one or two requests."""


class Outcome(IntEnum):
    """What a guardrail says; of several the greatest counts."""

    PASSED = 0
    INCONCLUSIVE = 1
    """Worse than allowed, but that may be chance: wait for more requests."""
    SPOILED = 2
    """Both arms are bad alike, so that it is not the candidate's doing: observe anew."""
    FAILED = 3


@dataclass(frozen=True, slots=True)
class Verdict:
    """An outcome and what it rests on, in words for a person."""

    outcome: Outcome
    reason: str


@dataclass(frozen=True, slots=True)
class _Share:
    """Bad requests of all requests."""

    bad: int
    n: int

    @property
    def rate(self) -> float:
        return self.bad / self.n if self.n else 0.0

    def exceeds(self, allowed: float, level: float = LEVEL) -> bool:
        """Whether more are bad than chance explains."""
        return binomial_tail(self.bad, self.n, allowed) < level


def is_breach(counts: VersionRequests, guardrails: GuardrailSpec) -> bool:
    """Whether the live model was past the limit of errors or of latency in one interval, or stood still in it.

    What stalls everything stalls most of the requests that fell back to it; of a model that is well only few are late.
    """
    failed = _Share(counts.failures, counts.requests)
    slow = _Share(counts.slower_than(guardrails.max_latency_p99_s), counts.scored)
    is_past = failed.exceeds(guardrails.max_error_rate, BREACH_LEVEL) or slow.exceeds(SLOW_SHARE, BREACH_LEVEL)
    return is_past or 0 < counts.paced <= 2 * counts.stalled


def judge(candidate: VersionRequests, live: VersionRequests, guardrails: GuardrailSpec) -> Verdict:
    """Judge a candidate against the guardrails and beside the live model.

    Args:
        candidate: what was seen of it since the step began.
        live: what was seen of the live model meanwhile.
        guardrails: the limits.
    """
    verdicts = [
        _errors(candidate, live, guardrails.max_error_rate),
        _latency(candidate, live, guardrails.max_latency_p99_s),
        _latency_ratio(candidate, live, guardrails.max_latency_ratio),
    ]
    return max(verdicts, key=lambda verdict: verdict.outcome)


def _errors(candidate: VersionRequests, live: VersionRequests, allowed: float) -> Verdict:
    own, other = _Share(candidate.failures, candidate.requests), _Share(live.failures, live.requests)
    return _compare("failed", own, other, allowed)


def _latency(candidate: VersionRequests, live: VersionRequests, limit_s: float) -> Verdict:
    own = _Share(candidate.slower_than(limit_s), candidate.scored)
    other = _Share(live.slower_than(limit_s), live.scored)
    return _compare(f"took more than {limit_s * 1000:.0f} ms", own, other, SLOW_SHARE)


def _latency_ratio(candidate: VersionRequests, live: VersionRequests, most: float) -> Verdict:
    if min(candidate.scored, live.scored) < ENOUGH:
        return Verdict(Outcome.PASSED, "too few requests to compare latencies")
    limit_s = most * live.p99_s()
    own = _Share(candidate.slower_than(limit_s), candidate.scored)
    what = f"took more than {limit_s * 1000:.1f} ms, {most:g} times the live model's p99,"
    return _compare(what, own, _Share(live.slower_than(limit_s), live.scored), SLOW_SHARE)


def _compare(what: str, own: _Share, other: _Share, allowed: float) -> Verdict:
    told = f"{own.bad} of {own.n} requests {what} ({own.rate:.2%}, at most {allowed:.2%})"
    if not own.exceeds(allowed):
        outcome = Outcome.INCONCLUSIVE if own.rate > allowed else Outcome.PASSED
        return Verdict(outcome, told)
    difference = two_proportions((other.bad, other.n), (own.bad, own.n))
    is_worse = difference.difference > 0 and difference.p_value < LEVEL
    if other.exceeds(allowed) and not is_worse:
        return Verdict(Outcome.SPOILED, f"{told}, and {other.bad} of {other.n} of the live model's")
    return Verdict(Outcome.FAILED, told)
