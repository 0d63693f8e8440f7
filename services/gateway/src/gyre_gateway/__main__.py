"""Starts the gateway: `python -m gyre_gateway`."""

from gyre_runtime import Lifespan, load_settings, run

from gyre_gateway.bootstrap import bootstrap
from gyre_gateway.settings import GatewaySettings


def main() -> None:
    """Read the settings and serve."""
    settings = load_settings(GatewaySettings)

    async def serve(lifespan: Lifespan) -> None:
        await bootstrap(lifespan, settings)

    run(serve, settings=settings, service="gateway")


if __name__ == "__main__":
    main()
