"""Compares served feature values with the replay of the batches that they were read from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from gyre_core.features import GLOBAL_ID, Layout, Reader, RequestContext

from gyre_features.parity.replaying import AppliedBatch, BatchReplay, Touch

RELATIVE_TOLERANCE = 1e-5
"""What "equal" means for features: float32 sums in any order (see `gyre_core.features.slots`)."""
_ABSOLUTE_TOLERANCE = 1e-6
_MOST_EXAMPLES = 20
_RELATIVE_KINDS = frozenset({"rank", "zscore"})

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Served:
    """One impression's features as they were served.

    Attributes:
        request_id: of the answer.
        user_id: the user.
        item_ids: the logged items.
        time: the request's now, unix seconds.
        numbers: of the request's context.
        matrix: float32 of shape [items, columns].
        user_batch: number in the user's value, -1 where there was none; so the next two.
        global_batch: of the loop as a whole.
        item_batches: of each item.
        is_whole: every candidate was logged; otherwise columns that compare candidates cannot be computed again.
    """

    request_id: str
    user_id: str
    item_ids: Sequence[str]
    time: float
    numbers: dict[str, float]
    matrix: F32
    user_batch: int
    global_batch: int
    item_batches: Sequence[int]
    is_whole: bool = True

    def touches(self) -> Iterator[Touch]:
        """Every value that the read was made from."""
        if self.user_batch >= 0:
            yield Touch("user", self.user_id, self.user_batch)
        if self.global_batch >= 0:
            yield Touch("global", GLOBAL_ID, self.global_batch)
        for item_id, batch in zip(self.item_ids, self.item_batches, strict=True):
            if batch >= 0:
                yield Touch("item", item_id, batch)


@dataclass(frozen=True, slots=True)
class Mismatch:
    """One served number that the replay does not give."""

    request_id: str
    item_id: str
    column: str
    served: float
    replayed: float


@dataclass
class ParityReport:
    """What a check found.

    Attributes:
        impressions: compared.
        values: numbers compared.
        mismatches: numbers that differ by more than the tolerance.
        unknown: impressions left out since a batch that they name is not in the log (any more, or yet).
        examples: the first mismatches.
    """

    impressions: int = 0
    values: int = 0
    mismatches: int = 0
    unknown: int = 0
    examples: list[Mismatch] = field(default_factory=list)


def check(
    layout: Layout, served: Sequence[Served], batches: Iterable[AppliedBatch], *, shards: int = 1
) -> ParityReport:
    """Replay the batches and compare.

    Args:
        layout: under which everything was served.
        served: what to check.
        batches: from the first on, each shard's in the order of their numbers.
        shards: count of virtual shards.
    """
    wanted = {touch for each in served for touch in each.touches()}
    replay = BatchReplay(layout, shards=shards, wanted=wanted)
    replay.apply(batches)
    reader, report = Reader(layout), ParityReport()
    for each in served:
        replayed = _replayed(reader, replay, each)
        if replayed is None:
            report.unknown += 1
        else:
            _compare(layout, each, replayed, report)
    return report


def _replayed(reader: Reader, replay: BatchReplay, served: Served) -> F32 | None:
    """The matrix that the read should have given; None where a value is not known."""
    if any(touch not in replay.kept for touch in served.touches()):
        return None
    user = replay.kept.get(Touch("user", served.user_id, served.user_batch))
    everyone = replay.kept.get(Touch("global", GLOBAL_ID, served.global_batch))
    pairs = zip(served.item_ids, served.item_batches, strict=True)
    items = [replay.kept.get(Touch("item", item_id, batch)) for item_id, batch in pairs]
    context = RequestContext(served.time, served.numbers)
    matrix, _ = reader.matrix(user, everyone, items, served.item_ids, context)
    return matrix


def _compare(layout: Layout, served: Served, replayed: F32, report: ParityReport) -> None:
    compared = np.array([served.is_whole or each.kind not in _RELATIVE_KINDS for each in layout.described])
    report.impressions += 1
    report.values += len(replayed) * int(compared.sum())
    close = np.isclose(served.matrix, replayed, rtol=RELATIVE_TOLERANCE, atol=_ABSOLUTE_TOLERANCE, equal_nan=True)
    for row, column in np.argwhere(~close & compared):
        report.mismatches += 1
        if len(report.examples) < _MOST_EXAMPLES:
            report.examples.append(
                Mismatch(
                    served.request_id,
                    served.item_ids[row],
                    layout.columns[column],
                    served=float(served.matrix[row, column]),
                    replayed=float(replayed[row, column]),
                )
            )
