"""Starts the monitor: `python -m gyre_monitor`."""

from gyre_runtime import Lifespan, load_settings, run

from gyre_monitor.bootstrap import bootstrap
from gyre_monitor.settings import MonitorSettings


def main() -> None:
    """Read the settings and serve."""
    settings = load_settings(MonitorSettings)

    async def serve(lifespan: Lifespan) -> None:
        await bootstrap(lifespan, settings)

    run(serve, settings=settings, service="monitor")


if __name__ == "__main__":
    main()
