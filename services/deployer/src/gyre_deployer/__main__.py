"""Starts the deployer: `python -m gyre_deployer`."""

from gyre_runtime import Lifespan, load_settings, run

from gyre_deployer.bootstrap import bootstrap
from gyre_deployer.settings import DeployerSettings


def main() -> None:
    """Read the settings and serve."""
    settings = load_settings(DeployerSettings)

    async def serve(lifespan: Lifespan) -> None:
        await bootstrap(lifespan, settings)

    run(serve, settings=settings, service="deployer")


if __name__ == "__main__":
    main()
