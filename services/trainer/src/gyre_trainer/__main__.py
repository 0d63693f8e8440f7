"""Starts the trainer: `python -m gyre_trainer`; with `join LOOP FILE` it writes a training set to a Parquet file."""

import sys

from gyre_runtime import Lifespan, load_settings, run

from gyre_trainer.bootstrap import bootstrap
from gyre_trainer.settings import TrainerSettings


def main() -> None:
    """Read the settings and serve, or join."""
    settings = load_settings(TrainerSettings)
    if sys.argv[1:]:
        sys.exit(_join(settings, sys.argv[1:]))

    async def serve(lifespan: Lifespan) -> None:
        await bootstrap(lifespan, settings)

    run(serve, settings=settings, service="trainer")


def _join(settings: TrainerSettings, given: list[str]) -> int:
    from gyre_trainer.joined import join_to_file

    if len(given) != 3 or given[0] != "join":
        sys.exit(f"usage: python -m gyre_trainer [join LOOP FILE], not {' '.join(given)!r}")
    return join_to_file(settings, given[1], given[2])


if __name__ == "__main__":
    main()
