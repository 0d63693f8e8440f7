"""Starts the trainer: `python -m gyre_trainer`, or does once what is named: `join`, `plan` or `maintain`."""

import sys

from gyre_runtime import Lifespan, load_settings, run, run_once

from gyre_trainer.bootstrap import bootstrap
from gyre_trainer.settings import TrainerSettings


def main() -> None:
    """Read the settings and serve, or join."""
    settings = load_settings(TrainerSettings)
    if sys.argv[1:]:
        run_once(lambda: _once(settings, sys.argv[1:]), name=f"trainer {sys.argv[1]}")

    async def serve(lifespan: Lifespan) -> None:
        await bootstrap(lifespan, settings)

    run(serve, settings=settings, service="trainer")


def _once(settings: TrainerSettings, given: list[str]) -> int:
    from gyre_trainer.joined import join_to_file, print_plan
    from gyre_trainer.maintain import maintain

    match given:
        case ["maintain"]:
            return maintain(settings, dry_run=False)
        case ["maintain", "--dry-run"]:
            return maintain(settings, dry_run=True)
        case ["join", loop, file]:
            return join_to_file(settings, loop, file)
        case ["plan", loop]:
            return print_plan(settings, loop)
    ways = "join LOOP FILE | plan LOOP | maintain [--dry-run]"
    sys.exit(f"usage: python -m gyre_trainer [{ways}], not {' '.join(given)!r}")


if __name__ == "__main__":
    main()
