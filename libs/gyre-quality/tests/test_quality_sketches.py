"""Bins, sketches and reservoirs."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from gyre_quality.bins import MISSING, Bins, CategoryBins, NumberBins, fit_bins
from gyre_quality.columns import stable_ids
from gyre_quality.sketches import Reservoir, Sketch, merged
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

BINS = Bins({"x": NumberBins((-1.0, 0.0, 2.5)), "colour": CategoryBins(("red", "green"))})

numbers = st.floats(-1e6, 1e6) | st.just(float("nan")) | st.sampled_from([0.0, -1.0, 2.5, float("inf"), float("-inf")])
colours = st.sampled_from(["red", "green", "blue", None])
rows = st.lists(st.tuples(numbers, colours), max_size=30)


def sketch_of(part: list[tuple[float, str | None]]) -> Sketch:
    """The sketch of rows given one by one."""
    return Sketch.of(BINS, {"x": np.array([x for x, _ in part], dtype=np.float64), "colour": [c for _, c in part]})


def assert_same(first: Sketch, second: Sketch) -> None:
    """Counts and extremes agree exactly, moments to rounding."""
    assert first.rows == second.rows
    np.testing.assert_array_equal(first.counts, second.counts)
    np.testing.assert_array_equal(first.low, second.low)
    np.testing.assert_array_equal(first.high, second.high)
    np.testing.assert_allclose(first.mean, second.mean, rtol=1e-9, atol=1e-6)
    np.testing.assert_allclose(first.spread, second.spread, rtol=1e-9, atol=1e-3)


@settings(deadline=None)
@given(rows, rows)
def test_merge_equals_the_sketch_of_both(first, second):
    """Merging two sketches gives the sketch of the concatenated rows."""
    assert_same(sketch_of(first).merge(sketch_of(second)), sketch_of(first + second))


@settings(deadline=None)
@given(rows, rows, rows)
def test_merge_is_commutative_and_associative(a, b, c):
    """Neither order nor grouping of merges shows in the result."""
    x, y, z = sketch_of(a), sketch_of(b), sketch_of(c)
    assert_same(x.merge(y), y.merge(x))
    assert_same(x.merge(y).merge(z), x.merge(y.merge(z)))


@settings(deadline=None)
@given(rows)
def test_every_row_is_counted_once(part):
    """Each feature's counts add up to the rows, and missing values stand in their own bin."""
    sketch = sketch_of(part)
    assert sketch.counts.sum(axis=1).tolist() == [len(part)] * 2
    assert sketch.missing.tolist() == [sum(np.isnan(x) for x, _ in part), sum(c is None for _, c in part)]


@settings(deadline=None)
@given(rows, rows)
def test_taking_a_part_out_leaves_the_rest(part, rest):
    """`without` undoes a merge in counts, mean and spread."""
    left = sketch_of(part + rest).without(sketch_of(part))
    np.testing.assert_array_equal(left.counts, sketch_of(rest).counts)
    if any(np.isfinite(x) for x, _ in rest) and not any(np.isinf(x) for x, _ in part + rest):
        np.testing.assert_allclose(left.mean, sketch_of(rest).mean, rtol=1e-6, atol=1e-3)


@settings(deadline=None)
@given(rows)
def test_bytes_give_the_sketch_back(part):
    """A sketch survives its bytes unchanged."""
    sketch = sketch_of(part)
    again = Sketch.from_bytes(BINS, sketch.to_bytes())
    assert_same(sketch, again)
    assert again.mean.tolist() == sketch.mean.tolist()


@settings(deadline=None)
@given(hnp.arrays(np.float32, st.tuples(st.integers(1, 200), st.just(3)), elements=st.floats(-8, 8, width=32)))
def test_matrix_and_columns_count_alike(matrix):
    """The fast path over a float32 matrix gives the same sketch as its columns."""
    columns = {name: matrix[:, index] for index, name in enumerate("abc")}
    bins = fit_bins(columns, quantiles=5)
    assert_same(Sketch.of_matrix(bins, matrix), Sketch.of(bins, columns))


