"""The fold of the log, and what a rollout does next."""

from dataclasses import replace
from itertools import product

import pytest
from gyre_core.spec import Duration, RolloutStep
from gyre_deployer.domain import decisions
from gyre_deployer.domain.guardrails import Outcome, Verdict
from gyre_deployer.domain.projection import arms
from gyre_deployer.domain.rollouts import ENDED, RUNNING, Candidate, Change, Kind, LoopState, RolloutState, apply, fold
from gyre_deployer.wire import change_message, change_of, view_message
from hypothesis import given, settings
from hypothesis import strategies as st

STEPS = (
    RolloutStep(share=0.1, hold=Duration.parse("10s"), min_requests=100),
    RolloutStep(share=0.5, hold=Duration.parse("10s"), min_requests=100),
    RolloutStep(share=1.0),
)


def model(version: str) -> Candidate:
    """A candidate."""
    return Candidate("shop", version, f"run-{version}", "layout", ("a",), f"/models/{version}", "0" * 64)


def numbered(state: LoopState, *changes: Change) -> LoopState:
    """The state after further changes, which get their epochs and times."""
    for change in changes:
        state = apply(state, replace(change, epoch=state.epoch + 1, time=state.change_time + 1))
    return state


def begun(state: LoopState, version: str) -> LoopState:
    """The state after the start of a version's rollout."""
    return numbered(state, *decisions.begin([model(version)], model(version), state))


def at(state: LoopState, wanted: RolloutState) -> LoopState:
    """The state with the rollout under way brought to a state by the shortest way."""
    ways = {
        RolloutState.STARTED: [],
        RolloutState.VALIDATED: [Kind.VALIDATED],
        RolloutState.LOADED: [Kind.VALIDATED, Kind.LOADED],
        RolloutState.WARMED: [Kind.VALIDATED, Kind.LOADED, Kind.WARMED],
        RolloutState.CANARY: [Kind.VALIDATED, Kind.LOADED, Kind.WARMED, Kind.SHIFTED],
        RolloutState.PAUSED: [Kind.PAUSED],
        RolloutState.PROMOTED: [Kind.VALIDATED, Kind.LOADED, Kind.WARMED, Kind.PROMOTED],
        RolloutState.ROLLED_BACK: [Kind.ROLLED_BACK],
        RolloutState.REFUSED: [Kind.REFUSED],
    }
    rollout_id = state.current
    for kind in ways[wanted]:
        share = {Kind.SHIFTED: 0.1, Kind.PROMOTED: 1.0}.get(kind, 0.0)
        state = numbered(state, decisions.follow(state.rollouts[rollout_id], kind, "why", share=share))
    return state


def moves(state: LoopState) -> list[Change]:
    """Every change that may come next, as the deployer makes them."""
    rollout = state.under_way
    found = [
        decisions.follow(of_version, Kind.UNLOADED, "unused", share=0.0)
        for version in state.unnamed
        if (of_version := state.of_version(version)) is not None
    ]
    found += [change for version in state.loaded for change in decisions.give_up(state, version, "lost")[:1]]
    live = state.of_version(state.live)
    if rollout is None:
        waiting = [model(f"v{len(state.rollouts) + n}") for n in range(2)]
        found += decisions.begin(waiting, waiting[0], state) + decisions.begin(waiting, waiting[1], state)[:1]
        if live is not None and state.last_good:
            found.append(decisions.roll_back(live, "back"))
        return found
    found.append(decisions.roll_back(rollout, "back"))
    if rollout.state == RolloutState.PAUSED:
        return [*found, decisions.follow(rollout, Kind.RESUMED, "on")]
    found.append(decisions.follow(rollout, Kind.PAUSED, "hold"))
    forward = {
        RolloutState.STARTED: Kind.VALIDATED,
        RolloutState.VALIDATED: Kind.LOADED,
        RolloutState.LOADED: Kind.WARMED,
    }
    if rollout.state in forward:
        found.append(decisions.follow(rollout, forward[rollout.state], "on"))
    if rollout.state == RolloutState.WARMED:
        found.append(decisions.open_traffic(rollout, STEPS))
    if rollout.state == RolloutState.CANARY:
        found += [decisions.advance(rollout, STEPS, "on"), decisions.return_traffic(rollout, STEPS, "again")]
        found.append(decisions.withdraw_traffic(rollout, "away"))
    else:
        found.append(decisions.refuse(rollout, "no"))
    return found


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 1000), max_size=40))
def test_whatever_happens_the_state_stays_whole(choices: list[int]) -> None:
    """After any run of possible changes one rollout at most is under way, and what requests name is loaded."""
    state, log = LoopState("shop"), []
    for choice in choices:
        possible = moves(state)
        change = replace(possible[choice % len(possible)], epoch=state.epoch + 1, time=state.epoch + 1.0)
        state = apply(state, change)
        log.append(change)
        assert sum(rollout.is_under_way for rollout in state.rollouts.values()) <= 1
        split = arms(state)
        assert (sum(arm.share for arm in split) == pytest.approx(1.0)) if state.live else not split
        assert {arm.candidate.version for arm in split} | ({state.last_good} - {""}) <= set(state.loaded)
        assert set(state.unnamed) == set(state.loaded) - state.named
        assert all(epoch <= state.epoch for epoch in state.unnamed.values())
        assert len(set(state.loaded)) == len(state.loaded)
    assert fold("shop", log) == state
    assert sum(len(rollout.changes) for rollout in state.rollouts.values()) == len(log)


