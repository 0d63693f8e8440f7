"""`join`: a loop's training set as a Parquet file, for whoever trains elsewhere, or on more than memory holds.

`plan` is the same for a Spark cluster.
"""

import json
import sys
import time
from pathlib import Path

from gyre_core.spec import LoopSpec
from gyre_runtime import NotFound, Precondition, load_loops, unknown_loop

from gyre_trainer.adapters.tables import LoopTables
from gyre_trainer.domain import Pins
from gyre_trainer.settings import TrainerSettings


def join_to_file(settings: TrainerSettings, loop: str, file: str) -> int:
    """Join what the warehouse holds now, print what came of it, and answer the exit code: 1 for a loop unknown here."""
    try:
        spec, tables, pins = _pinned(settings, loop)
    except NotFound as error:
        sys.stderr.write(f"{error}\n")
        return 1
    path = Path(file).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    done = tables.join(spec, pins, path=path, memory_bytes=settings.trainer_join_bytes)
    snapshots = ", ".join(f"{name} {snapshot}" for name, snapshot in sorted(pins.snapshots.items()))
    sys.stdout.write(
        f"{loop}: {done.impressions:,} impressions in {path}; left out: {done.unlabelled:,} without a label, "
        f"{done.open_windows:,} with an open window; {done.late:,} late interactions\n"
        f"snapshots: {snapshots or 'none'}\n"
    )
    return 0


def print_plan(settings: TrainerSettings, loop: str) -> int:
    """Print the plan of the same join for Spark as JSON, and answer the exit code."""
    try:
        spec, tables, pins = _pinned(settings, loop)
        sys.stdout.write(json.dumps(tables.plan(spec, pins), indent=2) + "\n")
    except (NotFound, Precondition) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def _pinned(settings: TrainerSettings, loop: str) -> tuple[LoopSpec, LoopTables, Pins]:
    spec = load_loops(settings).get(loop)
    if spec is None:
        raise unknown_loop(loop)
    tables = LoopTables(settings, loop)
    return spec, tables, tables.pin(None if spec.clock == "replay" else time.time())
