"""One impression record a request: what was shown and a sample of the rest, with the features as served."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil

import numpy as np
from gyre.events.v1 import behavior_pb2 as behavior
from gyre_core.request_ids import impression_id
from gyre_core.spec import LoopSpec
from gyre_core.topics import max_record_bytes, topic
from gyre_runtime import instrument
from gyre_runtime.kafka import Producer

from gyre_gateway.domain.ranking import Order, logged
from gyre_gateway.domain.requests import Features, RankedAnswer

_METHODS = {"rank": behavior.IMPRESSION_METHOD_RANK, "recommend": behavior.IMPRESSION_METHOD_RECOMMEND}
_TOPIC = "behavior.impressions"
_ENVELOPE_BYTES = 4096
"""At most what key and headers of a record have."""


class KafkaImpressions:
    """Enqueues impressions; the id of an event is made of user and request, so that a request repeated counts once."""

    def __init__(self, producer: Producer, loops: Mapping[str, LoopSpec]) -> None:
        self._producer = producer
        self._topics = {name: topic(name, _TOPIC) for name in loops}
        self._logged_rest = {name: spec.serving.logged_rest for name, spec in loops.items()}

    def write(self, answer: RankedAnswer) -> None:
        """See `Impressions`."""
        request = answer.request
        name = self._topics[request.loop]
        max_bytes = max_record_bytes(name) - _ENVELOPE_BYTES
        record = fitting_impression(answer, logged_rest=self._logged_rest[request.loop], max_bytes=max_bytes)
        event_id = impression_id(request.user_id, request.request_id)
        self._producer.enqueue(name, record, key=request.user_id, time=request.now, id=event_id)


def count_drop(name: str, _reason: str) -> None:
    """Count an impression that the producer gave up, by the topic it was for."""
    loop, _, suffix = name.partition(".")
    if suffix == _TOPIC:
        instrument("gyre_gateway_impressions_dropped_total").add(loop=loop)


def impression(answer: RankedAnswer, *, logged_rest: int) -> behavior.Impression:
    """Write a request and its answer down."""
    request, scored, ranking, shown = answer.request, answer.scored, answer.ranking, answer.shown
    rows = logged(ranking.order, shown=shown, rest=logged_rest, request_id=request.request_id)
    ids = request.item_ids
    record = behavior.Impression(
        request_id=request.request_id,
        user_id=request.user_id,
        item_ids=[ids[row] for row in rows.tolist()],
        shown=shown,
        rest=len(ids) - shown,
        explored=ranking.explored,
        model_version=scored.version,
        epoch=scored.route.epoch,
        arm=scored.route.arm,
        arm_propensity=scored.route.propensity,
        degraded_reason=scored.degraded_reason,
        method=_METHODS[request.method],
        context=request.numbers,
        labels=request.labels,
        positions=rows.tolist(),
        latency_s=answer.latency_s,
        feature_age_s=scored.feature_age_s,
        user_batch=-1,
        global_batch=-1,
    )
    if scored.version:
        record.scores.extend(scored.scores[rows].tolist())
    if ranking.explored:
        record.item_propensities.extend([ranking.propensity] * shown)
    if scored.features is not None:
        _add_features(record, scored.features, rows)
    return record


def fitting_impression(answer: RankedAnswer, *, logged_rest: int, max_bytes: int) -> behavior.Impression:
    """Write a request and its answer down in at most so many bytes: first the rest is thinned, then the features go.

    What callers give is bounded so that the items that were shown, the context and the propensities always fit.
    """
    record = impression(answer, logged_rest=logged_rest)
    rest = len(record.item_ids) - answer.shown
    while rest and record.ByteSize() > max_bytes:
        row_bytes = record.ByteSize() / len(record.item_ids)
        rest = max(rest - ceil((record.ByteSize() - max_bytes) / row_bytes), 0)
        record = impression(answer, logged_rest=rest)
        record.thinning = behavior.IMPRESSION_THINNING_REST
    if record.ByteSize() > max_bytes:
        record.ClearField("features")
        record.thinning = behavior.IMPRESSION_THINNING_FEATURES
    if record.thinning:
        what = "rest" if record.thinning == behavior.IMPRESSION_THINNING_REST else "features"
        instrument("gyre_gateway_impressions_thinned_total").add(loop=answer.request.loop, what=what)
    return record


def _add_features(record: behavior.Impression, served: Features, rows: Order) -> None:
    block = record.features
    block.layout, block.rows, block.columns = served.layout, len(rows), served.columns
    block.values = served.matrix().take(rows, axis=0).tobytes()
    record.item_batches.extend(np.array(served.item_batches, dtype=np.int64).take(rows).tolist())
    record.user_batch, record.global_batch = served.user_batch, served.global_batch
