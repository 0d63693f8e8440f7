"""Distances, calibration and the domain classifier, on made and on real data."""

from __future__ import annotations

from itertools import pairwise
from math import log
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from gyre_quality.bins import Bins, CategoryBins, fit_bins
from gyre_quality.divergences import MEASURES, divergences
from gyre_quality.domain_classifier import DomainClassifier, calibrate_classifier, rows_of, separability
from gyre_quality.drift import DriftRule, Reference, adjusted, calibrate, judge, sketch_chunks, timeline
from gyre_quality.sketches import Reservoir, Sketch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import false_discovery_control, wasserstein_distance

SHARES = Bins({"c": CategoryBins(("a", "b", "c"))})


def counted(a: int, b: int, c: int) -> Sketch:
    """A sketch of so many of three categories."""
    return Sketch.of(SHARES, {"c": ["a"] * a + ["b"] * b + ["c"] * c})


def test_distances_follow_their_definitions():
    """With many rows, smoothing vanishes and each distance equals its textbook formula."""
    reference, chunk = counted(5000, 3000, 2000), counted(2000, 3000, 5000)
    found = divergences(reference, chunk)
    q, p = (0.5, 0.3, 0.2), (0.2, 0.3, 0.5)
    kl = sum(x * log(x / y) for x, y in zip(p, q, strict=True))
    psi = sum((x - y) * log(x / y) for x, y in zip(p, q, strict=True))
    js = sum(x * log(2 * x / (x + y)) + y * log(2 * y / (x + y)) for x, y in zip(p, q, strict=True)) / 2
    measured = [float(found.of(measure)[0]) for measure in MEASURES]
    assert measured == pytest.approx([kl, psi, js, 0.3], rel=2e-3)


@settings(deadline=None)
@given(st.lists(st.integers(0, 50), min_size=6, max_size=6))
def test_distances_are_never_negative_and_vanish_on_equal_shares(counts):
    """All four are at least 0, finite, and about 0 when a chunk has the reference's shares."""
    reference, chunk = counted(*(count + 1 for count in counts[:3])), counted(*(count + 1 for count in counts[3:]))
    values = divergences(reference, chunk).values
    assert np.isfinite(values).all()
    assert (values >= 0).all()
    many = reference
    for _ in range(13):
        many = many.merge(many)
    assert divergences(many, reference).of("wasserstein").max() == pytest.approx(0, abs=1e-12)
    assert divergences(many, many).of("psi").max() < 1e-3


@settings(deadline=None, derandomize=True)  # a bound on an approximation, not an identity
@given(st.integers(0, 2**32), st.floats(-2, 2), st.floats(0.3, 3))
def test_wasserstein_is_close_to_the_exact_distance(seed, shift, stretch):
    """From 60 bins the distance of two normal samples is within 10 % (or 0.04) of the one from all values."""
    random = np.random.default_rng(seed)
    reference, chunk = random.normal(size=3000), shift + stretch * random.normal(size=2000)
    bins = fit_bins({"x": reference}, quantiles=60)
    found = divergences(Sketch.of(bins, {"x": reference}), Sketch.of(bins, {"x": chunk})).of("wasserstein")[0]
    exact = wasserstein_distance(reference, chunk) / reference.std()
    assert found == pytest.approx(exact, rel=0.1, abs=0.04)


def test_a_far_tail_is_seen():
    """A few huge values that fall in one outer bin show in the mean, and so in Wasserstein."""
    reference = np.random.default_rng(0).normal(size=5000)
    chunk = reference.copy()
    chunk[:5] = 1e6
    bins = fit_bins({"x": reference})
    found = divergences(Sketch.of(bins, {"x": reference}), Sketch.of(bins, {"x": chunk}))
    assert found.of("wasserstein")[0] > 500


def test_a_constant_feature_stays_finite():
    """A feature with one value has distance 0 to itself and a finite one to anything else."""
    bins = fit_bins({"x": np.full(100, 3.0)})
    reference = Sketch.of(bins, {"x": np.full(100, 3.0)})
    assert divergences(reference, reference).of("wasserstein")[0] == 0
    assert np.isfinite(divergences(reference, Sketch.of(bins, {"x": np.full(10, 4.0)})).values).all()


