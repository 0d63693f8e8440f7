"""The loop's clock and the admission of events."""

import pytest
from gyre_core.admission import Refusal, refuse_fields, refuse_interaction, refuse_time
from gyre_core.clock import LoopClock
from gyre_core.spec import LoopSpec

WALL = 1_700_000_000.0


def reason(refusal: Refusal | None) -> str:
    """The reason, or nothing for what is admitted."""
    return refusal.reason if refusal else ""


def test_wall_clock_ignores_events() -> None:
    """On the wall clock an observed time changes nothing."""
    clock = LoopClock("wall", wall=lambda: WALL)
    clock.observe(WALL + 50)
    assert clock.now() == WALL


def test_replay_clock_is_the_newest_event() -> None:
    """On the replay clock now is the newest time seen, and late events do not turn it back."""
    clock = LoopClock("replay", wall=lambda: WALL)
    for time in (100.0, 300.0, 200.0):
        clock.observe(time)
    assert clock.now() == 300


def test_event_times_are_bounded(full_loop: LoopSpec) -> None:
    """Too old, in the future and no number are refused, each with its reason; the bounds themselves are admitted."""
    clock = LoopClock("wall", wall=lambda: WALL)
    assert reason(refuse_time(full_loop, clock, WALL - 3600)) == ""
    assert reason(refuse_time(full_loop, clock, WALL - 3601)) == "TOO_OLD"
    assert reason(refuse_time(full_loop, clock, WALL + 300)) == ""
    assert reason(refuse_time(full_loop, clock, WALL + 301)) == "IN_THE_FUTURE"
    assert reason(refuse_time(full_loop, clock, float("nan"))) == "TIME_INVALID"


def test_a_replay_admits_what_moves_it_on(full_loop: LoopSpec) -> None:
    """In a replay of 2013 a jump ahead is no future, but a time after the wall's is."""
    clock = LoopClock("replay", wall=lambda: WALL)
    clock.observe(1_365_000_000.0)
    assert refuse_time(full_loop, clock, 1_366_000_000.0) is None
    assert reason(refuse_time(full_loop, clock, 1_364_000_000.0)) == "TOO_OLD"
    assert reason(refuse_time(full_loop, clock, WALL + 301)) == "IN_THE_FUTURE"


@pytest.mark.parametrize(
    ("type_", "value", "expected"),
    [
        ("rating", 10.0, ""),
        ("click", None, ""),
        ("rate", 1.0, "UNKNOWN_TYPE"),
        ("rating", None, "VALUE_MISSING"),
        ("rating", 10.5, "VALUE_OUT_OF_RANGE"),
        ("rating", float("nan"), "VALUE_OUT_OF_RANGE"),
    ],
)
def test_interactions_obey_their_declaration(
    full_loop: LoopSpec, type_: str, value: float | None, expected: str
) -> None:
    """Type and value range of gyre.yaml decide."""
    assert reason(refuse_interaction(full_loop, type_, value)) == expected


def test_fields_obey_their_declaration(full_loop: LoopSpec) -> None:
    """Unknown fields and values of another kind are refused by name."""
    assert (
        refuse_fields(full_loop, "item", {"year": 1999.0, "genres": ["Drama"], "released": "2013-04-03T00:00Z"}) is None
    )
    assert reason(refuse_fields(full_loop, "item", {"color": True})) == "UNKNOWN_FIELD"
    refusal = refuse_fields(full_loop, "item", {"year": "soon"})
    assert refusal is not None
    assert (refusal.reason, "year" in refusal.detail) == ("FIELD_INVALID", True)
