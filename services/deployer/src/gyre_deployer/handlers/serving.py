"""Keeps the model server at what the log says: installs, loads, warms, unloads, cleans up."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from gyre_core.models import triton_model
from gyre_runtime import Unavailable, instrument

from gyre_deployer.domain.loading import LoadRecord
from gyre_deployer.domain.rollouts import Candidate, LoopState
from gyre_deployer.domain.strangers import spare
from gyre_deployer.handlers.loading import LoadAttempts, Postponed
from gyre_deployer.ports import (
    F32,
    REPOSITORY_UNAVAILABLE,
    Artifact,
    Artifacts,
    CandidateRefused,
    Layouts,
    ModelRepository,
    ModelServer,
)

TOLERANCE = 1e-4
"""The largest difference from a golden answer, absolute, or relative to it where it is greater than 1."""
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WarmUp:
    """How many requests of what size warm a candidate up."""

    requests: int
    rows: int


class ServedVersions:
    """The loop's versions on the model server."""

    def __init__(
        self,
        layouts: Layouts,
        server: ModelServer,
        repository: ModelRepository,
        artifacts: Artifacts,
        warm_up: WarmUp,
        attempts: LoadAttempts,
    ) -> None:
        self._loop, self._layouts = layouts.loop, layouts
        self._server = server
        self._repository = repository
        self._artifacts = artifacts
        self._warm_up = warm_up
        self._attempts = attempts

    async def validate(self, candidate: Candidate) -> str:
        """Check a candidate, load it, and compare its answers to the golden requests; say what was found.

        Raises:
            CandidateRefused: it is not fit to be served; nothing of it is left on the server.
            Postponed: an attempt to load it failed, and the next one is not due yet.
            Unavailable: the server is away; nothing is decided.
        """
        artifact = await self._checked(candidate)
        try:
            worst = await self._attempts.run(
                self._model(candidate.version),
                lambda: self._first_load(candidate, artifact),
                prepare=lambda: self._install(candidate, artifact),
            )
        except CandidateRefused:
            await self.forget(candidate.version)
            raise
        return f"{len(artifact.scores)} golden requests answered within {worst:.1e}"

    async def _first_load(self, candidate: Candidate, artifact: Artifact) -> float:
        await self._load(candidate.version)
        return await self._worst_difference(candidate.version, artifact)

    async def _checked(self, candidate: Candidate) -> Artifact:
        columns = self._layouts.columns(candidate.layout)
        if columns is None:
            raise CandidateRefused(f"layout = {candidate.layout!r}: must be one that features-stream maintains")
        unknown = [name for name in candidate.columns if name not in columns]
        if unknown or len(set(candidate.columns)) < len(candidate.columns):
            raise CandidateRefused(
                f"columns = {unknown or list(candidate.columns)}: must be columns of the layout, each once"
            )
        artifact = await self._artifacts.read(candidate)
        if artifact.features.shape[1] != len(columns):
            width = artifact.features.shape[1]
            raise CandidateRefused(f"golden features have {width} columns: must have the layout's {len(columns)}")
        return artifact

    async def load(self, candidate: Candidate) -> str:
        """Have the server hold a validated candidate, also when it was restarted since; say so.

        Raises:
            CandidateRefused: it cannot be loaded.
            Postponed: an attempt to load it failed, and the next one is not due yet.
            Unavailable: the server is away.
        """
        if not await self._server.is_ready(self._model(candidate.version)):
            await self._reload(candidate, keeps_losses=True)
        return "loaded beside the live model"

    async def _reload(self, candidate: Candidate, *, keeps_losses: bool, has_served: bool = False) -> None:
        """Load a version from the repository; what is lost or broken there is made again from the artefact."""
        await self._attempts.run(
            self._model(candidate.version),
            lambda: self._load_or_mend(candidate),
            prepare=lambda: self._complete(candidate),
            keeps_losses=keeps_losses,
            has_served=has_served,
        )

    async def _complete(self, candidate: Candidate) -> None:
        if not await self._repository.holds(self._loop, candidate.version):
            await self._install(candidate, await self._artifacts.read(candidate))

    async def _load_or_mend(self, candidate: Candidate) -> None:
        try:
            await self._load(candidate.version)
        except CandidateRefused:
            if not await self._install(candidate, await self._artifacts.read(candidate)):
                raise
            await self._load(candidate.version)

    async def _install(self, candidate: Candidate, artifact: Artifact) -> bool:
        """Put a version into the repository; its golden requests are as wide as the layout that it reads."""
        return await self._repository.install(candidate, artifact.graph, artifact.features.shape[1])

    def _model(self, version: str) -> str:
        return triton_model(self._loop, version)

    async def _load(self, version: str) -> None:
        await self._server.load(self._model(version))

    async def _worst_difference(self, version: str, artifact: Artifact) -> float:
        scores = await self._server.score(self._model(version), artifact.features)
        differences = np.abs(scores - artifact.scores) / np.maximum(1.0, np.abs(artifact.scores))
        worst = float(differences.max())
        if not worst <= TOLERANCE:
            raise CandidateRefused(f"a golden request is answered {worst:.1e} away: must be within {TOLERANCE:.0e}")
        return worst

    async def warm(self, candidate: Candidate) -> str:
        """Ask a loaded candidate requests of the real size; say how long they took.

        Raises:
            CandidateRefused: it fails.
            Postponed: it was asked before, the server went away, and the next attempt is not due yet.
            Unavailable: the server is away.
        """
        artifact = await self._artifacts.read(candidate)
        rows = _tiled(artifact.features, self._warm_up.rows)
        times = await self._attempts.run(self._model(candidate.version), lambda: self._timed(candidate.version, rows))
        median, slowest = np.median(times) * 1000, max(times) * 1000
        return f"{len(times)} requests of {len(rows)} rows: median {median:.1f} ms, slowest {slowest:.1f} ms"

    async def _timed(self, version: str, rows: F32) -> list[float]:
        observe = instrument("gyre_deployer_warmup_seconds").bind(loop=self._loop, version=version)
        times = []
        for _ in range(self._warm_up.requests):
            started = time.perf_counter()
            await self._server.score(self._model(version), rows)
            times.append(time.perf_counter() - started)
            observe(times[-1])
        return times

    async def unloadable(self) -> dict[str, LoadRecord]:
        """Versions that cannot be loaded, with their attempts; first finds out how attempts that broke off ended.

        Raises:
            Unavailable: the server is away.
        """
        await self._attempts.close()
        return await self._attempts.hopeless(self._loop)

    async def lost(self, state: LoopState) -> list[str]:
        """The versions that the server should hold and does not, because it was restarted, in the order to load them.

        Live and last good come first, unless the server ended during their last attempt: whether it was their doing
        shows when others are loaded before.

        Raises:
            Unavailable: the server is away.
        """
        under_way = state.under_way
        order = (state.live, state.last_good, under_way.version if under_way else "")
        lost = [each for each in state.loaded if not await self._server.is_ready(self._model(each))]
        losses = {each: await self._attempts.losses(self._model(each)) for each in lost}
        return sorted(lost, key=lambda each: (losses[each], order.index(each) if each in order else len(order)))

    async def restore(self, state: LoopState, lost: Sequence[str]) -> dict[str, str]:
        """Load versions again; those that are still missing, with the reason in words for a person.

        Raises:
            Unavailable: the server is away.
        """
        problems = {version: await self._restored(state, version) for version in lost}
        return {version: problem for version, problem in problems.items() if problem}

    async def _restored(self, state: LoopState, version: str) -> str:
        """Load a version again; why it is not loaded, which must not keep the others, which serve, from coming back."""
        rollout = state.of_version(version)
        if rollout is None:
            return f"{version} has no rollout"
        try:
            has_served = version in (state.live, state.last_good)
            await self._reload(rollout.candidate, keeps_losses=rollout.is_under_way, has_served=has_served)
        except Postponed as pause:
            return str(pause)
        except CandidateRefused as error:
            _LOG.error("a version cannot be loaded again", extra={"version": version, "problem": str(error)})
            return str(error)
        instrument("gyre_deployer_reloads_total").add(loop=self._loop)
        _LOG.warning("loaded again: the model server had lost it", extra={"loop": self._loop, "version": version})
        return ""

    async def unload(self, version: str) -> None:
        """Take a version off the server; its files stay until `sweep`.

        Raises:
            Unavailable: the server is away.
        """
        await self._server.unload(self._model(version))

    async def forget(self, version: str) -> None:
        """Take a version off the server and its files out of the repository.

        Raises:
            Unavailable: the server is away; the files are still there.
        """
        await self._server.unload(self._model(version))
        await self._repository.remove(self._loop, version)
        await self._attempts.forget(self._model(version))

    async def sweep(self, state: LoopState, *, with_strangers: bool) -> None:
        """Forget every version in the repository that the log does not know as loaded or under way.

        One that cannot be removed holds back no other. Records of attempts whose files are gone are forgotten, too, but
        that a version ended the server.

        Args:
            state: what the log says.
            with_strangers: also those of which the log knows nothing.

        Raises:
            Unavailable: the server is away, or the file system removes not all of them.
        """
        problem: Unavailable | None = None
        installed = await self._repository.versions(self._loop)
        for version in spare(installed, state, with_strangers=with_strangers):
            try:
                await self.forget(version)
            except Unavailable as error:
                if error.reason != REPOSITORY_UNAVAILABLE:
                    raise
                problem = error
        recorded = [each for each in await self._attempts.recorded(self._loop) if each not in installed]
        await self._attempts.forget(*(self._model(each) for each in spare(recorded, state, with_strangers=True)))
        if problem is not None:
            raise problem


def _tiled(features: F32, rows: int) -> F32:
    repeats = -(-rows // len(features))
    tiled: F32 = np.tile(features, (repeats, 1))[:rows]
    return tiled
