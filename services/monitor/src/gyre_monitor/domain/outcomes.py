"""Which answers led to a click or a conversion, and what that makes of a version in an arm.

An interaction that names a request of its user belongs to that answer; one that names another user's belongs to none.
One that names none belongs to every answer of its user that showed the item, from the answer's time to the end of the
attribution window, both included: event times decide, so the order in which answers and interactions arrive does not.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, repeat
from math import isfinite
from operator import mul
from typing import NamedTuple

from gyre_core.statistics import percentile, wilson_interval

LATENCY_BOUNDS_S: tuple[float, ...] = tuple(accumulate(repeat(1.2, 69), mul, initial=0.0002))
"""Upper bounds of the latency buckets: from 0.2 ms to 58 s in steps of a fifth, which bounds the error of a quantile.

The numbers of the buckets are stored: another list needs a migration.
"""


Request = tuple[bytes, str]
"""A user's key and the id of one of that user's requests."""


class LoggedAnswer(NamedTuple):
    """An answer of the gateway: to whom, when (unix seconds, event time), and which items it showed."""

    request_id: str
    user_key: bytes
    event_time: float
    items: Sequence[str]

    @property
    def key(self) -> Request:
        """What names the answer: its user and the request's id, which other users may have, too."""
        return self.user_key, self.request_id


class Action(NamedTuple):
    """An interaction: `request_id` is empty where the producer named no answer."""

    event_id: str
    request_id: str
    user_key: bytes
    item_id: str
    type: str
    event_time: float


def attributed(
    answers: Iterable[LoggedAnswer], actions: Iterable[Action], *, window_s: float
) -> dict[Request, list[Action]]:
    """The interactions that belong to each of the answers, by user and request; answers without any are left out."""
    by_request: dict[Request, list[Action]] = defaultdict(list)
    by_user: dict[bytes, list[Action]] = defaultdict(list)
    for action in actions:
        if action.request_id:
            by_request[action.user_key, action.request_id].append(action)
        else:
            by_user[action.user_key].append(action)
    found: dict[Request, list[Action]] = {}
    for answer in answers:
        own = by_request.get(answer.key, []) + [
            action
            for action in by_user.get(answer.user_key, ())
            if answer.event_time <= action.event_time <= answer.event_time + window_s and action.item_id in answer.items
        ]
        if own:
            found[answer.key] = own
    return found


def latency_bucket(latency_s: float) -> int:
    """The number of the bucket that a latency falls into; the last one is open."""
    return bisect_left(LATENCY_BOUNDS_S, latency_s)


@dataclass(slots=True)
class ArmTotals:
    """What one version did in one arm: counts of answers, and of answers by latency bucket."""

    impressions: int = 0
    clicked: int = 0
    converted: int = 0
    degraded: int = 0
    latencies: dict[int, int] = field(default_factory=dict)

    def add(self, *, impressions: int = 0, clicked: int = 0, converted: int = 0, degraded: int = 0) -> None:
        """Count more answers."""
        self.impressions += impressions
        self.clicked += clicked
        self.converted += converted
        self.degraded += degraded

    def add_latency(self, bucket: int, count: int = 1) -> None:
        """Count more answers in a latency bucket."""
        self.latencies[bucket] = self.latencies.get(bucket, 0) + count

    @property
    def ctr(self) -> float:
        """Answers that were clicked, as a share; 0 without answers."""
        return self.clicked / self.impressions if self.impressions else 0.0

    @property
    def conversion(self) -> float:
        """Answers that converted, as a share; 0 without answers."""
        return self.converted / self.impressions if self.impressions else 0.0

    @property
    def degraded_share(self) -> float:
        """Answers that were degraded, as a share; 0 without answers."""
        return self.degraded / self.impressions if self.impressions else 0.0

    def ctr_interval(self) -> tuple[float, float]:
        """The 95 % Wilson interval of the CTR."""
        return wilson_interval(self.clicked, self.impressions)

    def latency_s(self, q: float) -> float:
        """The q-quantile of the latency, seconds; 0 without answers, the last bound for what lies past it."""
        counts = [self.latencies.get(bucket, 0) for bucket in range(len(LATENCY_BOUNDS_S) + 1)]
        if not sum(counts):
            return 0.0
        value = percentile(LATENCY_BOUNDS_S, counts, q)
        return value if isfinite(value) else LATENCY_BOUNDS_S[-1]
