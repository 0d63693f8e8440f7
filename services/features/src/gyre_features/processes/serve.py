"""`serve`: the read side."""

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial

from gyre.events.v1 import features_pb2 as events_pb2
from gyre.features.v1 import data_quality_pb2_grpc as quality_rpc
from gyre.features.v1 import features_pb2_grpc as rpc
from gyre_core.spec import LoopSpec
from gyre_core.topics import topic
from gyre_privacy.masking import open_privacy, read_keyring
from gyre_privacy.redaction import redactor
from gyre_runtime import Dependency, Lifespan, Registration, Server, build_server, load_loops
from gyre_runtime.events import Event, message_types
from gyre_runtime.kafka import View, ensure_topics
from gyre_runtime.layouts import LayoutCatalog

from gyre_features.online.connection import open_redis, open_store
from gyre_features.privacy.forgetting import Forgetting
from gyre_features.quality.findings import LIVE_QUALITY
from gyre_features.quality.report import QualityWindows
from gyre_features.quality.servicer import DataQualityServicer
from gyre_features.quality.snapshots import SnapshotReports
from gyre_features.serving.layouts import ServedLayouts
from gyre_features.serving.servicer import FeaturesServicer
from gyre_features.settings import ServeSettings


@dataclass(frozen=True, slots=True)
class FeatureServer:
    """The running server, and an event that is set once reports hold every window published before the start."""

    server: Server
    caught_up: asyncio.Event


async def serve(lifespan: Lifespan, settings: ServeSettings) -> FeatureServer:
    """Wire the process; it is ready once the layouts of every loop are known, or have been waited for long enough.

    While Kafka is away the layouts that are known are served, at least those of gyre.yaml; reports are then empty.
    """
    loops = load_loops(settings)
    privacy = open_privacy(settings, loops, redactor)
    redis = await lifespan.enter(open_redis(settings))
    catalog = await lifespan.enter(LayoutCatalog(settings.kafka, loops))
    layouts = ServedLayouts(loops, catalog, partial(open_store, settings, redis))
    windows = QualityWindows(kept=settings.features_max_quality_windows)
    lifespan.depends_on(Dependency("redis", layouts.newest(next(iter(loops))).store.ping))
    for loop in loops:
        check, waits_s = partial(_knows_layouts, catalog, loop), settings.features_layouts_wait_s
        lifespan.depends_on(Dependency(f"layouts of {loop}", check, required_s=waits_s))
    caught_up = asyncio.Event()
    forgetting = Forgetting(loops, settings.features_forget_wait_s, read_keyring(settings))
    lifespan.background("layouts", catalog.follow())
    lifespan.background("erasures", forgetting.follow(settings))
    live: dict[str, events_pb2.LiveQuality] = {}
    lifespan.background("quality", _follow(settings, loops, (windows, live), caught_up))
    quality = DataQualityServicer(windows, SnapshotReports(settings.artifacts), live, loops)
    services = [
        Registration(rpc.add_FeaturesServiceServicer_to_server, FeaturesServicer(layouts, forgetting, privacy)),
        Registration(quality_rpc.add_DataQualityServiceServicer_to_server, quality),
    ]
    server = await lifespan.serve(build_server(settings, services, health=lifespan.health))
    return FeatureServer(server, caught_up)


async def _knows_layouts(catalog: LayoutCatalog, loop: str) -> bool:
    """Whether what stood in the topic of a loop's layouts at the start is known."""
    return catalog.is_ready(loop)


async def _follow(
    settings: ServeSettings,
    loops: Mapping[str, LoopSpec],
    reports: tuple[QualityWindows, dict[str, events_pb2.LiveQuality]],
    caught_up: asyncio.Event,
) -> None:
    """Take in every quality window, from the oldest kept on, and judgement, for as long as the process lives."""
    windows, live = reports

    def note(_key: str, event: Event | None) -> None:
        if event is None:
            return
        if isinstance(event.message, events_pb2.LiveQuality):
            live[event.message.loop] = event.message
        else:
            windows.note(event.message)

    await ensure_topics(settings, loops.values())
    types = message_types(events_pb2.QualityWindow, events_pb2.LiveQuality)
    async with AsyncExitStack() as stack:
        views = [
            await stack.enter_async_context(View(settings.kafka, topic(name, suffix), types, on_change=note))
            for name in loops
            for suffix in ("features.quality", LIVE_QUALITY)
        ]
        for view in views:
            await view.ready()
        caught_up.set()
        # A view that ends raises here, and the process with it.
        await asyncio.gather(*(view.wait_for(lambda _: False) for view in views))