@settings(deadline=None)
@given(hnp.arrays(np.float32, st.integers(1, 300), elements=st.sampled_from([0.0, 0.0, 0.0, 1.0, 2.0, 3.0])))
def test_codes_agree_with_the_edges(values):
    """Each value lies within the edges of its bin, also where edges stand for point masses."""
    bins = fit_bins({"x": values}, quantiles=4).by_feature["x"]
    assert isinstance(bins, NumberBins)
    ends = [-np.inf, *bins.edges, np.inf]
    for value, code in zip(values.tolist(), bins.codes(values).tolist(), strict=True):
        assert ends[code - 1] < value <= ends[code]


def test_a_frequent_value_stands_alone_in_its_bin():
    """A value that fills several quantiles gets a bin that holds nothing else."""
    values = np.concatenate([np.zeros(600), np.linspace(-1, 1, 400)]).astype(np.float32)
    bins = fit_bins({"x": values}, quantiles=10).by_feature["x"]
    assert isinstance(bins, NumberBins)
    near = np.array([-1e-7, 0.0, 1e-7], dtype=np.float32)
    assert len(set(bins.codes(near).tolist())) == 3


def test_quantile_bins_hold_equal_shares():
    """Twenty quantile bins of a continuous reference hold a twentieth each."""
    values = np.random.default_rng(0).normal(size=20_000)
    sketch = Sketch.of(bins := fit_bins({"x": values}), {"x": values})
    counts = sketch.counts[0, 1 : bins.width]
    assert counts[counts > 1].min() > 900
    assert counts.max() < 1100


def test_arrow_numpy_and_lists_are_equal():
    """A column counts the same as a pyarrow array, a chunked or dictionary array, numpy, or a list."""
    plain = ["red", None, "blue", "red"]
    arrow = pa.array(plain)
    kinds = [
        plain,
        np.array(plain, dtype=object),
        arrow,
        pa.chunked_array([arrow[:1], arrow[1:]]),
        arrow.dictionary_encode(),
    ]
    x = pa.array([1.0, None, 3.0, 4.0])
    counts = [Sketch.of(BINS, {"x": x, "colour": kind}).counts.tolist() for kind in kinds]
    assert counts == [counts[0]] * len(kinds)
    assert counts[0][0][MISSING] == 1


def test_rare_categories_share_a_bin():
    """Beyond `max_categories` the rarest values are counted together as other."""
    bins = fit_bins({"c": ["a"] * 5 + ["b"] * 3 + ["c", "d"]}, max_categories=2)
    sketch = Sketch.of(bins, {"c": ["a", "c", "d", "new", None]})
    assert bins.by_feature["c"].labels == ["missing", "a", "b", "other"]
    assert sketch.counts[0].tolist() == [1, 1, 0, 3]


def test_bins_survive_json():
    """Bins written as JSON are the same bins."""
    assert Bins.from_dict(BINS.as_dict()) == BINS


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"x": [1.0]}, "colour"),
        ({"x": [1.0, 2.0], "colour": ["red"]}, "equally many rows"),
        ({"x": ["one"], "colour": ["red"]}, "must be numbers"),
    ],
)
def test_columns_that_do_not_fit_are_refused(columns, message):
    """The error names the column and the rule."""
    with pytest.raises(ValueError, match=message):
        Sketch.of(BINS, columns)


def test_sketches_of_other_bins_do_not_merge():
    """Counts in different bins cannot be added."""
    other = Sketch.empty(Bins({"x": NumberBins((0.0,)), "colour": CategoryBins(("red",))}))
    with pytest.raises(ValueError, match="different bins"):
        Sketch.empty(BINS).merge(other)


ids = st.lists(st.integers(0, 2**63), max_size=60)


