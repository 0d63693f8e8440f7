"""A small world with a known preference: users choose items by a formula that a model can only learn from events.

Every user u has a taste for each category, drawn from a Dirichlet distribution, and every item i has a category, a
hidden quality that events alone give away, and a price. What an item is worth to a user is

    utility(u, i) = TASTE · taste[u, category(i)] + QUALITY · quality(i) - PRICE · price(i)

and of the candidates before them users choose one with probability proportional to exp(utility): a multinomial logit
(McFadden, Conditional Logit Analysis of Qualitative Choice Behavior, 1974). So the best possible ranking is known: by
utility. The same seed makes the same world, event by event.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from gyre_core.features import FieldsChanged, UserInteraction

CATEGORIES = ("books", "film", "games", "garden", "music", "sport")
TASTE, QUALITY, PRICE = 5.0, 0.8, 0.5
CANDIDATES = 100
START = 1_700_000_000.0
_TASTE_CONCENTRATION = 0.4
_SECONDS_BETWEEN = 20.0

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Event:
    """A choice in the world: the click, and the candidates that it was chosen from."""

    interaction: UserInteraction
    candidates: tuple[str, ...]


class World:
    """Users, items and their preference.

    Args:
        seed: the same seed makes the same world.
        users: how many.
        items: how many; at least the candidates of a choice.

    Attributes:
        taste: of shape [users, categories], rows sum to 1.
        category: of each item, an index into `CATEGORIES`.
        quality: of each item, standard normal, hidden.
        price: of each item, 0 to 2.
    """

    def __init__(self, *, seed: int = 7, users: int = 400, items: int = 600) -> None:
        if items < CANDIDATES:
            raise ValueError(f"items = {items}: must be at least {CANDIDATES}")
        self._random = np.random.default_rng(seed)
        self.taste: F64 = self._random.dirichlet([_TASTE_CONCENTRATION] * len(CATEGORIES), users)
        self.category = self._random.integers(0, len(CATEGORIES), items)
        self.quality: F64 = self._random.standard_normal(items)
        self.price: F64 = np.round(self._random.uniform(0.0, 2.0, items), 2)

    @property
    def users(self) -> int:
        """Count of users."""
        return len(self.taste)

    @property
    def items(self) -> int:
        """Count of items."""
        return len(self.category)

    def utility(self, user_id: str, item_ids: tuple[str, ...]) -> F64:
        """What items are worth to a user, by the formula above: the best possible scores."""
        chosen = np.array([int(item_id[1:]) for item_id in item_ids])
        liking = self.taste[int(user_id[1:]), self.category[chosen]]
        worth: F64 = TASTE * liking + QUALITY * self.quality[chosen] - PRICE * self.price[chosen]
        return worth

    def catalogue(self) -> list[FieldsChanged]:
        """The items with what is known of them: category and price."""
        return [
            FieldsChanged(
                "item",
                f"i{each}",
                START,
                {"category": CATEGORIES[self.category[each]], "price": float(self.price[each])},
            )
            for each in range(self.items)
        ]

    def events(self, count: int) -> Iterator[Event]:
        """So many choices, in the order of time, about 20 seconds apart."""
        time = START
        for _ in range(count):
            time += float(self._random.exponential(_SECONDS_BETWEEN))
            user_id = f"u{self._random.integers(self.users)}"
            drawn = self._random.choice(self.items, CANDIDATES, replace=False)
            candidates = tuple(f"i{each}" for each in drawn)
            # The largest of utility plus Gumbel noise is a draw from the logit.
            noisy = self.utility(user_id, candidates) + self._random.gumbel(size=CANDIDATES)
            clicked = candidates[int(noisy.argmax())]
            yield Event(UserInteraction(user_id, clicked, "click", round(time, 3)), candidates)
