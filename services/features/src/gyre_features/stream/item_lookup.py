"""The items' fields that users' features are made from, read once and kept while nobody changes the catalogue."""

import time
from collections.abc import Mapping, Sequence

from gyre_core.features import Versions

from gyre_features.online.store import OnlineStore

_MAX_ITEMS = 200_000
_KEPT_S = 60.0


class KnownItems:
    """The versions of items' fields, as of the catalogue's applied offsets that the worker knows.

    A worker knows what it changed itself. What others changed shows in the applied offsets, which the script compares:
    where they moved, everything is read again. What left no trace there, a deleted item, is noticed after a minute.
    """

    def __init__(self, store: OnlineStore) -> None:
        self.version = 0
        """Grows with whatever makes an earlier look-up old."""
        self._store = store
        self._versions: dict[str, Versions] = {}
        self._since = time.monotonic()

    async def lookup(self, ids: Sequence[str]) -> Mapping[str, Versions]:
        """What is known of these items, and of others.

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

    def changed(self, versions: Mapping[str, Versions]) -> None:
        """Take in the items whose fields a batch changed."""
        if versions:
            self._versions.update(versions)
            self.version += 1

    def clear(self) -> None:
        """Forget everything."""
        self._versions = {}
        self._since = time.monotonic()
        self.version += 1
