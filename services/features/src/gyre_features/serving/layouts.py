"""The layouts that are read: each by its hash, from a store of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from gyre.events.v1 import features_pb2 as events_pb2
from gyre_core.features import Layout, Reader
from gyre_core.layouts import KnownLayout, LayoutState
from gyre_core.spec import LoopSpec
from gyre_runtime import Precondition, Unavailable, unknown_loop
from gyre_runtime.context import current_call
from gyre_runtime.layouts import LayoutCatalog

from gyre_features.online.store import OnlineStore

_CATCH_UP_S = 2.0
"""How long Kafka is waited for at least."""
Open = Callable[[LoopSpec, int], OnlineStore]
"""Opens a store of the layout that a spec declares, by its generation."""


@dataclass(frozen=True)
class ServedLayout:
    """A layout with its store and a reader; it need not be filled.

    Attributes:
        spec: the loop as the layout sees it.
        store: of its values.
        reader: of the store's values.
        popularity_column: index of the column that orders candidates by popularity; None for none.
    """

    spec: LoopSpec
    store: OnlineStore
    reader: Reader
    popularity_column: int | None

    @property
    def layout(self) -> Layout:
        """The compiled layout, which names the columns."""
        return self.store.layout

    @classmethod
    def of(cls, spec: LoopSpec, store: OnlineStore) -> ServedLayout:
        """The layout of a spec and its store; asks the store nothing."""
        column = spec.serving.fallback_feature
        return cls(spec, store, Reader(store.layout), store.layout.index[column] if column else None)


class ServedLayouts:
    """Finds the layouts that requests are answered from, of some loops, and opens a store of each.

    Args:
        loops: the newest specs, by loop.
        catalog: which layouts there are; while Kafka was not read yet, the newest alone is.
        open: a store of the layout that a spec declares, by its generation.
    """

    def __init__(self, loops: Mapping[str, LoopSpec], catalog: LayoutCatalog, open: Open) -> None:  # noqa: A002
        self.loops, self._catalog, self._open = dict(loops), catalog, open
        self._newest = {loop: ServedLayout.of(spec, open(spec, 0)) for loop, spec in loops.items()}
        self._others: dict[tuple[str, str], ServedLayout] = {}
        self._held: set[str] = set()

    def newest(self, loop: str) -> ServedLayout:
        """The layout of gyre.yaml, filled or not, with the store of the generation that is known by now.

        Raises:
            NotFound: the loop is not served here (UNKNOWN_LOOP).
        """
        if loop not in self._newest:
            raise unknown_loop(loop)
        held = self._newest[loop]
        known = self._catalog.known(loop).get(held.layout.hash)
        if known is not None and known.generation != held.store.generation:
            held = self._newest[loop] = ServedLayout.of(held.spec, self._open(held.spec, known.generation))
        return held

    async def read(self, loop: str, layout: str) -> ServedLayout:
        """The layout that is asked for by its hash, or by an empty one the newest that is filled.

        Where no layout is filled, the newest is read as it is: there is nothing better. Until the topic is read it says
        nothing of any layout, and the newest is read where its first store holds values: one that was retired and is
        wanted again has another. Once it knows one, what it does not know was not declared yet, or was refused.

        Raises:
            NotFound: the loop is not served here (UNKNOWN_LOOP).
            Precondition: the layout is not filled, or not maintained, or not known yet (LAYOUT_NOT_SERVED).
            Unavailable: the store does not answer.
        """
        newest, current, all_known = self.newest(loop), self._catalog.current(loop), self._catalog.known(loop)
        if not all_known and layout in ("", newest.layout.hash):
            if not self._catalog.is_ready(loop) and not await self._holds_values(newest):
                raise Precondition("LAYOUT_NOT_SERVED", f"{loop}: which layouts are filled is read from Kafka first")
            return newest
        known = all_known.get(layout) if layout else current
        is_read = known is not None and (known.state is LayoutState.READY or known == current)
        found = self._opened(loop, known) if known is not None and is_read else None
        if found is None:
            asked = f"layout = {layout!r}: {_why(known)}" if layout else "no layout can be read"
            raise Precondition("LAYOUT_NOT_SERVED", f"{asked} for {loop}")
        return found

    async def all(self, loop: str) -> list[OnlineStore]:
        """The stores that may hold values of a loop, one for each known layout, retired ones included.

        Layouts that this release cannot compile are missing. Waits for Kafka, at least 2 s.

        Raises:
            NotFound: the loop is not served here (UNKNOWN_LOOP).
            Unavailable: Kafka does not say which layouts there are (KAFKA_UNAVAILABLE).
        """
        self.newest(loop)
        call = current_call()
        wait_s = _CATCH_UP_S if call is None else max(_CATCH_UP_S, call.remaining_s() / 2)
        try:
            await asyncio.wait_for(self._catalog.catch_up(loop), wait_s)
        except TimeoutError:
            message = f"the layouts of {loop} are not known: Kafka does not answer"
            raise Unavailable("KAFKA_UNAVAILABLE", message) from None
        newest, found = self.newest(loop), self._catalog.known(loop)
        self._others = {place: each for place, each in self._others.items() if place[0] != loop or place[1] in found}
        known = (self._opened(loop, each) for each in found.values())
        stores = {each.layout.hash: each.store for each in (newest, *known) if each is not None}
        return list(stores.values())

    def summaries(self, loop: str) -> list[events_pb2.FeatureLayout]:
        """What is known of the layouts that are not retired, the one declared last first, without definitions.

        Empty until the topic of layouts is read, and for unknown loops.
        """
        return self._catalog.summaries(loop)

    async def _holds_values(self, served: ServedLayout) -> bool:
        """Whether a batch was ever applied to a layout's store; it is asked until one was."""
        loop, store = served.spec.loop, served.store
        if loop not in self._held and any([await store.last_batch(shard) for shard in range(store.shards)]):
            self._held.add(loop)
        return loop in self._held

    def _opened(self, loop: str, known: KnownLayout) -> ServedLayout | None:
        """A known layout; None where this release cannot compile it."""
        newest = self.newest(loop)
        if known.hash == newest.layout.hash:
            return newest
        spec = self._catalog.spec(loop, known.hash)
        if spec is None:
            return None
        held = self._others.get((loop, known.hash))
        if held is None or held.spec is not spec or held.store.generation != known.generation:
            held = self._others[loop, known.hash] = ServedLayout.of(spec, self._open(spec, known.generation))
        return held


def _why(known: KnownLayout | None) -> str:
    if known is None:
        return "is not known: features-stream has not declared it yet, or refuses it,"
    if known.state is LayoutState.FILLING:
        return f"is being filled, {known.filled_share:.0%} so far,"
    return "is not maintained any more" if known.state is LayoutState.RETIRED else "cannot be read by this release"
