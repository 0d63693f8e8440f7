"""The check of a loop, layout by layout: each replays from its own definition, and is compared with what it served."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime

from gyre_core.features import Layout
from gyre_core.layouts import KnownLayout, compiled
from gyre_core.spec import LoopSpec
from gyre_warehouse.tables import IMPRESSIONS, ensure_table, read_columns
from pyiceberg.catalog import Catalog
from pyiceberg.table import Table

from gyre_features.parity.checking import ParityReport
from gyre_features.parity.loop import LoopReport, check_loop
from gyre_features.parity.served import CheckWindow

NOT_COMPILED = "this release cannot compile their layout"


def count_served(table: Table, start: float) -> Counter[str]:
    """How many impressions of a table arrived at `start` (unix seconds) or later, by their features' layout hash.

    Impressions without features are left out.
    """
    since = datetime.fromtimestamp(start, UTC).isoformat()
    column = read_columns(table, ["layout"], rows=f"layout != '' and ingest_time >= '{since}'")["layout"]
    return Counter(str(each) for each in column.to_pylist())


def check_layouts(
    catalog: Catalog, newest: LoopSpec, known: Mapping[str, KnownLayout], *, window: CheckWindow, duplicates_s: int
) -> list[LoopReport]:
    """Check each layout of a loop that is maintained, or under which it answered in the period.

    Of a layout that this release cannot compile the report counts all impressions under `NOT_COMPILED`. The reports
    are in this order: gyre.yaml's layout, the other known ones from the last declared on, those known by hash alone.

    Args:
        catalog: of the warehouse.
        newest: the loop, as its gyre.yaml has it.
        known: the loop's layouts, by hash.
        window: which impressions, of each layout.
        duplicates_s: length of the stream's windows of append times, seconds.
    """
    first = Layout.compile(newest).hash
    served = count_served(ensure_table(catalog, newest.loop, IMPRESSIONS), window.start)
    specs: dict[str, LoopSpec | None] = {first: newest}
    for layout in sorted(known.values(), key=lambda each: -each.declared_time):
        if layout.hash != first and (layout.is_maintained or layout.hash in served):
            specs[layout.hash] = compiled(layout, newest)
    specs |= dict.fromkeys(sorted(served.keys() - specs.keys()))
    return [
        _unknown(newest.loop, hash_, served[hash_])
        if spec is None
        else check_loop(catalog, spec, window=window, duplicates_s=duplicates_s)
        for hash_, spec in specs.items()
    ]


def _unknown(loop: str, layout: str, impressions: int) -> LoopReport:
    """The report of a layout that nothing can be said about."""
    found = ParityReport(reasons=+Counter({NOT_COMPILED: impressions}))
    return LoopReport(loop, layout, found, check_time=time.time())
