"""The items' fields that users' features are made from, read once and kept while nobody changes the catalogue."""

import time
from collections.abc import Callable, Mapping, Sequence

from gyre_core.features import Delta, EntityId

from gyre_features.online.store import OnlineStore

_MOST_ITEMS = 200_000
_KEPT_S = 60.0


class ItemFields:
    """Packed item values as far as their fields go; the counts in them are old.

    A worker knows what it changed itself. What others changed shows in the catalogue's fences, which every applied
    batch tells: when they moved by another hand, everything is read again. What left no trace there, a deleted item, is
    noticed after a minute.
    """

    def __init__(self, store: OnlineStore) -> None:
        self.version = 0
        """Grows with whatever makes an earlier look-up old."""
        self._store = store
        self._values: dict[str, bytes | None] = {}
        self._since = time.monotonic()

    async def lookup(self, ids: Sequence[str]) -> Callable[[str], bytes | None]:
        """A lookup that knows these items.

        Raises:
            Unavailable: the store does not answer.
        """
        if time.monotonic() - self._since > _KEPT_S:
            self.clear()
        while missing := [item_id for item_id in ids if item_id not in self._values]:
            if len(self._values) + len(missing) > _MOST_ITEMS:
                self._values.clear()
                missing = list(ids)
            version = self.version
            found = await self._store.items(missing)
            # What was read while a batch changed items may be from before it.
            if version == self.version:
                self._values.update(found)
        return self._values.get

    def changed(self, deltas: Mapping[EntityId, Delta]) -> None:
        """Forget the items whose fields a batch changed."""
        never = float("-inf")
        for (kind, item_id), delta in deltas.items():
            if kind == "item" and delta.fields_time > never:
                self._values.pop(item_id, None)
                self.version += 1

    def clear(self) -> None:
        """Forget everything."""
        self._values.clear()
        self._since = time.monotonic()
        self.version += 1
