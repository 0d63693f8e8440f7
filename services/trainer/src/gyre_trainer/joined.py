"""`join`: a loop's training set as a Parquet file, for whoever trains elsewhere, or on more than memory holds."""

import sys
import time
from pathlib import Path

from gyre_runtime import load_loops

from gyre_trainer.adapters.tables import LoopTables
from gyre_trainer.settings import TrainerSettings


def join_to_file(settings: TrainerSettings, loop: str, file: str) -> int:
    """Join what the warehouse holds now, print what came of it, and answer the exit code: 1 for a loop unknown here."""
    spec = load_loops(settings).get(loop)
    if spec is None:
        sys.stderr.write(f"{loop}: is no loop of GYRE_LOOPS\n")
        return 1
    tables = LoopTables(settings.warehouse, loop)
    pins = tables.pin(None if spec.clock == "replay" else time.time())
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
