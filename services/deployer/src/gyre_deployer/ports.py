"""What the handlers need from the outside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from gyre_deployer.domain.alerts import Alert
from gyre_deployer.domain.loading import LoadRecord, ModelState
from gyre_deployer.domain.observation import ObservedGateway
from gyre_deployer.domain.rollouts import Candidate, Change, LoopState

F32 = npt.NDArray[np.float32]


class CandidateRefused(Exception):  # noqa: N818 - reads as what it says about the candidate
    """A candidate is not fit to be served, and trying again does not help."""


class FencedByPeer(Exception):  # noqa: N818 - reads as what it says about this process
    """Another deployer took the loop over: stop at once."""


@dataclass(frozen=True, slots=True)
class Artifact:
    """The files of a candidate, checked against what was announced.

    Attributes:
        graph: the ONNX file's bytes.
        features: golden requests, float32 [n, columns].
        scores: the answers that the model gave when it was exported, float32 [n].
    """

    graph: bytes
    features: F32
    scores: F32


class RolloutLog(Protocol):
    """The log of one loop, its snapshots and its projection, written together."""

    async def read(self) -> tuple[LoopState, int]:
        """The state that was written last, and the epoch of the snapshot that it was read from, 0 for none.

        Raises:
            Precondition: changes since the last snapshot are gone from the log.
            Unavailable: Kafka went away.
        """

    async def append(
        self, changes: Sequence[Change], state: LoopState, *, waiting: Sequence[Candidate], is_snapshot: bool
    ) -> None:
        """Write changes, the projection of the state after them and, if asked, a snapshot of it, all or nothing.

        Args:
            changes: what happened.
            state: after them.
            waiting: candidates whose rollout has not begun, which the projection names, too.
            is_snapshot: whether to write a snapshot.

        Raises:
            FencedByPeer: another deployer writes the log now; nothing was written.
            Unavailable: it is not known whether they were written: `reopen`, then `read`.
        """

    async def reopen(self) -> None:
        """Connect anew after a failure, waiting for Kafka as long as it takes."""


class Candidates(Protocol):
    """The candidates that were registered and are not decided yet, and perhaps some that are."""

    def all(self) -> list[Candidate]:
        """Every candidate, oldest first, each version once."""

    def decided_offset(self, state: LoopState) -> int:
        """The offset in their topic before which every one is decided in a state, which may not be written yet."""

    def prune(self, state: LoopState) -> None:
        """Forget those that are decided in a state that was written."""


class Layouts(Protocol):
    """The feature layouts of a loop."""

    @property
    def loop(self) -> str:
        """The loop's name."""

    def columns(self, layout: str) -> Sequence[str] | None:
        """The columns of a layout, by its hash; None for one that is not known."""

    def waits_for(self, layout: str) -> str:
        """Why a model that reads a layout cannot be asked yet, in words; empty where nothing is in the way."""


class Gateways(Protocol):
    """What the gateways say."""

    def reports(self) -> list[ObservedGateway]:
        """The newest report of each gateway that ever reported."""


REPOSITORY_UNAVAILABLE = "REPOSITORY_UNAVAILABLE"
"""The reason of an Unavailable that says nothing of the model server: files cannot be reached."""
TRITON_TIMED_OUT = "TRITON_TIMED_OUT"
"""The reason of an Unavailable whose call took all the time that it had."""


class ModelServer(Protocol):
    """The inference server; Unavailable means that it is away, and anybody may try again.

    Each method raises it with the reason TRITON_TIMED_OUT where the time for the answer was over.
    """

    async def is_live(self) -> bool:
        """Whether it answers."""

    async def is_ready(self, name: str) -> bool:
        """Whether a model is loaded and can answer."""

    async def models(self) -> Mapping[str, ModelState]:
        """What the server says of each model, of any loop, that lies in its repository.

        Raises:
            Unavailable: the server is away, or cannot read its repository (REPOSITORY_UNAVAILABLE).
        """

    async def load(self, name: str) -> None:
        """Load a model from the repository, again where its files changed.

        Raises:
            CandidateRefused: the server cannot load it.
            Unavailable: the call broke off or took too long; whether the model is loaded is not known. Or the server
                does not see the model's files (REPOSITORY_UNAVAILABLE).
        """

    async def unload(self, name: str) -> None:
        """Unload a model, if it is loaded, and return when it is gone."""

    async def score(self, name: str, features: F32) -> F32:
        """The scores, float32 [rows], of float32 [rows, columns].

        Raises:
            CandidateRefused: the model fails.
        """


class ModelRepository(Protocol):
    """The folder from which the model server loads.

    Each method raises Unavailable (REPOSITORY_UNAVAILABLE) where the file system does not do it now.
    """

    async def install(self, candidate: Candidate, graph: bytes, columns: int) -> bool:
        """Put a version there as a whole, unless the very same is there already; whether anything changed."""

    async def holds(self, loop: str, version: str) -> bool:
        """Whether a version is there."""

    async def versions(self, loop: str) -> list[str]:
        """The versions of a loop that are there, whatever is left of half-written ones removed."""

    async def remove(self, loop: str, version: str) -> None:
        """Remove a version, if it is there."""

    async def load_records(self) -> dict[str, LoadRecord]:
        """The records of failed or unfinished attempts to load, of all loops, by the name of the model."""

    async def write_load_record(self, model: str, record: LoadRecord | None) -> None:
        """Write such a record in place of what is there; None removes it."""


class Artifacts(Protocol):
    """Where the trainer put its models."""

    async def read(self, candidate: Candidate) -> Artifact:
        """Read a candidate's files.

        Raises:
            CandidateRefused: a file is missing, broken, or not what was announced.
            Unavailable: the file system does not do it now (REPOSITORY_UNAVAILABLE).
        """


class Alerts(Protocol):
    """Where people are told that something is wrong."""

    async def publish(self, alert: Alert) -> None:
        """Publish an alert as it stands now; the same may be published more than once.

        Raises:
            Unavailable: Kafka does not take it.
        """