def test_a_change_that_cannot_follow_is_refused() -> None:
    """Every change comes only from the states that the design gives it; the log is never folded into nonsense."""
    live = at(begun(LoopState("shop"), "v1"), RolloutState.PROMOTED)
    allowed = {
        RolloutState.STARTED: {Kind.VALIDATED},
        RolloutState.VALIDATED: {Kind.LOADED},
        RolloutState.LOADED: {Kind.WARMED},
        RolloutState.WARMED: {Kind.SHIFTED, Kind.PROMOTED},
        RolloutState.CANARY: {Kind.SHIFTED, Kind.PROMOTED},
        RolloutState.PAUSED: {Kind.RESUMED, Kind.PROMOTED, Kind.ROLLED_BACK},
        RolloutState.PROMOTED: {Kind.ROLLED_BACK, Kind.UNLOADED, Kind.FELL_BACK},
        RolloutState.ROLLED_BACK: {Kind.UNLOADED},
        RolloutState.REFUSED: {Kind.UNLOADED},
    }
    for state in RUNNING:
        allowed[state] |= {Kind.PAUSED, Kind.ROLLED_BACK}
    for state in RUNNING - {RolloutState.CANARY}:
        allowed[state] |= {Kind.REFUSED}
    for state, kind in product(RolloutState, Kind):
        there = at(begun(live, "v2"), state)
        change = decisions.follow(there.rollouts[there.current], kind, "why")
        if kind in allowed[state]:
            numbered(there, change)
        else:
            with pytest.raises(ValueError, match="cannot follow"):
                numbered(there, change)


def test_epochs_and_starts_are_guarded() -> None:
    """An epoch that does not rise, a change before the start, and a second rollout under way are refused."""
    state = begun(LoopState("shop"), "v1")
    rollout = state.rollouts[state.current]
    with pytest.raises(ValueError, match="must be above"):
        apply(state, replace(decisions.refuse(rollout, "no"), epoch=state.epoch))
    with pytest.raises(ValueError, match="must follow its start"):
        numbered(LoopState("shop"), decisions.refuse(rollout, "no"))
    with pytest.raises(ValueError, match="under way"):
        begun(state, "v2")


def test_promotion_and_the_way_back() -> None:
    """The live model becomes the last good one; a rolled-back promotion makes it live again, and is no fallback."""
    state = at(begun(at(begun(LoopState("shop"), "v1"), RolloutState.PROMOTED), "v2"), RolloutState.PROMOTED)
    assert (state.live, state.last_good, state.unnamed) == ("v2", "v1", {})
    state = numbered(state, decisions.roll_back(state.rollouts[state.current], "complaints"))
    assert (state.live, state.last_good) == ("v1", "")
    assert state.unnamed == {"v2": state.epoch}
    assert [(arm.name, arm.candidate.version, arm.share) for arm in arms(state)] == [("live", "v1", 1.0)]


