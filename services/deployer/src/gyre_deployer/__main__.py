"""Starts the deployer: `python -m gyre_deployer`; with `maintain [--dry-run]` it cleans Triton's repository once."""

import sys

from gyre_runtime import Lifespan, load_settings, run, run_once

from gyre_deployer.bootstrap import bootstrap
from gyre_deployer.maintain import maintain
from gyre_deployer.settings import DeployerSettings


def main() -> None:
    """Read the settings and serve."""
    settings = load_settings(DeployerSettings)
    if sys.argv[1:]:
        if sys.argv[1:] not in (["maintain"], ["maintain", "--dry-run"]):
            sys.exit(f"usage: python -m gyre_deployer [maintain [--dry-run]], not {' '.join(sys.argv[1:])!r}")
        run_once(lambda: maintain(settings, dry_run="--dry-run" in sys.argv), name="deployer maintain")

    async def serve(lifespan: Lifespan) -> None:
        await bootstrap(lifespan, settings)

    run(serve, settings=settings, service="deployer")


if __name__ == "__main__":
    main()
