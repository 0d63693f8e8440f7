"""Who gets which model: shares, stickiness, fallbacks, and the circuit that trips a failing candidate."""

import pytest
from gyre_gateway.adapters.reports import report_of
from gyre_gateway.domain.circuit import BACKOFF_S, MAX_BACKOFF_S
from gyre_gateway.domain.routing import LATENCY_BOUNDS_S, Attempt, RolloutArm, Route, Router, Target, TrafficSplit
from hypothesis import given, settings
from hypothesis import strategies as st

USERS = [f"user-{number}" for number in range(4000)]


def split(epoch: int, share: float, *, last_good: str = "v0") -> TrafficSplit:
    """A candidate v2 with a share beside the live v1."""
    arms = (RolloutArm("live", Target("v1", "a"), 1 - share), RolloutArm("candidate", Target("v2", "b"), share))
    return TrafficSplit(epoch, arms, last_good=Target(last_good) if last_good else None)


class Moment:
    """A monotonic clock that the test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        """Seconds."""
        return self.now


def following(rollout: TrafficSplit, moment: Moment | None = None) -> Router:
    """A router that uses a rollout state."""
    router = Router("shop", "salt", monotonic=moment or Moment())
    router.adopt(rollout)
    return router


def attempt(
    router: Router,
    *,
    version: str = "v2",
    epoch: int | None = None,
    had_time: bool = True,
    is_probe: bool = False,
    timeout_s: float = 10.0,
) -> Attempt:
    """A request that a version is asked."""
    epoch = router.epoch if epoch is None else epoch
    return Attempt(version, Route(epoch=epoch, is_probe=is_probe), had_time, timeout_s)


def fail(router: Router, times: int, *, was_reached: bool = True, **traits: object) -> None:
    """Let a version fail."""
    for _ in range(times):
        router.note_failed(attempt(router, **traits), was_reached=was_reached)  # type: ignore[arg-type]


def user_of(router: Router, arm: str) -> str:
    """A user whose arm it is."""
    return next(user for user in USERS if router.route(user).arm == arm)


def test_before_the_first_model_there_is_nothing_to_ask() -> None:
    """Without arms a route has no target, whatever the epoch."""
    router = following(TrafficSplit(epoch=3))
    assert router.route("user-1").targets == ()
    assert router.route("user-1").epoch == router.epoch == 3


@settings(deadline=None, max_examples=20)
@given(share=st.floats(0.02, 0.98))
def test_arms_get_their_shares(share: float) -> None:
    """Over many users each arm gets its share, and a route's propensity is the share of its own arm."""
    router = following(split(1, share))
    routes = [router.route(user) for user in USERS]
    candidates = [route for route in routes if route.arm == "candidate"]
    assert len(candidates) / len(routes) == pytest.approx(share, abs=0.04)
    assert {route.propensity for route in candidates} <= {share}
    assert {route.propensity for route in routes if route.arm == "live"} <= {1 - share}


@settings(deadline=None, max_examples=20)
@given(low=st.floats(0, 1), high=st.floats(0, 1))
def test_a_growing_candidate_keeps_its_users(low: float, high: float) -> None:
    """Who has the candidate keeps it when its share grows."""
    low, high = sorted((low, high))
    before, after = following(split(1, low)), following(split(1, high))
    had = {user for user in USERS[:500] if before.route(user).arm == "candidate"}
    assert had <= {user for user in USERS[:500] if after.route(user).arm == "candidate"}


def test_fallbacks_are_the_live_then_the_last_good_version() -> None:
    """A candidate falls back to the live version and then to the last good one, with their layouts where known."""
    router = following(split(1, 0.5))
    candidate, live = (router.route(user_of(router, arm)) for arm in ("candidate", "live"))
    assert candidate.targets == (Target("v2", "b"), Target("v1", "a"), Target("v0"))
    assert live.targets == (Target("v1", "a"), Target("v0"))
    router.adopt(split(2, 0.5, last_good="v1"))
    assert router.route(user_of(router, "live")).targets == (Target("v1", "a"),)


def test_an_older_epoch_is_ignored() -> None:
    """A state older than the one in use changes nothing; the same epoch again is not new."""
    router = following(split(5, 0.5))
    assert not router.adopt(split(4, 1.0))
    assert not router.adopt(split(5, 0.5))
    assert router.epoch == 5
    assert {router.route(user).arm for user in USERS[:100]} == {"live", "candidate"}
    assert router.adopt(split(6, 1.0))


def test_a_state_whose_shares_are_no_split_is_refused() -> None:
    """Shares that do not sum to 1 raise ValueError, and the state before stays in use, epoch and all."""
    router = following(split(5, 0.5))
    arms = (RolloutArm("live", Target("v9"), 0.5),)
    with pytest.raises(ValueError, match="sum to 1"):
        router.adopt(TrafficSplit(6, arms))
    assert router.epoch == 5
    assert router.route("user-1").targets[0].version in {"v1", "v2"}


