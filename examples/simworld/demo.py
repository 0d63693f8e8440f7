"""Turns the simulated world's loop once on a running stack: it needs no data."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from demo_loop.main import run
from simworld.protocol import scenario

if __name__ == "__main__":
    sys.exit(run(scenario))
