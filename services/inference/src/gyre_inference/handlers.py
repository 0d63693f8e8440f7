"""What the service does: score with exactly the version asked for, or refuse; list what is loaded."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from gyre_core.models import triton_model
from gyre_runtime import GyreError, Invalid, Precondition, Violation, instrument, start_span, unknown_loop

from gyre_inference.domain import Catalogue, FeatureBlock, ServedModel, malformed, mismatch
from gyre_inference.ports import ScoringServer

_MAX_BOUND = 512


@dataclass(frozen=True, slots=True)
class Loaded:
    """A version that the rollout state names, and whether Triton can answer for it."""

    loop: str
    version: str
    is_ready: bool


class Inference:
    """Scores blocks of features."""

    def __init__(self, catalogue: Catalogue, server: ScoringServer) -> None:
        self._catalogue = catalogue
        self._server = server
        self._seconds: dict[tuple[str, str], Callable[[float], None]] = {}

    async def predict(self, loop: str, version: str, block: FeatureBlock) -> bytes:
        """Score the rows of a block: one float32 each, little-endian.

        Raises:
            NotFound: this process does not serve the loop (UNKNOWN_LOOP).
            Invalid: the block is malformed.
            Precondition: VERSION_NOT_SERVED or LAYOUT_MISMATCH.
            Unavailable: Triton does not answer (TRITON_UNAVAILABLE).
            DeadlineExceeded: not in time.
        """
        self._require(loop)
        try:
            return await self._predict(loop, version, block)
        except GyreError as error:
            instrument("gyre_inference_refused_total").add(loop=loop, reason=error.reason)
            raise

    async def _predict(self, loop: str, version: str, block: FeatureBlock) -> bytes:
        _require_whole(block)
        model = await self._model(loop, version)
        _require_fitting(model, block)
        started = time.perf_counter()
        with start_span("triton infer", attributes={"gyre.loop": loop, "gyre.version": version, "rows": block.rows}):
            try:
                scores = await self._server.score(model, block)
            except Precondition:
                self._catalogue.forget(loop, version)
                raise
        self._note(loop, version, time.perf_counter() - started)
        return scores

    def _note(self, loop: str, version: str, seconds: float) -> None:
        observe = self._seconds.get((loop, version))
        if observe is None:
            if len(self._seconds) >= _MAX_BOUND:  # versions come and go
                self._seconds.clear()
            observe = instrument("gyre_inference_predict_seconds").bind(loop=loop, version=version)
            self._seconds[loop, version] = observe
        observe(seconds)

    async def _model(self, loop: str, version: str) -> ServedModel:
        """What is known of the version; asks Triton rather than lag behind the rollout state."""
        model = self._catalogue.model(loop, version)
        if model is None:
            model = await self._server.describe(triton_model(loop, version))
            self._catalogue.remember(loop, version, model)
        return model

    async def list_models(self, loop: str) -> list[Loaded]:
        """List the versions that the rollout state names, of one loop or of all for an empty name."""
        if loop:
            self._require(loop)
        named = [
            (each, version)
            for each in ([loop] if loop else self._catalogue.loops)
            for version in self._catalogue.loaded(each)
        ]
        ready = await asyncio.gather(*(self._server.is_ready(triton_model(each, version)) for each, version in named))
        return [Loaded(each, version, yes) for (each, version), yes in zip(named, ready, strict=True)]

    def _require(self, loop: str) -> None:
        if not self._catalogue.knows(loop):
            raise unknown_loop(loop)


def _require_whole(block: FeatureBlock) -> None:
    problem = malformed(block)
    if problem:
        violation = Violation("features.values", f"{len(block.values)} bytes", problem)
        raise Invalid("INVALID_FIELD", str(violation), violations=[violation])


def _require_fitting(model: ServedModel, block: FeatureBlock) -> None:
    problem = mismatch(model, block)
    if problem:
        raise Precondition("LAYOUT_MISMATCH", problem)
    if block.rows > model.max_rows:
        violation = Violation("features.rows", str(block.rows), f"must be at most {model.max_rows}")
        raise Invalid("INVALID_FIELD", str(violation), violations=[violation])
