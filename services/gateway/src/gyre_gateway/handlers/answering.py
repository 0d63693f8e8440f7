"""`Rank` and `Recommend`: order candidates, write the answer down, count it."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from gyre_core.spec import LoopSpec
from gyre_runtime import GyreError

from gyre_gateway.domain.ranking import rank
from gyre_gateway.domain.requests import RankedAnswer, Request, Scored, caller_order
from gyre_gateway.domain.routing import Router
from gyre_gateway.handlers.popular import LoopPopular
from gyre_gateway.handlers.scoring import NO_FEATURES, Scorer
from gyre_gateway.ports import FeatureStore, Impressions, ScoringService

NO_CANDIDATES = "NO_CANDIDATES"


@dataclass(frozen=True, slots=True)
class Peers:
    """What answers are made with."""

    features: FeatureStore
    models: ScoringService
    impressions: Impressions


class Answering:
    """Answers the requests of one loop."""

    def __init__(self, spec: LoopSpec, router: Router, peers: Peers) -> None:
        self.spec = spec
        self._router = router
        self._peers = peers
        self._scorer = Scorer(spec, router, peers.features, peers.models)
        self._popular = LoopPopular(peers.features, timeout_s=spec.serving.feature_timeout_s)

    async def rank(self, request: Request, limit: int) -> RankedAnswer:
        """Order the request's candidates and show the first `limit`, all of them for 0."""
        return self._answer(request, await self._scorer.score(request), limit or len(request.item_ids))

    async def recommend(self, request: Request, limit: int) -> RankedAnswer:
        """Find candidates among what is popular, in all and with the user, and order them.

        Without the features service it is the loop's own list, nobody's in particular, as this gateway last read it.
        """
        serving = self.spec.serving
        limit_popular = min(max(serving.recommend.popular, limit), serving.max_candidates)
        try:
            found = await self._peers.features.popular(
                request, limit=limit_popular, timeout_s=serving.feature_timeout_s
            )
        except GyreError:
            return self._from_memory(request, limit, NO_FEATURES)
        if not found:
            return self._from_memory(request, limit, NO_CANDIDATES)
        self._popular.refresh(request, limit=serving.max_candidates)
        request = replace(request, item_ids=found)
        return self._answer(request, await self._scorer.score(request), limit)

    def _from_memory(self, request: Request, limit: int, reason: str) -> RankedAnswer:
        request = replace(request, item_ids=self._popular.item_ids)
        scores = caller_order(len(request.item_ids))
        scored = Scored(scores, self._router.route(request.user_id, asks=False), degraded_reason=reason)
        return self._answer(request, scored, limit)

    def _answer(self, request: Request, scored: Scored, limit: int) -> RankedAnswer:
        experiment = self.spec.experiment
        ranking = rank(scored.scores, request.request_id, exploration=experiment.exploration, salt=experiment.salt)
        shown = min(limit, len(request.item_ids))
        answer = RankedAnswer(request, scored, ranking, shown, time.monotonic() - request.started)
        if shown:
            self._peers.impressions.write(answer)
        return answer
