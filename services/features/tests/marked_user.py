"""A user whose id is searched for, and another one."""

from typing import Any

from gyre.events.v1 import behavior_pb2 as behavior
from gyre_runtime.events import Event

MARKED, OTHER = "marked-7f3a91", "somebody-else"


def ratings(history: Any, *items: str, start: int = 0) -> list[Event]:
    """Ratings of some items by the two, at the offsets from `start` on."""
    pairs = [(user, item) for user in (MARKED, OTHER) for item in items]
    return [
        history.event(
            "behavior.interactions",
            behavior.Interaction(user_id=user, item_id=item, type="rating", value=7),
            number,
        )
        for number, (user, item) in enumerate(pairs, start=start)
    ]
