"""Builds the service on a lifespan: Triton, the rollout views, the gRPC server."""

from __future__ import annotations

from dataclasses import dataclass

from gyre.inference.v1.inference_pb2_grpc import add_InferenceServiceServicer_to_server
from gyre_runtime import Dependency, Lifespan, Registration, Server, build_server, load_loops
from gyre_runtime.kafka import ensure_topics

from gyre_inference.adapters.rollouts import RolloutViews
from gyre_inference.adapters.triton import TritonReplicas
from gyre_inference.domain import Catalogue
from gyre_inference.handlers import Inference
from gyre_inference.settings import InferenceSettings
from gyre_inference.transport.servicer import InferenceServicer


@dataclass(frozen=True, slots=True)
class RunningInference:
    """What tests and programs that embed the service may look at."""

    server: Server
    views: RolloutViews


async def bootstrap(lifespan: Lifespan, settings: InferenceSettings) -> RunningInference:
    """Wire the service; it serves while Triton is live, and needs no Kafka for that."""
    loops = load_loops(settings)
    catalogue = Catalogue(loops)
    triton = await lifespan.enter(TritonReplicas(settings, timeout_s=settings.inference_triton_timeout_s))
    views = RolloutViews(settings.kafka, catalogue)
    lifespan.depends_on(Dependency("triton", triton.is_live))
    lifespan.depends_on(Dependency("rollouts", views.is_ready, required=False))

    async def follow() -> None:
        await ensure_topics(settings, loops.values())
        await views.follow()

    lifespan.background("rollout views", follow())
    servicer = InferenceServicer(Inference(catalogue, triton))
    registration = Registration(add_InferenceServiceServicer_to_server, servicer)
    server = await lifespan.serve(build_server(settings, [registration], health=lifespan.health))
    return RunningInference(server, views)
