"""What the local stacks of a checkout record for the commands that follow."""

import json
import os
import sys
from pathlib import Path

LOOPS_RECORD = "loops.json"
"""The file in a stack's folder with the paths of the loops that it was last brought up with, a JSON list."""


def served_loops() -> list[tuple[Path, ...]]:
    """The files of the loops that each stack was last brought up with, the latest stack first; those that are there.

    The stack is that of `GYRE_VAR`; without it those of the checkout, whose demo has one in a folder within.
    """
    given = os.environ.get("GYRE_VAR")
    folders = [Path(given)] if given else [Path.cwd() / "var", Path(sys.prefix).parent / "var"]
    found = {path.resolve() for each in folders for path in (*each.glob(LOOPS_RECORD), *each.glob(f"*/{LOOPS_RECORD}"))}
    records = sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)
    served = [tuple(path for path in map(Path, json.loads(each.read_text())) if path.is_file()) for each in records]
    return [paths for paths in served if paths]
