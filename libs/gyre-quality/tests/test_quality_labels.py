"""Confident learning and the consistency of repeated exposures."""

from __future__ import annotations

import json

import numpy as np
import pytest
from gyre_quality.labels import label_consistency, label_issues, lowest_confidence, out_of_fold_probabilities
from sklearn.linear_model import LogisticRegression


def blobs(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two clouds of points, their labels, and the rows whose label was turned round."""
    random = np.random.default_rng(seed)
    truth = np.repeat([0, 1], 300)
    features = random.normal(size=(600, 2)) + 5.0 * truth[:, None]
    wrong = random.choice(600, size=30, replace=False)
    labels = truth.copy()
    labels[wrong] = 1 - labels[wrong]
    return features, labels, np.sort(wrong)


def test_turned_labels_are_found():
    """Of 30 labels turned round among 600, most are found, and nearly nothing else."""
    features, labels, wrong = blobs()
    issues = label_issues(labels, out_of_fold_probabilities(LogisticRegression(), features, labels))
    hits = np.intersect1d(issues.rows, wrong).size
    assert hits / wrong.size >= 0.8
    assert hits / issues.rows.size >= 0.9
    check = issues.check(max_share=0.02)
    assert not check.passed
    assert check.rows.tolist() == sorted(check.rows.tolist())
    assert check.value == pytest.approx(issues.rows.size / 600)


def test_clean_labels_are_left_alone():
    """Without noise almost nothing is reported."""
    features, labels, wrong = blobs()
    labels[wrong] = 1 - labels[wrong]
    issues = label_issues(labels, out_of_fold_probabilities(LogisticRegression(), features, labels))
    assert issues.check(max_share=0.01).passed


def test_out_of_fold_means_unseen():
    """A model that memorises its rows predicts random labels no better than chance."""
    from sklearn.neighbors import KNeighborsClassifier

    random = np.random.default_rng(1)
    labels = random.integers(0, 2, size=400)
    predicted = out_of_fold_probabilities(KNeighborsClassifier(1), random.normal(size=(400, 3)), labels)
    assert np.mean(predicted.argmax(axis=1) == labels) < 0.6
    np.testing.assert_allclose(predicted.sum(axis=1), 1)


def test_folds_need_rows_of_each_class():
    """A class with fewer rows than folds is named."""
    with pytest.raises(ValueError, match="class 1 has 2 rows"):
        out_of_fold_probabilities(LogisticRegression(), np.zeros((12, 1)), [0] * 10 + [1] * 2)


@pytest.mark.parametrize(
    ("labels", "probabilities", "message"),
    [
        ([0, 2], [[0.5, 0.5], [0.5, 0.5]], "within 0 and the last column"),
        ([0], [[0.5, 0.5], [0.5, 0.5]], "a row for each"),
        ([0, 1], [[0.5, 0.9], [0.5, 0.5]], "sum to 1"),
    ],
)
def test_what_does_not_fit_is_refused(labels, probabilities, message):
    """Labels and probabilities that do not belong together are refused with the rule."""
    with pytest.raises(ValueError, match=message):
        label_issues(labels, probabilities)


def test_repeated_exposures_that_agree():
    """Equal outcomes of each pair give an agreement of 1 and no rows."""
    found = label_consistency(["u", "u", "v", "v"], ["i", "i", "i", "i"], [1, 1, 0, 0])
    assert (found.alpha, found.repeated, found.contradicted, found.rows.size) == (1.0, 2, 0, 0)


def test_repeated_exposures_that_contradict():
    """A lone outcome that two others of its pair deny is named; a one-to-one tie is not."""
    users = ["u"] * 3 + ["v"] * 2 + ["w", None]
    found = label_consistency(users, ["i"] * 7, [0, 1, 0, 1, 0, 1, 1])
    assert (found.repeated, found.contradicted) == (2, 2)
    assert found.rows.tolist() == [1]
    assert found.alpha < 0
    assert not found.check(min_alpha=0.0).passed


def test_agreement_is_krippendorffs_alpha():
    """Three items judged by several raters give the alpha of Krippendorff's formula worked by hand."""
    # Units (1, 1), (0, 1), (0, 0, 0): observed 2 / 7; classes 0 four times, 1 three times: expected 24 / 42.
    users = ["a", "a", "b", "b", "c", "c", "c"]
    found = label_consistency(users, ["i"] * 7, [1, 1, 0, 1, 0, 0, 0])
    assert found.alpha == pytest.approx(1 - (2 / 7) / (24 / 42))


def test_random_outcomes_agree_no_more_than_by_chance():
    """Coin flips have an agreement of about 0."""
    random = np.random.default_rng(3)
    users, items = random.integers(0, 50, 20_000), random.integers(0, 50, 20_000)
    assert abs(label_consistency(users, items, random.integers(0, 2, 20_000)).alpha) < 0.02


def test_nothing_repeated_passes():
    """Where no pair repeats there is nothing to hold against the labels."""
    found = label_consistency(["u", "v"], ["i", "i"], [0, 1])
    assert np.isnan(found.alpha)
    assert found.check(min_alpha=0.5).passed


def test_human_votes_on_mnist(data):
    """On MNIST nearly half of what confident learning names was confirmed by people, more than of the baseline's."""
    folder = data / "labels"
    labels = np.load(folder / "mnist_test_set_original_labels.npy")
    probabilities = np.load(folder / "mnist_test_set_pyx.npy")
    votes = {int(each["id"]): each["mturk"]["given"] for each in json.loads((folder / "mnist_mturk.json").read_text())}
    errors = {row for row, given in votes.items() if given < 3}
    issues = set(label_issues(labels, probabilities).rows.tolist())
    baseline = set(lowest_confidence(labels, probabilities, len(issues)).tolist())
    assert len(issues & errors) / len(issues & set(votes)) >= 0.45
    assert len(issues & errors) / len(errors) >= 0.45
    assert len(issues & errors) > len(baseline & errors)