def test_adjusted_p_values_are_those_of_scipy():
    """Benjamini-Hochberg agrees with scipy's implementation."""
    p = np.random.default_rng(2).uniform(size=50) ** 3
    np.testing.assert_allclose(adjusted(p), false_discovery_control(p))


def made(rows: int, seed: int, *, shift: float = 0.0) -> dict[str, np.ndarray]:
    """Twenty features, the first of which is shifted."""
    random = np.random.default_rng(seed)
    columns = {f"f{index}": random.normal(size=rows) for index in range(20)}
    columns["f0"] = columns["f0"] + shift
    return columns


@pytest.fixture(scope="module")
def reference() -> Reference:
    """Twenty chunks of 1,000 rows."""
    columns = made(20_000, 0)
    return calibrate(sketch_chunks(fit_bins(columns), columns, 1000))


def test_false_alarms_stay_near_alpha(reference):
    """Of 300 chunks of the reference's own distribution about 1 % alarm, without any floor."""
    rule = DriftRule(floors=())
    alarms = sum(judge(reference, Sketch.of(reference.bins, made(1000, seed)), rule).alarms for seed in range(1, 301))
    assert alarms <= 9


def test_a_shift_alarms_for_its_feature_alone(reference):
    """A shift of 0.3 standard deviations is found, and only the shifted feature is named."""
    named = [judge(reference, Sketch.of(reference.bins, made(1000, seed, shift=0.3))).features for seed in range(20)]
    assert all("f0" in features for features in named)
    assert sum(features == ("f0",) for features in named) >= 18


def test_small_chunks_do_not_alarm_by_themselves(reference):
    """Chunks of a tenth of the size get wider bounds, where PSI > 0.2 alarms on most of them."""
    chunks = [Sketch.of(reference.bins, made(100, seed)) for seed in range(100)]
    assert sum(judge(reference, chunk).alarms for chunk in chunks) <= 3
    assert sum(divergences(reference.sketch, chunk).of("psi").max() > 0.2 for chunk in chunks) > 50


def test_checks_agree_with_the_judgement(reference):
    """A check fails exactly where its value reaches the threshold, and there is one for each measure and feature."""
    drift = judge(reference, Sketch.of(reference.bins, made(1000, 5, shift=0.5)))
    checks = drift.checks()
    assert len(checks) == 4 * 20
    assert all(check.passed == (check.value < check.threshold) for check in checks)
    assert {check.column for check in checks if not check.passed} == set(drift.features)


def test_a_drift_report_shows_what_moved(reference):
    """The report plots distances and the features that moved most, and a timeline names those first."""
    drifts = [judge(reference, Sketch.of(reference.bins, made(1000, 5, shift=shift))) for shift in (0.0, 0.5, 1.0)]
    report = drifts[-1].report("stream 12:00")
    assert [figure.title for figure in report.figures][:2] == ["kl by feature", "f0"]
    assert not report.passed
    assert "<svg" in report.to_html()
    assert ">f0</text>" in timeline(drifts, features=1).svg


def test_a_reference_survives_its_bytes(reference):
    """Kept beside a snapshot and read again, a reference judges alike."""
    again = Reference.from_bytes(reference.to_bytes())
    chunk = made(1000, 7, shift=0.2)
    first = judge(reference, Sketch.of(reference.bins, chunk))
    second = judge(again, Sketch.of(again.bins, chunk))
    np.testing.assert_array_equal(first.p_values, second.p_values)
    np.testing.assert_array_equal(first.thresholds, second.thresholds)


def test_calibration_needs_chunks():
    """Too few or empty chunks are refused with the rule."""
    with pytest.raises(ValueError, match="at least 5"):
        calibrate([counted(1, 1, 1)] * 4)
    with pytest.raises(ValueError, match="no rows"):
        calibrate([counted(1, 1, 1)] * 5 + [counted(0, 0, 0)])
    with pytest.raises(ValueError, match="measures = entropy"):
        DriftRule(measures=("entropy",))


def correlated(rows: int, seed: int, correlation: float) -> np.ndarray:
    """Two standard normal features of a correlation."""
    covariance = [[1.0, correlation], [correlation, 1.0]]
    return np.random.default_rng(seed).multivariate_normal([0, 0], covariance, size=rows).astype(np.float32)


