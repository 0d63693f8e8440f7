"""The check of one layout: what was served in a period against the replay of the warehouse up to each read."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gyre_core.features import Layout
from gyre_core.spec import LoopSpec
from gyre_warehouse.rows import RowCounts, counts_impressions
from gyre_warehouse.tables import APPLIED, IMPRESSIONS, INTERACTIONS, ITEMS, USERS, ensure_table
from pyiceberg.catalog import Catalog
from pyiceberg.table import Table

from gyre_features.parity.checking import ParityReport, Served, check
from gyre_features.parity.log import LoggedBatch, Settled, ShardLog, in_order, read_log
from gyre_features.parity.replaying import Deduplicated
from gyre_features.parity.served import UNREADABLE, CheckWindow, read_served
from gyre_features.parity.source import ArchivedBatches

REBUILT = "the online store was rebuilt since"
_CLOCKS_S = 5.0
"""How far apart the clocks of the mesh's machines may be."""
_REBUILT_SLACK_S = 60.0
"""How long a read may take to Kafka: so long after a rebuild it is not certain which of two batches it named."""


@dataclass
class LoopReport:
    """What a check found of one layout of a loop.

    Attributes:
        loop: its name.
        layout: hash of the layout that was checked.
        found: the comparison; without values where nothing was served or all of it is pending.
        pending: impressions that name batches which the warehouse does not hold yet.
        batches: count of logged batches that were replayed.
        events: replayed, as those batches counted them.
        rows: of the tables that were read for it, and those of them that were set aside.
        check_time: wall time at which the check began, unix seconds.
        seconds: wall time that it took.
    """

    loop: str
    layout: str
    found: ParityReport = field(default_factory=ParityReport)
    pending: int = 0
    batches: int = 0
    events: int = 0
    rows: RowCounts = field(default_factory=RowCounts)
    check_time: float = 0.0
    seconds: float = 0.0


def check_loop(catalog: Catalog, spec: LoopSpec, *, window: CheckWindow, duplicates_s: int) -> LoopReport:
    """Check what a loop served under one layout against a replay of the warehouse; writes no metric and no log.

    Mismatches are in the report, and never raised; what can be said nothing about is counted there by its reason.

    Args:
        catalog: of the warehouse; tables of the loop that it lacks are created.
        spec: the loop as the layout sees it.
        window: which impressions.
        duplicates_s: length of the stream's windows of append times, seconds: a setting of the stream.
    """
    layout = Layout.compile(spec)
    report = LoopReport(spec.loop, layout.hash, check_time=time.time())
    # What was served is fixed first, then the log, then the events: each holds all that the one before names.
    names = (IMPRESSIONS, APPLIED, INTERACTIONS, ITEMS, USERS)
    tables = {name: ensure_table(catalog, spec.loop, name) for name in names}
    rows = read_served(tables[IMPRESSIONS], layout, window)
    report.found.reasons.update(rows.reasons)
    if not counts_impressions(layout):  # otherwise they are counted among the events
        report.rows.note(IMPRESSIONS, read=rows.read, unreadable=rows.reasons[UNREADABLE])
    if rows.served:
        _replay(report, spec, tables, rows.served, duplicates_s=duplicates_s)
    report.found.reasons = +report.found.reasons
    report.seconds = time.time() - report.check_time
    return report


def _replay(
    report: LoopReport, spec: LoopSpec, tables: Mapping[str, Table], served: Sequence[Served], *, duplicates_s: int
) -> None:
    """Compare what was served with what the tables' events give, and write that into a report."""
    layout, counts = Layout.compile(spec), report.rows
    settled = _settled(spec, served)
    shards = read_log(tables[APPLIED], layout.hash, settled=settled, counts=counts)
    archived = ArchivedBatches(spec.loop, layout, tables, counts=counts)
    batches = _held(archived, shards)
    known, report.found.reasons[REBUILT] = _without_lost(served, shards, spec.shards.online_shards)
    last = {batch.shard: batch.number for batch in batches}
    ready = [each for each in known if _names_up_to(each, last, spec.shards.online_shards)]
    report.pending = len(known) - len(ready)
    if ready:
        applied = Deduplicated(duplicates_s).batches(archived.read(batches))
        joined = {shard: log.settled for shard, log in shards.items()}
        found = check(layout, ready, applied, shards=spec.shards.online_shards, settled=joined)
        found.reasons.update(report.found.reasons)
        report.found, report.batches = found, sum(batch.count for batch in batches)
        report.events = sum(max(batch.events, 0) for batch in batches)


def _settled(spec: LoopSpec, served: Sequence[Served]) -> Settled:
    """What was applied before all reads: by their time, or where that is not the wall's, by what each of them named.

    A read was made after the newest batch that it names.
    """
    if spec.clock == "wall":
        return Settled(before=min((each.context.time for each in served), default=0.0) - _CLOCKS_S)
    oldest: dict[int, int] = {}
    for each in served:
        newest: dict[int, int] = {}
        for key in each.value_keys():
            shard = key.shard(spec.shards.online_shards)
            newest[shard] = max(newest.get(shard, 0), key.batch)
        for shard, number in newest.items():
            oldest[shard] = min(oldest.get(shard, number), number)
    return Settled(numbers=oldest)


def _held(archived: ArchivedBatches, shards: dict[int, ShardLog]) -> list[LoggedBatch]:
    """The batches whose events the warehouse holds, up to the first of each shard that it does not."""
    held: list[LoggedBatch] = []
    behind: set[int] = set()
    for batch in in_order(shards):
        if batch.shard not in behind:
            if archived.holds(batch):
                held.append(batch)
            else:
                behind.add(batch.shard)
    return held


def _without_lost(served: Sequence[Served], shards: dict[int, ShardLog], count: int) -> tuple[list[Served], int]:
    """The reads that surely name batches which the store holds still, and how many others there are."""
    if not any(log.rebuilt for log in shards.values()):
        return list(served), 0
    kept = [
        each
        for each in served
        if not any(
            key.shard(count) in shards
            and shards[key.shard(count)].was_rebuilt(key.batch, time=each.arrival_time, slack_s=_REBUILT_SLACK_S)
            for key in each.value_keys()
        )
    ]
    return kept, len(served) - len(kept)


def _names_up_to(served: Served, last: dict[int, int], shards: int) -> bool:
    return all(key.batch <= last.get(key.shard(shards), 0) for key in served.value_keys())
