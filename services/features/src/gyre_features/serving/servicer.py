"""The read side over gRPC: features, history, popular items."""

import time

import numpy as np
from google.protobuf.timestamp_pb2 import Timestamp
from gyre.features.v1 import features_pb2 as pb
from gyre.features.v1 import features_pb2_grpc as rpc
from gyre_core.features import RequestContext
from gyre_core.spec import LoopSpec
from gyre_core.topics import behavior_kept_s
from gyre_privacy.masking import Privacy
from gyre_runtime import Invalid, Precondition, Violation, instrument

from gyre_features.serving.layouts import ServedLayouts
from gyre_features.serving.popular import popular_for
from gyre_features.serving.ports import Forgets

_ASKED_TIME_S = 5.0
"""How far a caller's now may be from the server's on the wall clock to count: what clocks and a call take."""
_KINDS = {pb.ENTITY_KIND_USER: "user", pb.ENTITY_KIND_ITEM: "item"}


def now_of(spec: LoopSpec, given: Timestamp | None) -> float:
    """The loop's now, unix seconds: the request's own time, on the wall clock only if within 5 s of the server's.

    Otherwise the server's time; `given` is None where the request has none.

    Raises:
        Invalid: the replay clock needs a time, and there is none.
    """
    asked = None if given is None else given.seconds + given.nanos / 1e9
    if spec.clock == "wall":
        now = time.time()
        return now if asked is None or abs(asked - now) > _ASKED_TIME_S else asked
    if asked is None:
        rule = "is required on the replay clock"
        raise Invalid("TIME_REQUIRED", f"request_time: {rule}", violations=[Violation("request_time", "unset", rule)])
    return asked


