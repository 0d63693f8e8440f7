"""Turns the grocery loop once on a running stack: history, a model, live requests, a retrain, a canary, a promotion."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from demo_loop.main import run
from grocery.dataset import GroceryMissing, find
from grocery.protocol import scenario

if __name__ == "__main__":
    try:
        folder = find()
    except GroceryMissing as error:
        sys.exit(f"The Complete Journey is missing ({error}). Without it: make demo LOOP=simworld")
    sys.exit(run(lambda: scenario(folder)))
