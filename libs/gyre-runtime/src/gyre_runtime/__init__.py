"""Gyre's chassis: what every process of the mesh shares, so that its own code is its job.

A service's `__main__` in full (this example is a test, tests/test_example.py):

    from gyre.inference.v1 import inference_pb2 as pb, inference_pb2_grpc as rpc
    from gyre_runtime import Dependency, Lifespan, Registration, ServiceSettings, build_server, load_settings, run
    from gyre_runtime.kafka import Producer

    class EchoSettings(ServiceSettings):
        service = "inference"
        inference_greeting: str = "hello"

    class Echo(rpc.InferenceServiceServicer):
        def __init__(self, settings: EchoSettings) -> None:
            self._greeting = settings.inference_greeting

        async def ListModels(self, request: pb.ListModelsRequest, context: object) -> pb.ListModelsResponse:
            return pb.ListModelsResponse()

    def main() -> None:
        settings = load_settings(EchoSettings)

        async def serve(lifespan: Lifespan) -> None:
            producer = await lifespan.enter(Producer(settings.kafka, source="gyre/echo"))
            lifespan.depends_on(Dependency("kafka", producer.ping))
            consumer = await lifespan.enter(Consumer(settings.kafka, group="echo", topics=[...], types=...))
            lifespan.background("events", consumer.run(handle), stop=consumer.stop)
            services = [Registration(rpc.add_InferenceServiceServicer_to_server, Echo(settings))]
            await lifespan.enter(build_server(settings, services, health=lifespan.health))

        run(serve, settings=settings, service="echo")

`serve` opens what the process needs, the server last, and returns. From then on the process is SERVING while its
dependencies are up. On SIGTERM it is not ready, stops consuming, finishes what is under way, commits, flushes and
exits 0; when a background task dies it does the same and exits 1, for the supervisor to start it again.
"""

from gyre_runtime.client import Channel, RetryBudget, call, channel
from gyre_runtime.errors import (
    Conflict,
    DeadlineExceeded,
    Exhausted,
    GyreError,
    Invalid,
    NotFound,
    Precondition,
    Unauthenticated,
    Unavailable,
    Violation,
)
from gyre_runtime.health import Dependency, Health
from gyre_runtime.lifecycle import Lifespan, run
from gyre_runtime.loops import load_loops
from gyre_runtime.metrics import instrument
from gyre_runtime.server import Registration, Server, build_server
from gyre_runtime.settings import ServiceSettings, load_settings
from gyre_runtime.telemetry import setup_telemetry
from gyre_runtime.tracing import inject, model_tracer, start_span

__all__ = [
    "Channel", "Conflict", "DeadlineExceeded", "Dependency", "Exhausted", "GyreError", "Health", "Invalid",
    "Lifespan", "NotFound", "Precondition", "Registration", "RetryBudget", "Server", "ServiceSettings",
    "Unauthenticated", "Unavailable", "Violation", "build_server", "call", "channel", "inject", "instrument",
    "load_loops", "load_settings", "model_tracer", "run", "setup_telemetry", "start_span",
]  # fmt: skip