def test_a_paused_canary_keeps_its_users() -> None:
    """Pausing changes no share, and resuming goes back to the same step, observed anew."""
    canary = at(begun(at(begun(LoopState("shop"), "v1"), RolloutState.PROMOTED), "v2"), RolloutState.CANARY)
    rollout = canary.rollouts[canary.current]
    paused = numbered(canary, decisions.follow(rollout, Kind.PAUSED, "lunch"))
    assert [arm.share for arm in arms(paused)] == [arm.share for arm in arms(canary)]
    resumed = numbered(paused, decisions.follow(paused.rollouts[paused.current], Kind.RESUMED, "on"))
    after = resumed.rollouts[resumed.current]
    assert (after.state, after.share, after.step) == (RolloutState.CANARY, 0.1, 0)
    assert after.observed_epoch == resumed.epoch > rollout.observed_epoch


texts = st.text(max_size=20)
candidates = st.builds(
    Candidate,
    loop=texts,
    version=texts,
    run_id=texts,
    layout=texts,
    columns=st.lists(texts, max_size=3).map(tuple),
    artifact_uri=texts,
    sha256=texts,
    trigger_id=texts,
    snapshots=st.dictionaries(texts, st.integers(0, 2**62), max_size=3),
    measurements=st.dictionaries(texts, st.floats(allow_nan=False), max_size=3),
)
changes = st.builds(
    Change,
    rollout_id=texts,
    kind=st.sampled_from(Kind),
    version=texts,
    live_version=texts,
    share=st.floats(0, 1),
    step=st.integers(0, 19),
    reason=texts,
    epoch=st.integers(1, 2**60),
    time=st.integers(0, 2**40).map(lambda microseconds: microseconds / 1e6),
    candidate=st.none() | candidates,
)


@given(changes)
def test_the_log_keeps_every_field(change: Change) -> None:
    """A change written and read again is the same change."""
    assert change_of(change_message("shop", change), None) == change


def test_the_view_carries_what_requests_need() -> None:
    """The projection of a canary names arms, versions, layouts, runs, the rollout and its trace context."""
    state = at(begun(LoopState("shop"), "v1"), RolloutState.PROMOTED)
    (start,) = decisions.begin([model("v2")], model("v2"), state)
    state = at(numbered(state, replace(start, traceparent="00-trace")), RolloutState.CANARY)
    view = view_message(state)
    assert [(arm.name, arm.version, arm.share, arm.run_id, arm.layout) for arm in view.arms] == [
        ("live", "v1", 0.9, "run-v1", "layout"),
        ("candidate", "v2", 0.1, "run-v2", "layout"),
    ]
    assert (view.epoch, view.rollout_id, view.traceparent) == (state.epoch, state.current, "00-trace")
    assert list(view.loaded_versions) == ["v1", "v2"]
    assert not view_message(LoopState("shop")).arms


@pytest.mark.parametrize(
    ("outcome", "seconds", "requests", "decision"),
    [
        (Outcome.PASSED, 10.0, 100, decisions.Decision.ADVANCE),
        (Outcome.PASSED, 9.9, 100, decisions.Decision.HOLD),
        (Outcome.PASSED, 10.0, 99, decisions.Decision.HOLD),
        (Outcome.INCONCLUSIVE, 60.0, 1000, decisions.Decision.HOLD),
        (Outcome.SPOILED, 60.0, 1000, decisions.Decision.OBSERVE_ANEW),
        (Outcome.FAILED, 0.1, 10, decisions.Decision.ROLL_BACK),
    ],
)
def test_a_step_ends_when_it_was_held_and_passed(
    outcome: Outcome, seconds: float, requests: int, decision: decisions.Decision
) -> None:
    """Time, requests and guardrails together end a step; a failure ends it at once; a paused rollout only goes back."""
    state = at(begun(at(begun(LoopState("shop"), "v1"), RolloutState.PROMOTED), "v2"), RolloutState.CANARY)
    rollout = state.rollouts[state.current]
    verdict, held = Verdict(outcome, "why"), decisions.StepProgress(seconds, requests)
    assert decisions.decide(rollout, verdict, held, STEPS)[0] == decision
    paused = replace(rollout, state=RolloutState.PAUSED)
    kept = decision if decision != decisions.Decision.ADVANCE else decisions.Decision.HOLD
    assert decisions.decide(paused, verdict, held, STEPS)[0] == kept
    avoided = replace(held, tripped=1, spoiled=7)
    decided, reason = decisions.decide(rollout, verdict, avoided, STEPS)
    assert decided == kept  # an open circuit rolls nothing back, and lets nothing go on
    assert reason.endswith("; 7 intervals spoiled: live suffered; 1 gateway(s) keep requests from the candidate")


