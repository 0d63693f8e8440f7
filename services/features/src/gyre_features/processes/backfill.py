"""`backfill`: fills the online store of every loop from the warehouse, once."""

import sys
import time

from gyre_runtime import Precondition, Unavailable, load_loops

from gyre_features.settings import BackfillSettings
from gyre_features.stream.backfill import backfill


def backfill_all(settings: BackfillSettings) -> int:
    """Backfill one loop after the other, print how much was applied, and answer the exit code, 0 where all is done.

    1 where something needed is away: the loops after that one are not tried.
    """
    for name, spec in load_loops(settings).items():
        started = time.perf_counter()
        try:
            done = backfill(settings, spec, processes=settings.features_backfill_processes)
        except (Precondition, Unavailable) as error:
            sys.stdout.write(f"{name}: {error}: what was applied stands; start again\n")
            return 1
        sys.stdout.write(f"{name}: {done.events:,} events applied in {time.perf_counter() - started:.1f} s\n")
        sys.stdout.writelines(f"{name}: {line}\n" for line in done.rows.lines())
    return 0
