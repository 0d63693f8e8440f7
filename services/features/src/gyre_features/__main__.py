"""Starts one of the service's processes: `python -m gyre_features serve|stream|archive|quality`."""

import sys
from functools import partial
from importlib import import_module

from gyre_runtime import load_settings, run

from gyre_features.settings import FeaturesSettings

PROCESSES = ("serve", "stream", "archive", "quality")


def main() -> None:
    """Read the process's name and run it."""
    name = sys.argv[1] if len(sys.argv) == 2 else ""
    if name not in PROCESSES:
        sys.exit(f"usage: python -m gyre_features {'|'.join(PROCESSES)}, not {name!r}")
    settings = load_settings(FeaturesSettings)
    wire = getattr(import_module(f"gyre_features.processes.{name}"), name)
    run(partial(wire, settings=settings), settings=settings, service=f"features-{name}")


if __name__ == "__main__":
    main()
