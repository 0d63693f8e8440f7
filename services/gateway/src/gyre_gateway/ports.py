"""What the handlers need from the outside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from gyre_gateway.domain.events import OutgoingEvent
from gyre_gateway.domain.ranking import F32
from gyre_gateway.domain.requests import Features, RankedAnswer, Request


class FeatureStore(Protocol):
    """The features service."""

    async def read(self, request: Request, *, layout: str, timeout_s: float) -> Features:
        """The features of a request's candidates in a layout, the loop's own for an empty one.

        Raises:
            Precondition: the layout is not maintained (LAYOUT_NOT_SERVED).
            GyreError: the service did not answer in time, or not what was asked for.
        """

    async def popular(self, request: Request, *, limit: int, timeout_s: float) -> Sequence[str]:
        """Popular items, in all and with the user, most popular first; raises GyreError."""


class ScoringService(Protocol):
    """The inference service."""

    async def score(self, request: Request, features: Features, *, version: str, epoch: int, timeout_s: float) -> F32:
        """One score for each row, as the version gave them; raises GyreError."""


class Impressions(Protocol):
    """Where answers are written down."""

    def write(self, answer: RankedAnswer) -> None:
        """Write one down without waiting; the bounded loss is counted."""


class Intake(Protocol):
    """Where tracked events go."""

    async def send(self, loop: str, events: Sequence[OutgoingEvent], *, source: str) -> None:
        """Take all events of a loop, in any order; returns when they are safe.

        Args:
            loop: the loop.
            events: whose ids are unique within their source.
            source: their CloudEvents source.

        Raises:
            Unavailable: some are not, and others may be: send all again.
            Invalid: one is too large (RECORD_TOO_LARGE, with its field); none was taken.
        """
