"""Turns the grocery loop once on a running stack: history, a model, live requests, a retrain, a canary, a promotion."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gyre_core.heartbeat import Heartbeat

if __name__ == "__main__":
    with Heartbeat(lambda: ["loading the demo"]):  # before the imports, which take long where nothing is cached
        from demo_loop.main import run
        from grocery.dataset import GroceryMissing, find
        from grocery.protocol import scenario
    try:
        folder = find()
    except GroceryMissing as error:
        sys.exit(f"The Complete Journey is missing ({error}). Without it: make demo LOOP=simworld")
    sys.exit(run(lambda: scenario(folder)))
