"""Checks of a training set: ranges and drift of its features, and labels that contradict the rest.

Rows are the shown items, numbered in the order of their impressions. A sample takes equally many items of each
impression, since items of one impression have much in common: bounds that were calibrated so would not hold otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from gyre_core.features import Layout
from gyre_core.models import CLASSIFIER_FILE, REFERENCE_FILE
from gyre_core.spec import LoopSpec
from gyre_quality.bins import Bins, fit_bins
from gyre_quality.completeness import check_ranges
from gyre_quality.domain_classifier import DomainClassifier, calibrate_classifier
from gyre_quality.drift import DriftRule, Reference, calibrate, judge, sketch_chunks
from gyre_quality.labels import label_consistency, label_issues, out_of_fold_probabilities
from gyre_quality.report import Check, Report
from gyre_quality.sketches import Reservoir, Sketch

from gyre_trainer.artifact import Manifest
from gyre_trainer.training_set import F32, TrainingSet

Rows = npt.NDArray[np.int64]
_PER_IMPRESSION = 5
_CHUNKS = 10
_LEAST_CHUNK_ROWS = 100
_FOLDS = 3


@dataclass(frozen=True)
class Before:
    """What the live model was trained on.

    Attributes:
        reference: of its training set.
        data_time: the loop's time of that training set, unix seconds.
        classifier: of all its features together; None where the model's artefact has none.
    """

    reference: Reference
    data_time: float
    classifier: DomainClassifier | None = None

    @classmethod
    def read(cls, folder: str) -> Before | None:
        """That of an artefact folder; None where it has none."""
        path = Path(folder)
        files = {name: path / name for name in (REFERENCE_FILE, CLASSIFIER_FILE)}
        held = {name: each.read_bytes() for name, each in files.items() if folder and each.exists()}
        return cls.of(held, Manifest.read(path).data_time) if REFERENCE_FILE in held else None

    @classmethod
    def of(cls, files: Mapping[str, bytes], data_time: float) -> Before:
        """What `reference_files` gave."""
        classifier = DomainClassifier.from_bytes(files[CLASSIFIER_FILE]) if CLASSIFIER_FILE in files else None
        return cls(Reference.from_bytes(files[REFERENCE_FILE]), data_time, classifier)


def check_examples(spec: LoopSpec, data: TrainingSet, layout: Layout) -> list[Check]:
    """Check ranges of features, and labels."""
    return [*_ranges(spec, data, layout), *_noise(spec, data, layout), *_consistency(spec, data)]


def reference_files(spec: LoopSpec, data: TrainingSet, layout: Layout) -> dict[str, bytes]:
    """What later data is compared with, by file name; none where too little tells how it varies by itself."""
    rule = spec.quality.checks.drift
    rows = _sample(data, rule.max_rows)
    if rows.size < _CHUNKS * _LEAST_CHUNK_ROWS:
        return {}
    columns = _columns(data, layout, rows)
    bins = fit_bins(columns)
    files = {REFERENCE_FILE: calibrate(sketch_chunks(bins, columns, rows.size // _CHUNKS)).to_bytes()}
    if rule.classifier_rows:
        files[CLASSIFIER_FILE] = _classifier_of(spec, bins, columns, rows).to_bytes()
    return files


def _classifier_of(spec: LoopSpec, bins: Bins, columns: dict[str, F32], rows: Rows) -> DomainClassifier:
    """The domain classifier, calibrated on the consecutive chunks that the reference was calibrated on."""
    rule, matrix = spec.quality.checks.drift, np.stack(list(columns.values()), axis=1)
    empty = Reservoir.empty(rule.classifier_rows, matrix.shape[1])
    chunks = [
        empty.add(part, ids)
        for part, ids in zip(np.array_split(matrix, _CHUNKS), np.array_split(rows, _CHUNKS), strict=True)
    ]
    return calibrate_classifier(bins, chunks, alpha=rule.alpha)


def drift_since(spec: LoopSpec, data: TrainingSet, layout: Layout, before: Before | None) -> Report | None:
    """Compare what is newer than the live model's training set with it; None where that cannot be said.

    It cannot without such a reference, where the model reads other columns, or before enough is newer.
    """
    if before is None or before.reference.bins.names != tuple(layout.model_columns):
        return None
    rule = spec.quality.checks.drift
    first = int(np.searchsorted(data.times, before.data_time - spec.training.label.attribution_window_s, side="right"))
    newer = data.part(first, len(data))
    rows = _sample(newer, rule.max_rows)
    if rows.size < rule.min_rows:
        return None
    columns = _columns(newer, layout, rows)
    chunk = Sketch.of(before.reference.bins, columns)
    report = judge(before.reference, chunk, DriftRule(alpha=rule.alpha)).report(spec.loop)
    classifier = before.classifier
    if classifier is None or not rule.classifier_rows:
        return report
    empty = Reservoir.empty(classifier.reference.capacity, len(columns))
    together = classifier.check(empty.add(np.stack(list(columns.values()), axis=1), rows))
    return replace(report, checks=(*report.checks, together))


def _sample(data: TrainingSet, most: int, *, positives: bool = False) -> Rows:
    """Some shown items of each impression, by the flat index of `held`, in the order of their time; always the same.

    Args:
        data: to take from.
        most: how many rows; impressions are left out evenly beyond that.
        positives: take the labelled items besides.
    """
    if not len(data):
        return np.empty(0, dtype=np.int64)
    step = max(-(-len(data) * (_PER_IMPRESSION + positives) // most), 1)
    chosen = np.arange(0, len(data), step)
    held = data.held[chosen]
    keys = np.where(held, np.random.default_rng(0).random(held.shape), np.inf)
    if positives:
        keys[data.relevance[chosen] > 0] = -1.0
    order = np.argsort(keys, axis=1)[:, : _PER_IMPRESSION + positives]
    real = np.take_along_axis(held, order, axis=1)
    flat = chosen[:, None] * data.relevance.shape[1] + order
    return np.sort(flat[real])


def _flat(data: TrainingSet) -> F32:
    return data.features.reshape(-1, data.features.shape[2])


def _columns(data: TrainingSet, layout: Layout, rows: Rows) -> dict[str, F32]:
    """The model's columns of some rows."""
    values = _flat(data)[rows][:, list(layout.model_indices)]
    return dict(zip(layout.model_columns, values.T, strict=True))


