"""Starts the service: `python -m gyre_gateway`."""

from functools import partial

from gyre_runtime import load_settings, run

from gyre_gateway.bootstrap import serve
from gyre_gateway.settings import GatewaySettings


def main() -> None:
    """Run the process."""
    settings = load_settings(GatewaySettings)
    run(partial(serve, settings=settings), settings=settings, service="gateway")


if __name__ == "__main__":
    main()