def test_a_failing_candidate_is_tripped_at_once_until_the_next_epoch() -> None:
    """After five failures its users get the live version under the candidate's arm; a new epoch tries it again."""
    router = following(split(1, 0.5))
    user = user_of(router, "candidate")
    fail(router, 4)
    assert not router.route(user).tripped
    fail(router, 1)
    route = router.route(user)
    assert route.tripped
    assert (route.arm, route.propensity, route.targets[0].version) == ("candidate", 0.5, "v1")
    assert router.is_tripped("v2")
    router.adopt(split(1, 0.5))
    assert router.route(user).tripped
    router.adopt(split(2, 0.5))
    assert not router.route(user).tripped
    fail(router, 4)
    assert not router.route(user).tripped


def test_an_open_circuit_lets_one_request_through_after_a_back_off() -> None:
    """Half-open, one request in each back-off asks the candidate: a failure doubles the back-off, an answer closes."""
    moment = Moment()
    router = following(split(1, 0.5), moment)
    user = user_of(router, "candidate")
    fail(router, 5)
    backoff_s = BACKOFF_S
    for _ in range(6):
        moment.now += 0.9 * backoff_s
        assert router.route(user).tripped
        moment.now += 0.2 * backoff_s
        assert (router.route(user).is_probe, router.route(user).tripped) == (True, True)
        fail(router, 3)  # asked before it opened: nothing is learnt from them
        fail(router, 1, is_probe=True)
        backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)
    moment.now += 1.1 * backoff_s
    assert router.route(user).targets[0].version == "v2"
    router.note_scored(attempt(router), 0.001)  # asked before it opened, too
    assert router.is_tripped("v2")
    router.note_scored(attempt(router, is_probe=True), 0.001)
    assert not router.is_tripped("v2")
    assert not router.route(user).tripped


def test_a_probe_without_outcome_does_not_hold_the_circuit_open() -> None:
    """A probe whose caller goes away is followed by another after the back-off."""
    moment = Moment()
    router = following(split(1, 0.5), moment)
    user = user_of(router, "candidate")
    fail(router, 5)
    for _ in range(3):
        moment.now += 1.1 * BACKOFF_S
        assert router.route(user).is_probe


def test_a_trip_is_reported_for_a_bounded_time_without_requests() -> None:
    """A gateway that nobody asks any more ends its report of a trip, and its next request still is the probe."""
    moment = Moment()
    router = following(split(1, 0.5), moment)
    user = user_of(router, "candidate")
    fail(router, 5)
    reported = []
    for _ in range(40):
        candidate = report_of(router, "g1", lease_s=5, leaving=False).versions[0]
        reported.append((candidate.version, candidate.tripped))
        moment.now += BACKOFF_S
    assert reported[0] == ("v2", True)
    assert reported[-1] == ("v2", False)
    assert router.route(user).is_probe
    fail(router, 1, is_probe=True)
    assert report_of(router, "g1", lease_s=5, leaving=False).versions[0].tripped
    assert router.route(user).tripped


def test_a_trip_is_reported_as_long_as_probes_fail() -> None:
    """Between two probes that fail, the longest back-off apart, no report says that requests are not kept away."""
    moment = Moment()
    router = following(split(1, 0.5), moment)
    user = user_of(router, "candidate")
    fail(router, 5)
    for _ in range(300):
        moment.now += 0.5
        if router.route(user).is_probe:
            moment.now += 0.5
            assert router.is_tripped("v2")
            fail(router, 1, is_probe=True)
        assert router.is_tripped("v2")


def test_an_answer_from_memory_is_no_probe() -> None:
    """A request that asks no model leaves the probe of the back-off to the next one that does."""
    moment = Moment()
    router = following(split(1, 0.5), moment)
    user = user_of(router, "candidate")
    fail(router, 5)
    moment.now += 1.1 * BACKOFF_S
    for _ in range(3):
        route = router.route(user, asks=False)
        assert (route.arm, route.tripped, route.is_probe) == ("candidate", True, False)
    assert router.route(user).is_probe


def test_rare_failures_do_not_trip() -> None:
    """A candidate that fails fewer than five of its last twenty requests stays."""
    router = following(split(1, 0.5))
    for _ in range(50):
        fail(router, 1)
        for _ in range(5):
            router.note_scored(attempt(router), 0.001)
    assert not router.is_tripped("v2")


@pytest.mark.parametrize("case", ["live", "out of reach", "an old epoch", "the only version"])
def test_what_does_not_trip(case: str) -> None:
    """Nothing trips the live or a sole version; a server out of reach and an old epoch's failures trip none."""
    router = following(split(1, 0.5))
    if case == "the only version":
        router.adopt(TrafficSplit(2, (RolloutArm("candidate", Target("v2"), 1.0),)))
    fail(
        router,
        30,
        version="v1" if case == "live" else "v2",
        was_reached=case != "out of reach",
        epoch=0 if case == "an old epoch" else None,
    )
    assert not any(router.route(user).tripped for user in USERS[:100])


