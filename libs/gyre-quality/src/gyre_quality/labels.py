"""Labels that are probably wrong: confident learning, and repeated exposures that contradict one another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gyre_quality.columns import Column, as_ids
from gyre_quality.report import Check, Rows

Filter = Literal[
    "prune_by_noise_rate", "prune_by_class", "both", "confident_learning", "predicted_neq_given",
    "low_normalized_margin", "low_self_confidence",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class LabelIssues:
    """What confident learning found.

    Attributes:
        rows: the probably mislabelled rows, worst first.
        quality: float64 [all rows], the model's out-of-fold probability of the given label, 0 to 1.
    """

    rows: Rows
    quality: NDArray[np.float64]

    @property
    def share(self) -> float:
        """The share of rows that are probably mislabelled."""
        return self.rows.size / self.quality.size if self.quality.size else 0.0

    def check(self, max_share: float) -> Check:
        """The check that the share of issues is at most `max_share`, 0 to 1, with their rows."""
        detail = f"{self.rows.size} of {self.quality.size} labels disagree confidently with out-of-fold predictions"
        return Check("labels.noise", "", self.share, max_share, self.share <= max_share, detail, np.sort(self.rows))


def label_issues(labels: ArrayLike, probabilities: ArrayLike, *, method: Filter = "prune_by_noise_rate") -> LabelIssues:
    """Find label errors by confident learning (Northcutt, Jiang and Chuang 2021, by cleanlab); changes no label.

    Args:
        labels: whole numbers 0 to classes - 1 [rows].
        probabilities: [rows, classes], predicted by a model that did not see the row; rows sum to 1.
        method: cleanlab's filter.

    Raises:
        ValueError: shapes do not fit, a label is no class, or a row of probabilities is none.
    """
    from cleanlab.filter import find_label_issues

    given, predicted = _checked(labels, probabilities)
    rows = find_label_issues(given, predicted, filter_by=method, return_indices_ranked_by="self_confidence", n_jobs=1)
    return LabelIssues(np.asarray(rows, dtype=np.int64), predicted[np.arange(len(given)), given])


def lowest_confidence(labels: ArrayLike, probabilities: ArrayLike, count: int) -> Rows:
    """At most `count` rows whose given label the model finds least likely, these first; a baseline for `label_issues`.

    Arguments and errors are those of `label_issues`.
    """
    given, predicted = _checked(labels, probabilities)
    return np.argsort(predicted[np.arange(len(given)), given], kind="stable")[:count].astype(np.int64)


def out_of_fold_probabilities(
    classifier: Any, features: ArrayLike, labels: ArrayLike, *, n_splits: int = 5, seed: int = 0
) -> NDArray[np.float64]:
    """The probabilities [rows, classes] of a scikit-learn-like classifier, each row predicted by a model without it.

    Columns are the sorted classes.

    Raises:
        ValueError: a class has fewer rows than there are folds.
    """
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    given = np.asarray(labels)
    classes, counts = np.unique(given, return_counts=True)
    if counts.min() < n_splits:
        rare = classes[counts.argmin()]
        raise ValueError(
            f"labels: class {rare} has {counts.min()} rows, must have at least {n_splits} as there are folds"
        )
    cut = StratifiedKFold(n_splits, shuffle=True, random_state=seed)
    predicted = cross_val_predict(classifier, np.asarray(features), given, cv=cut, method="predict_proba", n_jobs=1)
    return np.asarray(predicted, dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Consistency:
    """How far the outcomes of repeated exposures of one item to one user agree.

    Attributes:
        alpha: 1 where they always agree, 0 where they agree as often as by chance, NaN where nothing repeats.
        repeated: how many pairs of user and item were shown more than once.
        contradicted: how many of them had different outcomes.
        rows: rows whose outcome at least twice as many exposures of their pair deny.
    """

    alpha: float
    repeated: int
    contradicted: int
    rows: Rows

    def check(self, min_alpha: float) -> Check:
        """The check that alpha is at least `min_alpha`, with the denied rows; passes where nothing repeats."""
        passed = not self.alpha < min_alpha
        detail = f"{self.contradicted} of {self.repeated} repeated user-item pairs have contradicting outcomes"
        return Check("labels.consistency", "", self.alpha, min_alpha, passed, detail, self.rows)


def label_consistency(users: Column, items: Column, labels: ArrayLike) -> Consistency:
    """Compare the outcomes of the same item shown to the same user, by Krippendorff's alpha for nominal data (2004).

    A click and a pass on the same item are no error by themselves: tastes and pages change. Low agreement says that the
    label holds little that a model could learn.

    Args:
        users: ids [rows]; rows without one are left out.
        items: ids [rows], likewise.
        labels: whole numbers from 0 [rows].
    """
    given = np.asarray(labels, dtype=np.int64)
    user, item = as_ids(users), as_ids(items)
    known = np.flatnonzero((user >= 0) & (item >= 0))
    if known.size == 0:
        return Consistency(float("nan"), 0, 0, known)
    keys = user[known] * (item.max() + 1) + item[known]
    _, pair, sizes = np.unique(keys, return_inverse=True, return_counts=True)
    classes, outcome = np.unique(given[known], return_inverse=True)
    cells, cell, votes = np.unique(pair * classes.size + outcome, return_inverse=True, return_counts=True)
    repeats = sizes[pair] > 1
    rows = known[repeats & (sizes[pair] >= 3 * votes[cell])]
    contradicted = np.count_nonzero(np.bincount(cells // classes.size, minlength=sizes.size) > 1)
    alpha = _nominal_alpha(sizes, cells, votes, classes.size)
    return Consistency(alpha, int(np.count_nonzero(sizes > 1)), int(contradicted), rows)


def _nominal_alpha(sizes: NDArray[np.int64], cells: NDArray[np.int64], votes: NDArray[np.int64], classes: int) -> float:
    """1 - observed / expected disagreement over the units that were judged more than once."""
    unit, outcome = cells // classes, cells % classes
    repeated = sizes[unit] > 1
    unit, outcome, votes = unit[repeated], outcome[repeated], votes[repeated]
    total = float(votes.sum())
    if total == 0:
        return float("nan")
    size = sizes[unit]
    observed = float(np.sum(votes * (size - votes) / (size - 1))) / total
    by_class = np.bincount(outcome, weights=votes, minlength=classes)
    expected = float(np.sum(by_class * (total - by_class))) / (total * (total - 1))
    return 1.0 if expected == 0 else 1.0 - observed / expected


def _checked(labels: ArrayLike, probabilities: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    given, predicted = np.asarray(labels, dtype=np.int64), np.asarray(probabilities, dtype=np.float64)
    if predicted.ndim != 2 or len(given) != len(predicted):
        raise ValueError(f"probabilities of shape {predicted.shape}: must have a row for each of {len(given)} labels")
    if given.size and (given.min() < 0 or given.max() >= predicted.shape[1]):
        raise ValueError(f"labels reach from {given.min()} to {given.max()}: must be within 0 and the last column")
    sums = predicted.sum(axis=1, keepdims=True)
    # float32 softmax strays from 1 by rounding, which cleanlab would refuse.
    if not (np.all(predicted >= -1e-6) and np.all(np.abs(sums - 1) < 1e-3)):
        raise ValueError("probabilities: must be at least 0 and sum to 1 in each row")
    return given, np.clip(predicted, 0.0, None) / sums
