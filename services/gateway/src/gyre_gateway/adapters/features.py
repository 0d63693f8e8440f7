"""The features service over gRPC."""

from __future__ import annotations

from collections.abc import Sequence

from gyre.features.v1 import features_pb2 as pb
from gyre.features.v1 import features_pb2_grpc as rpc
from gyre_runtime import Channel, GyreError

from gyre_gateway.domain.requests import Features, Request

_FLOAT_BYTES = 4


class GrpcFeatures:
    """A `FeatureStore` on a channel."""

    def __init__(self, channel: Channel) -> None:
        self._stub = rpc.FeaturesServiceStub(channel)

    async def read(self, request: Request, *, layout: str, timeout_s: float) -> Features:
        """See `FeatureStore`."""
        call = pb.GetFeaturesRequest(
            loop=request.loop,
            user_id=request.user_id,
            item_ids=request.item_ids,
            layout=layout,
            context=request.numbers,
            labels=request.labels,
        )
        call.request_time.FromMicroseconds(round(request.now * 1e6))
        answer = await self._stub.GetFeatures(call, timeout=timeout_s)
        block = answer.features
        features = Features(
            layout=block.layout,
            rows=block.rows,
            columns=block.columns,
            values=block.values,
            item_batches=answer.item_batches,
            user_batch=answer.user_batch,
            global_batch=answer.global_batch,
            age_s=answer.feature_age_s,
            popularity_column=answer.popularity_column if answer.HasField("popularity_column") else None,
        )
        _require_whole(features, len(request.item_ids))
        return features

    async def popular(self, request: Request, *, limit: int, timeout_s: float) -> Sequence[str]:
        """See `FeatureStore`."""
        call = pb.ListPopularRequest(loop=request.loop, user_id=request.user_id, limit=limit)
        call.request_time.FromMicroseconds(round(request.now * 1e6))
        # Each once, as everywhere else: an item that moved to another virtual shard may be in the lists of both.
        return list(dict.fromkeys((await self._stub.ListPopular(call, timeout=timeout_s)).item_ids))


def _require_whole(features: Features, count: int) -> None:
    """Refuse an answer that is not one whole row for each candidate."""
    expected = features.rows * features.columns * _FLOAT_BYTES
    if features.rows != count or len(features.item_batches) != count or len(features.values) != expected:
        raise GyreError("BAD_FEATURES", f"{features.rows} rows of {len(features.values)} bytes for {count} candidates")