def reservoir_of(part: list[int], *, weights: bool = False) -> Reservoir:
    """A sample of rows whose value is made of their id."""
    values = np.array([[number % 97, number % 7] for number in part], dtype=np.float32).reshape(-1, 2)
    weight = np.array([1.0 + number % 5 for number in part]) if weights else None
    return Reservoir.empty(8, 2, seed=3).add(values, np.array(part, dtype=np.uint64), weight)


def assert_same_sample(first: Reservoir, second: Reservoir) -> None:
    """Both hold the same rows with the same keys."""
    assert first.ids.tolist() == second.ids.tolist()
    assert first.keys.tolist() == second.keys.tolist()
    assert first.values.tolist() == second.values.tolist()


@settings(deadline=None)
@given(ids, ids, ids, st.booleans())
def test_reservoirs_merge_in_any_order(a, b, c, weights):
    """A merged sample is exactly the sample of all rows, whatever the order, also with rows delivered twice."""
    x, y, z = (reservoir_of(part, weights=weights) for part in (a, b, c))
    whole = reservoir_of(a + b + c, weights=weights)
    assert_same_sample(x.merge(y).merge(z), whole)
    assert_same_sample(z.merge(x.merge(y)), whole)
    assert_same_sample(whole.merge(whole), whole)


@settings(deadline=None)
@given(ids)
def test_bytes_give_the_reservoir_back(part):
    """A sample survives its bytes and merges on."""
    sample = reservoir_of(part)
    again = Reservoir.from_bytes(sample.to_bytes())
    assert_same_sample(sample, again)
    assert_same_sample(sample.merge(again), sample)


def test_ids_of_text_depend_on_the_text_alone():
    """The same id has the same number in any column and any order, and a missing one is refused."""
    first, second = stable_ids(["a", "b", "a"]), stable_ids(pa.array(["b", "c", "a"]))
    assert first[0] == first[2] == second[2]
    assert first[1] == second[0]
    assert len({*first.tolist(), *second.tolist()}) == 3
    assert stable_ids([]).size == 0
    with pytest.raises(ValueError, match="1 are missing"):
        stable_ids(["a", None])


def test_reservoir_weights_set_the_odds():
    """A row of three times the weight is drawn first about three times as often."""
    heavy = 0
    for seed in range(400):
        sample = Reservoir.empty(1, 1, seed=seed).add(np.zeros((4, 1)), np.arange(4), np.array([1.0, 1.0, 1.0, 3.0]))
        heavy += int(sample.ids[0] == 3)
    assert 160 <= heavy <= 240


def test_reservoir_is_a_fair_sample():
    """Every row has the same chance: over many seeds the kept ids are uniform."""
    kept = np.concatenate(
        [Reservoir.empty(10, 1, seed=seed).add(np.zeros((100, 1)), np.arange(100)).ids for seed in range(300)]
    )
    counts = np.bincount(kept.astype(int), minlength=100)
    chi_square = float(((counts - 30) ** 2 / 30).sum())
    assert chi_square < 150


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 7))
def test_chunking_does_not_show(parts):
    """Cut into any number of parts, a column's merged sketch stays the same."""
    values = np.random.default_rng(1).normal(size=1000)
    bins = fit_bins({"x": values})
    cut = merged([Sketch.of(bins, {"x": part}) for part in np.array_split(values, parts)], bins)
    assert_same(cut, Sketch.of(bins, {"x": values}))


def test_reservoirs_refuse_what_does_not_fit():
    """Weights must be positive, and rows as wide as the sample."""
    empty = Reservoir.empty(4, 2)
    with pytest.raises(ValueError, match="weights"):
        empty.add(np.zeros((1, 2)), np.array([1]), np.array([0.0]))
    with pytest.raises(ValueError, match="must be a row of 2"):
        empty.add(np.zeros((1, 3)), np.array([1]))
