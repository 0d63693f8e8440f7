"""Decodes calls, hands them to the handlers, encodes the answers."""

from __future__ import annotations

from gyre.inference.v1 import inference_pb2 as pb
from gyre.inference.v1 import inference_pb2_grpc as rpc
from opentelemetry import trace

from gyre_inference.domain import FeatureBlock
from gyre_inference.handlers import Inference


class InferenceServicer(rpc.InferenceServiceServicer):
    """`gyre.inference.v1.InferenceService`."""

    def __init__(self, inference: Inference) -> None:
        self._inference = inference

    async def Predict(self, request: pb.PredictRequest, context: object) -> pb.PredictResponse:
        """Score rows with one version."""
        span = trace.get_current_span()
        if span.is_recording():
            span.set_attributes(
                {"gyre.loop": request.loop, "gyre.version": request.version, "gyre.epoch": request.epoch}
            )
        given = request.features
        block = FeatureBlock(given.layout, given.rows, given.columns, given.values)
        scores = await self._inference.predict(request.loop, request.version, block)
        return pb.PredictResponse(scores=scores, version=request.version)

    async def ListModels(self, request: pb.ListModelsRequest, context: object) -> pb.ListModelsResponse:
        """List the versions that are loaded."""
        loaded = await self._inference.list_models(request.loop)
        models = [pb.LoadedModel(loop=each.loop, version=each.version, ready=each.is_ready) for each in loaded]
        return pb.ListModelsResponse(models=models)
