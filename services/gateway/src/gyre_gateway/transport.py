"""`Rank`, `Recommend` and `Track` over gRPC."""

import time
import uuid
from collections.abc import Mapping

from google.protobuf.timestamp_pb2 import Timestamp
from gyre.events.v1 import behavior_pb2 as behavior
from gyre.features.v1 import features_pb2 as features_pb
from gyre.features.v1 import features_pb2_grpc as features_rpc
from gyre.gateway.v1 import gateway_pb2 as pb
from gyre.gateway.v1 import gateway_pb2_grpc as rpc
from gyre_core.admission import refuse_interaction
from gyre_core.spec import LoopSpec
from gyre_core.topics import topic
from gyre_runtime import Channel, Invalid, NotFound, Violation, instrument
from gyre_runtime.kafka import Producer
from gyre_runtime.tracing import parse
from opentelemetry import trace

from gyre_gateway.impressions import impression
from gyre_gateway.ranking import rank
from gyre_gateway.scoring import Request, Scored, Scorer

SOURCE = "gateway"


def _invalid(field: str, value: object, rule: str) -> Invalid:
    return Invalid("INVALID_FIELD", f"{field} = {value}: {rule}", violations=[Violation(field, str(value)[:64], rule)])


def _seconds(time_: Timestamp) -> float:
    return time_.seconds + time_.nanos / 1e9


