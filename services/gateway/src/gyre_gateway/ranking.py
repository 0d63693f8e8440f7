"""Ordering of candidates: by score with ties broken by a hash of the request, or at random for exploration."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import numpy.typing as npt
from gyre_core.experiments import exploration_order, explores

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


def _generator(request_id: str) -> np.random.Generator:
    return np.random.default_rng(int.from_bytes(blake2b(request_id.encode(), digest_size=8).digest(), "big"))


def by_score(scores: F32, request_id: str) -> Order:
    """Indices by falling score; the request id decides between equal ones, so that position carries nothing."""
    shuffled = _generator(request_id).permutation(len(scores))
    return np.asarray(shuffled[np.argsort(-scores[shuffled], kind="stable")])


def rank(scores: F32, request_id: str, *, exploration: float, salt: str) -> Ranking:
    """Order candidates, at random for the share of requests that explores."""
    if explores(request_id, exploration, salt):
        count = len(scores)
        return Ranking(np.asarray(exploration_order(request_id, count, salt)), explored=True, propensity=1.0 / count)
    return Ranking(by_score(scores, request_id), explored=False, propensity=0.0)


def logged(order: Order, *, shown: int, rest: int, request_id: str) -> Order:
    """The candidates to write down: those shown, then a uniform sample of at most `rest` of the others."""
    others: Sequence[int] | Order = order[shown:]
    if len(others) > rest:
        others = _generator(f"rest {request_id}").choice(others, size=rest, replace=False)
    return np.concatenate([order[:shown], np.asarray(others, dtype=order.dtype)])