def test_a_report_holds_the_epoch_and_all_counts() -> None:
    """Requests, failures and latency buckets of each version stand in the report, with what is tripped."""
    router = following(split(7, 0.5))
    for seconds in (0.0005, 0.001, 0.004, 3.0):
        router.note_scored(attempt(router, version="v1"), seconds)
    router.note_scored(attempt(router, version="v1", had_time=False), 0.001)
    fail(router, 5)
    fail(router, 2, had_time=False)
    router.note_without_features("v2")
    report = report_of(router, "gateway-1", lease_s=5, leaving=False)
    live, candidate = report.versions
    assert (report.loop, report.instance, report.epoch, report.lease_s, report.leaving) == (
        "shop", "gateway-1", 7, 5, False,
    )  # fmt: skip
    assert (live.version, live.requests, live.failures, live.tripped) == ("v1", 4, 0, False)
    assert (candidate.version, candidate.requests, candidate.failures, candidate.tripped) == ("v2", 5, 5, True)
    assert tuple(live.latency_bounds_s) == LATENCY_BOUNDS_S
    assert [list(live.latency_counts)[at] for at in (0, 3, len(LATENCY_BOUNDS_S))] == [2, 1, 1]
    assert sum(live.latency_counts) == 4
    assert (live.left_out, candidate.left_out, live.without_features, candidate.without_features) == (1, 3, 0, 1)
    assert report.report_time.seconds > 0


def test_brief_requests_tell_whether_live_stood_still() -> None:
    """Of requests with too little time to count, those with ten times live's median time or more show a stall."""
    router = following(split(7, 0.5))

    def reported() -> tuple[int, int]:
        live = next(each for each in report_of(router, "g", lease_s=5, leaving=False).versions if each.version == "v1")
        return live.paced_requests, live.stalled_requests

    brief = {"version": "v1", "had_time": False}
    router.note_cut_off(attempt(router, **brief))  # type: ignore[arg-type]
    assert reported() == (0, 0)  # nobody knows how long an answer takes
    for _ in range(100):
        router.note_scored(attempt(router, version="v1"), 0.010)
    router.note_cut_off(attempt(router, **brief, timeout_s=0.08))  # type: ignore[arg-type]
    router.note_scored(attempt(router, **brief, timeout_s=0.08), 0.07)  # type: ignore[arg-type]
    router.note_left_out("v1")
    assert reported() == (0, 0)  # an answer may take as long as they could wait
    router.note_cut_off(attempt(router, **brief, timeout_s=0.12))  # type: ignore[arg-type]
    router.note_scored(attempt(router, **brief, timeout_s=1.0), 0.12)  # type: ignore[arg-type]
    router.note_scored(attempt(router, **brief, timeout_s=1.0), 0.08)  # type: ignore[arg-type]
    router.note_failed(attempt(router, **brief, timeout_s=0.01), was_reached=False)  # type: ignore[arg-type]
    router.note_failed(attempt(router, version="v1"), was_reached=True)  # counts as it is
    assert reported() == (4, 3)
    fallback = Attempt("v1", Route(targets=(Target("v2"), Target("v1"))), had_time=True, timeout_s=1.0)
    router.note_scored(fallback, 0.12)
    router.note_scored(fallback, 0.08)
    assert reported() == (6, 4)
    router.note_cut_off(attempt(router, had_time=False))
    assert router.counts["v2"].paced == 0  # of the candidate it is no evidence


def test_how_long_answers_take_is_learnt_anew() -> None:
    """When answers become ten times slower for good, they are late for some dozens of requests, and then no more."""
    router = following(split(7, 0.5))
    for seconds in [0.001] * 1000 + [0.010] * 1000:
        router.note_scored(attempt(router, version="v1"), seconds)
    router.note_scored(attempt(router, version="v1", had_time=False), 0.080)
    assert router.counts["v1"].stalled == 0
    router.note_scored(attempt(router, version="v1", had_time=False), 0.120)
    assert router.counts["v1"].stalled == 1


def test_counts_are_those_of_versions_in_use() -> None:
    """After five hundred rollouts a report names the versions that requests may go to, and none that went."""
    router = Router("shop", "salt")
    for number in range(1, 501):
        live, candidate = Target(f"v{number}"), Target(f"v{number + 1}")
        arms = (RolloutArm("live", live, 0.5), RolloutArm("candidate", candidate, 0.5))
        router.adopt(TrafficSplit(number, arms, last_good=Target(f"v{number - 1}")))
        for version in (live.version, candidate.version):
            router.note_scored(attempt(router, version=version), 0.001)
    report = report_of(router, "g1", lease_s=5, leaving=False)
    assert sorted(each.version for each in report.versions) == ["v499", "v500", "v501"]
    assert {each.version: each.requests for each in report.versions} == {"v499": 2, "v500": 2, "v501": 1}
