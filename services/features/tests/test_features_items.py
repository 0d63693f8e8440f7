"""The items' fields that a worker keeps are never older than what it applied itself."""

from collections.abc import Sequence

from gyre_core.features import Versions
from gyre_core.features.versions import ItemCategories, Version
from gyre_features.stream.item_lookup import KnownItems

OLD, NEW = (Version(1.0, (), ItemCategories(1, {})),), (Version(2.0, (), ItemCategories(2, {})),)


class Store:
    """A store that is changed by a batch while the first read is on its way."""

    def __init__(self) -> None:
        self.values: dict[str, Versions] = {"i1": OLD}
        self.reads = 0
        self.meanwhile = lambda: None

    async def versions(self, ids: Sequence[str]) -> dict[str, Versions]:
        """Versions as they stood when the read began."""
        self.reads += 1
        found = {each: self.values.get(each, ()) for each in ids}
        if self.reads == 1:
            self.meanwhile()
        return found


async def test_a_read_that_a_batch_overtakes_does_not_replace_what_it_changed() -> None:
    """Where a batch changed items while they were read, what the read found may be from before, and is read again."""
    store = Store()
    items = KnownItems(store)

    def applied() -> None:
        store.values["i1"] = NEW
        items.update({"i1": NEW})

    store.meanwhile = applied
    assert (await items.lookup(["i1", "i2"])) == {"i1": NEW, "i2": ()}
    assert (await items.lookup(["i1"]))["i1"] is NEW
    assert store.reads == 2