class GatewayServicer(rpc.GatewayServiceServicer):
    """The door of the mesh."""

    def __init__(self, scorers: Mapping[str, Scorer], producer: Producer, features: Channel) -> None:
        self._scorers = dict(scorers)
        self._producer = producer
        self._features = features_rpc.FeaturesServiceStub(features)
        self._requests = instrument("gyre_gateway_requests_total")
        self._latency = instrument("gyre_gateway_latency_seconds")

    def _scorer(self, loop: str) -> Scorer:
        scorer = self._scorers.get(loop)
        if scorer is None:
            raise NotFound("UNKNOWN_LOOP", f"loop = {loop!r}: is not served here", metadata={"loop": loop})
        return scorer

    async def Rank(self, request: pb.RankRequest, context: object) -> pb.RankResponse:
        """Order the caller's candidates.

        Raises:
            NotFound: the loop is not served.
            Invalid: a candidate is repeated, there are too many, or the replay clock has no time.
        """
        started = time.perf_counter()
        spec = self._scorer(request.loop).spec
        if len(set(request.item_ids)) != len(request.item_ids):
            twice = next(item for index, item in enumerate(request.item_ids) if item in request.item_ids[:index])
            raise _invalid("item_ids", twice, "is given twice")
        if len(request.item_ids) > spec.serving.max_candidates:
            raise _invalid("item_ids", len(request.item_ids), f"must be at most {spec.serving.max_candidates}")
        wanted = self._request(request, list(request.item_ids), behavior.IMPRESSION_METHOD_RANK)
        items, provenance = await self._answer(wanted, request.limit or len(request.item_ids), started)
        return pb.RankResponse(items=items, provenance=provenance)

    async def Recommend(self, request: pb.RecommendRequest, context: object) -> pb.RecommendResponse:
        """Find candidates among what is popular, with the user and in all, and order them."""
        started = time.perf_counter()
        serving = self._scorer(request.loop).spec.serving
        wanted = self._request(request, [], behavior.IMPRESSION_METHOD_RECOMMEND)
        call = features_pb.ListPopularRequest(
            loop=request.loop, user_id=request.user_id, limit=max(serving.recommend.popular, request.limit)
        )
        call.request_time.FromNanoseconds(int(wanted.now * 1e9))
        popular = await self._features.ListPopular(call, timeout=serving.feature_timeout_s)
        if not popular.item_ids:
            provenance = pb.Provenance(
                request_id=wanted.request_id, degraded=True, degraded_reason="NO_CANDIDATES", feature_age_s=-1
            )
            return pb.RecommendResponse(provenance=provenance)
        found = Request(
            loop=wanted.loop,
            user_id=wanted.user_id,
            item_ids=list(popular.item_ids),
            request_id=wanted.request_id,
            now=wanted.now,
            numbers=wanted.numbers,
            method=wanted.method,
        )
        items, provenance = await self._answer(found, request.limit, started)
        return pb.RecommendResponse(items=items, provenance=provenance)

    def _request(
        self,
        request: pb.RankRequest | pb.RecommendRequest,
        item_ids: list[str],
        method: "behavior.ImpressionMethod.ValueType",
    ) -> Request:
        spec = self._scorer(request.loop).spec
        now = time.time()
        if spec.clock == "replay":
            if not request.context.HasField("request_time"):
                raise _invalid("context.request_time", "unset", "is required on the replay clock")
            now = _seconds(request.context.request_time)
        return Request(
            loop=request.loop,
            user_id=request.user_id,
            item_ids=item_ids,
            request_id=request.request_id or uuid.uuid4().hex,
            now=now,
            numbers=dict(request.context.numbers),
            method=method,
        )

    async def _answer(self, request: Request, limit: int, started: float) -> tuple[list[pb.RankedItem], pb.Provenance]:
        scorer = self._scorers[request.loop]
        spec = scorer.spec
        scored = await scorer.score(request)
        salt, exploration = spec.experiment.salt, spec.experiment.exploration
        ranking = rank(scored.scores, request.request_id, exploration=exploration, salt=salt)
        shown = min(limit, len(request.item_ids))
        record = impression(request, scored, ranking, shown=shown, logged_rest=spec.serving.logged_rest)
        record.latency_s = time.perf_counter() - started
        name = topic(request.loop, "behavior.impressions")
        self._producer.enqueue(name, record, key=request.user_id, time=request.now, id=request.request_id)
        self._note(request, scored, record.latency_s)
        best = ranking.order[:shown]
        items = [
            pb.RankedItem(item_id=request.item_ids[row], score=score, propensity=ranking.propensity)
            for row, score in zip(best.tolist(), scored.scores[best].tolist(), strict=True)
        ]
        return items, pb.Provenance(
            request_id=request.request_id,
            model_version=scored.version,
            epoch=scored.route.epoch,
            arm=scored.route.arm,
            arm_propensity=scored.route.propensity,
            explored=ranking.explored,
            degraded=bool(scored.degraded_reason),
            degraded_reason=scored.degraded_reason,
            feature_age_s=record.feature_age_s,
        )

    def _note(self, request: Request, scored: Scored, latency_s: float) -> None:
        method = "rank" if request.method == behavior.IMPRESSION_METHOD_RANK else "recommend"
        labels = {"loop": request.loop, "method": method, "version": scored.version, "arm": scored.route.arm}
        self._requests.add(**labels, degraded=scored.degraded_reason)
        self._latency.observe(latency_s, **labels)
        span = trace.get_current_span()
        if not span.is_recording():
            return
        span.set_attributes(
            {
                "gyre.loop": request.loop,
                "gyre.request_id": request.request_id,
                "gyre.version": scored.version,
                "gyre.arm": scored.route.arm,
                "gyre.rollout_id": scored.route.rollout_id,
                "gyre.degraded_reason": scored.degraded_reason,
            }
        )
        rollout = parse(scored.route.traceparent)
        if rollout is not None:
            span.add_link(rollout)

    async def Track(self, request: pb.TrackRequest, context: object) -> pb.TrackResponse:
        """Take in events; answers when Kafka has them.

        Raises:
            NotFound: the loop is not served.
            Invalid: an event breaks a rule of gyre.yaml; none of the call's events is taken.
            Unavailable: Kafka does not take them; repeat the call with the same event ids.
        """
        spec = self._scorer(request.loop).spec
        for index, event in enumerate(request.events):
            _check(spec, index, event)
        ids = []
        for event in request.events:
            event_id = event.event_id or uuid.uuid4().hex
            await self._send(request.loop, event, event_id)
            ids.append(event_id)
        return pb.TrackResponse(event_ids=ids)

    async def _send(self, loop: str, event: pb.TrackedEvent, event_id: str) -> None:
        at = _seconds(event.event_time) if event.HasField("event_time") else time.time()
        if event.WhichOneof("payload") == "interaction":
            name, message, key = "behavior.interactions", event.interaction, event.interaction.user_id
            await self._producer.send(topic(loop, name), message, key=key, time=at, source=SOURCE, id=event_id)
        else:
            change = event.item_changed
            await self._producer.send(
                topic(loop, "catalog.items"), change, key=change.item_id, time=at, source=SOURCE, id=event_id
            )


def _check(spec: LoopSpec, index: int, event: pb.TrackedEvent) -> None:
    field = f"events[{index}]"
    kind = event.WhichOneof("payload")
    if kind is None:
        raise _invalid(f"{field}.payload", "unset", "is required")
    if spec.clock == "replay" and not event.HasField("event_time"):
        raise _invalid(f"{field}.event_time", "unset", "is required on the replay clock")
    if kind == "interaction":
        value = event.interaction.value if event.interaction.HasField("value") else None
        refusal = refuse_interaction(spec, event.interaction.type, value)
        if refusal is not None:
            at = "type" if refusal.reason == "UNKNOWN_TYPE" else "value"
            raise _invalid(f"{field}.interaction.{at}", value, refusal.detail)
