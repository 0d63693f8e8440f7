"""Keeps the model server at what the log says: installs, loads, warms, unloads, cleans up."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

import numpy as np
from gyre_core.features import Layout
from gyre_core.models import triton_model
from gyre_runtime import instrument

from gyre_deployer.domain.rollouts import Candidate, LoopState
from gyre_deployer.ports import F32, Artifact, Artifacts, ModelRepository, ModelServer, Refused

TOLERANCE = 1e-4
"""The largest difference from a golden answer, absolute, or relative to it where it is greater than 1."""
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WarmUp:
    """How many requests of what size warm a candidate up."""

    requests: int
    rows: int


class Serving:
    """The loop's versions on the model server."""

    def __init__(
        self, layout: Layout, server: ModelServer, repository: ModelRepository, artifacts: Artifacts, warm_up: WarmUp
    ) -> None:
        self._layout = layout
        self._loop = layout.loop
        self._server = server
        self._repository = repository
        self._artifacts = artifacts
        self._warm_up = warm_up

    async def validate(self, candidate: Candidate) -> str:
        """Check a candidate, load it, and compare its answers to the golden requests; say what was found.

        Raises:
            Refused: it is not fit to be served; nothing of it is left on the server.
            Unavailable: the server is away; nothing is decided.
        """
        artifact = await self._checked(candidate)
        await self._install(candidate, artifact)
        try:
            await self._load(candidate.version)
            worst = await self._worst_difference(candidate.version, artifact)
        except Refused:
            await self.forget(candidate.version)
            raise
        return f"{len(artifact.scores)} golden requests answered within {worst:.1e}"

    async def _checked(self, candidate: Candidate) -> Artifact:
        columns = self._layout.columns
        if candidate.layout != self._layout.hash:
            raise Refused(f"layout = {candidate.layout!r}: must be {self._layout.hash!r}, the loop's current one")
        unknown = [name for name in candidate.columns if name not in self._layout.index]
        if unknown or len(set(candidate.columns)) < len(candidate.columns):
            raise Refused(f"columns = {unknown or list(candidate.columns)}: must be columns of the layout, each once")
        artifact = await self._artifacts.read(candidate)
        if artifact.features.shape[1] != len(columns):
            width = artifact.features.shape[1]
            raise Refused(f"golden features have {width} columns: must have the layout's {len(columns)}")
        return artifact

    async def load(self, candidate: Candidate) -> str:
        """Have the server hold a validated candidate, also when it was restarted since; say so.

        Raises:
            Refused: it cannot be loaded.
            Unavailable: the server is away.
        """
        if not await self._server.is_ready(triton_model(self._loop, candidate.version)):
            await self._install(candidate, await self._artifacts.read(candidate))
            await self._load(candidate.version)
        return "loaded beside the live model"

    async def _install(self, candidate: Candidate, artifact: Artifact) -> None:
        await self._repository.install(candidate, artifact.graph, len(self._layout.columns))

    async def _load(self, version: str) -> None:
        await self._server.load(triton_model(self._loop, version))

    async def _worst_difference(self, version: str, artifact: Artifact) -> float:
        scores = await self._server.score(triton_model(self._loop, version), artifact.features)
        differences = np.abs(scores - artifact.scores) / np.maximum(1.0, np.abs(artifact.scores))
        worst = float(differences.max())
        if not worst <= TOLERANCE:
            raise Refused(f"a golden request is answered {worst:.1e} away: must be within {TOLERANCE:.0e}")
        return worst

    async def warm(self, candidate: Candidate) -> str:
        """Ask a loaded candidate requests of the real size; say how long they took.

        Raises:
            Refused: it fails.
            Unavailable: the server is away.
        """
        artifact = await self._artifacts.read(candidate)
        rows = _tiled(artifact.features, self._warm_up.rows)
        observe = instrument("gyre_deployer_warmup_seconds").bind(loop=self._loop, version=candidate.version)
        times = []
        for _ in range(self._warm_up.requests):
            started = time.perf_counter()
            await self._server.score(triton_model(self._loop, candidate.version), rows)
            times.append(time.perf_counter() - started)
            observe(times[-1])
        median, slowest = np.median(times) * 1000, max(times) * 1000
        return f"{len(times)} requests of {len(rows)} rows: median {median:.1f} ms, slowest {slowest:.1f} ms"

    async def ensure_loaded(self, state: LoopState) -> list[str]:
        """Load again what the server should hold and does not, because it was restarted; return those versions.

        Raises:
            Unavailable: the server is away.
        """
        missing = [
            version for version in state.loaded if not await self._server.is_ready(triton_model(self._loop, version))
        ]
        for version in sorted(missing, key=lambda each: each != state.live):
            await self._restore(state, version)
        return missing

    async def _restore(self, state: LoopState, version: str) -> None:
        """One version that cannot be restored must not keep the others, which serve requests, from coming back."""
        rollout = state.of_version(version)
        try:
            if rollout is not None and not await self._repository.holds(self._loop, version):
                await self._install(rollout.candidate, await self._artifacts.read(rollout.candidate))
            await self._load(version)
        except Refused as error:
            _LOG.error("a version cannot be loaded again", extra={"version": version, "problem": str(error)})
        else:
            instrument("gyre_deployer_reloads_total").add(loop=self._loop, version=version)
            _LOG.warning("loaded again: the model server had lost it", extra={"loop": self._loop, "version": version})

    async def unload(self, version: str) -> None:
        """Take a version off the server; its files stay until `sweep`.

        Raises:
            Unavailable: the server is away.
        """
        await self._server.unload(triton_model(self._loop, version))

    async def forget(self, version: str) -> None:
        """Take a version off the server and its files out of the repository.

        Raises:
            Unavailable: the server is away; the files are still there.
        """
        await self._server.unload(triton_model(self._loop, version))
        await self._repository.remove(self._loop, version)

    async def sweep(self, state: LoopState) -> None:
        """Forget every version in the repository that the log does not know as loaded or under way.

        Raises:
            Unavailable: the server is away.
        """
        kept = {*state.loaded, state.under_way.version if state.under_way else ""}
        for version in await self._repository.versions(self._loop):
            if version not in kept:
                await self.forget(version)


def _tiled(features: F32, rows: int) -> F32:
    repeats = -(-rows // len(features))
    tiled: F32 = np.tile(features, (repeats, 1))[:rows]
    return tiled