def _ranges(spec: LoopSpec, data: TrainingSet, layout: Layout) -> list[Check]:
    rule, held = spec.quality.checks.ranges, data.held
    limits = {name: (each.min, each.max) for name, each in rule.columns.items() if name in layout.index}
    columns = {name: data.features[:, :, layout.index[name]][held] for name in limits}
    places = np.flatnonzero(held)
    found = check_ranges(columns, limits, max_share=rule.max_share)
    return [replace(check, rows=places[check.rows]) for check in found]


def _noise(spec: LoopSpec, data: TrainingSet, layout: Layout) -> list[Check]:
    """Confident learning on a linear classifier of the served features, each row predicted without itself."""
    rule = spec.quality.checks.labels
    rows = _sample(data, rule.max_rows, positives=True)
    labels = (data.relevance.ravel()[rows] > 0).astype(np.int64)
    if np.bincount(labels, minlength=2).min() < _FOLDS:
        return []
    values = _flat(data)[rows][:, list(layout.model_indices)].astype(np.float64)
    squashed = np.sign(values) * np.log1p(np.abs(values))
    probabilities = out_of_fold_probabilities(_classifier(), squashed, labels, n_splits=_FOLDS)
    check = label_issues(labels, probabilities).check(rule.max_noise)
    return [replace(check, rows=rows[check.rows])]


def _classifier() -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))


def _consistency(spec: LoopSpec, data: TrainingSet) -> list[Check]:
    if data.rows is None:
        return []
    held = data.held
    owners = pa.array(np.nonzero(held)[0], pa.int64())
    users, items = data.rows["user_id"].take(owners), pc.list_flatten(data.rows["item_ids"])
    found = label_consistency(users, items, (data.relevance[held] > 0).astype(np.int64))
    check = found.check(spec.quality.checks.labels.min_agreement)
    return [replace(check, rows=np.flatnonzero(held)[check.rows])]
