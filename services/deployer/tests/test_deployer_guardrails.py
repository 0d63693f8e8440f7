"""What gateways saw of a candidate and of live beside it, and how guardrails judge it."""

import pytest
from gyre_core.spec import Duration, GuardrailSpec
from gyre_deployer.domain.guardrails import Outcome, is_breach, judge
from gyre_deployer.domain.observation import (
    BREACH_HOLDS_S,
    SETTLING_S,
    Observation,
    ObservedGateway,
    VersionRequests,
    lagging,
    tripped,
)
from hypothesis import given
from hypothesis import strategies as st

GUARDRAILS = GuardrailSpec(max_error_rate=0.01, max_latency_ratio=2.0, max_latency_p99=Duration.parse("100ms"))
BOUNDS = (0.005, 0.01, 0.1, 0.5)


def seen(requests: int, failures: int = 0, *, slow: int = 0, bucket: int = 3) -> VersionRequests:
    """Counts of a version whose scored requests are fast but for some."""
    fast = requests - failures - slow
    latencies = [fast, 0, 0, 0, 0]
    latencies[bucket] += slow
    return VersionRequests(requests, failures, BOUNDS, tuple(latencies))


@pytest.mark.parametrize(
    ("candidate", "live", "outcome"),
    [
        (seen(0), seen(0), Outcome.PASSED),
        (seen(1000), seen(1000), Outcome.PASSED),
        (seen(10, 1), seen(90), Outcome.INCONCLUSIVE),  # one of ten may be chance
        (seen(10, 3), seen(90), Outcome.FAILED),  # three of ten are not
        (seen(1000, 10), seen(1000), Outcome.PASSED),
        (seen(1000, 15), seen(1000), Outcome.INCONCLUSIVE),
        (seen(1000, 30), seen(1000), Outcome.FAILED),
        (seen(1000, 300), seen(1000, 300), Outcome.SPOILED),  # both: it is not the candidate
        (seen(1000, 300), seen(1000, 40), Outcome.FAILED),  # both, but the candidate far more
        (seen(1000, 300), seen(0), Outcome.FAILED),  # nobody to compare with
        (seen(1000, slow=10), seen(1000), Outcome.PASSED),
        (seen(1000, slow=15), seen(1000), Outcome.INCONCLUSIVE),
        (seen(1000, slow=40), seen(1000), Outcome.FAILED),
        (seen(1000, slow=40), seen(1000, slow=40), Outcome.SPOILED),
        (seen(1000, slow=40, bucket=4), seen(1000), Outcome.FAILED),  # the open bucket is slower than any limit
        (seen(1000, slow=100, bucket=2), seen(1000), Outcome.FAILED),  # within 100 ms, but twice live's p99
        (seen(1000, slow=100, bucket=1), seen(1000), Outcome.PASSED),  # the bucket may lie below twice live's p99
        (seen(150, slow=30, bucket=2), seen(1000), Outcome.PASSED),  # too few to compare
        (seen(1000, slow=100, bucket=2), seen(150), Outcome.PASSED),
    ],
)
def test_guardrails_hold_only_what_is_significant_against_a_candidate(
    candidate: VersionRequests, live: VersionRequests, outcome: Outcome
) -> None:
    """Errors, p99 and its ratio fail a candidate when chance does not explain them, and live does not share them."""
    verdict = judge(candidate, live, GUARDRAILS)
    assert verdict.outcome == outcome, verdict.reason


@pytest.mark.parametrize(
    ("live", "breaches"),
    [
        (seen(0), False),
        (seen(100, 1), False),
        (seen(100, 5), True),
        (seen(4, 1), True),  # of few, one in a second is a sign
        (seen(20, slow=1), False),
        (seen(20, slow=2), True),
    ],
)
def test_a_second_is_breached_when_live_shows_more_than_chance(live: VersionRequests, breaches: bool) -> None:
    """One interval of the live model is past a limit where the exact tail is below 5 %."""
    assert is_breach(live, GUARDRAILS) == breaches


