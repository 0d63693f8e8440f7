"""Drift of all features together: how well a classifier tells the chunk's rows from the reference's.

It sees what no single feature shows, such as two features whose correlation turned round (Lopez-Paz and Oquab 2017;
Rabanser, Günnemann and Lipton 2019).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as t_distribution

from gyre_quality.bins import Bins, CategoryBins
from gyre_quality.columns import Columns
from gyre_quality.drift import MIN_CHUNKS
from gyre_quality.report import Check
from gyre_quality.sketches import Reservoir

_FOLDS = 3
_MAX_CATEGORY_CODES = 255


@dataclass(frozen=True, slots=True)
class DomainClassifier:
    """Calibrated on the reference: each of its chunks against the others.

    Attributes:
        bins: the features and which of them are categories.
        reference: a sample of the reference's rows.
        mean, deviation: of the area under the ROC curve over the reference's chunks.
        chunks: how many calibrated it.
        alpha: the probability of an alarm for a chunk of the reference.
    """

    bins: Bins
    reference: Reservoir
    mean: float
    deviation: float
    chunks: int
    alpha: float

    @property
    def threshold(self) -> float:
        """The highest area that the reference explains: the upper prediction bound of one further chunk."""
        quantile = float(t_distribution.isf(self.alpha, self.chunks - 1))
        return self.mean + quantile * self.deviation * float(np.sqrt(1 + 1 / self.chunks))

    def check(self, chunk: Reservoir) -> Check:
        """Whether the chunk's sample looks like the reference's."""
        area = separability(self.bins, self.reference.values, chunk.values)
        detail = f"out of fold, {len(self.reference.values)} reference rows and {len(chunk.values)} of the chunk"
        return Check("drift.domain_classifier", "", area, self.threshold, area <= self.threshold, detail)


def rows_of(bins: Bins, columns: Columns) -> NDArray[np.float32]:
    """The columns as rows for a reservoir, float32 [rows, features]: numbers as they are, categories by their bin."""
    return np.stack([bins.encode(name, columns[name]).astype(np.float32) for name in bins.names], axis=1)


def calibrate_classifier(
    bins: Bins, chunks: Sequence[Reservoir], *, alpha: float = 0.01, most_chunks: int = 20
) -> DomainClassifier:
    """Learn from samples of the reference's chunks how far one of them stands out from the rest by itself.

    Args:
        bins: of the reference.
        chunks: one sample for each chunk, all of one capacity and seed.
        alpha: the probability of an alarm for a chunk of the reference.
        most_chunks: a classifier is trained for each chunk: of more, evenly spaced ones are taken.

    Raises:
        ValueError: fewer than `MIN_CHUNKS` chunks.
    """
    if len(chunks) < MIN_CHUNKS:
        raise ValueError(f"{len(chunks)} chunks: must be at least {MIN_CHUNKS} to calibrate")
    picked = np.unique(np.linspace(0, len(chunks) - 1, min(most_chunks, len(chunks))).astype(int)).tolist()
    areas = []
    for index in picked:
        rest = _merged([chunk for other, chunk in enumerate(chunks) if other != index])
        areas.append(separability(bins, rest.values, chunks[index].values))
    whole = _merged(chunks)
    sizes = len(whole.values), int(np.median([len(chunk.values) for chunk in chunks]))
    # Few chunks may agree by chance: never trust less variation than random order gives (Mann and Whitney 1947).
    chance = float(np.sqrt((sum(sizes) + 1) / (12 * sizes[0] * sizes[1])))
    deviation = max(float(np.std(areas, ddof=1)), chance)
    return DomainClassifier(bins, whole, float(np.mean(areas)), deviation, len(picked), alpha)


def separability(bins: Bins, first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    """The area under the ROC curve of gradient-boosted trees that part two samples of rows, predicted out of fold.

    0.5 where nothing parts them, 1 where everything does. Both samples weigh the same, however many rows they have.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold

    rows = np.concatenate([first, second])
    labels = np.repeat([0, 1], [len(first), len(second)])
    weights = np.where(labels == 1, 0.5 / len(second), 0.5 / len(first)) * len(rows)
    scores = np.empty(len(rows))
    settings: dict[str, Any] = {"max_iter": 40, "max_leaf_nodes": 15, "early_stopping": False, "random_state": 0}
    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=0)
    for train, test in folds.split(rows, labels):
        model = HistGradientBoostingClassifier(categorical_features=_categories(bins), **settings)
        model.fit(rows[train], labels[train], sample_weight=weights[train])
        scores[test] = model.predict_proba(rows[test])[:, 1]
    return float(roc_auc_score(labels, scores))


def _categories(bins: Bins) -> NDArray[np.bool_]:
    """Which features the trees may split by sets of values; those with too many codes are split as numbers."""
    return np.asarray(
        [
            isinstance(feature, CategoryBins) and feature.size <= _MAX_CATEGORY_CODES
            for feature in bins.by_feature.values()
        ]
    )


def _merged(samples: Sequence[Reservoir]) -> Reservoir:
    whole = samples[0]
    for sample in samples[1:]:
        whole = whole.merge(sample)
    return whole
