"""The ranker learns what is there to learn, and its graph scores as it does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from gyre_trainer.domain import TrainingRefused
from gyre_trainer.export import OPSET, export, score_with
from gyre_trainer.gate import check_against_incumbent, check_data
from gyre_trainer.ranker import Ranker, evaluate, score, train
from gyre_trainer.training_set import TrainingSet, build


@pytest.fixture(scope="module")
def data(make_spec, learnt) -> TrainingSet:
    """A training set with a preference to learn."""
    from gyre_core.features import Layout

    spec = make_spec()
    return build(spec, Layout.compile(spec), learnt.tables())


def test_a_preference_is_learnt(spec, layout, data) -> None:
    """On held-out impressions the model ranks far above popularity, which knows nothing of tastes."""
    training, held_out = data.split(0.2)
    losses: list[float] = []
    model = train(layout, spec.model, training, on_epoch=lambda _epoch, loss: losses.append(loss))
    assert len(losses) == spec.model.parameters.epochs
    assert losses[-1] < losses[0]
    own = evaluate(score(model, held_out.features), held_out.relevance)
    popular = evaluate(held_out.features[:, :, layout.index["popular_7d"]], held_out.relevance)
    assert own["ndcg_at_10"] > 1.3 * popular["ndcg_at_10"]
    assert own["hit_rate_at_10"] > 0.8


def test_training_is_repeatable(spec, layout, data) -> None:
    """The same data and seed make the same model."""
    first, second = (score(train(layout, spec.model, data.part(0, 60)), data.features) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_the_graph_scores_as_the_model(spec, layout, data, tmp_path: Path) -> None:
    """The graph takes any number of rows of all columns, scores as torch does, and is readable by old runtimes."""
    model = train(layout, spec.model, data.part(0, 60))
    sha256 = export(model, data.features[data.held], tmp_path)
    graph = onnx.load(tmp_path / "model.onnx")
    assert graph.ir_version <= 10
    assert [each.version for each in graph.opset_import] == [OPSET]
    shape = graph.graph.input[0].type.tensor_type.shape.dim
    assert shape[1].dim_value == len(layout.columns)
    rows = data.features.reshape(-1, len(layout.columns))
    for count in (1, 7, len(rows)):
        np.testing.assert_allclose(
            score_with(tmp_path / "model.onnx", rows[:count]),
            model(torch.from_numpy(rows[:count])).detach().numpy()[:, 0],
            rtol=1e-4,
            atol=1e-5,
        )
    golden = np.load(tmp_path / "golden.npz")
    assert golden["features"].shape == (64, len(layout.columns))
    assert len(np.unique(golden["scores"])) > 10
    assert len(sha256) == 64


def test_padding_changes_nothing(spec, layout, data) -> None:
    """Items beyond an impression's own move neither the scale nor the loss."""
    few = data.part(0, 40)
    wide = replace(
        few,
        features=np.pad(few.features, ((0, 0), (0, 5), (0, 0)), constant_values=99.0),
        relevance=np.pad(few.relevance, ((0, 0), (0, 5)), constant_values=-1.0),
    )
    narrow_scores = score(train(layout, spec.model, few), few.features)
    wide_scores = score(train(layout, spec.model, wide), few.features)
    np.testing.assert_allclose(wide_scores, narrow_scores, rtol=1e-3, atol=1e-3)


def test_constant_columns_are_harmless(spec, layout) -> None:
    """Columns without any spread give finite scores."""
    model = Ranker(layout, spec.model)
    model.fit_scale(torch.zeros(10, len(layout.model_columns)))
    assert torch.isfinite(model(torch.ones(3, len(layout.columns)))).all()


def test_measures_of_known_rankings() -> None:
    """The relevant item first is 1 everywhere; second it is 1/log2(3) in NDCG and 1/2 in MRR; padding never counts."""
    relevance = np.array([[1, 0, 0], [0, 1, -1]], dtype=np.float32)
    best = evaluate(np.array([[3, 2, 1], [1, 2, 9]], dtype=np.float32), relevance)
    assert best == {"ndcg_at_10": 1.0, "hit_rate_at_10": 1.0, "mrr": 1.0}
    second = evaluate(np.array([[2, 3, 1], [2, 1, 9]], dtype=np.float32), relevance)
    assert second["ndcg_at_10"] == pytest.approx(1 / np.log2(3))
    assert second["mrr"] == pytest.approx(0.5)


def test_the_gate_passes_good_data(spec, layout, data) -> None:
    """Data within the rules passes."""
    check_data(spec, layout, data)


@pytest.mark.parametrize("field", ["min_impressions", "missing", "not finite"])
def test_the_gate_names_what_it_refuses(make_spec, layout, data, field: str) -> None:
    """Too few impressions, unknown items and values that are no numbers are refused, with field, value and rule."""
    spec, given = make_spec(), data
    if field == "min_impressions":
        spec = make_spec(least=10_000)
        message = r"min_impressions: 300 labelled impressions .* must be at least 10000"
    elif field == "missing":
        given = replace(data, unknown_items=data.unknown_items + 5)
        message = r"max_missing_share: 0\.\d+ of the items .* must be at most 0\.2"
    else:
        broken = data.features.copy()
        broken[3, 2, layout.index["taste_30d"]] = np.nan
        given = replace(data, features=broken)
        message = r"features\.taste_30d: 1 values are not finite: must be 0"
    with pytest.raises(TrainingRefused, match=message):
        check_data(spec, layout, given)


def test_a_model_worse_than_the_live_one_is_refused(spec) -> None:
    """A candidate may lose no more than the rule allows against the live model."""
    check_against_incumbent(spec, 0.491, 0.5)
    check_against_incumbent(spec, 0.1, 0.0)
    with pytest.raises(TrainingRefused, match=r"min_relative_ndcg: -0\.0300 .* must be at least -0\.0200"):
        check_against_incumbent(spec, 0.485, 0.5)
