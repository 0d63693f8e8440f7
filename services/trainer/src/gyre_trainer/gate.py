"""When data is too thin or broken to train on, and when a model is too weak to be a candidate."""

from __future__ import annotations

import numpy as np
from gyre_core.features import Layout
from gyre_core.spec import LoopSpec

from gyre_trainer.domain import TrainingRefused
from gyre_trainer.training_set import TrainingSet


def check_data(spec: LoopSpec, layout: Layout, data: TrainingSet) -> None:
    """Check a training set against `training.gate`.

    Raises:
        TrainingRefused: it did not pass.
    """
    _check_count(spec, data)
    _check_finite(layout, data)
    _check_missing(spec, data)


def _check_count(spec: LoopSpec, data: TrainingSet) -> None:
    least = spec.training.gate.min_impressions
    if len(data) < least:
        left_out = f"{data.unlabelled} without a label and {data.open_windows} with an open window left out"
        raise TrainingRefused(
            f"training.gate.min_impressions: {len(data)} labelled impressions ({left_out}): must be at least {least}"
        )
    if len(data) < 2:
        raise TrainingRefused(
            f"labelled impressions: {len(data)}: must be at least 2, to train on one and evaluate on another"
        )


def _check_finite(layout: Layout, data: TrainingSet) -> None:
    for name, column in zip(layout.model_columns, layout.model_indices, strict=True):
        broken = int((~np.isfinite(data.features[:, :, column])).sum())
        if broken:
            raise TrainingRefused(f"features.{name}: {broken} values are not finite: must be 0")


def _check_missing(spec: LoopSpec, data: TrainingSet) -> None:
    most = spec.training.gate.max_missing_share
    share = float(data.unknown_items.sum() / data.held.sum())
    if share > most:
        raise TrainingRefused(
            f"training.gate.max_missing_share: {share:.3f} of the items had no features at all: must be at most {most}"
        )


def check_against_incumbent(spec: LoopSpec, ndcg: float, incumbent_ndcg: float) -> None:
    """Check a candidate's NDCG@10 against that of the live model on the same impressions.

    Raises:
        TrainingRefused: it is worse by more than `training.evaluation.min_relative_ndcg` allows.
    """
    least = spec.training.evaluation.min_relative_ndcg
    relative = ndcg / incumbent_ndcg - 1.0 if incumbent_ndcg > 0 else 0.0
    if relative < least:
        raise TrainingRefused(
            f"training.evaluation.min_relative_ndcg: {relative:+.4f} (NDCG@10 {ndcg:.4f}, the live model's"
            f" {incumbent_ndcg:.4f}): must be at least {least:+.4f}"
        )
