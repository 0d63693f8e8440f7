"""Measures offline what the demo measures live, beside the best that any model could do: the world's own formula."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from demo_loop.offline import main
from demo_loop.traffic import quality
from simworld.protocol import scenario
from simworld.world import World

if __name__ == "__main__":
    world = World()
    replayed = scenario(world)
    main(replayed, most_gain=0.85)
    live = [choice for choice in replayed.live if choice.candidates][: replayed.enough]
    best = quality(
        [(world.utility(each.interaction.user_id, each.candidates).tolist(), each.relevance) for each in live]
    )
    print(f"best possible ndcg_at_10 {best.ndcg:.4f}  hit_rate_at_10 {best.hit_rate:.4f}  mrr {best.mrr:.4f}")
