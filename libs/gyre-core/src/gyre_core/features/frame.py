"""Packed values decoded into numpy blocks, already decayed to the time of the read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gyre_core.features.events import RequestContext
from gyre_core.features.slots import HEADER_BYTES, EntityLayout
from gyre_core.features.state import Entry

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class EntityBlock:
    """n entities of one kind, a row each, by regions as in `gyre_core.features.slots`; batches are -1 where unknown.

    `reference` and `batches` are of shape [n], the others [n, size of the region]; sums are decayed to the read.
    """

    reference: F64
    batches: npt.NDArray[np.int64]
    times: F64
    sums: F64
    buckets: F64
    lasts: F32


@dataclass(slots=True)
class Frame:
    """Everything that the columns of one read are computed from: values decoded, candidates and request."""

    items: EntityBlock
    user: EntityBlock
    everyone: EntityBlock
    rings: list[list[Entry]]
    item_ids: Sequence[str]
    context: RequestContext

    def positions(self) -> npt.NDArray[np.int64]:
        """The place of each candidate in the caller's order, from 0, int64 of shape [n]."""
        given = self.context.positions
        return np.arange(len(self.item_ids)) if given is None else np.asarray(given, dtype=np.int64)

    def block(self, scope: str) -> EntityBlock:
        """The block of a scope; user and global have one row, which broadcasts over the candidates."""
        if scope == "item":
            return self.items
        return self.user if scope == "user" else self.everyone


Step = Callable[[Frame, F32], None]
"""Writes the columns of a feature, or of several, into the matrix."""


class Blocks:
    """Decodes packed values of one kind of entity into numpy; of rings it reads nothing."""

    def __init__(self, layout: EntityLayout) -> None:
        self._layout = layout
        self._size = layout.fixed_bytes
        self._empty = layout.empty[: self._size]
        self._sums_at = HEADER_BYTES // 8 + layout.times
        self._buckets_at = self._sums_at + len(layout.sums)
        self._doubles = self._buckets_at + layout.bucket_starts[-1]
        runs = layout.half_lives
        self._run_rates = np.array([-1.0 / half_life_s for half_life_s, _ in runs])
        self._run_of = np.repeat(np.arange(len(runs)), [count for _, count in runs])

    def decode(self, values: Sequence[bytes | None], now: float) -> EntityBlock:
        """The values as a block, sums decayed to `now` (unix seconds), None as an unknown entity.

        A value newer than `now` is not decayed. Raises ValueError where a size does not fit.
        """
        layout, size = self._layout, self._size
        fixed = [self._empty if value is None else value for value in values]
        if layout.rings:
            fixed = [value[:size] for value in fixed]
        raw = b"".join(fixed)
        if fixed and set(map(len, fixed)) != {size}:
            raise ValueError(f"{layout.kind} values of {len(raw)} bytes for {len(values)} entities of {size}")
        wide = np.frombuffer(raw, dtype="<f8").reshape(len(values), size // 8)
        narrow = np.frombuffer(raw, dtype="<f4").reshape(len(values), size // 4)
        batches = wide[:, 1].view(np.int64)
        if None in values:
            batches = np.where([value is None for value in values], np.int64(-1), batches)
        reference = wide[:, 0]
        return EntityBlock(
            reference=reference,
            batches=batches,
            times=wide[:, HEADER_BYTES // 8 : self._sums_at],
            sums=self._decay(wide[:, self._sums_at : self._buckets_at], reference, now),
            buckets=wide[:, self._buckets_at : self._doubles],
            lasts=narrow[:, 2 * self._doubles : 2 * self._doubles + layout.lasts],
        )

    def _decay(self, sums: F64, reference: F64, now: float) -> F64:
        """Times 2^-(age / half-life), the age never negative."""
        age = np.maximum(now - reference, 0.0)
        factors: F64 = np.exp2(age[:, None] * self._run_rates)
        decayed: F64 = sums * factors.take(self._run_of, axis=1)
        return decayed
