"""The example of gyre_runtime's docstring as a process: counts interactions, serves, and depends on Kafka."""

from gyre.events.v1.behavior_pb2 import Interaction
from gyre.inference.v1 import inference_pb2 as pb
from gyre.inference.v1 import inference_pb2_grpc as rpc
from gyre_runtime import Dependency, Lifespan, Registration, ServiceSettings, build_server, load_settings, run
from gyre_runtime.events import Event, message_types
from gyre_runtime.kafka import Consumer, Producer


class ExampleSettings(ServiceSettings):
    """The example's settings."""

    service = "inference"
    inference_topic: str = "example.behavior.interactions"


class Models(rpc.InferenceServiceServicer):
    """Lists as many models as there were events."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    async def ListModels(self, request: pb.ListModelsRequest, context: object) -> pb.ListModelsResponse:  # noqa: N802
        """Answer one model for each event."""
        return pb.ListModelsResponse(models=[pb.LoadedModel(version=event.id) for event in self.events])

    async def handle(self, events: list[Event]) -> None:
        """Note events."""
        self.events.extend(events)


def main() -> None:
    """Run the example."""
    settings = load_settings(ExampleSettings)
    models = Models()

    async def serve(lifespan: Lifespan) -> None:
        producer = await lifespan.enter(Producer(settings.kafka, source="gyre/example"))
        lifespan.depends_on(Dependency("kafka", producer.ping))
        topics, types = [settings.inference_topic], message_types(Interaction)
        consumer = await lifespan.enter(Consumer(settings.kafka, group="example", topics=topics, types=types))
        lifespan.background("events", consumer.run(models.handle), stop=consumer.stop)
        services = [Registration(rpc.add_InferenceServiceServicer_to_server, models)]
        await lifespan.enter(build_server(settings, services, health=lifespan.health))

    run(serve, settings=settings, service="example")


if __name__ == "__main__":
    main()
