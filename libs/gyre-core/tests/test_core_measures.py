"""Ranking measures and statistics against brute force and published values."""

from itertools import pairwise, permutations
from math import comb, inf, isnan, log2

import numpy as np
import pytest
from gyre_core.ranking import hit_rate, ndcg, reciprocal_rank, uniform_propensity
from gyre_core.statistics import Sample, binomial_tail, percentile, t_tail, two_proportions, welch, wilson_interval
from hypothesis import given, settings
from hypothesis import strategies as st

rankings = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=5)


def orders(scores: list[int], relevance: list[int]) -> list[list[int]]:
    """The relevance lists of every order that the scores allow, one for each permutation of the ties."""
    every = permutations(range(len(scores)))
    allowed = (order for order in every if all(scores[a] >= scores[b] for a, b in pairwise(order)))
    return [[relevance[item] for item in order] for order in allowed]


def plain_ndcg(relevance: list[int], k: int) -> float:
    """NDCG of a list without ties, straight from its definition."""
    gain = sum((2**each - 1) / log2(place + 2) for place, each in enumerate(relevance[:k]))
    best = sum((2**each - 1) / log2(place + 2) for place, each in enumerate(sorted(relevance, reverse=True)[:k]))
    return gain / best if best else 0.0


def plain_reciprocal(relevance: list[int]) -> float:
    """1 / position of the first relevant item of a list."""
    return next((1 / (place + 1) for place, each in enumerate(relevance) if each), 0.0)


@settings(deadline=None)
@given(ranking=rankings, k=st.integers(1, 4))
def test_measures_are_the_mean_over_all_orders_of_ties(ranking: list[tuple[int, int]], k: int) -> None:
    """With ties, each measure is its average over every order that the scores allow."""
    scores, relevance = [list(each) for each in zip(*ranking, strict=True)]
    lists = orders(scores, relevance)
    assert ndcg(scores, relevance, k) == pytest.approx(np.mean([plain_ndcg(each, k) for each in lists]))
    assert hit_rate(scores, relevance, k) == pytest.approx(np.mean([any(each[:k]) for each in lists]))
    assert reciprocal_rank(scores, relevance) == pytest.approx(np.mean([plain_reciprocal(each) for each in lists]))


def test_a_constant_model_earns_what_chance_earns() -> None:
    """All scores equal, one relevant of a hundred: hit rate at 10 is 10 %, however the items were listed."""
    relevance = [1.0] + [0.0] * 99
    assert hit_rate([0.0] * 100, relevance) == pytest.approx(0.1)
    assert ndcg([0.0] * 100, relevance) == ndcg([0.0] * 100, relevance[::-1])


def test_scores_must_be_numbers_and_as_many_as_items() -> None:
    """NaN or a missing score raises: sorting it anywhere would be a lie."""
    with pytest.raises(ValueError, match="scores"):
        ndcg([float("nan"), 1.0], [0.0, 1.0])
    with pytest.raises(ValueError, match="scores"):
        reciprocal_rank([1.0], [0.0, 1.0])


def test_uniform_order_has_uniform_propensities() -> None:
    """Each of n positions is equally likely."""
    assert uniform_propensity(4) == 0.25
    with pytest.raises(ValueError, match="at least 1"):
        uniform_propensity(0)


def test_wilson_matches_published_values() -> None:
    """81 of 263 gives 0.2553 to 0.3662 (Newcombe 1998, table I, method 3), and no data gives everything."""
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson_interval(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="within"):
        wilson_interval(3, 2)


def test_wilson_always_holds_the_rate() -> None:
    """However the bounds are rounded, the observed rate is not outside of them, all or nothing included."""
    for n in range(1, 400):
        for successes in {0, 1, n // 2, n - 1, n}:
            low, high = wilson_interval(successes, n)
            assert 0 <= low <= successes / n <= high <= 1


def test_the_binomial_tail_is_the_sum_of_its_terms() -> None:
    """The tail is the exact sum of binomial probabilities, also at the edges."""
    for n, rate in ((10, 0.01), (40, 0.3), (300, 0.02)):
        terms = [comb(n, k) * rate**k * (1 - rate) ** (n - k) for k in range(n + 1)]
        for successes in (0, 1, 3, n // 2, n):
            assert binomial_tail(successes, n, rate) == pytest.approx(sum(terms[successes:]), rel=1e-9, abs=1e-300)
    assert binomial_tail(0, 0, 0.1) == 1.0
    assert binomial_tail(1, 5, 0.0) == 0.0
    assert binomial_tail(5, 5, 1.0) == 1.0
    with pytest.raises(ValueError, match="within"):
        binomial_tail(3, 2, 0.1)


def test_two_proportions_match_a_hand_computed_case() -> None:
    """200 of 1000 against 250 of 1000: z = 2.6774, p = 0.0074."""
    result = two_proportions((200, 1000), (250, 1000))
    assert (result.statistic, result.p_value) == pytest.approx((2.6774, 0.00742), abs=5e-5)
    assert result.difference == pytest.approx(0.05)
    assert result.low < result.difference < result.high
    assert two_proportions((0, 10), (0, 10)).p_value == 1.0
    assert two_proportions((0, 0), (5, 10)).p_value == 1.0


@pytest.mark.parametrize(("t", "degrees"), [(12.706, 1), (2.228, 10), (1.980, 120), (1.96, 1e7)])
def test_student_tail_matches_the_tables(t: float, degrees: float) -> None:
    """The printed 5 % points of Student's t have a two-sided tail of 5 %."""
    assert t_tail(t, degrees) == pytest.approx(0.05, abs=5e-5)


def test_welch_covers_the_degenerate_cases() -> None:
    """A clear difference is found, and too little or constant data claims nothing it cannot know."""
    result = welch(Sample(30, 20.0, 4.0), Sample(20, 22.0, 9.0))
    assert result.statistic == pytest.approx(2.6186, abs=5e-5)
    assert 0.01 < result.p_value < 0.02
    assert 0 < result.low < result.difference < result.high
    assert welch(Sample(1, 0.0, 0.0), Sample(9, 1.0, 1.0)).p_value == 1.0
    assert welch(Sample(5, 1.0, 0.0), Sample(5, 1.0, 0.0)).p_value == 1.0


def test_percentiles_interpolate_and_admit_the_open_bucket() -> None:
    """Within a bucket a quantile is linear; beyond the last bound it is infinite; without counts it is no number."""
    assert percentile([1.0, 2.0], [10, 10, 0], 0.75) == pytest.approx(1.5)
    assert percentile([1.0, 2.0], [5, 0, 5], 0.99) == inf
    assert percentile([1.0, 2.0], [0, 4, 0], 0.0) == 1.0
    assert isnan(percentile([1.0], [0, 0], 0.5))
    with pytest.raises(ValueError, match="one more"):
        percentile([1.0], [1], 0.5)
