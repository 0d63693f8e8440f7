"""How the simulated world is replayed: half is history, then each choice live among its own candidates."""

from pathlib import Path

from demo_loop.scenario import Choice, Scenario, split
from simworld.world import World

SPEC_FILE = Path(__file__).with_name("gyre.yaml")
EVENTS, HISTORY = 40_000, 20_000
SHOWN, ENOUGH = 4_000, 4_000


def scenario(world: World | None = None, *, events: int = EVENTS, history: int = HISTORY) -> Scenario:
    """The scenario of a world, by default the one of seed 7; `history` of its `events` are imported."""
    chosen = World() if world is None else world
    choices = [Choice(event.interaction, event.candidates) for event in chosen.events(events)]
    past, impressions, following = split(choices, history_share=history / events, shown=SHOWN, live=events)
    return Scenario(
        spec_file=SPEC_FILE,
        title="a simulated world",
        items=chosen.catalogue(),
        history=past,
        shown=impressions,
        live=following,
        enough=ENOUGH,
    )
