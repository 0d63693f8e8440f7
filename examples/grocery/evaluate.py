"""Measures offline what the demo measures live: NDCG@10 of the trained ranker against popularity."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from demo_loop.offline import main
from grocery.dataset import find
from grocery.protocol import scenario

if __name__ == "__main__":
    main(scenario(find()), most_gain=0.5)
