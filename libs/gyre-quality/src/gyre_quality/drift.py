"""Whether a chunk of rows is drawn from the reference: each feature's distances against what the reference itself does.

A fixed bound such as PSI > 0.2 knows neither the chunk's size nor how a feature wanders by itself. Here the reference
is cut into chunks, each is compared with the rest, and the distances seen so set the bound of each feature and measure.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import f as f_distribution

from gyre_quality.bins import Bins
from gyre_quality.divergences import DIVERGENCES, MEASURES, Divergences, divergences, smoothed_shares
from gyre_quality.figures import Figure, bars, lines, shares
from gyre_quality.report import Check, Report
from gyre_quality.sketches import Sketch, merged, packed, unpacked

MIN_CHUNKS = 5
"""Fewer chunks say too little about how they vary."""

_FLOORS = {"kl": 0.005, "psi": 0.01, "js": 0.00125, "wasserstein": 0.05}
_SHOWN_FEATURES = 4


@dataclass(frozen=True, slots=True)
class DriftRule:
    """When a difference is drift: one that is both significant and at least as large as its floor.

    Attributes:
        alpha: the probability of any alarm for a chunk of the reference.
        measures: which distances are judged, of `MEASURES`.
        floors: the smallest distance of each measure that matters, however significant; a tenth of the usual "small
            shift" (PSI 0.1) by default, and what corresponds to it in the others; 0 for one that is not listed.
    """

    alpha: float = 0.01
    measures: tuple[str, ...] = MEASURES
    floors: tuple[tuple[str, float], ...] = tuple(_FLOORS.items())

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise ValueError(f"alpha = {self.alpha}: must be between 0 and 1")
        for name in (*self.measures, *(name for name, _ in self.floors)):
            if name not in MEASURES:
                raise ValueError(f"measures = {name}: must be of {', '.join(MEASURES)}")
        if not self.measures:
            raise ValueError("measures: must name at least one")


@dataclass(frozen=True, slots=True)
class Reference:
    """What chunks are compared with.

    Attributes:
        sketch: of all rows.
        chunk_rows: rows of a typical chunk of the calibration; smaller chunks get wider bounds in proportion.
        chunks: how many chunks calibrated it.
        scale: float64 [measures, features], mean distance of a chunk; squared for Wasserstein.
        freedom: float64 [measures, features], degrees of freedom of the scaled chi-square that these distances follow.
    """

    sketch: Sketch
    chunk_rows: int
    chunks: int
    scale: NDArray[np.float64]
    freedom: NDArray[np.float64]

    @property
    def bins(self) -> Bins:
        """The bins to sketch chunks in."""
        return self.sketch.bins

    def to_bytes(self) -> bytes:
        """The reference with its bins, for `from_bytes`."""
        header = {"bins": self.bins.as_dict(), "chunk_rows": self.chunk_rows, "chunks": self.chunks}
        return packed(
            header=np.frombuffer(json.dumps(header).encode(), dtype=np.uint8),
            sketch=np.frombuffer(self.sketch.to_bytes(), dtype=np.uint8),
            scale=self.scale,
            freedom=self.freedom,
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Reference:
        """The reference from what `to_bytes` gave."""
        arrays = unpacked(data)
        header = json.loads(arrays["header"].tobytes())
        sketch = Sketch.from_bytes(Bins.from_dict(header["bins"]), arrays["sketch"].tobytes())
        return cls(sketch, header["chunk_rows"], header["chunks"], arrays["scale"], arrays["freedom"])


def calibrate(chunks: Sequence[Sketch]) -> Reference:
    """The reference of these chunks, each compared with all others.

    The chunks should be of the size, or the span of time, that later chunks will have. For multinomial sampling the
    three divergences are a chi-square divided by the rows (Yurdakul 2018 for PSI); rows that come in households or
    sessions make it a sum of weighted chi-squares, whose scale and degrees of freedom are matched by mean and variance
    (Satterthwaite 1946).

    Raises:
        ValueError: fewer than `MIN_CHUNKS` chunks, or one without rows.
    """
    if len(chunks) < MIN_CHUNKS:
        raise ValueError(f"{len(chunks)} chunks: must be at least {MIN_CHUNKS} to calibrate")
    if not all(chunk.rows for chunk in chunks):
        raise ValueError("a chunk has no rows: must have some to calibrate")
    whole = merged(chunks, chunks[0].bins)
    seen = np.stack([_chi_square_like(divergences(whole.without(chunk), chunk)) for chunk in chunks])
    scale, variance = seen.mean(axis=0), seen.var(axis=0, ddof=1)
    limit = np.maximum(np.count_nonzero(whole.counts, axis=1) - 1, 1)
    freedom = 2 * scale**2 / np.where(variance > 0, variance, 1.0)
    freedom = np.clip(np.where(variance > 0, freedom, 1.0), 1.0, limit)
    # One component, mostly the mean's, rules the tail of Wasserstein; matched moments would promise too thin a tail.
    freedom[MEASURES.index("wasserstein")] = 1.0
    rows = int(np.median([chunk.rows for chunk in chunks]))
    return Reference(whole, rows, len(chunks), scale, freedom)


@dataclass(frozen=True, slots=True)
class Drift:
    """The judgement of one chunk.

    Attributes:
        distances: of every measure and feature.
        p_values, thresholds: float64 [measures judged, features].
        drifted: bool [measures judged, features].
    """

    rule: DriftRule
    reference: Reference
    chunk: Sketch
    distances: Divergences
    p_values: NDArray[np.float64]
    thresholds: NDArray[np.float64]
    drifted: NDArray[np.bool_]

    @property
    def alarms(self) -> bool:
        """Whether any feature drifted by any judged measure; nobody is told."""
        return bool(self.drifted.any())

    @property
    def features(self) -> tuple[str, ...]:
        """The features that drifted by any judged measure, in the order of the bins."""
        hit = np.flatnonzero(np.logical_or.reduce(self.drifted, axis=0))
        return tuple(self.chunk.bins.names[index] for index in hit.tolist())

    def checks(self) -> tuple[Check, ...]:
        """One check for each judged measure and feature, `drift.<measure>`, without rows."""
        return tuple(
            Check(
                f"drift.{measure}",
                name,
                float(self.distances.of(measure)[index]),
                float(self.thresholds[position, index]),
                not self.drifted[position, index],
                f"p = {self.p_values[position, index]:.2g}, rows {self.chunk.rows}",
            )
            for position, measure in enumerate(self.rule.measures)
            for index, name in enumerate(self.chunk.bins.names)
        )

    def report(self, subject: str) -> Report:
        """The checks, all with the action `warn`, and plots of the features that moved most, at most four."""
        return Report(subject, self.checks(), figures=tuple(self._figures()))

    def _figures(self) -> Iterable[Figure]:
        names = self.chunk.bins.names
        measure = self.rule.measures[0]
        values = dict(zip(names, self.distances.of(measure).tolist(), strict=True))
        yield bars(f"{measure} by feature", values, dict(zip(names, self.thresholds[0].tolist(), strict=True)))
        p, q = smoothed_shares(self.reference.sketch, self.chunk)
        ranked = np.argsort(self.p_values.min(axis=0))[:_SHOWN_FEATURES]
        for index in ranked.tolist():
            feature = self.chunk.bins.by_feature[names[index]]
            series = {"reference": q[index, : feature.size].tolist(), "chunk": p[index, : feature.size].tolist()}
            yield shares(names[index], feature.labels, series)


def judge(reference: Reference, chunk: Sketch, rule: DriftRule | None = None) -> Drift:
    """Hold a chunk's distances against the reference; neither is changed.

    A distance divided by the mean of those in the calibration is F-distributed with (freedom, chunks × freedom)
    degrees: the second accounts for a mean that was itself estimated from few chunks. Over all features and measures
    the false discovery rate is held at alpha (Benjamini and Hochberg 1995), and so the rate of any alarm on a chunk of
    the reference.

    Raises:
        ValueError: the chunk has no rows or other bins than the reference.
    """
    rule = rule or DriftRule()
    if chunk.rows == 0:
        raise ValueError("chunk has 0 rows: must have some to be judged")
    distances = divergences(reference.sketch, chunk)
    rows = [MEASURES.index(measure) for measure in rule.measures]
    # A smaller chunk wanders more; a larger one not less, since what wanders from week to week does not average out.
    widening = max(reference.chunk_rows / chunk.rows, 1.0)
    scale = np.maximum(reference.scale[rows] * widening, np.finfo(np.float64).tiny)
    freedom = reference.freedom[rows]
    ratio = _chi_square_like(distances)[rows] / scale
    p_values = np.asarray(f_distribution.sf(ratio, freedom, reference.chunks * freedom))
    cut = _rejected_at(p_values.ravel(), rule.alpha)
    bound = scale * f_distribution.isf(cut, freedom, reference.chunks * freedom)
    linear = np.asarray([measure not in DIVERGENCES for measure in rule.measures])
    bound[linear] = np.sqrt(bound[linear])
    floors = np.asarray([dict(rule.floors).get(measure, 0.0) for measure in rule.measures])
    drifted = (p_values <= cut) & (distances.values[rows] >= floors[:, None])
    return Drift(rule, reference, chunk, distances, p_values, np.maximum(bound, floors[:, None]), drifted)


def timeline(drifts: Sequence[Drift], *, features: int = 5) -> Figure:
    """A plot of how far chunks (one at least) in order are from the reference: the worst measure of each feature.

    Of the `features` that went furthest in any chunk.
    Distances are shown as multiples of their thresholds, so that measures and features compare.
    """
    ratios = np.asarray(
        [
            (np.stack([drift.distances.of(measure) for measure in drift.rule.measures]) / drift.thresholds).max(axis=0)
            for drift in drifts
        ]
    )
    furthest = np.argsort(-ratios.max(axis=0))[:features]
    names = drifts[0].chunk.bins.names
    series = {names[index]: ratios[:, index].tolist() for index in furthest.tolist()}
    return lines("distance from the reference, in thresholds", series, threshold=1.0)


def adjusted(p_values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The p-values [n] of Benjamini and Hochberg (1995): the smallest false discovery rate at which each is rejected.

    In the order of the given ones.
    """
    count = p_values.size
    order = np.argsort(p_values)
    scaled = p_values[order] * count / np.arange(1, count + 1)
    result = np.empty(count)
    result[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return result


def _rejected_at(p_values: NDArray[np.float64], alpha: float) -> float:
    """The p-value up to which hypotheses are rejected; what the first would need where none is."""
    rejected = int(np.count_nonzero(adjusted(p_values) <= alpha))
    return alpha * max(rejected, 1) / p_values.size


def _chi_square_like(distances: Divergences) -> NDArray[np.float64]:
    """Distances on the scale of a squared difference."""
    powers = np.asarray([1.0 if measure in DIVERGENCES else 2.0 for measure in MEASURES])
    return np.asarray(distances.values ** powers[:, None])


def sketch_chunks(bins: Bins, columns: Any, rows: int) -> list[Sketch]:
    """The sketches of consecutive chunks of so many rows; a rest shorter than half a chunk joins the last.

    Raises:
        ValueError: `rows` is below 1.
    """
    if rows < 1:
        raise ValueError(f"rows = {rows}: must be at least 1")
    total = len(next(iter(columns.values())))
    count = max(round(total / rows), 1)
    ends = [*range(rows, count * rows, rows), total]
    return [
        Sketch.of(bins, {name: column[start:end] for name, column in columns.items()})
        for start, end in zip([0, *ends[:-1]], ends, strict=True)
    ]
