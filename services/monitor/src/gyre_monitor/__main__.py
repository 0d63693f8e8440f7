"""Starts the monitor: `python -m gyre_monitor`; with `maintain [--dry-run]` it prunes its tables once."""

import sys

from gyre_runtime import Lifespan, load_settings, run, run_once

from gyre_monitor.bootstrap import bootstrap
from gyre_monitor.maintain import maintain
from gyre_monitor.settings import MonitorSettings


def main() -> None:
    """Read the settings and serve."""
    settings = load_settings(MonitorSettings)
    if sys.argv[1:]:
        if sys.argv[1:] not in (["maintain"], ["maintain", "--dry-run"]):
            sys.exit(f"usage: python -m gyre_monitor [maintain [--dry-run]], not {' '.join(sys.argv[1:])!r}")
        run_once(lambda: maintain(settings, dry_run="--dry-run" in sys.argv), name="monitor maintain")

    async def serve(lifespan: Lifespan) -> None:
        await bootstrap(lifespan, settings)

    run(serve, settings=settings, service="monitor")


if __name__ == "__main__":
    main()
