"""The inference service over gRPC."""

from __future__ import annotations

import numpy as np
from gyre.events.v1.behavior_pb2 import FeatureBlock
from gyre.inference.v1 import inference_pb2 as pb
from gyre.inference.v1 import inference_pb2_grpc as rpc
from gyre_runtime import Channel, GyreError

from gyre_gateway.domain.ranking import F32
from gyre_gateway.domain.requests import Features, Request

_FLOAT_BYTES = 4


class GrpcModels:
    """A `ScoringService` on a channel."""

    def __init__(self, channel: Channel) -> None:
        self._stub = rpc.InferenceServiceStub(channel)

    async def score(self, request: Request, features: Features, *, version: str, epoch: int, timeout_s: float) -> F32:
        """See `ScoringService`."""
        block = FeatureBlock(
            layout=features.layout, rows=features.rows, columns=features.columns, values=features.values
        )
        call = pb.PredictRequest(loop=request.loop, version=version, epoch=epoch, features=block)
        answer = await self._stub.Predict(call, timeout=timeout_s)
        if answer.version != version or len(answer.scores) % _FLOAT_BYTES:
            raise GyreError("BAD_ANSWER", f"{len(answer.scores)} bytes of version {answer.version!r} for {version!r}")
        return np.frombuffer(answer.scores, dtype="<f4")
