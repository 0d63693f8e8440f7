"""The admission of events, and the clock of a partition."""

from datetime import UTC, datetime
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from gyre_core.admission import (
    EventTimes,
    PartitionClock,
    Refusal,
    first_repeat,
    refuse_fields,
    refuse_identity,
    refuse_interaction,
    refuse_times,
)
from gyre_core.event_time import parse_time
from gyre_core.spec import LoopSpec, parse_loop

WALL = 1_700_000_000.0


def reason(refusal: Refusal | None) -> str:
    """The reason, or nothing for what is admitted."""
    return refusal.reason if refusal else ""


def times(
    event_time: float, *, append_time: float = WALL, source: str = "shop", is_behavior: bool = True
) -> EventTimes:
    """What the bounds look at."""
    return EventTimes(event_time, append_time, source, is_behavior)


def test_of_several_faults_the_order_of_the_fields_chooses_none(full_loop: LoopSpec) -> None:
    """Whatever the order in which a map of fields is iterated over, the refusal is the same."""
    faults = [("year", "soon"), ("color", "red"), ("zone", "b")]
    refusals = {refuse_fields(full_loop, "item", dict(order)) for order in permutations(faults)}
    assert [(each.reason, each.field) for each in refusals if each] == [("UNKNOWN_FIELD", "fields[color]")]


@pytest.mark.parametrize("text", ["e", "e" * 256, "ε" * 256, "shop/a b", " e", "\N{NO-BREAK SPACE}e"])
def test_ids_and_sources_are_texts_of_bounded_length(text: str) -> None:
    """Up to 256 characters, of whatever script, with blanks among them."""
    assert refuse_identity(text, "shop") is None
    assert refuse_identity("e", text) is None


@pytest.mark.parametrize("text", ["", " ", "\N{NO-BREAK SPACE}", "e" * 257, "e" * 100_000, "a\0b", "e\n", "\x85e"])
def test_an_id_that_stores_would_choke_on_is_none(text: str) -> None:
    """Longer, blank or with a control character it is refused by header, length and rule, without its own text."""
    for name, refusal in (("ce_id", refuse_identity(text, "shop")), ("ce_source", refuse_identity("e", text))):
        assert refusal is not None
        assert (refusal.reason, refusal.field) == ("INVALID_FIELD", name)
        assert refusal.detail.startswith(f"{name} of {len(text):,} characters: must have at most 256 characters")


def test_a_repeat_is_found_at_its_second_place() -> None:
    """Of several repeats the first one's second place; none where all differ."""
    assert first_repeat(["a", "b", "c"]) is None
    assert first_repeat([]) is None
    assert first_repeat(["a", "b", "c", "b", "a"]) == 3


def test_a_partitions_clock_is_its_newest_event() -> None:
    """It is unset before the first event, and late ones do not turn it back."""
    clock = PartitionClock()
    assert not clock.is_set
    for time in (100.0, 300.0, 200.0):
        clock = clock.after(time)
    assert (clock.is_set, clock.newest) == (True, 300.0)


def test_on_the_wall_clock_kafkas_time_bounds_events(full_loop: LoopSpec) -> None:
    """Lateness and future are counted from the append time; the bounds themselves are admitted; history may be old."""
    loop = full_loop.model_copy(update={"clock": "wall"})
    limits = loop.max_lateness_s, loop.events.max_future_s
    assert limits[0] == 3600
    for ahead_s, expected in ((-3600, ""), (-3601, "TOO_OLD"), (limits[1], ""), (limits[1] + 1, "IN_THE_FUTURE")):
        assert reason(refuse_times(loop, PartitionClock(9e9), times(WALL + ahead_s))) == expected, ahead_s
    assert refuse_times(loop, PartitionClock(), times(WALL - 1e8, source="gyre/import")) is None
    assert refuse_times(loop, PartitionClock(), times(WALL - 1e8, is_behavior=False)) is None
    ahead = times(WALL + limits[1] + 1, source="gyre/import", is_behavior=False)
    assert reason(refuse_times(loop, PartitionClock(), ahead)) == "IN_THE_FUTURE"
    for impossible in (float("nan"), float("inf"), -62_135_596_801.0, 253_402_300_800.0):
        assert reason(refuse_times(loop, PartitionClock(), times(impossible))) == "TIME_INVALID"


def test_a_refused_time_is_named(full_loop: LoopSpec) -> None:
    """Header, value, how far it is off, and the rule."""
    loop = full_loop.model_copy(update={"clock": "wall"})
    late = refuse_times(loop, PartitionClock(), times(WALL - 3601.5))
    ahead = refuse_times(loop, PartitionClock(), times(WALL + 86_400))
    assert late is not None
    assert ahead is not None
    assert late.detail == "ce_time = 2023-11-14T21:13:18.500000Z, 3602 s late: at most 1h is allowed"
    assert ahead.detail.startswith("ce_time = 2023-11-15T22:13:20.000000Z, 86400 s ahead: at most ")


