"""Where the gateway is wired."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass

from gyre.gateway.v1 import gateway_pb2_grpc as rpc
from gyre_core.request_ids import GATEWAY_SOURCE
from gyre_core.spec import LoopSpec
from gyre_privacy.masking import open_privacy
from gyre_privacy.redaction import redactor
from gyre_runtime import Dependency, Lifespan, Registration, Server, build_server, channel, load_loops
from gyre_runtime.kafka import Producer, ensure_topics

from gyre_gateway.adapters.features import GrpcFeatures
from gyre_gateway.adapters.impressions import KafkaImpressions, count_drop
from gyre_gateway.adapters.inference import GrpcModels
from gyre_gateway.adapters.intake import KafkaIntake
from gyre_gateway.adapters.reports import Reporter
from gyre_gateway.adapters.rollouts import rollout_view
from gyre_gateway.domain.routing import Router
from gyre_gateway.handlers.answering import Answering, Peers
from gyre_gateway.settings import GatewaySettings
from gyre_gateway.transport.servicer import GatewayServicer


@dataclass(frozen=True, slots=True)
class RunningGateway:
    """What tests and programs that embed the service may look at."""

    server: Server
    routers: dict[str, Router]


async def bootstrap(lifespan: Lifespan, settings: GatewaySettings) -> RunningGateway:
    """Wire the service; it serves once every loop's rollout state has been read, or has been waited for long enough.

    Kafka, features and inference may be away: requests are then answered without them. What Kafka does not take waits
    within the queue's bounds, and is counted beyond them.
    """
    loops = load_loops(settings)
    privacy = open_privacy(settings, loops, redactor)
    producer = await lifespan.enter(
        Producer(
            settings.kafka,
            source=GATEWAY_SOURCE,
            max_queue_records=settings.gateway_queue_records,
            max_queue_bytes=settings.gateway_queue_bytes,
            on_drop=count_drop,
            gather_s=settings.gateway_gather_s,
        )
    )
    lifespan.depends_on(Dependency("kafka", producer.ping, required=False))
    lifespan.set_up("topics", ensure_topics(settings, loops.values()), required=False)
    routers = await _routers(lifespan, settings, loops, producer)
    peers = Peers(
        GrpcFeatures(await lifespan.enter(channel(settings.features, settings, name="features", follows_health=True))),
        GrpcModels(await lifespan.enter(channel(settings.inference, settings, name="inference", follows_health=True))),
        KafkaImpressions(producer, loops),
    )
    answering = {name: Answering(spec, routers[name], peers) for name, spec in loops.items()}
    servicer = GatewayServicer(answering, KafkaIntake(producer), privacy)
    registration = Registration(rpc.add_GatewayServiceServicer_to_server, servicer)
    server = await lifespan.serve(build_server(settings, [registration], health=lifespan.health))
    return RunningGateway(server, routers)


async def _routers(
    lifespan: Lifespan, settings: GatewaySettings, loops: dict[str, LoopSpec], producer: Producer
) -> dict[str, Router]:
    """Routers that follow their rollout states, and say so."""
    routers = {name: Router(name, spec.experiment.salt) for name, spec in loops.items()}
    instance = settings.gateway_instance or f"{socket.gethostname()}-{os.getpid()}"
    reporter = await lifespan.enter(Reporter(routers, producer, instance=instance, every_s=settings.gateway_report_s))
    for name, router in routers.items():
        view = await lifespan.enter(rollout_view(settings.kafka, router, reporter.changed))
        waits_s = settings.gateway_rollouts_wait_s
        lifespan.depends_on(Dependency(f"rollouts of {name}", view.check, required_s=waits_s))
        # Never met, it ends only with the view: then the process ends, too, rather than route by a state grown old.
        lifespan.background(f"rollouts of {name}", view.wait_for(lambda _: False))
    lifespan.background("reports", reporter.run())
    return routers