class FeaturesServicer(rpc.FeaturesServiceServicer):
    """Reads features, history and popular items from the online stores of all loops, and forgets users and items."""

    def __init__(self, layouts: ServedLayouts, forgetting: Forgets, privacy: Privacy) -> None:
        self._layouts = layouts
        self._forgetting = forgetting
        self._privacy = privacy
        seconds = instrument("gyre_features_read_seconds")
        self._seconds = {name: seconds.bind(loop=name) for name in layouts.loops}

    async def GetFeatures(self, request: pb.GetFeaturesRequest, context: object) -> pb.GetFeaturesResponse:
        """Read features of candidates, a row for each in the order asked.

        Unknown users and items have a batch of -1.

        Raises:
            NotFound: the loop is not served.
            Precondition: the layout is not filled, or not maintained, or not known yet (LAYOUT_NOT_SERVED).
            Unavailable: the store does not answer.
        """
        started = time.perf_counter()
        served = await self._layouts.read(request.loop, request.layout)
        now = now_of(served.spec, request.request_time if request.HasField("request_time") else None)
        item_ids = list(request.item_ids)
        privacy = self._privacy[request.loop]
        labels = await privacy.labels_aside(request.labels)
        values = await served.store.read(privacy.user(request.user_id), item_ids)
        asked = RequestContext(now, dict(request.context), dict(labels))
        matrix, age = served.reader.matrix(values.user, values.everyone, values.items, item_ids, asked)
        response = pb.GetFeaturesResponse(
            item_batches=age.item_batches.tolist(),
            user_batch=age.user_batch,
            global_batch=age.global_batch,
            feature_age_s=age.user_age_s(now),
            popularity_column=served.popularity_column,
        )
        response.features.layout = served.layout.hash
        response.features.rows, response.features.columns = matrix.shape
        response.features.values = np.ascontiguousarray(matrix, dtype="<f4").tobytes()
        self._seconds[request.loop](time.perf_counter() - started)
        return response

    async def GetHistory(self, request: pb.GetHistoryRequest, context: object) -> pb.GetHistoryResponse:
        """Answer a user's last interactions, newest first, by hashes of their items; none for an unknown user.

        Raises:
            NotFound: the loop is not served.
            Precondition: no layout is filled, or none is known yet (LAYOUT_NOT_SERVED).
            Unavailable: the store does not answer.
        """
        store = (await self._layouts.read(request.loop, "")).store
        value = (await store.read(self._privacy[request.loop].user(request.user_id), [])).user
        response = pb.GetHistoryResponse()
        for event_time, item in store.layout.history(value):
            response.entries.add(item_hash=item).event_time.FromMicroseconds(round(event_time * 1e6))
        return response

    async def DescribeFeatures(
        self, request: pb.DescribeFeaturesRequest, context: object
    ) -> pb.DescribeFeaturesResponse:
        """Answer the columns of a layout, and how far the loop's layouts are.

        Raises:
            NotFound: the loop is not served.
            Precondition: the layout is not filled, or not maintained, or not known yet (LAYOUT_NOT_SERVED).
        """
        layout = (await self._layouts.read(request.loop, request.layout)).layout
        columns = [
            pb.FeatureColumn(name=each.name, feature=each.feature, kind=each.kind, scope=each.scope)
            for each in layout.described
        ]
        known = self._layouts.summaries(request.loop)
        return pb.DescribeFeaturesResponse(layout=layout.hash, columns=columns, layouts=known)

    async def ListPopular(self, request: pb.ListPopularRequest, context: object) -> pb.ListPopularResponse:
        """Answer popular items with decayed counts, best first: of a category, or of all and a user's favourites.

        A category goes before a user; without both they are of all items.

        Raises:
            NotFound: the loop is not served.
            Precondition: the loop ranks no items by popularity (NO_POPULARITY), or no layout can be read.
            Invalid: an unknown category, or no request_time on the replay clock.
            Unavailable: the store does not answer.
        """
        store = (await self._layouts.read(request.loop, "")).store
        if store.popularity is None:
            raise Precondition(
                "NO_POPULARITY", f"{request.loop}: serving.fallback_feature must name a decayed count of items"
            )
        if request.category and request.category not in store.popularity.categories:
            rule = f"must be one of {', '.join(store.popularity.categories) or 'none'}"
            raise Invalid("UNKNOWN_CATEGORY", f"category = {request.category!r}: {rule}")
        now = now_of(store.spec, request.request_time if request.HasField("request_time") else None)
        if request.category:
            best = await store.popular(request.limit, category=request.category)
        else:
            best = await popular_for(store, self._privacy[request.loop].user(request.user_id), request.limit)
        half_life = store.popularity.half_life_s
        counts = [2.0 ** min(score - now / half_life, 1000.0) for _, score in best]
        return pb.ListPopularResponse(item_ids=[item for item, _ in best], counts=counts)

    async def DeleteEntity(self, request: pb.DeleteEntityRequest, context: object) -> pb.DeleteEntityResponse:
        """Forget an item in the online store, or a user online and in the warehouse, for good.

        Raises:
            NotFound: the loop is not served.
            Precondition: a user, and there is no key file (PRIVACY_KEY_MISSING).
            Unavailable: Kafka or the store do not answer; ask again.
        """
        kind = _KINDS.get(request.kind)
        if kind is None:
            raise Invalid("UNKNOWN_KIND", f"kind = {request.kind}: must be a user or an item")
        stores = await self._layouts.all(request.loop)
        if kind == "item":
            deleted = [await store.delete("item", request.id) for store in stores]
            return pb.DeleteEntityResponse(deleted_keys=sum(deleted))
        done = await self._forgetting.forget(stores, request.id)
        response = pb.DeleteEntityResponse(deleted_keys=done.deleted_keys, found_keys=done.found_keys)
        response.forgotten_time.FromNanoseconds(done.forgotten_ns)
        kept_ns = int(behavior_kept_s(self._layouts.loops[request.loop]) * 1e9)
        response.kafka_until_time.FromNanoseconds(done.forgotten_ns + kept_ns)
        if done.erased is not None:
            response.warehouse_erased = True
            response.erased_rows.update(done.erased.rows)
            response.found_rows = done.erased.found_rows
        return response
