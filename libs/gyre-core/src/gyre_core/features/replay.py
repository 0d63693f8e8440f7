"""The offline twin of the online store: states in memory, the same folding, the same reading, any point in time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gyre_core.features.aggregation import EntityId, fold_event, reapply
from gyre_core.features.events import GLOBAL_ID, EntityKind, Event, FeatureAge, RequestContext
from gyre_core.features.frame import F32
from gyre_core.features.layout import Layout
from gyre_core.features.reader import Reader
from gyre_core.features.remembering import ContributionBuffers
from gyre_core.features.state import State
from gyre_core.features.versions import Contribution, ItemCategories, Versions, with_version


class Replay:
    """Applies events one after the other and answers what a read at that point would have seen.

    A matrix sees exactly the events applied before it: feed a stream in its order and ask before the event itself.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._reader = Reader(layout)
        self._states = _Stored(layout)

    def apply(self, events: Iterable[Event]) -> None:
        """Fold events in, one after the other, late ones and late fields included; none is refused for its time.

        Raises ValueError for a field value that is not of its kind; the events before it stay applied.
        """
        for event in events:
            fold_event(self.layout, event, self._states)

    def matrix(self, user_id: str, item_ids: Sequence[str], context: RequestContext) -> tuple[F32, FeatureAge]:
        """What `Reader.matrix` gives for the values as they are now; nothing is changed."""
        value = self._states.value
        items = [value("item", item_id) for item_id in item_ids]
        return self._reader.matrix(value("user", user_id), value("global", GLOBAL_ID), items, item_ids, context)

    def value(self, kind: EntityKind, id: str) -> bytes | None:  # noqa: A002 (the field's name)
        """The packed value of an entity, or None for one that no event touched."""
        return self._states.value(kind, id)


class _Stored:
    """States by entity, with the packed form of those that did not change since it was last asked for."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._states: dict[EntityId, State] = {}
        self._packed: dict[EntityId, bytes] = {}
        self._versions: dict[str, Versions] = {}
        self._contributions = ContributionBuffers(layout)

    def state(self, kind: EntityKind, id: str) -> State:  # noqa: A002 (the field's name)
        key = (kind, id)
        self._packed.pop(key, None)
        found = self._states.get(key)
        if found is None:
            found = self._states[key] = State(self._layout.slots(kind))
        return found

    def held(self, item_id: str, time: float) -> ItemCategories:
        return self._layout.item_fields.as_of(self._versions.get(item_id, ()), time)

    def add_version(self, item_id: str, time: float, numbers: list[float]) -> None:
        layout = self._layout
        added = layout.item_fields.version(time, numbers)
        versions = with_version(self._versions.get(item_id, ()), added, kept_s=layout.max_lateness_s)
        self._versions[item_id] = versions
        for contribution in self._contributions.of(item_id):
            held = layout.item_fields.as_of(versions, contribution.time)
            if not contribution.has_read(held):
                reapply(layout, contribution, held, self.state)
                self._contributions.drop([contribution])
                self._contributions.add([contribution.again(held)])

    def remember(self, contribution: Contribution) -> None:
        self._contributions.add([contribution])
        self._contributions.cut(contribution.time)

    def value(self, kind: EntityKind, id: str) -> bytes | None:  # noqa: A002 (the field's name)
        key = (kind, id)
        packed = self._packed.get(key)
        if packed is None:
            state = self._states.get(key)
            if state is None:
                return None
            packed = self._packed[key] = state.pack()
        return packed
