"""Compares served feature values with the replay of the batches that they were read from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from gyre_core.features import GLOBAL_ID, Layout, Reader, RequestContext
from gyre_core.spec import COMPARING_KINDS, ORDERED_KINDS

from gyre_features.parity.replaying import AppliedBatch, BatchReplay, ValueKey

RELATIVE_TOLERANCE = 1e-5
"""What "equal" means for features, which are read as float32 and made of sums in any order."""
_ABSOLUTE_TOLERANCE = 1e-6
_MAX_EXAMPLES = 20
BATCH_COLUMN = "(batch)"
"""What stands for a column where an entity was served as of a batch that did not touch it."""

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Served:
    """One impression's features as they were served.

    Attributes:
        request_id: of the answer.
        user_id: the user.
        item_ids: the logged items, shown ones first; the rows of `matrix`.
        context: the request's, as it was read; without positions, columns of the caller's order are not compared.
        matrix: float32 of shape [items, columns].
        user_batch: the batch that last touched the user's value, -1 where there was no value; so the next two.
        global_batch: that of the loop-wide value.
        item_batches: that of each item, in the order of `item_ids`.
        is_whole: every candidate was logged; otherwise columns that compare candidates cannot be computed again.
        arrival_time: wall time at which Kafka had the impression, unix seconds.
    """

    request_id: str
    user_id: str
    item_ids: Sequence[str]
    context: RequestContext
    matrix: F32
    user_batch: int
    global_batch: int
    item_batches: Sequence[int]
    is_whole: bool = True
    arrival_time: float = float("inf")

    def value_keys(self) -> Iterator[ValueKey]:
        """The keys of the values that the read was made from: user, global, items in order; none for a batch of -1."""
        if self.user_batch >= 0:
            yield ValueKey("user", self.user_id, self.user_batch)
        if self.global_batch >= 0:
            yield ValueKey("global", GLOBAL_ID, self.global_batch)
        for item_id, batch in zip(self.item_ids, self.item_batches, strict=True):
            if batch >= 0:
                yield ValueKey("item", item_id, batch)


@dataclass(frozen=True, slots=True)
class Mismatch:
    """One served number that differs from the replay's by more than the tolerance.

    Where a value names a batch that left none, `column` is `BATCH_COLUMN`, `served` the batch's number and `replayed`
    NaN; `item_id` is then empty for a user's or the loop-wide value.
    """

    request_id: str
    item_id: str
    column: str
    served: float
    replayed: float


@dataclass
class ParityReport:
    """What a check found.

    Attributes:
        impressions: count of those compared, whether they match or not; without those in `reasons`.
        values: count of numbers compared.
        mismatches: count of numbers that differ by more than the tolerance.
        reasons: count of impressions that nothing can be said about, by why.
        examples: the first 20 mismatches.
    """

    impressions: int = 0
    values: int = 0
    mismatches: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    examples: list[Mismatch] = field(default_factory=list)

    @property
    def unknown(self) -> int:
        """Count of impressions that nothing can be said about, for whatever reason; not among `impressions`."""
        return self.reasons.total()

    def note(self, mismatch: Mismatch) -> None:
        """Count a mismatch, and keep it as an example while there are fewer than 20."""
        self.mismatches += 1
        if len(self.examples) < _MAX_EXAMPLES:
            self.examples.append(mismatch)


def check(
    layout: Layout,
    served: Sequence[Served],
    batches: Iterable[AppliedBatch],
    *,
    shards: int = 1,
    settled: Mapping[int, int] | None = None,
) -> ParityReport:
    """Replay the batches in memory, and compare each served number with the replay's; what differs is in the report.

    Args:
        layout: under which everything was served.
        served: what to check.
        batches: from the first on, each shard's in the order of their numbers.
        shards: count of virtual shards.
        settled: by virtual shard, the last batch that was applied before everything that is checked was read.
    """
    wanted = {key for each in served for key in each.value_keys()}
    replay = BatchReplay(layout, shards=shards, wanted=wanted, settled=settled)
    replay.apply(batches)
    checker, report = _Checker(layout, replay), ParityReport()
    for each in served:
        checker.compare(each, report)
    return report


class _Checker:
    """Compares one read after the other."""

    def __init__(self, layout: Layout, replay: BatchReplay) -> None:
        self._layout, self._replay, self._reader = layout, replay, Reader(layout)
        self._comparing = np.array([each.kind in COMPARING_KINDS for each in layout.described])
        self._ordered = np.array([each.kind in ORDERED_KINDS for each in layout.described])

    def compare(self, served: Served, report: ParityReport) -> None:
        missing = [key for key in served.value_keys() if key not in self._replay.kept]
        if missing:
            self._compare_batches(served, missing, report)
            return
        replayed = self._replayed(served)
        compared = np.ones_like(self._comparing) if served.is_whole else ~self._comparing
        compared &= (served.context.positions is not None) | ~self._ordered
        close = np.isclose(served.matrix, replayed, rtol=RELATIVE_TOLERANCE, atol=_ABSOLUTE_TOLERANCE, equal_nan=True)
        wrong = np.argwhere(~close & compared)
        if len(wrong) and any(self._replay.is_doubtful(key) for key in served.value_keys()):
            report.reasons["differs where the replay is in doubt"] += 1
            return
        report.impressions += 1
        report.values += len(replayed) * int(compared.sum())
        for row, column in wrong:
            numbers = float(served.matrix[row, column]), float(replayed[row, column])
            report.note(Mismatch(served.request_id, served.item_ids[row], self._layout.columns[column], *numbers))

    def _compare_batches(self, served: Served, missing: Sequence[ValueKey], report: ParityReport) -> None:
        """Values that no batch left are faults where the replay saw every batch; otherwise nothing can be said."""
        replay = self._replay
        if any(key.batch > replay.last.get(key.shard(replay.shards), 0) for key in missing):
            report.reasons["a batch is not in the log"] += 1
        elif any(replay.is_doubtful(key) for key in missing):
            report.reasons["differs where the replay is in doubt"] += 1
        else:
            report.impressions += 1
            for key in missing:
                item_id = key.id if key.kind == "item" else ""
                report.note(Mismatch(served.request_id, item_id, BATCH_COLUMN, key.batch, float("nan")))

    def _replayed(self, served: Served) -> F32:
        """The matrix that the read should have given."""
        kept = self._replay.kept
        user = kept.get(ValueKey("user", served.user_id, served.user_batch))
        everyone = kept.get(ValueKey("global", GLOBAL_ID, served.global_batch))
        pairs = zip(served.item_ids, served.item_batches, strict=True)
        items = [kept.get(ValueKey("item", item_id, batch)) for item_id, batch in pairs]
        matrix, _ = self._reader.matrix(user, everyone, items, served.item_ids, served.context)
        return matrix
