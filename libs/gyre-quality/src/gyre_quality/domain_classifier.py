"""Drift of all features together: how well a classifier tells the chunk's rows from the reference's.

It sees what no single feature shows, such as two features whose correlation turned round (Lopez-Paz and Oquab 2017;
Rabanser, Günnemann and Lipton 2019).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as t_distribution

from gyre_quality.bins import Bins
from gyre_quality.columns import Columns
from gyre_quality.drift import MIN_CHUNKS
from gyre_quality.report import Check
from gyre_quality.sketches import Reservoir, packed, unpacked

_TREES, _LEAF_ROWS = 100, 10


@dataclass(frozen=True, slots=True)
class DomainClassifier:
    """Calibrated on the reference: each of its chunks against the others.

    Attributes:
        bins: the features and which of them are categories.
        reference: a sample of the reference's rows.
        mean, deviation: of the area under the ROC curve over the reference's chunks.
        chunks: how many calibrated it.
        chunk_rows: how many rows of a typical chunk are in the sample.
        alpha: the probability of an alarm for a chunk of the reference.
    """

    bins: Bins
    reference: Reservoir
    mean: float
    deviation: float
    chunks: int
    chunk_rows: int
    alpha: float

    def threshold(self, rows: int) -> float:
        """The highest area that the reference explains: the upper prediction bound of one further chunk.

        Args:
            rows: in the chunk's sample; a smaller one than in the calibration wanders more.
        """
        quantile = float(t_distribution.isf(self.alpha, self.chunks - 1))
        whole = len(self.reference.values)
        widening = max(_chance(whole, rows) / _chance(whole, self.chunk_rows), 1.0)
        return self.mean + quantile * self.deviation * widening * float(np.sqrt(1 + 1 / self.chunks))

    def check(self, chunk: Reservoir) -> Check:
        """The check that the chunk's sample looks like the reference's; trains a classifier each time, and keeps none.

        Raises:
            ValueError: the chunk has no rows.
        """
        rows, whole = len(chunk.values), len(self.reference.values)
        if not rows:
            raise ValueError("chunk has 0 rows: must have some to be judged")
        area, threshold = separability(self.reference.values, chunk.values), self.threshold(rows)
        detail = f"out of bag, {whole} reference rows and {rows} of the chunk"
        return Check("drift.domain_classifier", "", area, threshold, area <= threshold, detail)

    def to_bytes(self) -> bytes:
        """All of it, for `from_bytes`; it holds rows of features, with 64-bit numbers for their ids."""
        numbers = {"mean": self.mean, "deviation": self.deviation, "chunks": self.chunks, "chunk_rows": self.chunk_rows}
        header = json.dumps({"bins": self.bins.as_dict(), "alpha": self.alpha, **numbers}).encode()
        return packed(
            header=np.frombuffer(header, dtype=np.uint8),
            reference=np.frombuffer(self.reference.to_bytes(), dtype=np.uint8),
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> DomainClassifier:
        """The classifier from what `to_bytes` gave."""
        arrays = unpacked(data)
        header = json.loads(arrays["header"].tobytes())
        bins = Bins.from_dict(header.pop("bins"))
        return cls(bins=bins, reference=Reservoir.from_bytes(arrays["reference"].tobytes()), **header)


def rows_of(bins: Bins, columns: Columns) -> NDArray[np.float32]:
    """The columns as rows for a reservoir, float32 [rows, features]: numbers as they are, categories by their bin."""
    return np.stack([bins.encode(name, columns[name]).astype(np.float32) for name in bins.names], axis=1)


def calibrate_classifier(
    bins: Bins, chunks: Sequence[Reservoir], *, alpha: float = 0.01, max_chunks: int = 20
) -> DomainClassifier:
    """Learn from samples of the reference's chunks how far one of them stands out from the rest by itself.

    Args:
        bins: of the reference.
        chunks: one sample for each chunk, all of one capacity and seed.
        alpha: the probability of an alarm for a chunk of the reference.
        max_chunks: a classifier is trained for each chunk: of more, evenly spaced ones are taken.

    Raises:
        ValueError: fewer than `MIN_CHUNKS` chunks.
    """
    if len(chunks) < MIN_CHUNKS:
        raise ValueError(f"{len(chunks)} chunks: must be at least {MIN_CHUNKS} to calibrate")
    picked = np.unique(np.linspace(0, len(chunks) - 1, min(max_chunks, len(chunks))).astype(int)).tolist()
    areas = []
    for index in picked:
        rest = _merged([chunk for other, chunk in enumerate(chunks) if other != index])
        areas.append(separability(rest.values, chunks[index].values))
    whole, rows = _merged(chunks), int(np.median([len(chunk.values) for chunk in chunks]))
    # Few chunks may agree by chance: never trust less variation than random order gives.
    deviation = max(float(np.std(areas, ddof=1)), _chance(len(whole.values), rows))
    return DomainClassifier(bins, whole, float(np.mean(areas)), deviation, len(picked), rows, alpha)


def _chance(first: int, second: int) -> float:
    """The standard deviation of the area for two samples in random order (Mann and Whitney 1947)."""
    return float(np.sqrt((first + second + 1) / (12 * first * second)))


def separability(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    """The area under the ROC curve of random trees that part two samples of rows, each predicted without itself.

    About 0.5 where nothing parts them, 1 where everything does; the same for the same samples. Infinities count as
    missing.
    The trees are extremely randomised ones (Geurts, Ernst and Wehenkel 2006) on bootstrap samples, so that one fit
    predicts every row by the trees that did not see it.
    """
    from sklearn.ensemble import ExtraTreesClassifier
    from sklearn.metrics import roc_auc_score

    rows = np.concatenate([first, second])
    labels = np.repeat([0, 1], [len(first), len(second)])
    trees = ExtraTreesClassifier(_TREES, min_samples_leaf=_LEAF_ROWS, bootstrap=True, oob_score=True, random_state=0)
    trees.fit(np.where(np.isinf(rows), np.nan, rows), labels)
    return float(roc_auc_score(labels, trees.oob_decision_function_[:, 1]))


def _merged(samples: Sequence[Reservoir]) -> Reservoir:
    whole = samples[0]
    for sample in samples[1:]:
        whole = whole.merge(sample)
    return whole
