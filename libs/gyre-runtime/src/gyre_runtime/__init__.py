"""Gyre's chassis: what every process of the mesh shares, so that its own code is its job.

A process in full, which tests/test_runtime_lifecycle.py runs as it stands here:

    from gyre.events.v1.behavior_pb2 import Interaction
    from gyre.inference.v1 import inference_pb2 as pb, inference_pb2_grpc as rpc
    from gyre_runtime import Dependency, Lifespan, Registration, ServiceSettings, build_server, load_settings, run
    from gyre_runtime.events import Event, message_types
    from gyre_runtime.kafka import Consumer, Producer
    from gyre_runtime.settings import KafkaSettings

    class ExampleSettings(ServiceSettings, KafkaSettings):
        service = "inference"
        inference_topic: str = "example.behavior.interactions"

    class Models(rpc.InferenceServiceServicer):
        def __init__(self) -> None:
            self.events: list[Event] = []

        async def ListModels(self, request: pb.ListModelsRequest, context: object) -> pb.ListModelsResponse:
            return pb.ListModelsResponse(models=[pb.LoadedModel(version=event.id) for event in self.events])

        async def handle(self, events: list[Event]) -> None:
            self.events.extend(events)

    def main() -> None:
        settings, models = load_settings(ExampleSettings), Models()

        async def serve(lifespan: Lifespan) -> None:
            producer = await lifespan.enter(Producer(settings.kafka, source="gyre/example"))
            lifespan.depends_on(Dependency("kafka", producer.ping))
            topics, types = [settings.inference_topic], message_types(Interaction)
            consumer = await lifespan.enter(Consumer(settings.kafka, group="example", topics=topics, types=types))
            lifespan.background("events", consumer.run(models.handle), stop=consumer.stop)
            services = [Registration(rpc.add_InferenceServiceServicer_to_server, models)]
            await lifespan.enter(build_server(settings, services, health=lifespan.health))

        run(serve, settings=settings, service="example")

    main()

`serve` opens what the process needs, the server last, and returns (a service with topics of its own loops calls
`await ensure_topics(settings, load_loops(settings).values())` first). From then on the process is SERVING while its
dependencies are up. On SIGTERM it is not ready, stops consuming, finishes what is under way, commits, flushes and
exits 0; when a background task dies it does the same and exits 1, for the supervisor to start it again.
"""

from gyre_runtime.client import Channel, RetryBudget, call, channel
from gyre_runtime.environment import load_settings
from gyre_runtime.errors import (
    Conflict,
    DeadlineExceeded,
    Exhausted,
    GyreError,
    Invalid,
    Misconfigured,
    NotFound,
    Precondition,
    Unauthenticated,
    Unavailable,
    Unsupported,
    Violation,
)
from gyre_runtime.health import Dependency, Health
from gyre_runtime.lifecycle import Lifespan, run, run_once
from gyre_runtime.loops import load_loops, unknown_loop
from gyre_runtime.metrics import instrument
from gyre_runtime.server import Registration, Server, build_server
from gyre_runtime.settings import ServiceSettings
from gyre_runtime.telemetry import setup_telemetry
from gyre_runtime.tracing import current_traceparent, model_tracer, start_span

__all__ = [
    "Channel", "Conflict", "DeadlineExceeded", "Dependency", "Exhausted", "GyreError", "Health", "Invalid", "Lifespan",
    "Misconfigured", "NotFound", "Precondition", "Registration", "RetryBudget", "Server", "ServiceSettings",
    "Unauthenticated", "Unavailable", "Unsupported", "Violation", "build_server", "call", "channel",
    "current_traceparent", "instrument", "load_loops", "load_settings", "model_tracer", "run", "run_once",
    "setup_telemetry", "start_span", "unknown_loop",
]  # fmt: skip
