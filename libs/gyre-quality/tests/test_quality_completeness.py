"""Missing values, ranges, freshness, volume, duplicates, sequences and bots."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from gyre_quality.completeness import check_duplicates, check_freshness, check_missing, check_ranges, check_volume
from gyre_quality.sequences import BotRule, InteractionColumns, Shown, check_bots, check_sequences
from hypothesis import given, settings
from hypothesis import strategies as st


def test_missing_values_are_counted_in_every_kind_of_column():
    """Nulls and NaN are missing in pyarrow, numpy and lists, and their rows are named."""
    columns = {
        "arrow": pa.array([1.0, None, float("nan")]),
        "text": pa.chunked_array([["a", None], [None]]),
        "numpy": np.array([1.0, np.nan, np.nan], dtype=np.float32),
        "list": ["a", None, "b"],
        "whole": np.array([1, 2, 3]),
    }
    checks = {check.column: check for check in check_missing(columns, 0.5)}
    assert {name: check.rows.tolist() for name, check in checks.items()} == {
        "arrow": [1, 2], "text": [1, 2], "numpy": [1, 2], "list": [1], "whole": [],
    }  # fmt: skip
    assert {name for name, check in checks.items() if not check.passed} == {"arrow", "text", "numpy"}


def test_a_column_without_a_limit_may_lack_nothing():
    """Limits by name leave no column unjudged."""
    checks = check_missing({"a": [None, 1], "b": [None, 1]}, {"a": 0.5})
    assert [check.passed for check in checks] == [True, False]


def test_values_out_of_range_are_named():
    """Bounds are inclusive, missing values are left to their own check."""
    (check,) = check_ranges({"rating": [0.0, 10.0, 10.5, None, -1.0]}, {"rating": (0, 10)})
    assert check.rows.tolist() == [2, 4]
    assert check.value == pytest.approx(0.5)
    assert not check.passed
    with pytest.raises(ValueError, match="ranges = price"):
        check_ranges({}, {"price": (0, 1)})
    with pytest.raises(ValueError, match="start at or below"):
        check_ranges({"a": [1.0]}, {"a": (1, 0)})


def test_freshness_is_the_age_of_the_newest():
    """The newest event counts, and no events are infinitely old."""
    assert check_freshness([10.0, 70.0], now=100.0, max_age_s=30.0).passed
    assert check_freshness([10.0, 69.0], now=100.0, max_age_s=30.0).value == 31.0
    assert not check_freshness([], now=100.0, max_age_s=30.0).passed


@pytest.mark.parametrize(("count", "passed"), [(1000, True), (1080, True), (400, False), (2500, False), (0, False)])
def test_volume_is_held_against_history(count, passed):
    """Usual counts pass, halves and doubles fail, also when an outage is part of the history."""
    assert check_volume(count, [980, 1010, 1050, 940, 1003, 0, 1020]).passed is passed


def test_volume_of_an_even_history_allows_for_chance():
    """Equal counts in the past do not make a difference of a few rows an alarm."""
    assert check_volume(1050, [1000] * 10).passed
    with pytest.raises(ValueError, match="at least 3"):
        check_volume(1, [1, 2])


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.sampled_from(["a", "b", None])), max_size=40))
def test_duplicates_are_all_but_the_first(rows):
    """Exactly the rows whose whole id was seen before are named."""
    check = check_duplicates({"source": [source for source, _ in rows], "id": [name for _, name in rows]})
    seen: set[tuple[int, str]] = set()
    expected = []
    for index, (source, name) in enumerate(rows):
        if name is not None:
            if (source, name) in seen:
                expected.append(index)
            seen.add((source, name))
    assert check.rows.tolist() == expected
    assert check.passed is not bool(expected)


@pytest.mark.parametrize(
    ("ids", "repeats"),
    [
        (pa.array([float("nan"), float("nan"), 1.0]), []),
        (np.array([np.nan, np.nan, 1.0]), []),
        (np.array(["NaT", "NaT", "2014-05-13"], dtype="datetime64[s]"), []),
        (pa.DictionaryArray.from_arrays(pa.array([0, 0, 1]), pa.array([None, "a"])), []),
        (pa.DictionaryArray.from_arrays(pa.array([0, 1, 2]), pa.array(["a", "a", "b"])), [1]),
    ],
)
def test_rows_repeat_by_their_values_and_missing_ones_never(ids, repeats):
    """NaN, NaT and null are no ids in any kind of column; equal entries of a dictionary are one id."""
    assert check_duplicates({"id": ids}).rows.tolist() == repeats


def test_impossible_sequences_are_found():
    """A click before its impression and a click on what its user was never shown are told apart."""
    shown = Shown(["u"] * 4, ["r1", "r1", "r2", "r1"], ["a", "b", "a", "a"], [100.0, 100.0, 200.0, 90.0])
    users, requests = ["u", "u", "u", "u", "u", "u", "v"], ["r1", "r1", "r2", "r9", "r2", None, "r1"]
    acted = InteractionColumns(
        users, requests, ["a", "b", "a", "a", "b", "z", "a"], [95.0, 101.0, 150.0, 1.0, 300.0, 0.0, 101.0]
    )
    before, unshown = check_sequences(shown, acted)
    assert before.rows.tolist() == [2]
    assert unshown.rows.tolist() == [3, 4, 6]
    assert before.value == pytest.approx(1 / 6)


ROW = st.tuples(st.sampled_from("uv"), st.sampled_from(["r", "q", None]), st.sampled_from("abc"), st.integers(0, 9))


@settings(deadline=None)
@given(st.lists(ROW, max_size=20), st.lists(ROW, max_size=20))
def test_sequences_equal_a_plain_search(shown, acted):
    """The joined columns give what a loop over all pairs gives."""
    before, unshown = check_sequences(
        Shown(*columns_of(shown)), InteractionColumns(*columns_of(acted)), tolerance_s=0.5
    )
    early, never = [], []
    for row, (user, request, item, time) in enumerate(acted):
        times = [at for *key, at in shown if request is not None and key == [user, request, item]]
        if request is not None and not times:
            never.append(row)
        elif times and time < min(times) - 0.5:
            early.append(row)
    assert before.rows.tolist() == early
    assert unshown.rows.tolist() == never


def columns_of(rows: list[tuple]) -> list[list]:
    """Rows as four columns."""
    return [[row[place] for row in rows] for place in range(4)]


def test_clocks_may_disagree_a_little():
    """An interaction less than the tolerance before its impression is possible."""
    shown = Shown(pa.array(["u"]), pa.array(["r"]), pa.array(["a"]), pa.array([100.0]))
    acted = InteractionColumns(pa.array(["u"]), pa.array(["r"]), pa.array(["a"]), pa.array([99.5]))
    assert check_sequences(shown, acted)[0].passed
    assert not check_sequences(shown, acted, tolerance_s=0.1)[0].passed


def test_without_impressions_everything_was_never_shown():
    """No impressions at all is no crash."""
    before, unshown = check_sequences(Shown([], [], [], []), InteractionColumns(["u"], ["r"], ["a"], [1.0]))
    assert before.passed
    assert unshown.rows.tolist() == [0]


def people(random: np.random.Generator, count: int) -> tuple[list[str], list[float]]:
    """Users with 30 events each in irregular bursts over a day."""
    users, times = [], []
    for user in range(count):
        gaps = random.lognormal(mean=4, sigma=1.2, size=30)
        users += [f"u{user}"] * 30
        times += (np.cumsum(gaps) + random.uniform(0, 50_000)).tolist()
    return users, times


def test_bots_are_too_fast_or_too_regular():
    """A flood and a timer are found among 200 people, and no person is."""
    users, times = people(np.random.default_rng(0), 200)
    start = len(users)
    users += ["flood"] * 300 + ["timer"] * 50
    times += [1000.0 + 0.1 * index for index in range(300)] + [2000.0 + 60.0 * index for index in range(50)]
    check = check_bots(users, times)
    assert check.rows.tolist() == list(range(start, start + 350))
    assert not check.passed


def test_people_alone_have_no_bots():
    """Among people nobody is a bot, whatever the seed."""
    for seed in range(5):
        users, times = people(np.random.default_rng(seed), 100)
        assert check_bots(users, times).passed


def test_few_events_are_never_judged():
    """A user with fewer events than the rule asks for is left alone, however regular."""
    users, times = ["u"] * 10, [60.0 * index for index in range(10)]
    assert check_bots(users, times).passed
    assert not check_bots(users, times, rule=BotRule(min_events=5)).passed


def test_events_sent_in_one_go_are_no_timer():
    """Many events at one instant have no pace, so regularity says nothing."""
    assert check_bots(["u"] * 25, [5.0] * 25).passed


def test_bot_columns_must_fit():
    """Columns of different length are refused."""
    with pytest.raises(ValueError, match="equally many rows"):
        check_bots(["u"], [1.0, 2.0])
