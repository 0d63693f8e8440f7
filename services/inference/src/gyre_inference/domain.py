"""What is known about a served model, and the checks of a request against it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

FLOAT_BYTES = 4


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A version as Triton serves it.

    Attributes:
        name: on Triton.
        layout: hash of the feature layout that it reads; empty where the model does not tell.
        columns: features in a row.
        max_rows: most rows in one request.
    """

    name: str
    layout: str
    columns: int
    max_rows: int


@dataclass(frozen=True, slots=True)
class FeatureBlock:
    """A feature matrix: rows × columns float32, little-endian, row by row."""

    layout: str
    rows: int
    columns: int
    values: bytes


def malformed(block: FeatureBlock) -> str | None:
    """Why a block cannot be what any model reads, or None."""
    if block.rows < 1 or block.columns < 1:
        return "must have at least one row and one column"
    expected = block.rows * block.columns * FLOAT_BYTES
    if len(block.values) != expected:
        return f"must hold {block.rows} x {block.columns} float32, {expected} bytes, not {len(block.values)}"
    if not np.isfinite(np.frombuffer(block.values, dtype="<f4")).all():
        return "must be finite"
    return None


def mismatch(model: ServedModel, block: FeatureBlock) -> str | None:
    """Why a block is not what this model reads, or None."""
    if model.layout and block.layout != model.layout:
        return f"the model reads layout {model.layout}, the features are of {block.layout or 'none'}"
    if block.columns != model.columns:
        return f"the model reads {model.columns} columns, the features have {block.columns}"
    return None


class Catalogue:
    """Which versions the rollout state says are loaded, and what Triton told about those that were asked for."""

    def __init__(self, loops: Iterable[str]) -> None:
        self._loaded: dict[str, tuple[str, ...]] = dict.fromkeys(loops, ())
        self._models: dict[tuple[str, str], ServedModel] = {}

    @property
    def loops(self) -> tuple[str, ...]:
        """The loops that this process serves."""
        return tuple(self._loaded)

    def knows(self, loop: str) -> bool:
        """Whether this process serves the loop."""
        return loop in self._loaded

    def loaded(self, loop: str) -> tuple[str, ...]:
        """The versions that the rollout state names as loaded."""
        return self._loaded[loop]

    def adopt(self, loop: str, versions: Iterable[str]) -> None:
        """Take over the loaded versions of a new rollout state, and forget those that are gone."""
        self._loaded[loop] = tuple(versions)
        for key in [key for key in self._models if key[0] == loop and key[1] not in self._loaded[loop]]:
            del self._models[key]

    def model(self, loop: str, version: str) -> ServedModel | None:
        """What is remembered of a version."""
        return self._models.get((loop, version))

    def remember(self, loop: str, version: str, model: ServedModel) -> None:
        """Keep what Triton told."""
        self._models[loop, version] = model

    def forget(self, loop: str, version: str) -> None:
        """Ask Triton again next time."""
        self._models.pop((loop, version), None)
