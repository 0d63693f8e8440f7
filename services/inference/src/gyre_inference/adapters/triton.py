"""Triton over its own gRPC API (https://github.com/kserve/open-inference-protocol), with raw tensors in and out.

The generated stubs of `tritonclient` on a channel of the mesh: the caller's deadline passes on with a margin, several
addresses behind the name are used in turn, and nothing is converted on the way.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

import grpc
import numpy as np
from gyre_core.models import INPUT, LAYOUT_PARAMETER, OUTPUT
from gyre_runtime import (
    DeadlineExceeded,
    GyreError,
    NotFound,
    Precondition,
    Unavailable,
    channel,
)
from gyre_runtime.settings import ChannelSettings
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc as rpc

from gyre_inference.domain import FeatureBlock, ServedModel
from gyre_inference.settings import InferenceSettings


@contextmanager
def _translated(name: str) -> Iterator[None]:
    """Turn what Triton answers into what our callers can act on."""
    try:
        yield
    except NotFound as error:
        raise Precondition("VERSION_NOT_SERVED", f"{name} is not loaded") from error
    except Unavailable as error:
        raise Unavailable("TRITON_UNAVAILABLE", "Triton does not answer") from error
    except (DeadlineExceeded, Precondition):
        raise
    except GyreError as error:
        if error.reason == grpc.StatusCode.CANCELLED.name:
            raise Unavailable("TRITON_UNAVAILABLE", "Triton gave the call up") from error
        raise GyreError("MODEL_FAILED", f"{name} failed: {error.message[:200]}") from error


class TritonReplicas:
    """Every replica behind one name; an async context manager."""

    def __init__(self, settings: InferenceSettings, *, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        # Triton stands behind the mesh: it gets neither the mesh's token nor its certificates.
        plain = ChannelSettings(max_message_bytes=settings.max_message_bytes)
        self._channel = channel(f"dns:///{settings.triton}", plain, name="triton")
        self._stub = rpc.GRPCInferenceServiceStub(self._channel)

    async def __aenter__(self) -> Self:
        """Connects with the first call."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the channel."""
        await self._channel.close()

    async def describe(self, name: str) -> ServedModel:
        """See `ScoringServer`."""
        with _translated(name):
            answer = await self._stub.ModelConfig(pb.ModelConfigRequest(name=name), timeout=self._timeout_s)
        (features,) = answer.config.input
        layout = answer.config.parameters[LAYOUT_PARAMETER].string_value
        return ServedModel(name, layout, features.dims[-1], answer.config.max_batch_size)

    async def score(self, model: ServedModel, block: FeatureBlock) -> bytes:
        """See `ScoringServer`."""
        tensor = pb.ModelInferRequest.InferInputTensor(name=INPUT, datatype="FP32", shape=(block.rows, block.columns))
        wanted = pb.ModelInferRequest.InferRequestedOutputTensor(name=OUTPUT)
        request = pb.ModelInferRequest(
            model_name=model.name, inputs=[tensor], outputs=[wanted], raw_input_contents=[block.values]
        )
        with _translated(model.name):
            answer = await self._stub.ModelInfer(request, timeout=self._timeout_s)
        return _scores(model.name, answer.raw_output_contents[0], block.rows)

    async def is_ready(self, name: str) -> bool:
        """See `ScoringServer`."""
        with _translated(name):
            answer = await self._stub.ModelReady(pb.ModelReadyRequest(name=name), timeout=self._timeout_s)
        return bool(answer.ready)

    async def is_live(self) -> bool:
        """See `ScoringServer`."""
        with _translated("the server"):
            answer = await self._stub.ServerLive(pb.ServerLiveRequest(), timeout=self._timeout_s)
        return bool(answer.live)


def _scores(name: str, raw: bytes, rows: int) -> bytes:
    scores = np.frombuffer(raw, dtype="<f4")
    if scores.size != rows:
        raise GyreError("MODEL_FAILED", f"{name} gave {scores.size} scores for {rows} rows")
    if not np.isfinite(scores).all():
        raise GyreError("MODEL_FAILED", f"{name} gave scores that are not finite")
    return raw
