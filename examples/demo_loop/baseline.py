"""The baseline that the served model has to beat: exact decayed counts of the items, from the same events."""

from collections.abc import Iterable, Sequence

from gyre_core.features import UserInteraction


class DecayedPopularity:
    """Counts each item's interactions, decayed exponentially with a half-life in seconds."""

    def __init__(self, half_life_s: float) -> None:
        self._half_life_s = half_life_s
        self._counts: dict[str, tuple[float, float]] = {}

    def add(self, interactions: Iterable[UserInteraction]) -> None:
        """Count interactions, in the order of time."""
        for each in interactions:
            self._counts[each.item_id] = (self._count(each.item_id, each.time) + 1.0, each.time)

    def scores(self, item_ids: Sequence[str], time: float) -> list[float]:
        """The items' counts as of a time, from what was counted before."""
        return [self._count(item_id, time) for item_id in item_ids]

    def _count(self, item_id: str, time: float) -> float:
        count, since = self._counts.get(item_id, (0.0, time))
        return float(count * 2.0 ** (-max(time - since, 0.0) / self._half_life_s))
