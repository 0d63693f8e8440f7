"""From candidates to scores: features, then the arm's model, then its fallbacks; it degrades and never fails."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from gyre.events.v1 import behavior_pb2 as behavior
from gyre.features.v1 import features_pb2 as features_pb
from gyre.features.v1 import features_pb2_grpc as features_rpc
from gyre.inference.v1 import inference_pb2 as inference_pb
from gyre.inference.v1 import inference_pb2_grpc as inference_rpc
from gyre_core.features import Layout
from gyre_core.spec import LoopSpec
from gyre_runtime import Channel, GyreError

from gyre_gateway.ranking import F32
from gyre_gateway.routing import Route, Router


@dataclass(frozen=True, slots=True)
class Request:
    """One list to rank."""

    loop: str
    user_id: str
    item_ids: Sequence[str]
    request_id: str
    now: float
    numbers: dict[str, float]
    method: "behavior.ImpressionMethod.ValueType"


@dataclass
class Scored:
    """Scores of the candidates and how they came about."""

    scores: F32
    route: Route
    version: str = ""
    degraded_reason: str = ""
    features: features_pb.GetFeaturesResponse = field(default_factory=features_pb.GetFeaturesResponse)


class Scorer:
    """Scores the requests of one loop."""

    def __init__(self, spec: LoopSpec, router: Router, features: Channel, inference: Channel) -> None:
        self.spec = spec
        self.layout = Layout.compile(spec)
        self._router = router
        self._features = features_rpc.FeaturesServiceStub(features)
        self._inference = inference_rpc.InferenceServiceStub(inference)
        column = spec.serving.fallback_feature
        self._fallback = self.layout.index[column] if column else None

    async def score(self, request: Request) -> Scored:
        """Score with the user's arm; degrade to the last good model, popularity, the caller's order."""
        route = self._router.route(request.user_id)
        features = await self._read(request, route)
        if features is None:
            return Scored(_caller_order(len(request.item_ids)), route, degraded_reason="FEATURES_UNAVAILABLE")
        if not route.version:
            return self._popular(features, route, "NO_MODEL")
        scores, reason = await self._predict(request, route, route.version, features)
        if scores is not None:
            reason = "CANDIDATE_TRIPPED" if route.tripped else ""
            return Scored(scores, route, version=route.version, degraded_reason=reason, features=features)
        if route.fallback:
            scores, _ = await self._predict(request, route, route.fallback, features)
            if scores is not None:
                return Scored(scores, route, version=route.fallback, degraded_reason=reason, features=features)
        return self._popular(features, route, reason)

    async def _read(self, request: Request, route: Route) -> features_pb.GetFeaturesResponse | None:
        call = features_pb.GetFeaturesRequest(
            loop=request.loop, user_id=request.user_id, item_ids=request.item_ids, context=request.numbers
        )
        call.layout = route.layout
        call.request_time.FromNanoseconds(int(request.now * 1e9))
        try:
            return await self._features.GetFeatures(call, timeout=self.spec.serving.feature_timeout_s)
        except GyreError:
            # Whatever is wrong with it, the request is answered without; the channel's metrics hold the code.
            return None

    async def _predict(
        self, request: Request, route: Route, version: str, features: features_pb.GetFeaturesResponse
    ) -> tuple[F32 | None, str]:
        call = inference_pb.PredictRequest(
            loop=request.loop, version=version, epoch=route.epoch, features=features.features
        )
        started = time.perf_counter()
        try:
            response = await self._inference.Predict(call, timeout=self.spec.serving.inference_timeout_s)
        except GyreError as error:
            self._router.note(version, seconds=None)
            return None, error.reason if error.reason.isupper() else "INFERENCE_UNAVAILABLE"
        scores = np.frombuffer(response.scores, dtype="<f4")
        if len(scores) != len(request.item_ids) or not np.isfinite(scores).all():
            self._router.note(version, seconds=None)
            return None, "BAD_SCORES"
        self._router.note(version, seconds=time.perf_counter() - started)
        return scores, ""

    def _popular(self, features: features_pb.GetFeaturesResponse, route: Route, reason: str) -> Scored:
        block = features.features
        if self._fallback is None or block.columns != len(self.layout.columns):
            scores = _caller_order(block.rows)
        else:
            matrix = np.frombuffer(block.values, dtype="<f4").reshape(block.rows, block.columns)
            scores = matrix[:, self._fallback]
        return Scored(scores, route, degraded_reason=reason, features=features)


def _caller_order(count: int) -> F32:
    return np.arange(count, 0, -1, dtype=np.float32)
