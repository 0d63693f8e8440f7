"""The order of candidates: by score, ties without meaning, exploration with known propensities, the logged rest."""

from collections import Counter

import numpy as np
import pytest
from gyre_gateway.domain.ranking import by_score, logged, rank
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

SCORES = arrays.arrays(np.float32, st.integers(0, 50), elements=st.sampled_from([-1.0, 0.0, 0.5, 2.0, 3.5]))


@settings(deadline=None)
@given(scores=SCORES, request_id=st.text(max_size=20))
def test_scores_fall_along_the_order(scores: np.ndarray, request_id: str) -> None:
    """The order is a permutation along which scores never rise, and the request id alone decides it."""
    order = by_score(scores, request_id)
    assert sorted(order.tolist()) == list(range(len(scores)))
    assert (np.diff(scores[order]) <= 0).all()
    assert order.tolist() == by_score(scores, request_id).tolist()


def test_ties_are_broken_evenly() -> None:
    """Over many requests each of equal candidates comes first equally often, so the caller's position tells nothing."""
    first = Counter(int(by_score(np.array([1, 0, 1, 1], np.float32), f"r{n}")[0]) for n in range(3000))
    assert set(first) == {0, 2, 3}
    assert all(count == pytest.approx(1000, abs=120) for count in first.values())


def test_the_share_of_exploration_is_kept() -> None:
    """About 2 % of requests are explored, each with the propensity 1/n; the others have none."""
    scores = np.arange(10, dtype=np.float32)
    rankings = [rank(scores, f"request-{n}", exploration=0.02, salt="salt") for n in range(20_000)]
    explored = [each for each in rankings if each.explored]
    assert len(explored) / len(rankings) == pytest.approx(0.02, abs=0.004)
    assert {each.propensity for each in explored} == {0.1}
    assert {each.propensity for each in rankings if not each.explored} == {0.0}
    assert all(each.order.tolist() == list(range(9, -1, -1)) for each in rankings if not each.explored)


def test_explored_orders_are_uniform() -> None:
    """In explored orders each item stands at each position as often as its propensity says."""
    scores = np.arange(4, dtype=np.float32)
    orders = np.array([rank(scores, f"r{n}", exploration=1.0, salt="salt").order for n in range(8000)])
    for position in range(4):
        counts = np.bincount(orders[:, position], minlength=4)
        assert counts / 8000 == pytest.approx([0.25] * 4, abs=0.025)


def test_nothing_to_rank() -> None:
    """An empty list stays empty, also where every request explores."""
    ranking = rank(np.zeros(0, np.float32), "r", exploration=1.0, salt="salt")
    assert (len(ranking.order), ranking.explored) == (0, False)


@settings(deadline=None)
@given(count=st.integers(1, 60), shown=st.integers(0, 60), rest=st.integers(0, 20))
def test_the_shown_are_logged_in_order_then_a_sample_without_repetition(count: int, shown: int, rest: int) -> None:
    """What is logged begins with the shown items in order and goes on with at most `rest` others, each once."""
    order = np.random.default_rng(count).permutation(count)
    shown = min(shown, count)
    rows = logged(order, shown=shown, rest=rest, request_id="r").tolist()
    assert rows[:shown] == order[:shown].tolist()
    assert len(rows) == len(set(rows)) == shown + min(rest, count - shown)


def test_the_logged_rest_is_uniform() -> None:
    """Over many requests every item that is not shown is logged equally often."""
    counts = Counter(
        int(row) for n in range(6000) for row in logged(np.arange(12), shown=2, rest=3, request_id=f"r{n}")[2:]
    )
    assert set(counts) == set(range(2, 12))
    assert all(count == pytest.approx(1800, abs=180) for count in counts.values())
