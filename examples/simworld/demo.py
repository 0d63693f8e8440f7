"""Turns the simulated world's loop once on a running stack: it needs no data."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gyre_core.heartbeat import Heartbeat

if __name__ == "__main__":
    with Heartbeat(lambda: ["loading the demo"]):  # before the imports, which take long where nothing is cached
        from demo_loop.main import run
        from simworld.protocol import scenario
    sys.exit(run(scenario))
