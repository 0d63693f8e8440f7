"""The offline evaluation of a scenario: the same features, learner and protocol as live, without the mesh."""

import argparse
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from gyre_core.features import Layout, Replay, RequestContext
from gyre_core.spec import LoopSpec, load_loop
from gyre_trainer.ranker import evaluate, score, train
from gyre_trainer.training_set import TrainingSet

from demo_loop.scenario import Choice, Scenario


def main(scenario: Scenario, *, most_gain: float) -> None:
    """Print the measures of the scenario's learner; a relative gain above `most_gain` is told to be a leak."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1, help="train so many times and print each")
    arguments = parser.parse_args()
    spec = load_loop(scenario.spec_file)
    started = time.perf_counter()
    data = replayed(spec, scenario)
    print(f"{len(data)} impressions, {data.features.shape[2]} columns in {time.perf_counter() - started:.1f} s")
    cut = len(scenario.shown)
    history, live = data.part(0, cut), data.part(cut, len(data))
    for seed in range(arguments.seeds):
        parameters = spec.model.parameters.model_copy(update={"seed": spec.model.parameters.seed + seed})
        model = spec.model.model_copy(update={"parameters": parameters})
        if measure(spec.model_copy(update={"model": model}), history, live) > most_gain:
            print(f"more than {most_gain:+.0%}, which this protocol cannot give: look for a leak", file=sys.stderr)


def measure(spec: LoopSpec, history: TrainingSet, live: TrainingSet) -> float:
    """Train on the history and, for the second half, on the first half too; answer the relative gain in NDCG@10."""
    layout = Layout.compile(spec)
    half = len(live) // 2
    older, newer = live.part(0, half), live.part(half, len(live))
    popularity = layout.index[spec.serving.fallback_feature or layout.columns[0]]
    started = time.perf_counter()
    first = train(layout, spec.model, history)
    second = train(layout, spec.model, joined(history, older))
    seconds = time.perf_counter() - started
    scores = np.concatenate([score(first, older.features), score(second, newer.features)])
    rows = {
        "popularity": evaluate(live.features[:, :, popularity], live.relevance),
        "first model": evaluate(score(first, live.features), live.relevance),
        "served": evaluate(scores, live.relevance),
    }
    for name, measured in rows.items():
        print(f"{name:<12}", "  ".join(f"{key} {value:.4f}" for key, value in measured.items()))
    gain = rows["served"]["ndcg_at_10"] / rows["popularity"]["ndcg_at_10"] - 1
    print(f"gain {gain:+.2%} (both trainings {seconds:.1f} s)")
    return gain


def joined(first: TrainingSet, second: TrainingSet) -> TrainingSet:
    """Both, one after the other; of the same shape."""
    names = ("features", "relevance", "times", "served", "unknown_items")
    values: dict[str, Any] = {name: np.concatenate([getattr(first, name), getattr(second, name)]) for name in names}
    return replace(first, **values)


def _in_order(scenario: Scenario) -> Iterator[Choice]:
    """History and live as choices; an impression belongs to the interaction that it was made up for."""
    waiting = deque(scenario.shown)
    for interaction in scenario.history:
        shown = waiting[0] if waiting else None
        own = shown is not None and (shown.user_id, shown.time) == (interaction.user_id, interaction.time)
        if shown is not None and own and interaction.item_id in shown.item_ids:
            waiting.popleft()
            yield Choice(interaction, tuple(shown.item_ids))
        else:
            yield Choice(interaction)
    yield from scenario.live


def replayed(spec: LoopSpec, scenario: Scenario) -> TrainingSet:
    """Every impression and live choice with the features strictly before it."""
    layout = Layout.compile(spec)
    replay = Replay(layout)
    replay.apply(scenario.items)
    features: list[Any] = []
    relevance: list[Any] = []
    times: list[float] = []
    most = len(scenario.shown) + scenario.enough
    for choice in _in_order(scenario):
        if len(times) == most:
            break
        interaction = choice.interaction
        if choice.candidates:
            matrix, _ = replay.matrix(interaction.user_id, choice.candidates, RequestContext(interaction.time))
            features.append(matrix)
            relevance.append(choice.relevance)
            times.append(interaction.time)
        replay.apply([interaction])
    return _training_set(features, relevance, times)


def _training_set(features: Sequence[Any], relevance: Sequence[Any], times: Sequence[float]) -> TrainingSet:
    torch.set_num_threads(1)
    return TrainingSet(
        features=np.stack(features),
        relevance=np.array(relevance, dtype=np.float32),
        times=np.array(times),
        served=np.zeros(len(times), dtype=np.bool_),
        unknown_items=np.zeros(len(times), dtype=np.int64),
        open_windows=0,
        unlabelled=0,
    )
