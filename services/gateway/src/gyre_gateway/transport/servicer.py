"""`Rank`, `Recommend` and `Track` over gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import NoReturn

from gyre.gateway.v1 import gateway_pb2 as pb
from gyre.gateway.v1 import gateway_pb2_grpc as rpc
from gyre_privacy.masking import Privacy
from gyre_runtime import Unsupported, instrument, unknown_loop
from gyre_runtime.tracing import parse
from opentelemetry import trace

from gyre_gateway.domain.events import OutgoingEvent, source_of
from gyre_gateway.domain.requests import RankedAnswer
from gyre_gateway.handlers.answering import Answering
from gyre_gateway.ports import Intake
from gyre_gateway.transport.reading import rank_request, recommend_request, tracked_event


class GatewayServicer(rpc.GatewayServiceServicer):
    """The door of the mesh."""

    def __init__(self, loops: Mapping[str, Answering], intake: Intake, privacy: Privacy) -> None:
        self._loops = dict(loops)
        self._privacy = privacy
        self._intake = intake
        self._observed = _AnswerMetrics()

    def _loop(self, name: str) -> Answering:
        loop = self._loops.get(name)
        if loop is None:
            raise unknown_loop(name)
        return loop

    async def Rank(self, request: pb.RankRequest, context: object) -> pb.RankResponse:
        """Order the caller's candidates.

        Raises:
            NotFound: the loop is not served.
            Invalid: a candidate is repeated, there are too many, or the replay clock has no time.
        """
        loop = self._loop(request.loop)
        asked = await rank_request(loop.spec, self._privacy[request.loop], request)
        answer = await loop.rank(asked, request.limit)
        self._observed.note(answer)
        response = pb.RankResponse(provenance=_provenance(answer))
        _show(response, answer)
        return response

    async def Recommend(self, request: pb.RecommendRequest, context: object) -> pb.RecommendResponse:
        """Find candidates among what is popular, with the user and in all, and order them.

        Raises:
            NotFound: the loop is not served.
            Invalid: more are wanted than the loop ranks, or the replay clock has no time.
        """
        loop = self._loop(request.loop)
        asked = await recommend_request(loop.spec, self._privacy[request.loop], request)
        answer = await loop.recommend(asked, request.limit)
        self._observed.note(answer)
        response = pb.RecommendResponse(provenance=_provenance(answer))
        _show(response, answer)
        return response

    async def Track(self, request: pb.TrackRequest, context: object) -> pb.TrackResponse:
        """Take in events; answers when Kafka has them.

        Raises:
            NotFound: the loop is not served.
            Invalid: an event breaks a rule of gyre.yaml; none of the call's events is taken.
            Unavailable: Kafka does not take them; repeat the call with the same event ids.
        """
        spec = self._loop(request.loop).spec
        privacy = self._privacy[request.loop]

        source = source_of(request.source)

        def read() -> list[OutgoingEvent]:
            return [
                tracked_event(spec, privacy, f"events[{at}]", each, source=source)
                for at, each in enumerate(request.events)
            ]

        # Searching a long text takes milliseconds, which no other request shall wait for.
        events = await asyncio.to_thread(read) if privacy.redacts else read()
        await self._intake.send(request.loop, events, source=source)
        return pb.TrackResponse(event_ids=[event.event_id for event in events])

    async def SubmitBatch(self, request: pb.SubmitBatchRequest, context: object) -> pb.SubmitBatchResponse:
        """Not offered yet."""
        _refuse_batches()

    async def GetBatch(self, request: pb.GetBatchRequest, context: object) -> pb.GetBatchResponse:
        """Not offered yet."""
        _refuse_batches()

    async def WatchBatch(self, request: pb.WatchBatchRequest, context: object) -> AsyncIterator[pb.WatchBatchResponse]:
        """Not offered yet."""
        _refuse_batches()
        yield pb.WatchBatchResponse()


def _refuse_batches() -> NoReturn:
    raise Unsupported("NOT_IMPLEMENTED", "batches are not served yet: call Rank for each list")


def _show(response: pb.RankResponse | pb.RecommendResponse, answer: RankedAnswer) -> None:
    """Add the shown items; `add` in place costs half of what building a list of messages does."""
    add, propensity = response.items.add, answer.ranking.propensity
    if answer.ranking.explored:
        for item, score in answer.items():
            add(item_id=item, score=score, propensity=propensity)
    else:
        for item, score in answer.items():
            add(item_id=item, score=score)


def _provenance(answer: RankedAnswer) -> pb.Provenance:
    scored, route = answer.scored, answer.scored.route
    return pb.Provenance(
        request_id=answer.request.request_id,
        model_version=scored.version,
        epoch=route.epoch,
        arm=route.arm,
        arm_propensity=route.propensity,
        explored=answer.ranking.explored,
        degraded=bool(scored.degraded_reason),
        degraded_reason=scored.degraded_reason,
        feature_age_s=scored.feature_age_s,
    )


_MAX_BOUND = 512


class _AnswerMetrics:
    """Metrics and span attributes of answers; the instruments of each mix of labels are bound once."""

    def __init__(self) -> None:
        self._bound: dict[tuple[str, ...], tuple[Callable[[float], None], Callable[[float], None]]] = {}

    def note(self, answer: RankedAnswer) -> None:
        """Count an answer, and describe it in the current span if that is recorded."""
        request, scored = answer.request, answer.scored
        key = (request.loop, request.method, scored.version, scored.route.arm, scored.degraded_reason)
        count, observe = self._bound.get(key) or self._bind(key)
        count(1)
        observe(answer.latency_s)
        span = trace.get_current_span()
        if span.is_recording():
            _describe(span, answer)

    def _bind(self, key: tuple[str, ...]) -> tuple[Callable[[float], None], Callable[[float], None]]:
        if len(self._bound) >= _MAX_BOUND:  # versions come and go
            self._bound.clear()
        loop, method, version, arm, degraded = key
        labels = {"loop": loop, "method": method, "version": version, "arm": arm}
        count = instrument("gyre_gateway_requests_total").bind(**labels, degraded=degraded)
        bound = self._bound[key] = (count, instrument("gyre_gateway_latency_seconds").bind(**labels))
        return bound


def _describe(span: trace.Span, answer: RankedAnswer) -> None:
    request, scored = answer.request, answer.scored
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
