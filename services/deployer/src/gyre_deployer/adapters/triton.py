"""Triton over its own gRPC API (https://github.com/triton-inference-server/common/blob/main/protobuf/grpc_service.proto).

The generated stubs of `tritonclient` on a channel of the mesh, so that errors are ours and every call has a deadline.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Self

import numpy as np
from gyre_core.models import INPUT, OUTPUT
from gyre_runtime import DeadlineExceeded, Exhausted, GyreError, Unavailable, channel
from gyre_runtime.settings import ChannelSettings
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc as rpc

from gyre_deployer.domain.loading import ModelState
from gyre_deployer.ports import F32, REPOSITORY_UNAVAILABLE, TRITON_TIMED_OUT, CandidateRefused
from gyre_deployer.settings import DeployerSettings

_POLL_S = 0.05
_ASK_S = 2.0
_STATES = {"READY": ModelState.READY, "LOADING": ModelState.LOADING, "": ModelState.UNASKED}
"""What the states of Triton's index mean, for others see `ModelState.UNAVAILABLE`."""


@contextmanager
def _asking() -> Iterator[None]:
    """Whatever goes wrong here, Triton is to blame."""
    try:
        yield
    except GyreError as error:
        reason = TRITON_TIMED_OUT if isinstance(error, DeadlineExceeded) else "TRITON_UNAVAILABLE"
        raise Unavailable(reason, f"Triton does not answer: {error.message[:200]}") from error


@contextmanager
def _trying(what: str) -> Iterator[None]:
    """Triton being away is one thing, a model that it cannot serve another."""
    with _asking():
        try:
            yield
        except (DeadlineExceeded, Exhausted, Unavailable):
            raise
        except GyreError as error:
            raise CandidateRefused(f"Triton cannot {what}: {error.message[:400]}") from error


class TritonControl:
    """See `ModelServer`; an async context manager.

    Args:
        settings: uses the address.
        timeout_s: of loading, unloading and scoring.
    """

    def __init__(self, settings: DeployerSettings, *, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        # Triton stands behind the mesh: it gets neither the mesh's token nor its certificates.
        plain = ChannelSettings(max_message_bytes=settings.max_message_bytes)
        self._channel = channel(settings.triton, plain, name="triton")
        self._stub = rpc.GRPCInferenceServiceStub(self._channel)

    async def __aenter__(self) -> Self:
        """Connects with the first call."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the channel."""
        await self._channel.close()

    async def is_live(self) -> bool:
        """See `ModelServer`."""
        with _asking():
            answer = await self._stub.ServerLive(pb.ServerLiveRequest(), timeout=_ASK_S)
        return bool(answer.live)

    async def is_ready(self, name: str) -> bool:
        """See `ModelServer`."""
        with _asking():
            answer = await self._stub.ModelReady(pb.ModelReadyRequest(name=name), timeout=_ASK_S)
        return bool(answer.ready)

    async def models(self) -> Mapping[str, ModelState]:
        """See `ModelServer`."""
        try:
            with _trying("read its repository"):
                answer = await self._stub.RepositoryIndex(pb.RepositoryIndexRequest(), timeout=_ASK_S)
        except CandidateRefused as error:
            raise Unavailable(REPOSITORY_UNAVAILABLE, str(error)) from error
        return {each.name: _STATES.get(each.state, ModelState.UNAVAILABLE) for each in answer.models}

    async def load(self, name: str) -> None:
        """See `ModelServer`."""
        request = pb.RepositoryModelLoadRequest(model_name=name)
        try:
            with _trying(f"load {name}"):
                await self._stub.RepositoryModelLoad(request, timeout=self._timeout_s)
        except CandidateRefused as error:
            if name not in await self.models():
                raise Unavailable(REPOSITORY_UNAVAILABLE, f"Triton does not see the files of {name}") from error
            raise

    async def unload(self, name: str) -> None:
        """See `ModelServer`."""
        request = pb.RepositoryModelUnloadRequest(model_name=name)
        with _asking():
            await self._stub.RepositoryModelUnload(request, timeout=self._timeout_s)
        async with asyncio.timeout(self._timeout_s):
            while await self.is_ready(name):  # noqa: ASYNC110 - Triton answers at once and unloads in the background
                await asyncio.sleep(_POLL_S)

    async def score(self, name: str, features: F32) -> F32:
        """See `ModelServer`."""
        tensor = pb.ModelInferRequest.InferInputTensor(name=INPUT, datatype="FP32", shape=features.shape)
        request = pb.ModelInferRequest(
            model_name=name,
            inputs=[tensor],
            outputs=[pb.ModelInferRequest.InferRequestedOutputTensor(name=OUTPUT)],
            raw_input_contents=[features.astype("<f4", copy=False).tobytes()],
        )
        try:
            with _trying(f"score with {name}"):
                answer = await self._stub.ModelInfer(request, timeout=self._timeout_s)
        except CandidateRefused as error:
            if not await self.is_ready(name):  # it was restarted meanwhile, which is not the model's fault
                raise Unavailable("TRITON_UNAVAILABLE", f"Triton does not hold {name}") from error
            raise
        content = b"".join(answer.raw_output_contents)
        if len(content) != 4 * len(features):
            raise CandidateRefused(f"{name} gave {len(content)} bytes for {len(features)} rows: must be 4 for each")
        scores: F32 = np.frombuffer(content, dtype="<f4")
        if not np.isfinite(scores).all():
            raise CandidateRefused(f"{name} gave scores for {len(features)} rows of which some are not finite")
        return scores
