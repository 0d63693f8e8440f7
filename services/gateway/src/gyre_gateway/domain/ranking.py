"""Ordering of candidates: by score with ties broken by a hash of the request, or at random for exploration."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from random import Random

import numpy as np
import numpy.typing as npt
from gyre_core.experiments import exploration_order, explores
from gyre_core.ranking import uniform_propensity

F32 = npt.NDArray[np.float32]
Order = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Ranking:
    """An order of candidates.

    Attributes:
        order: indices of the candidates, best first.
        explored: the order is uniformly random.
        propensity: of an item at its position, when explored; else 0.
    """

    order: Order
    explored: bool
    propensity: float


def rank(scores: F32, request_id: str, *, exploration: float, salt: str) -> Ranking:
    """Order candidates, at random for the share of requests that explores."""
    if len(scores) and explores(request_id, exploration, salt):
        count = len(scores)
        order = np.array(exploration_order(request_id, count, salt), dtype=np.int64)
        return Ranking(order, explored=True, propensity=uniform_propensity(count))
    return Ranking(by_score(scores, request_id), explored=False, propensity=0.0)


def by_score(scores: F32, request_id: str) -> Order:
    """Indices by falling score; the request id decides between equal ones, so that position carries nothing."""
    order = np.argsort(-scores, kind="stable")
    falling = scores[order]
    if not (falling[1:] == falling[:-1]).any():
        return order
    shuffled = np.array(_random("ties", request_id).sample(range(len(scores)), len(scores)), dtype=np.int64)
    return np.asarray(shuffled[np.argsort(-scores[shuffled], kind="stable")])


def logged(order: Order, *, shown: int, rest: int, request_id: str) -> Order:
    """The candidates to write down: those shown, then a uniform sample of at most `rest` of the others."""
    others = order[shown:]
    if len(others) > rest:
        others = others[_random("rest", request_id).sample(range(len(others)), rest)]
    return order if len(others) == len(order) - shown else np.concatenate([order[:shown], others])


def _random(purpose: str, request_id: str) -> Random:
    digest = blake2b(f"{purpose} {request_id}".encode(), digest_size=8).digest()
    return Random(int.from_bytes(digest, "big"))  # noqa: S311 - no secret: it must be reproducible
