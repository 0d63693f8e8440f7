"""What the feature algebra takes in and gives out: decoded events, the request's context, and the age of a read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

EntityKind = Literal["item", "user", "global"]
ENTITY_KINDS: tuple[EntityKind, ...] = ("item", "user", "global")

GLOBAL_ID = "all"
"""The id of the one entity of kind `global`."""

FieldValue = float | bool | str | Sequence[str] | Sequence[float]
"""A field as events carry it: number, time (unix seconds), boolean, text or category, categories, or a vector."""


class UserInteraction(NamedTuple):
    """A user did something with an item at `time` (unix seconds). A tuple: one is made for every event."""

    user_id: str
    item_id: str
    type: str
    time: float
    value: float | None = None


@dataclass(frozen=True, slots=True)
class Impression:
    """Items were shown to a user at `time` (unix seconds); `item_ids` are only those shown, not all logged."""

    user_id: str
    item_ids: Sequence[str]
    time: float


@dataclass(frozen=True, slots=True)
class FieldsChanged:
    """All fields of an entity from `time` (unix seconds) on: a declared field that is absent takes its default."""

    kind: EntityKind
    id: str
    time: float
    fields: Mapping[str, FieldValue]


Event = UserInteraction | Impression | FieldsChanged


@dataclass(frozen=True, slots=True)
class RequestContext:
    """When a request is answered (unix seconds on the loop's clock), the numbers and the labels that came with it.

    `positions` are the places of the candidates in the order in which the caller gave them, from 0; None where they are
    read in that order.
    """

    time: float
    numbers: Mapping[str, float] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    positions: Sequence[int] | None = None


@dataclass(frozen=True, slots=True)
class FeatureAge:
    """How far behind the stream a read is.

    Event times are unix seconds of the newest behaviour in a value, -inf where there is none. Batches are the numbers
    of the last batch in each value (`item_batches` is int64 of shape [n]), -1 where the entity is unknown.
    """

    user_event_time: float
    newest_event_time: float
    user_batch: int
    global_batch: int
    item_batches: npt.NDArray[np.int64]

    @property
    def missing_items(self) -> int:
        """How many of the candidates had no value in the store."""
        return int((self.item_batches < 0).sum())

    def user_age_s(self, now: float) -> float:
        """Seconds from the user's newest event to `now` (unix seconds), 0 where it is newer; -1 when there is none."""
        return max(now - self.user_event_time, 0.0) if np.isfinite(self.user_event_time) else -1.0