def test_on_the_replay_clock_the_partitions_newest_event_does() -> None:
    """A leap is in the future, too, as is what Kafka's time says so of; the catalogue goes by Kafka's time alone."""
    begin, day = 1_365_000_000.0, 86_400.0
    text = (Path(__file__).parent / "data" / "full.yaml").read_text()
    loop = parse_loop("\n".join(line for line in text.splitlines() if "max_future" not in line))
    clock = PartitionClock(begin)
    assert loop.events.max_future_s == day
    assert refuse_times(loop, PartitionClock(), times(begin)) is None
    assert refuse_times(loop, clock, times(begin + day)) is None
    assert reason(refuse_times(loop, clock, times(begin + day + 1))) == "IN_THE_FUTURE"
    assert refuse_times(loop, clock, times(begin - day)) is None
    assert reason(refuse_times(loop, clock, times(begin - day - 1))) == "TOO_OLD"
    assert reason(refuse_times(loop, PartitionClock(), times(WALL + day + 1))) == "IN_THE_FUTURE"
    assert refuse_times(loop, clock, times(begin + 9 * day, is_behavior=False)) is None


@pytest.mark.parametrize(
    ("type_", "value", "expected"),
    [
        ("rating", 10.0, ""),
        ("click", None, ""),
        ("rate", 1.0, "UNKNOWN_TYPE"),
        ("rating", None, "VALUE_MISSING"),
        ("click", 1.0, "VALUE_UNEXPECTED"),
        ("click", 0.0, "VALUE_UNEXPECTED"),
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


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("year", True),
        ("year", 1e39),
        ("year", float("nan")),
        ("genres", ["Opera"]),
        ("genres", ["Drama", ""]),
        ("released", "yesterday"),
        ("released", 1e12),
        ("released", False),
    ],
)
def test_a_value_is_of_its_fields_kind_and_fits(full_loop: LoopSpec, name: str, value: Any) -> None:
    """A truth value is no number, a number fits into float32, a time into the tables, a category is a listed one."""
    refusal = refuse_fields(full_loop, "item", {name: value})
    assert (reason(refusal), refusal and refusal.field) == ("FIELD_INVALID", f"fields[{name}]")


def test_a_rule_is_whole_whatever_it_holds(full_loop: LoopSpec) -> None:
    """Field and value stand apart from the rule, though a listed category and the value hold a colon themselves."""
    genres = full_loop.items.fields["genres"]
    fields = {**full_loop.items.fields, "genres": genres.model_copy(update={"values": ["a: b", "c"]})}
    spec = full_loop.model_copy(update={"items": full_loop.items.model_copy(update={"fields": fields})})
    refusal = refuse_fields(spec, "item", {"genres": ["d: e"]})
    assert refusal is not None
    assert (refusal.rule, refusal.field) == ("must be of a: b, c", "fields[genres]")
    assert refusal.detail.endswith(f": {refusal.rule}")


@pytest.mark.parametrize("text", ["0001-01-01T00:00:00+01:00", "9999-12-31T23:59:59-23:59", "2020-01-01T00:00:00"])
def test_a_time_that_cannot_be_stored_is_none(text: str) -> None:
    """What is before year 1 or after 9999 in UTC, or has no offset, is refused."""
    with pytest.raises(ValueError, match="must"):
        parse_time(text)


@pytest.mark.parametrize(
    "text", ["2013-05-05T22:35:29.645960Z", "2013-05-05T22:35:29.5960+00:00", "2013-05-05 22:59:59.60Z"]
)
def test_digits_of_a_fraction_are_no_leap_second(text: str) -> None:
    """Only seconds are: a 60 at the end of a fraction is read as it stands, whatever precedes it."""
    assert parse_time(text) == datetime.fromisoformat(text).timestamp()


@pytest.mark.parametrize("text", ["2016-12-31T23:59:60Z", "20161231T235960Z", "2017-01-01T01:59:60.5+02:00"])
def test_a_leap_second_is_the_second_after_it(text: str) -> None:
    """In UTC it is 23:59:60, whatever the offset and the form of the text."""
    assert int(parse_time(text)) == datetime(2017, 1, 1, tzinfo=UTC).timestamp()


def test_times_may_be_written_in_lower_case() -> None:
    """RFC 3339 allows `t` and `z`; digits past the microsecond are cut off."""
    assert parse_time("2020-01-01t00:00:00.1234569z") == parse_time("2020-01-01T00:00:00.123456Z")