@pytest.mark.parametrize("outcome", Outcome)
@pytest.mark.parametrize("in_all", Outcome)
@pytest.mark.parametrize("requests_in_all", [99, 100])
def test_spoiled_intervals_speak_for_a_candidate_and_never_against_it(
    outcome: Outcome, in_all: Outcome, requests_in_all: int
) -> None:
    """With them a candidate that passes over enough requests goes on; what it did in them rolls nothing back."""
    state = at(begun(at(begun(LoopState("shop"), "v1"), RolloutState.PROMOTED), "v2"), RolloutState.CANARY)
    rollout = state.rollouts[state.current]
    held = decisions.StepProgress(10.0, 3, spoiled=9, requests_in_all=requests_in_all)
    verdict, whole = Verdict(outcome, "without"), Verdict(in_all, "with")
    decision, _ = decisions.decide(rollout, verdict, held, STEPS, verdict_in_all=whole)
    apart = {Outcome.FAILED: decisions.Decision.ROLL_BACK, Outcome.SPOILED: decisions.Decision.OBSERVE_ANEW}
    advances = in_all == Outcome.PASSED and requests_in_all == 100
    assert decision == apart.get(outcome, decisions.Decision.ADVANCE if advances else decisions.Decision.HOLD)


def test_the_steps_lead_to_promotion_also_when_gyre_yaml_got_shorter() -> None:
    """Each step takes its share, the last is followed by the promotion, and so is one that does not exist any more."""
    state = at(begun(at(begun(LoopState("shop"), "v1"), RolloutState.PROMOTED), "v2"), RolloutState.CANARY)
    shares = []
    while (rollout := state.under_way) is not None:
        assert decisions.next_step(rollout) == decisions.Step.OBSERVE
        state = numbered(state, decisions.advance(rollout, STEPS, "on"))
        shares.append(state.rollouts[state.current].share)
    assert shares == [0.5, 1.0, 1.0]
    assert state.rollouts[state.current].state in ENDED
    longer = at(begun(state, "v3"), RolloutState.CANARY)
    last = replace(longer.rollouts[longer.current], step=7)
    verdict = Verdict(Outcome.PASSED, "")
    assert decisions.decide(last, verdict, decisions.StepProgress(0, 0), STEPS)[0] == decisions.Decision.ADVANCE
    assert decisions.advance(last, STEPS, "on").kind == Kind.PROMOTED


def test_the_newest_waiting_candidate_supersedes_the_older() -> None:
    """Candidates with a rollout do not wait; those before the chosen one are refused, those after it still wait."""
    state = begun(LoopState("shop"), "v1")
    state = numbered(state, decisions.refuse(state.rollouts[state.current], "no"))
    waiting = decisions.pending([model(f"v{n}") for n in range(1, 5)], state)
    assert [each.version for each in waiting] == ["v2", "v3", "v4"]
    refused, started = decisions.begin(waiting, waiting[1], state)
    assert (refused.kind, refused.version, refused.reason) == (Kind.REFUSED, "v2", "superseded by v3")
    assert (started.kind, started.version) == (Kind.STARTED, "v3")
    after = numbered(state, refused, started)
    assert [each.version for each in decisions.pending(waiting, after)] == ["v4"]
    assert after.current == started.rollout_id
