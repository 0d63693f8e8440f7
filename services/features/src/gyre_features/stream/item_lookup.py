"""The items' fields that users' features are made from, read once and kept while nobody changes the catalogue."""

import time
from collections.abc import Mapping, Sequence

from gyre_core.features import Versions

from gyre_features.online.store import OnlineStore

_MAX_ITEMS = 200_000
_KEPT_S = 60.0


class KnownItems:
    """A cache of the versions of items' fields, as of the catalogue's applied offsets that the worker knows.

    A worker knows what it changed itself. What others changed shows in the applied offsets, which the script compares:
    where they moved, everything is read again. What left no trace there, a deleted item, is noticed after a minute.
    """

    def __init__(self, store: OnlineStore) -> None:
        self.version = 0
        """Grows with each `update` that changes something and each `clear`.

        What was looked up under a lower one is stale.
        """
        self._store = store
        self._versions: dict[str, Versions] = {}
        self._since = time.monotonic()

    async def lookup(self, ids: Sequence[str]) -> Mapping[str, Versions]:
        """The versions of at least these items, by id, read from the store where they are not cached.

        Empty for unknown ones. The answer is the cache itself: it may hold other items, and changes with it.

        Raises:
            Unavailable: the store does not answer.
        """
        if time.monotonic() - self._since > _KEPT_S:
            self.clear()
        while missing := [item_id for item_id in ids if item_id not in self._versions]:
            if len(self._versions) + len(missing) > _MAX_ITEMS:
                self._versions = {}
                missing = list(ids)
            version = self.version
            found = await self._store.versions(missing)
            # What was read while a batch changed items may be from before it.
            if version == self.version:
                self._versions.update(found)
        return self._versions

    def update(self, versions: Mapping[str, Versions]) -> None:
        """Replace the cached versions of items, all of each, by what a batch left; without items nothing happens."""
        if versions:
            self._versions.update(versions)
            self.version += 1

    def clear(self) -> None:
        """Empty the cache, so that everything is read again; the store is left alone."""
        self._versions = {}
        self._since = time.monotonic()
        self.version += 1
