"""From candidates to scores: features, then the arm's model, then its fallbacks; it degrades and never fails."""

from __future__ import annotations

import time

from gyre_core.spec import LoopSpec
from gyre_runtime import DeadlineExceeded, GyreError, Invalid

from gyre_gateway.domain.ranking import F32
from gyre_gateway.domain.requests import Features, Request, Scored, caller_order, usable
from gyre_gateway.domain.routing import Attempt, Route, Router, Target
from gyre_gateway.ports import FeatureStore, ScoringService

NO_FEATURES = "FEATURES_UNAVAILABLE"
NOT_SERVED = "LAYOUT_NOT_SERVED"
TOO_LITTLE_TIME = "DEADLINE_TOO_SHORT"
BAD_FEATURES = "BAD_FEATURES"
_MODEL_REASONS = frozenset({"VERSION_NOT_SERVED", "LAYOUT_MISMATCH", "MODEL_FAILED", "TRITON_UNAVAILABLE"})
_OUT_OF_REACH = frozenset({"TRITON_UNAVAILABLE", "INFERENCE_UNAVAILABLE"})


class _Unscored(Exception):  # noqa: N818 - reads as what it says about a target
    """A target gave no scores; `reason` says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Scorer:
    """Scores the requests of one loop."""

    def __init__(self, spec: LoopSpec, router: Router, features: FeatureStore, models: ScoringService) -> None:
        self._spec = spec
        self._router = router
        self._features = features
        self._models = models
        # A version that has taken so long is slow already by the loop's own limit.
        self._granted_s = min(spec.serving.inference_timeout_s, spec.rollout.guardrails.max_latency_p99_s)

    async def score(self, request: Request) -> Scored:
        """Score with the user's arm; degrade to the live and the last good model, popularity, the caller's order."""
        route = self._router.route(request.user_id)
        reason, features = "", None
        unread: dict[str, GyreError] = {}
        for target in route.targets:
            try:
                features = await self._features_for(request, target, features, unread)
                scores = await self._predict(request, route, target, features)
            except _Unscored as failed:
                reason = reason or failed.reason
            else:
                reason = reason or ("CANDIDATE_TRIPPED" if route.tripped else "")
                return Scored(scores, route, version=target.version, degraded_reason=reason, features=features)
        if features is None and {_feature_reason(error) for error in unread.values()} == {NO_FEATURES}:
            return Scored(caller_order(len(request.item_ids)), route, degraded_reason=reason)
        return await self._without_model(request, route, reason or "NO_MODEL", features)

    async def _features_for(
        self, request: Request, target: Target, known: Features | None, unread: dict[str, GyreError]
    ) -> Features:
        """The features that a target reads: those at hand where they are of its layout.

        A layout is asked for once: `unread` holds, by layout, why it could not be read. Another one may well be.
        """
        if known is not None and known.layout == target.layout:
            return known
        had_time = request.deadline - time.monotonic() >= self._spec.serving.feature_timeout_s
        if target.layout not in unread:
            try:
                return await self._read(request, target.layout)
            except GyreError as error:
                unread[target.layout] = error
        problem = unread[target.layout]
        if isinstance(problem, DeadlineExceeded) and not had_time:
            self._router.note_left_out(target.version)
        else:
            self._router.note_without_features(target.version)
        raise _Unscored(_feature_reason(problem))

    async def _read(self, request: Request, layout: str) -> Features:
        timeout_s = _within(request, self._spec.serving.feature_timeout_s)
        return await self._features.read(request, layout=layout, timeout_s=timeout_s)

    async def _predict(self, request: Request, route: Route, target: Target, features: Features) -> F32:
        timeout_s = min(self._spec.serving.inference_timeout_s, request.deadline - time.monotonic())
        if timeout_s <= 0:
            self._router.note_left_out(target.version)
            raise _Unscored(TOO_LITTLE_TIME)
        attempt = Attempt(target.version, route, had_time=timeout_s >= self._granted_s, timeout_s=timeout_s)
        started = time.perf_counter()
        try:
            scores = await self._models.score(
                request, features, version=target.version, epoch=route.epoch, timeout_s=timeout_s
            )
        except GyreError as error:
            raise self._unscored(attempt, error) from error
        if not usable(scores, len(request.item_ids)):
            self._router.note_failed(attempt, was_reached=True)
            raise _Unscored("BAD_SCORES")
        self._router.note_scored(attempt, time.perf_counter() - started)
        return scores

    def _unscored(self, attempt: Attempt, error: GyreError) -> _Unscored:
        """Count a prediction that failed, against the version only where it may be to blame."""
        reason = _model_reason(error)
        if isinstance(error, DeadlineExceeded) and not attempt.had_time:
            reason = TOO_LITTLE_TIME
        if reason == TOO_LITTLE_TIME:
            self._router.note_cut_off(attempt)
        elif reason == BAD_FEATURES:
            self._router.note_left_out(attempt.version)
        else:
            self._router.note_failed(attempt, was_reached=reason not in _OUT_OF_REACH)
        return _Unscored(reason)

    async def _without_model(self, request: Request, route: Route, reason: str, features: Features | None) -> Scored:
        """Order by popularity, or as the caller did where the loop or the features do not tell it."""
        if features is None or features.popularity_column is None:
            try:
                features = await self._read(request, "")
            except GyreError:
                features = None
        if features is None:
            reason = NO_FEATURES if reason == "NO_MODEL" else reason
        if features is None or features.popularity_column is None:
            return Scored(caller_order(len(request.item_ids)), route, degraded_reason=reason, features=features)
        return Scored(
            features.matrix()[:, features.popularity_column], route, degraded_reason=reason, features=features
        )


def _within(request: Request, wanted_s: float) -> float:
    """The time that a call may take: what is wanted, but not past the request's deadline."""
    left_s = request.deadline - time.monotonic()
    if left_s <= 0:
        raise DeadlineExceeded("DEADLINE_EXCEEDED", "no time is left for the call")
    return min(wanted_s, left_s)


def _feature_reason(error: GyreError) -> str:
    """Why features could not be read, as a word of the API."""
    return error.reason if error.reason == NOT_SERVED else NO_FEATURES


def _model_reason(error: GyreError) -> str:
    """Why a prediction failed, as one of a few words: they are metric labels and part of the API."""
    if error.reason in _MODEL_REASONS:
        return error.reason
    if isinstance(error, Invalid):
        return BAD_FEATURES
    return "INFERENCE_TIMEOUT" if isinstance(error, DeadlineExceeded) else "INFERENCE_UNAVAILABLE"
