"""Starts the service: `python -m gyre_inference`."""

from gyre.events.v1 import models_pb2
from gyre.inference.v1 import inference_pb2_grpc as rpc
from gyre_core.topics import topic
from gyre_runtime import Dependency, Lifespan, Registration, build_server, load_loops, load_settings, run
from gyre_runtime.events import message_types
from gyre_runtime.kafka import View, ensure_topics

from gyre_inference.settings import InferenceSettings
from gyre_inference.transport import InferenceServicer
from gyre_inference.triton import Triton


def main() -> None:
    """Run the process."""
    settings = load_settings(InferenceSettings)

    async def serve(lifespan: Lifespan) -> None:
        loops = load_loops(settings)
        await ensure_topics(settings, loops.values())
        triton = await lifespan.enter(Triton(settings.triton))
        types = message_types(models_pb2.RolloutView)
        views = {
            name: await lifespan.enter(View(settings.kafka, topic(name, "models.rollouts"), types)) for name in loops
        }
        lifespan.depends_on(Dependency("triton", triton.live))
        servicer = InferenceServicer(triton, loops, views)
        registration = Registration(rpc.add_InferenceServiceServicer_to_server, servicer)
        await lifespan.enter(build_server(settings, [registration], health=lifespan.health))

    run(serve, settings=settings, service="inference")


if __name__ == "__main__":
    main()