@given(st.integers(0, 400), st.integers(0, 400), st.integers(0, 50))
def test_more_failures_never_help(requests: int, failures: int, more: int) -> None:
    """Of two candidates with as many requests, the one with more failures is never judged better."""
    failures = min(failures, requests)
    worse = min(failures + more, requests)
    outcomes = [judge(seen(requests, each), seen(0), GUARDRAILS).outcome for each in (failures, worse)]
    assert outcomes == sorted(outcomes)


def report(instance: str, version: str, counts: VersionRequests, **traits: object) -> ObservedGateway:
    """What a gateway says of one version."""
    given_traits = {"epoch": 1, "time": 100.0, "lease_s": 5.0} | traits
    return ObservedGateway(instance, counts={version: counts}, **given_traits)  # type: ignore[arg-type]


BEGUN = ObservedGateway("a", 1, 100.0, 5.0)
"""A gateway that was asked for nothing yet."""


def watching(*reports: ObservedGateway) -> Observation:
    """An observation of v2 beside v1 that begins with these reports."""
    return Observation.begin(reports, ("v2", "v1"), lambda counts: is_breach(counts, GUARDRAILS))


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 9), st.booleans(), st.booleans()), max_size=40))
def test_what_was_seen_is_the_sum_of_all_growth(rounds: list[tuple[str, int, bool, bool]]) -> None:
    """However often reports are read, the totals are all requests since the start, over restarts of gateways too."""
    counters = {"a": seen(50, 5), "b": VersionRequests()}
    observation = watching(*(report(each, "v2", counts) for each, counts in counters.items()))
    total = failed = 0
    for number, (instance, growth, restarts, is_read_twice) in enumerate(rounds):
        before = VersionRequests() if restarts and counters[instance].requests > growth else counters[instance]
        counters[instance] = before.plus(seen(growth, growth // 2))
        total, failed = total + growth, failed + growth // 2
        reports = [report(each, "v2", counts) for each, counts in counters.items()]
        observation = observation.advanced(reports, number)
        if is_read_twice:
            observation = observation.advanced(reports, number)
    observation = observation.advanced([], len(rounds) + SETTLING_S)
    totals = observation.candidate
    assert (totals.requests, totals.failures, totals.scored) == (total, failed, total - failed)
    assert (observation.live, observation.spoiled) == (VersionRequests(), 0)


@pytest.mark.parametrize("was_seen", [False, True])
def test_a_gateway_that_returns_is_counted_from_its_return(was_seen: bool) -> None:
    """What a gateway counted before it was seen, or while it was not, counts for no verdict; later requests do."""
    away = report("away", "v2", seen(10), time=100.0)
    observation = watching(BEGUN, *([away] if was_seen else []))
    back = report("away", "v2", seen(1000, 900), time=400.0)
    observation = observation.advanced([BEGUN, back], 400.0)
    observation = observation.advanced([BEGUN, back], 400.0 + SETTLING_S)
    assert observation.candidate == VersionRequests()
    later = report("away", "v2", seen(1020, 902), time=402.0)
    observation = observation.advanced([BEGUN, later], 402.0).advanced([], 402.0 + SETTLING_S)
    assert (observation.candidate.requests, observation.candidate.failures) == (20, 2)


LIVE_STATES = {
    "idle": seen(0),
    "well": seen(10),
    "stalled": seen(10, 10),
    "answers fallbacks": VersionRequests(paced=10, stalled=1),
    "stalls fallbacks": VersionRequests(paced=10, stalled=9),
}
SECOND = st.tuples(st.integers(0, 20), st.booleans(), st.sampled_from([*LIVE_STATES]))


@given(st.lists(SECOND, max_size=30))
def test_intervals_are_spoiled_by_live_beside_them(seconds: list[tuple[int, bool, str]]) -> None:
    """What counts is each interval without a breach in it, or in the nearest before and after it that tell of live."""
    candidate, live, observation = VersionRequests(), VersionRequests(), watching(BEGUN)
    for number, (requests, fails, state) in enumerate(seconds):
        candidate = candidate.plus(seen(requests, requests if fails else 0))
        live = live.plus(LIVE_STATES[state])
        both = {"v2": candidate, "v1": live}
        observation = observation.advanced([ObservedGateway("a", 1, 100.0, 5.0, counts=both)], float(number))
    observation = observation.advanced([], len(seconds) + SETTLING_S)
    told = [(number, *each) for number, each in enumerate(seconds) if each[0] or each[2] != "idle"]
    expected = spoiled = failures = 0
    for place, (number, requests, fails, state) in enumerate(told):
        before = [(at, each) for at, _, _, each in told[:place] if each != "idle"][-1:]
        later = [(at, each) for at, _, _, each in told[place + 1 :] if each != "idle"][:1]
        near = [each for at, each in before if number - at <= BREACH_HOLDS_S]
        near += [each for at, each in later if at - number <= SETTLING_S]
        if {"stalled", "stalls fallbacks"} & {*near, state}:
            spoiled += 1
        else:
            expected, failures = expected + requests, failures + (requests if fails else 0)
    assert observation.spoiled == spoiled
    assert (observation.candidate.requests, observation.candidate.failures) == (expected, failures)


def test_a_stall_of_everything_is_not_held_against_the_candidate() -> None:
    """Twenty seconds in which both time out, begun within a second by the candidate alone, spoil no verdict."""
    candidate, live, observation = VersionRequests(), VersionRequests(), watching(BEGUN)
    for second in range(60):
        stalled = 20 <= second < 40
        candidate = candidate.plus(seen(10, 10 if stalled else 4 if second == 19 else 0))
        live = live.plus(seen(90, 90 if stalled else 0))
        both = {"v2": candidate, "v1": live}
        observation = observation.advanced([ObservedGateway("a", 1, 100.0, 5.0, counts=both)], float(second))
        verdict = judge(observation.candidate, observation.live, GUARDRAILS)
        assert verdict.outcome == Outcome.PASSED, (second, verdict.reason)
    assert observation.spoiled == 22
    assert observation.candidate.requests == 370


def test_a_breach_that_nothing_follows_spoils_for_so_long_alone() -> None:
    """Where nobody asks the live model again, what is wrong with the candidate counts once the breach is forgotten."""
    observation = watching(BEGUN)
    for second in range(60):
        both = {"v2": seen(second, second), "v1": seen(10, 10)}
        observation = observation.advanced([ObservedGateway("a", 1, 100.0, 5.0, counts=both)], float(second))
    observation = observation.advanced([], 60 + SETTLING_S)
    assert (observation.spoiled, observation.candidate.failures) == (BREACH_HOLDS_S + 1, 59 - BREACH_HOLDS_S)


def test_a_candidate_that_fails_alone_is_failed_within_seconds() -> None:
    """Beside a live model that is well, a fifth of 10 requests a second failing is enough after three seconds."""
    candidate, live, observation = VersionRequests(), VersionRequests(), watching(BEGUN)
    for second in range(3):
        candidate, live = candidate.plus(seen(10, 2)), live.plus(seen(90, second % 2))
        both = {"v2": candidate, "v1": live}
        observation = observation.advanced([ObservedGateway("a", 1, 100.0, 5.0, counts=both)], float(second))
    assert judge(observation.candidate, observation.live, GUARDRAILS).outcome == Outcome.FAILED


def test_latencies_in_other_buckets_are_left_out() -> None:
    """Two releases of gateways with other buckets still add up their requests and failures."""
    other = VersionRequests(10, 1, (0.2,), (9, 0))
    total = seen(5).plus(other)
    assert (total.requests, total.failures, total.bounds, total.scored) == (15, 1, BOUNDS, 5)


def test_who_lags_and_who_tripped() -> None:
    """Only gateways whose lease holds and that are not leaving count, and only what they say under the epoch."""
    on = {"tripped": frozenset({"v2"})}
    reports = [
        report("behind", "v2", VersionRequests(), epoch=3),
        report("current", "v2", VersionRequests(), epoch=4, **on),
        report("dead", "v2", VersionRequests(), epoch=3, time=90.0),
        report("leaving", "v2", VersionRequests(), epoch=3, is_leaving=True),
        report("earlier", "v2", VersionRequests(), epoch=3, **on),
    ]
    assert lagging(reports, 4, 104.0) == ["behind", "earlier"]
    assert tripped(reports, "v2", 4, 104.0) == ["current"]
    assert tripped(reports, "v1", 4, 104.0) == []
    assert lagging(reports, 4, 106.0) == []
