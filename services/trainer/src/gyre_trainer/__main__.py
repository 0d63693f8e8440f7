"""Starts the trainer: `python -m gyre_trainer`; with `join LOOP FILE` or `plan LOOP` it makes a training set once."""

import sys

from gyre_runtime import Lifespan, load_settings, run

from gyre_trainer.bootstrap import bootstrap
from gyre_trainer.settings import TrainerSettings


def main() -> None:
    """Read the settings and serve, or join."""
    settings = load_settings(TrainerSettings)
    if sys.argv[1:]:
        sys.exit(_once(settings, sys.argv[1:]))

    async def serve(lifespan: Lifespan) -> None:
        await bootstrap(lifespan, settings)

    run(serve, settings=settings, service="trainer")


def _once(settings: TrainerSettings, given: list[str]) -> int:
    from gyre_trainer.joined import join_to_file, print_plan

    match given:
        case ["join", loop, file]:
            return join_to_file(settings, loop, file)
        case ["plan", loop]:
            return print_plan(settings, loop)
    sys.exit(f"usage: python -m gyre_trainer [join LOOP FILE | plan LOOP], not {' '.join(given)!r}")


if __name__ == "__main__":
    main()
