"""From packed values to the matrix that a model reads: unpacked and decayed with numpy, all candidates at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gyre_core.features.events import FeatureAge, RequestContext
from gyre_core.features.frame import F32, Blocks, EntityBlock, Frame
from gyre_core.features.layout import Layout
from gyre_core.features.state import unpack_rings
from gyre_core.features.steps import compile_steps


class Reader:
    """Reads feature matrices of one layout; immutable and cheap to share."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._columns = len(layout.columns)
        self._user, self._global = Blocks(layout.slots("user")), Blocks(layout.slots("global"))
        self._items = Blocks(layout.slots("item"))
        self._steps = compile_steps(layout)

    def matrix(
        self,
        user_value: bytes | None,
        global_value: bytes | None,
        item_values: Sequence[bytes | None],
        item_ids: Sequence[str],
        context: RequestContext,
    ) -> tuple[F32, FeatureAge]:
        """The features of candidates, float32 of shape [n, columns], and how old they are.

        Values are as stored, None for what the store does not know. Decay runs from each value's reference time to
        `context.time`, and never forwards: a value newer than a late request is read as it stands. Raises ValueError
        where a value does not fit the layout or the numbers of values, ids and positions differ.
        """
        if len(item_values) != len(item_ids):
            raise ValueError(f"{len(item_values)} values for {len(item_ids)} items")
        if context.positions is not None and len(context.positions) != len(item_ids):
            raise ValueError(f"{len(context.positions)} positions for {len(item_ids)} items")
        user = self._user.decode([user_value], context.time)
        everyone = self._global.decode([global_value], context.time)
        items = self._items.decode(item_values, context.time)
        rings = unpack_rings(self.layout.slots("user"), user_value) if user_value else []
        frame = Frame(items, user, everyone, rings=rings, item_ids=item_ids, context=context)
        out = np.empty((len(item_ids), self._columns), dtype=np.float32)
        for step in self._steps:
            step(frame, out)
        return out, _age(items, user, everyone)


def _age(items: EntityBlock, user: EntityBlock, everyone: EntityBlock) -> FeatureAge:
    newest = float(items.reference.max(initial=-np.inf))
    return FeatureAge(
        user_event_time=float(user.reference[0]),
        newest_event_time=max(newest, float(user.reference[0])),
        user_batch=int(user.batches[0]),
        global_batch=int(everyone.batches[0]),
        item_batches=items.batches,
    )
