"""What an example brings: a catalogue, a history, impressions made up for it, and choices to replay live."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from gyre_core.features import FieldsChanged, Impression, UserInteraction
from gyre_core.spec import Duration

A_WEEK = Duration.parse("7d")
OTHERS = 99
"""How many further candidates stand beside the item that was really chosen."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Something that a user did, and the candidates it was chosen from; without candidates it is only told."""

    interaction: UserInteraction
    candidates: tuple[str, ...] = ()

    @property
    def relevance(self) -> list[float]:
        """1 for the chosen item, 0 for the others, in the order of the candidates."""
        return [float(item == self.interaction.item_id) for item in self.candidates]


@dataclass(frozen=True)
class Scenario:
    """Everything a demo replays, each part in the order of time.

    Attributes:
        spec_file: the loop's gyre.yaml.
        title: what the data are, for people.
        items: the catalogue as it stands before the first event.
        history: interactions to import.
        shown: impressions made up for the newest part of the history.
        live: what is replayed request by request, more of it than is needed.
        enough: count of live choices with candidates after which the replay may end.
        baseline_half_life: of the popularity that the model is compared with: the strongest for these data.
        least_gain: the relative gain in NDCG@10 over it without which the demo fails; None only reports it.
    """

    spec_file: Path
    title: str
    items: Sequence[FieldsChanged]
    history: Sequence[UserInteraction]
    shown: Sequence[Impression]
    live: Sequence[Choice]
    enough: int
    baseline_half_life: Duration = A_WEEK
    least_gain: float | None = 0.03


class RecentItems:
    """The items with an event within a time before now, in an order of their own so that drawing is reproducible."""

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._events: deque[tuple[float, str]] = deque()
        self._counts: dict[str, int] = {}
        self._items: list[str] = []
        self._places: dict[str, int] = {}

    def __contains__(self, item_id: str) -> bool:
        return item_id in self._places

    def __len__(self) -> int:
        return len(self._items)

    def add(self, item_id: str, time: float) -> None:
        """Note an event."""
        self._events.append((time, item_id))
        self._counts[item_id] = self._counts.get(item_id, 0) + 1
        if item_id not in self._places:
            self._places[item_id] = len(self._items)
            self._items.append(item_id)

    def forget_before(self, now: float) -> None:
        """Drop what is older than the window."""
        while self._events and self._events[0][0] < now - self._window_s:
            _, item_id = self._events.popleft()
            self._counts[item_id] -= 1
            if not self._counts[item_id]:
                del self._counts[item_id]
                self._remove(item_id)

    def _remove(self, item_id: str) -> None:
        place, last = self._places.pop(item_id), self._items.pop()
        if last != item_id:
            self._items[place] = last
            self._places[last] = place

    def draw(self, chosen: str, random: Random) -> tuple[str, ...]:
        """The chosen item among others drawn uniformly without repetition, in random order."""
        drawn = [item for item in random.sample(self._items, OTHERS + 1) if item != chosen][:OTHERS]
        candidates = [chosen, *drawn]
        random.shuffle(candidates)
        return tuple(candidates)


def with_candidates(interactions: Iterable[UserInteraction], *, window_s: float, seed: int) -> Iterator[Choice]:
    """Draw the candidates of each interaction from the items that had an event within `window_s` before it.

    An interaction whose own item had none, or before there are enough items, gets no candidates. Drawing from
    the popular instead would give the answer away.
    """
    recent, random = RecentItems(window_s), Random(seed)  # noqa: S311 (no secret: it must be reproducible)
    for interaction in interactions:
        recent.forget_before(interaction.time)
        usable = interaction.item_id in recent and len(recent) > OTHERS
        yield Choice(interaction, recent.draw(interaction.item_id, random) if usable else ())
        recent.add(interaction.item_id, interaction.time)


def split(
    choices: Sequence[Choice], *, history_share: float, shown: int, live: int
) -> tuple[list[UserInteraction], list[Impression], list[Choice]]:
    """Part choices in the order of time into history, impressions made up for its newest events, and what comes live.

    Args:
        choices: all of them, with candidates.
        history_share: the share that is history.
        shown: count of impressions, for the newest choices of the history that have candidates.
        live: count of live choices that have candidates.
    """
    cut = round(len(choices) * history_share)
    newest = [choice for choice in choices[:cut] if choice.candidates][-shown:]
    impressions = [Impression(each.interaction.user_id, each.candidates, each.interaction.time) for each in newest]
    following: list[Choice] = []
    for choice in choices[cut:]:
        if not live:
            break
        following.append(choice)
        live -= bool(choice.candidates)
    return [choice.interaction for choice in choices[:cut]], impressions, following
