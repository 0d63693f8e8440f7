"""Where the gateway is wired."""

import os
import socket

from gyre.events.v1 import models_pb2
from gyre.gateway.v1 import gateway_pb2_grpc as rpc
from gyre_core.topics import topic
from gyre_runtime import Dependency, Lifespan, Registration, build_server, channel, instrument, load_loops
from gyre_runtime.events import Event, message_types
from gyre_runtime.kafka import Producer, View, ensure_topics

from gyre_gateway.reports import Reporter
from gyre_gateway.routing import Router
from gyre_gateway.scoring import Scorer
from gyre_gateway.settings import GatewaySettings
from gyre_gateway.transport import GatewayServicer


async def serve(lifespan: Lifespan, settings: GatewaySettings) -> None:
    """Open what the process needs; ready once every loop's rollout view has caught up.

    Features and inference may be down: requests are then answered without them.
    """
    loops = load_loops(settings)
    await ensure_topics(settings, loops.values())
    producer = await lifespan.enter(
        Producer(
            settings.kafka,
            source="gyre/gateway",
            max_queue_records=settings.gateway_queue_records,
            max_queue_bytes=settings.gateway_queue_bytes,
            on_drop=_count_drop,
        )
    )
    routers = {name: Router(name, spec.experiment.salt) for name, spec in loops.items()}
    instance = settings.gateway_instance or f"{socket.gethostname()}-{os.getpid()}"
    reporter = await lifespan.enter(Reporter(routers, producer, instance=instance, every_s=settings.gateway_report_s))
    for name, router in routers.items():

        def adopt(_key: str, event: Event | None, router: Router = router) -> None:
            if event is not None and router.adopt(event.message):
                reporter.changed()

        types = message_types(models_pb2.RolloutView)
        view = await lifespan.enter(View(settings.kafka, topic(name, "models.rollouts"), types, on_change=adopt))
        await view.ready()
        lifespan.depends_on(Dependency(f"rollouts of {name}", view.check))
    features = await lifespan.enter(channel(settings.features, settings, name="features"))
    inference = await lifespan.enter(channel(settings.inference, settings, name="inference"))
    scorers = {name: Scorer(spec, routers[name], features, inference) for name, spec in loops.items()}
    lifespan.background("reports", reporter.run())
    # Batches are not served yet: for them gRPC answers UNIMPLEMENTED.
    servicer = GatewayServicer(scorers, producer, features)  # type: ignore[abstract]
    registration = Registration(rpc.add_GatewayServiceServicer_to_server, servicer)
    await lifespan.enter(build_server(settings, [registration], health=lifespan.health))


def _count_drop(name: str, _reason: str) -> None:
    loop, _, suffix = name.partition(".")
    if suffix == "behavior.impressions":
        instrument("gyre_gateway_impressions_dropped_total").add(loop=loop)
