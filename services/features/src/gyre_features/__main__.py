"""Starts a process of the service or does a job: `python -m gyre_features serve|stream|archive|quality|check|…`."""

import sys
from functools import partial
from importlib import import_module

from gyre_runtime import ServiceSettings, load_settings, run, run_once

from gyre_features.settings import SETTINGS_OF

PROCESSES = ("serve", "stream", "archive", "quality", "check")
JOBS = {
    "backfill": ("backfill", "backfill_all"),
    "check-once": ("check", "check_once"),
    "compact": ("maintain", "compact_all"),
    "expire": ("maintain", "expire_all"),
    "maintain": ("maintain", "maintain_all"),
}
"""What is done once and answers an exit code: its module among the processes, and its name there."""


def main() -> None:
    """Run the process or job that the command line names, and exit with its code; a wrong name exits with the usage."""
    dry_run = sys.argv[2:] == ["--dry-run"] and sys.argv[1] == "maintain"
    name = sys.argv[1] if len(sys.argv) == 2 or dry_run else ""
    if name not in PROCESSES and name not in JOBS:
        sys.exit(f"usage: python -m gyre_features {'|'.join((*PROCESSES, *JOBS))}, not {name!r}")
    settings = load_settings(SETTINGS_OF[name])
    if name in JOBS:
        module, job = ("maintain", "plan_all") if dry_run else JOBS[name]
        work = partial(getattr(import_module(f"gyre_features.processes.{module}"), job), settings)
        run_once(work, name=f"features {name}")
    wire = getattr(import_module(f"gyre_features.processes.{name}"), name)
    if not isinstance(settings, ServiceSettings):
        raise TypeError(f"{name}: a process has the settings of a service")
    run(partial(wire, settings=settings), settings=settings, service=f"features-{name}")


if __name__ == "__main__":
    main()
