"""Turns the movies loop once on a running stack: history, a model, live requests, a retrain, a canary, a promotion."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from demo_loop.main import run
from movies.dataset import DataMissing, find
from movies.protocol import scenario

if __name__ == "__main__":
    try:
        folder = find()
    except DataMissing as error:
        sys.exit(f"MovieTweetings is missing ({error}). Without it: make demo LOOP=simworld")
    sys.exit(run(lambda: scenario(folder)))