def sample(values: np.ndarray, first_id: int) -> Reservoir:
    """A reservoir of at most 500 rows."""
    return Reservoir.empty(500, 2).add(values, np.arange(first_id, first_id + len(values)))


def test_the_classifier_sees_what_no_feature_shows():
    """A correlation that turned round alarms the domain classifier, while no single feature drifts."""
    bins = fit_bins({"a": correlated(5000, 0, 0.7)[:, 0], "b": correlated(5000, 0, 0.7)[:, 1]})
    chunks = [correlated(1000, seed, 0.7) for seed in range(8)]
    classifier = calibrate_classifier(bins, [sample(chunk, 1000 * index) for index, chunk in enumerate(chunks)])
    turned, same = correlated(1000, 50, -0.7), correlated(1000, 51, 0.7)
    assert not classifier.check(sample(turned, 90_000)).passed
    assert classifier.check(sample(same, 95_000)).passed
    reference = calibrate([Sketch.of_matrix(bins, chunk.astype(np.float64)) for chunk in chunks])
    assert not judge(reference, Sketch.of_matrix(bins, turned.astype(np.float64))).alarms


def test_a_classifier_is_kept_and_small_chunks_have_wider_bounds():
    """Written and read, it judges as before; a chunk of fewer rows than the calibration's may stand out more."""
    bins = fit_bins({"a": correlated(5000, 0, 0.7)[:, 0], "b": correlated(5000, 0, 0.7)[:, 1]})
    samples = [sample(correlated(1000, seed, 0.7), 1000 * seed) for seed in range(6)]
    classifier = calibrate_classifier(bins, samples)
    again = DomainClassifier.from_bytes(classifier.to_bytes())
    chunk = sample(correlated(1000, 50, 0.2), 90_000)
    assert again.check(chunk) == classifier.check(chunk)
    assert classifier.threshold(50) > classifier.threshold(500) == classifier.threshold(5000)
    with pytest.raises(ValueError, match="0 rows"):
        classifier.check(Reservoir.empty(500, 2))


def test_separability_has_its_ends():
    """Equal samples give about 0.5, disjoint ones 1."""
    first, second = correlated(600, 1, 0.0), correlated(600, 2, 0.0)
    assert separability(first, second) == pytest.approx(0.5, abs=0.06)
    assert separability(first, second + 10) == pytest.approx(1.0)


def test_categories_reach_the_classifier():
    """Values of text become codes, with those that the reference lacks in one of their own."""
    bins = fit_bins({"c": ["x", "x", "y"], "n": [1.0, 2.0, 3.0]})
    rows = rows_of(bins, {"c": ["y", "new", None], "n": [1.0, 2.0, float("nan")]})
    np.testing.assert_array_equal(rows[:, 0], [2, 3, 0])
    assert np.isnan(rows[2, 1])


def employment(data: Path, name: str) -> dict[str, object]:
    """The features of NannyML's employment data, in the order of time."""
    table = pq.read_table(data / "drift" / f"employment_MA_{name}.pq")
    return {column: table[column] for column in table.column_names if column not in ("id", "prediction", "employed")}


def test_real_drift_alarms_and_the_reference_year_is_quiet(data):
    """Employment data: held-out chunks of 2015 stay quiet, 2016 too, and every chunk of 2017 and 2018 alarms."""
    reference, later = employment(data, "reference"), employment(data, "analysis")
    years = np.asarray(later.pop("year"))
    del reference["year"]
    bins = fit_bins(reference)
    chunks = sketch_chunks(bins, reference, 5000)
    held_out = [
        judge(calibrate(chunks[:place] + chunks[place + 1 :]), chunk).alarms for place, chunk in enumerate(chunks)
    ]
    assert sum(held_out) == 0
    calibrated = calibrate(chunks)
    starts = [int(np.argmax(years == year)) for year in (2016, 2017)] + [len(years)]
    alarms = []
    for start, end in pairwise(starts):
        part = {name: column[start:end] for name, column in later.items()}
        alarms.append([judge(calibrated, chunk).alarms for chunk in sketch_chunks(bins, part, 5000)])
    assert sum(alarms[0]) <= 1
    assert all(alarms[1])
