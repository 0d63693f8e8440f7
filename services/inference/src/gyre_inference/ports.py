"""What the handlers need from the outside."""

from __future__ import annotations

from typing import Protocol

from gyre_inference.domain import FeatureBlock, ServedModel


class ScoringServer(Protocol):
    """Scores with models that somebody else loads."""

    async def describe(self, name: str) -> ServedModel:
        """What the server tells about a model.

        Raises:
            Precondition: it is not loaded (VERSION_NOT_SERVED).
            Unavailable: the server does not answer (TRITON_UNAVAILABLE).
            DeadlineExceeded: not in time.
        """

    async def score(self, model: ServedModel, block: FeatureBlock) -> bytes:
        """One float32 for each row, little-endian.

        Raises:
            Precondition: it is not loaded (VERSION_NOT_SERVED).
            Unavailable: the server does not answer (TRITON_UNAVAILABLE).
            DeadlineExceeded: not in time.
            GyreError: the model failed (MODEL_FAILED).
        """

    async def is_ready(self, name: str) -> bool:
        """Whether the server can answer for a model."""

    async def is_live(self) -> bool:
        """Whether the server answers at all."""
