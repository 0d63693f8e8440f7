"""Starts the trainer: `python -m gyre_trainer`."""

from gyre_runtime import Lifespan, load_settings, run

from gyre_trainer.bootstrap import bootstrap
from gyre_trainer.settings import TrainerSettings


def main() -> None:
    """Read the settings and serve."""
    settings = load_settings(TrainerSettings)

    async def serve(lifespan: Lifespan) -> None:
        await bootstrap(lifespan, settings)

    run(serve, settings=settings, service="trainer")


if __name__ == "__main__":
    main()
