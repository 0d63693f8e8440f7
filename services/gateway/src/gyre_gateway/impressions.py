"""One impression record a request: what was shown and a sample of the rest, with the features as served."""

import numpy as np
from gyre.events.v1 import behavior_pb2 as behavior

from gyre_gateway.ranking import Ranking, logged
from gyre_gateway.scoring import Request, Scored


def impression(
    request: Request, scored: Scored, ranking: Ranking, *, shown: int, logged_rest: int
) -> behavior.Impression:
    """Write a request and its answer down; the latency is filled in by the caller."""
    rows = logged(ranking.order, shown=shown, rest=logged_rest, request_id=request.request_id)
    record = behavior.Impression(
        request_id=request.request_id,
        user_id=request.user_id,
        item_ids=[request.item_ids[row] for row in rows],
        shown=shown,
        rest=len(request.item_ids) - shown,
        explored=ranking.explored,
        model_version=scored.version,
        epoch=scored.route.epoch,
        arm=scored.route.arm,
        arm_propensity=scored.route.propensity,
        degraded_reason=scored.degraded_reason,
        method=request.method,
        context=request.numbers,
    )
    if scored.version:
        record.scores.extend(scored.scores[rows].tolist())
    if ranking.explored:
        record.item_propensities.extend([ranking.propensity] * shown)
    served = scored.features
    block = served.features
    if block.rows:
        matrix = np.frombuffer(block.values, dtype="<f4").reshape(block.rows, block.columns)
        record.features.layout, record.features.columns = block.layout, block.columns
        record.features.rows = len(rows)
        record.features.values = np.ascontiguousarray(matrix[rows]).tobytes()
        record.item_batches.extend([served.item_batches[row] for row in rows])
        record.user_batch = served.user_batch
        record.feature_age_s = served.feature_age_s
    else:
        record.user_batch, record.feature_age_s = -1, -1.0
    return record
