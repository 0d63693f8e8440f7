"""The items' fields that a worker keeps are never older than what it applied itself."""

from collections.abc import Sequence

from gyre_core.features import FieldsChanged, Layout, aggregate
from gyre_core.spec import LoopSpec
from gyre_features.online.items import ItemFields


class Store:
    """A store that is changed by a batch while the first read is on its way."""

    def __init__(self) -> None:
        self.values = {"i1": b"old"}
        self.reads = 0
        self.meanwhile = lambda: None

    async def items(self, ids: Sequence[str]) -> dict[str, bytes | None]:
        """Values as they stood when the read began."""
        self.reads += 1
        found = {each: self.values.get(each) for each in ids}
        if self.reads == 1:
            self.meanwhile()
        return found


async def test_a_read_that_a_batch_overtakes_is_made_again(spec: LoopSpec, layout: Layout) -> None:
    """Where a batch changed items while they were read, the read is repeated: what it found may be from before."""
    store = Store()
    items = ItemFields(store)
    change = FieldsChanged("item", "i1", 1.0, {"genres": ["action"]})

    def applied() -> None:
        store.values["i1"] = b"new"
        items.changed(aggregate(layout, [change], lambda _: None))

    store.meanwhile = applied
    assert (await items.lookup(["i1"]))("i1") == b"new"
    assert (await items.lookup(["i1"]))("i1") == b"new"
    assert store.reads == 2
