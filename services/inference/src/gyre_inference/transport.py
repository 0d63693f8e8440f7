"""`Predict` and `ListModels` over gRPC."""

import time
from collections.abc import Mapping

import numpy as np
from gyre.events.v1 import models_pb2
from gyre.inference.v1 import inference_pb2 as pb
from gyre.inference.v1 import inference_pb2_grpc as rpc
from gyre_core.spec import LoopSpec
from gyre_runtime import Invalid, NotFound, Precondition, instrument
from gyre_runtime.context import current_call
from gyre_runtime.kafka import View

from gyre_inference.triton import Triton, model_name

_MARGIN_S = 0.001


class InferenceServicer(rpc.InferenceServiceServicer):
    """Serves exactly the version asked for, or refuses.

    Args:
        triton: where the models are.
        loops: the loops served here.
        views: the rollout view of each loop, which says what layout each live version reads.
    """

    def __init__(self, triton: Triton, loops: Mapping[str, LoopSpec], views: Mapping[str, View]) -> None:
        self._triton = triton
        self._loops = loops
        self._views = views
        self._columns: dict[str, int] = {}
        self._seconds = instrument("gyre_inference_predict_seconds")

    async def Predict(self, request: pb.PredictRequest, context: object) -> pb.PredictResponse:
        """Score rows.

        Raises:
            NotFound: the loop is not served here.
            Invalid: the block's size is not rows times columns.
            Precondition: the version is not served (VERSION_NOT_SERVED) or reads another layout (LAYOUT_MISMATCH).
            Unavailable: Triton does not answer.
            DeadlineExceeded: Triton is late.
        """
        try:
            return await self._predict(request)
        except (Precondition, NotFound) as error:
            loop = request.loop if request.loop in self._loops else "unknown"
            instrument("gyre_inference_refused_total").add(loop=loop, reason=error.reason)
            raise

    async def _predict(self, request: pb.PredictRequest) -> pb.PredictResponse:
        if request.loop not in self._loops:
            raise NotFound("UNKNOWN_LOOP", f"loop = {request.loop!r}: is not served here")
        block = request.features
        if len(block.values) != 4 * block.rows * block.columns or block.rows == 0:
            raise Invalid(
                "BAD_BLOCK",
                f"features.values = {len(block.values)} bytes: must be 4 × {block.rows} rows × {block.columns} columns",
            )
        self._check_layout(request)
        name = model_name(request.loop, request.version)
        await self._check_columns(name, block.columns)
        matrix = np.frombuffer(block.values, dtype="<f4").reshape(block.rows, block.columns)
        call = current_call()
        started = time.perf_counter()
        try:
            scores = await self._triton.score(name, matrix, timeout_s=(call.remaining_s() if call else 1.0) - _MARGIN_S)
        except Precondition:
            self._columns.pop(name, None)
            raise
        self._seconds.observe(time.perf_counter() - started, loop=request.loop, version=request.version)
        return pb.PredictResponse(scores=scores, version=request.version)

    def _check_layout(self, request: pb.PredictRequest) -> None:
        event = self._views[request.loop].get(request.loop)
        view = event.message if event else models_pb2.RolloutView()
        for arm in view.arms:
            if arm.version == request.version and arm.layout and arm.layout != request.features.layout:
                raise Precondition(
                    "LAYOUT_MISMATCH",
                    f"features.layout = {request.features.layout!r}: {request.version} reads {arm.layout}",
                )

    async def _check_columns(self, name: str, columns: int) -> None:
        known = self._columns.get(name)
        if known is None:
            known = self._columns[name] = await self._triton.columns(name)
        if known != columns:
            raise Precondition("LAYOUT_MISMATCH", f"features.columns = {columns}: {name} reads {known}")

    async def ListModels(self, request: pb.ListModelsRequest, context: object) -> pb.ListModelsResponse:
        """Answer the versions in Triton's repository."""
        models = []
        for name, ready in sorted((await self._triton.loaded()).items()):
            loop, _, version = name.partition("--")
            if version and request.loop in ("", loop):
                models.append(pb.LoadedModel(loop=loop, version=version, ready=ready))
        return pb.ListModelsResponse(models=models)
