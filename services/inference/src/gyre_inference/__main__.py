"""Starts the inference service: `python -m gyre_inference`."""

from gyre_runtime import Lifespan, load_settings, run

from gyre_inference.bootstrap import bootstrap
from gyre_inference.settings import InferenceSettings


def main() -> None:
    """Read the settings and serve."""
    settings = load_settings(InferenceSettings)

    async def serve(lifespan: Lifespan) -> None:
        await bootstrap(lifespan, settings)

    run(serve, settings=settings, service="inference")


if __name__ == "__main__":
    main()
