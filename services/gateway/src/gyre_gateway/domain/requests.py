"""A request on its way through the gateway: its candidates, their features, their scores, what was shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from gyre_gateway.domain.ranking import F32, Ranking
from gyre_gateway.domain.routing import Route

Method = Literal["rank", "recommend"]


@dataclass(frozen=True, slots=True)
class Request:
    """One list to order.

    Attributes:
        item_ids: the candidates, without repetition, in the caller's order.
        request_id: the caller's or a new one.
        now: the loop's time, unix seconds.
        numbers: of the request's context, by name.
        labels: of the request's context, by name.
        started: `time.monotonic()` at arrival.
        deadline: `time.monotonic()` by which everything that is waited for must be over.
    """

    loop: str
    user_id: str
    item_ids: Sequence[str]
    request_id: str
    now: float
    numbers: Mapping[str, float]
    labels: Mapping[str, str]
    method: Method
    started: float
    deadline: float


@dataclass(frozen=True, slots=True)
class Features:
    """The features of candidates, one row each.

    Attributes:
        layout: hash of the feature layout.
        values: rows × columns float32, little-endian, row by row.
        item_batches: number of the last stream batch in each item's value, -1 where it is unknown.
        user_batch: the same of the user.
        global_batch: the same of the loop as a whole.
        age_s: age of the user's newest update, seconds; negative when unknown.
        popularity_column: index of the column that orders candidates by popularity; None where the layout has none.
    """

    layout: str
    rows: int
    columns: int
    values: bytes
    item_batches: Sequence[int]
    user_batch: int
    global_batch: int
    age_s: float
    popularity_column: int | None = None

    def matrix(self) -> F32:
        """The values, of shape [rows, columns]."""
        return np.frombuffer(self.values, dtype="<f4").reshape(self.rows, self.columns)


@dataclass(frozen=True, slots=True)
class Scored:
    """Scores of the candidates and how they came about.

    Attributes:
        scores: one for each candidate; higher is better.
        version: of the model that gave them; empty when none did.
        degraded_reason: why they are not what the arm's model should have given; empty when they are.
        features: as served; None when they could not be read.
    """

    scores: F32
    route: Route
    version: str = ""
    degraded_reason: str = ""
    features: Features | None = None

    @property
    def feature_age_s(self) -> float:
        """Age of the user's newest feature update, seconds; negative when unknown."""
        return -1.0 if self.features is None else self.features.age_s


@dataclass(frozen=True, slots=True)
class RankedAnswer:
    """An ordered list, of which the first `shown` are shown.

    Attributes:
        latency_s: from the request's arrival to now.
    """

    request: Request
    scored: Scored
    ranking: Ranking
    shown: int
    latency_s: float

    def items(self) -> list[tuple[str, float]]:
        """The shown items, best first, with their scores."""
        best = self.ranking.order[: self.shown]
        ids = self.request.item_ids
        return [(ids[row], score) for row, score in zip(best.tolist(), self.scored.scores[best].tolist(), strict=True)]


def caller_order(count: int) -> F32:
    """Scores that keep the order in which the candidates came."""
    return np.arange(count, 0, -1, dtype=np.float32)


def usable(scores: npt.NDArray[np.float32], count: int) -> bool:
    """Whether these are finite scores of so many candidates."""
    return len(scores) == count and bool(np.isfinite(scores).all())
