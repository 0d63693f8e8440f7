"""The built-in ranker: columns selected, squashed and standardised inside the graph, then a small MLP.

Trained listwise: the cross-entropy between the scores' softmax over an impression and its relevance (ListNet, Cao et
al., ICML 2007). Counts and ages are squashed by log(x + 0.01), everything is clamped to five deviations.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import torch
from gyre_core.features import Layout
from gyre_core.ranking import hit_rate, ndcg, reciprocal_rank
from gyre_core.spec import ModelSpec
from torch import nn

from gyre_trainer.training_set import F32, TrainingSet

_SQUASHED = ("decayed_count", "age")
_SHIFT, _CLAMP = 0.01, 5.0
_LEAST_DEVIATION = 1e-6
_WARM_UP_SHARE = 0.1

OnEpoch = Callable[[int, float], None]


class Ranker(nn.Module):
    """Scores rows of all columns of a layout: float32 [n, columns] to [n, 1]."""

    chosen: torch.Tensor
    squashed: torch.Tensor
    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(self, layout: Layout, spec: ModelSpec) -> None:
        super().__init__()
        chosen = list(layout.model_indices)
        self.register_buffer("chosen", torch.tensor(chosen))
        self.register_buffer("squashed", torch.tensor([layout.described[each].kind in _SQUASHED for each in chosen]))
        self.register_buffer("mean", torch.zeros(len(chosen)))
        self.register_buffer("deviation", torch.ones(len(chosen)))
        sizes = (len(chosen), *spec.hidden)
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), nn.GELU(), nn.Dropout(spec.parameters.dropout)]
        # The loss sees only differences of scores, so a last bias would only drift.
        self.layers = nn.Sequential(*layers, nn.Linear(sizes[-1], 1, bias=False))

    def squash(self, rows: torch.Tensor) -> torch.Tensor:
        """The chosen columns of rows [n, columns], squashed: [n, chosen]."""
        values = rows.index_select(1, self.chosen)
        return torch.where(self.squashed, torch.log(values.clamp(min=0.0) + _SHIFT), values)

    def fit_scale(self, squashed: torch.Tensor) -> None:
        """Take mean and deviation from squashed rows [n, chosen]."""
        self.mean.copy_(squashed.mean(0))
        self.deviation.copy_(squashed.std(0, correction=0).clamp(min=_LEAST_DEVIATION))

    def scale(self, squashed: torch.Tensor) -> torch.Tensor:
        """What the layers read, from squashed rows: [n, chosen]."""
        return ((squashed - self.mean) / self.deviation).clamp(-_CLAMP, _CLAMP)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Score rows [n, columns]: [n, 1]."""
        scores: torch.Tensor = self.layers(self.scale(self.squash(rows)))
        return scores


def train(
    layout: Layout, spec: ModelSpec, data: TrainingSet, *, on_epoch: OnEpoch = lambda _epoch, _loss: None
) -> Ranker:
    """Train on all impressions of `data`; `on_epoch` is told the epoch, from 1, and its mean loss."""
    parameters = spec.parameters
    torch.manual_seed(parameters.seed)
    model = Ranker(layout, spec)
    inputs, held, target = _prepared(model, data)
    optimizer = torch.optim.AdamW(model.parameters(), lr=parameters.learning_rate, weight_decay=parameters.weight_decay)
    batches = -(-len(data) // parameters.batch_impressions)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, parameters.learning_rate, total_steps=parameters.epochs * batches + 1, pct_start=_WARM_UP_SHARE
    )
    for epoch in range(1, parameters.epochs + 1):
        model.train()
        total = 0.0
        order = torch.randperm(len(data))
        for start in range(0, len(data), parameters.batch_impressions):
            batch = order[start : start + parameters.batch_impressions]
            loss = _loss(model, inputs[batch], held[batch], target[batch])
            optimizer.zero_grad()
            torch.autograd.backward([loss])
            optimizer.step()
            schedule.step()
            total += loss.item() * len(batch)
        on_epoch(epoch, total / len(data))
    return model.eval()


def _prepared(model: Ranker, data: TrainingSet) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The layers' inputs [n, items, chosen], scaled once for all epochs, where there are items, and their targets."""
    features, relevance = torch.from_numpy(data.features), torch.from_numpy(data.relevance)
    held = relevance >= 0
    with torch.no_grad():
        squashed = model.squash(features.flatten(0, 1))
        model.fit_scale(squashed[held.flatten()])
        inputs = model.scale(squashed).view(*held.shape, -1)
    target = relevance.clamp(min=0)
    return inputs, held, target / target.sum(1, keepdim=True)


def _loss(model: Ranker, inputs: torch.Tensor, held: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    scores = model.layers(inputs).squeeze(2).masked_fill(~held, -1e9)
    return -(target * torch.log_softmax(scores, 1)).sum(1).mean()


def score(model: Ranker, features: F32) -> F32:
    """Score impressions: features [impressions, items, columns] to scores [impressions, items]."""
    with torch.no_grad():
        scores: F32 = model(torch.from_numpy(features).flatten(0, 1)).numpy().reshape(features.shape[:2])
    return scores


def evaluate(scores: F32, relevance: F32) -> dict[str, float]:
    """NDCG@10, hit rate@10 and MRR, means over impressions.

    Args:
        scores: [impressions, items].
        relevance: the same shape, -1 beyond an impression's items.
    """
    measured: list[tuple[float, float, float]] = []
    for own, labels in zip(scores.astype(np.float64), relevance.astype(np.float64), strict=True):
        held = labels >= 0
        shown, relevant = own[held], labels[held]
        measured.append((ndcg(shown, relevant), hit_rate(shown, relevant), reciprocal_rank(shown, relevant)))
    means = np.mean(measured, axis=0) if measured else np.zeros(3)
    return {"ndcg_at_10": float(means[0]), "hit_rate_at_10": float(means[1]), "mrr": float(means[2])}
