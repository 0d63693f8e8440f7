"""`serve`: the read side."""

import uuid

from gyre.events.v1 import features_pb2 as events_pb2
from gyre.features.v1 import data_quality_pb2_grpc as quality_rpc
from gyre.features.v1 import features_pb2_grpc as rpc
from gyre_core.topics import topic
from gyre_runtime import Dependency, Lifespan, Registration, build_server, load_loops
from gyre_runtime.events import message_types
from gyre_runtime.kafka import Consumer, ensure_topics

from gyre_features.processes.stream import open_redis, open_store
from gyre_features.settings import FeaturesSettings
from gyre_features.transport import DataQualityServicer, FeaturesServicer, QualityWindows


async def serve(lifespan: Lifespan, settings: FeaturesSettings) -> None:
    """Wire the process."""
    loops = load_loops(settings)
    redis = await lifespan.enter(open_redis(settings))
    stores = {name: open_store(settings, redis, spec) for name, spec in loops.items()}
    windows = QualityWindows(kept=settings.features_quality_kept)
    lifespan.depends_on(Dependency("redis", next(iter(stores.values())).ping))

    async def watch() -> None:
        await ensure_topics(settings, loops.values())
        # A group of its own for each process: every one needs every window.
        async with Consumer(
            settings.kafka,
            group=f"features-serve-{uuid.uuid4().hex}",
            topics=[topic(name, "features.quality") for name in loops],
            types=message_types(events_pb2.QualityWindow),
        ) as consumer:
            await consumer.run(windows.note)

    lifespan.background("quality windows", watch())
    services = [
        Registration(rpc.add_FeaturesServiceServicer_to_server, FeaturesServicer(stores)),
        Registration(quality_rpc.add_DataQualityServiceServicer_to_server, DataQualityServicer(windows, loops)),
    ]
    await lifespan.enter(build_server(settings, services, health=lifespan.health))
