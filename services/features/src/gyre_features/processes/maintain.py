"""`compact`, `expire` and `maintain`, which is both: jobs that keep the tables of every loop small."""

import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from gyre_runtime import Unavailable, load_loops
from gyre_warehouse.tables import TABLE_OF, ensure_table, open_catalog
from pyiceberg.table import Table

from gyre_features.settings import MaintenanceSettings
from gyre_features.warehouse.maintenance import compact, compactable, expire, outdated, snapshots_of_models

MaintenanceStep = Callable[[Table, frozenset[int]], str]


def compact_all(settings: MaintenanceSettings) -> int:
    """Rewrite the small files of old days in all tables, print what was done, and answer the exit code.

    1 where a table is left for a later call, since others commit to it all the time; the other tables go on.
    """
    return _each(settings, lambda table, _named: _compacted(settings, table), needs_named=False)


def expire_all(settings: MaintenanceSettings) -> int:
    """Expire old snapshots and delete orphans, print what was done, and answer the exit code.

    Where a model's manifest cannot be read nothing of its loop expires, since nobody knows which snapshots it names;
    that is said, the exit code is 1, and the other loops go on.
    """
    return _each(settings, lambda table, named: _expired(settings, table, named))


def maintain_all(settings: MaintenanceSettings) -> int:
    """Compact all loops, then expire, whatever came of that; answer the greater of the two exit codes."""
    return max(compact_all(settings), expire_all(settings))


def plan_all(settings: MaintenanceSettings) -> int:
    """Print what `maintain` would do now, orphans left out; the exit code is 1 where a manifest cannot be read.

    No rows, snapshots or files change; tables that are missing are created.
    """
    return _each(settings, lambda table, named: _planned(settings, table, named))


def _planned(settings: MaintenanceSettings, table: Table, named: frozenset[int]) -> str:
    small = compactable(table, target_bytes=settings.features_compact_bytes, min_files=settings.features_compact_files)
    before = datetime.now(UTC) - timedelta(seconds=settings.features_snapshot_retention_s)
    old = outdated(table, before, settings.features_min_snapshots, named)
    return f"{small:,} small files to compact, {len(old):,} snapshots to expire, {len(named):,} are named by models"


def _each(settings: MaintenanceSettings, step: MaintenanceStep, *, needs_named: bool = True) -> int:
    catalog, code = open_catalog(settings), 0
    for loop in load_loops(settings):
        try:
            named = snapshots_of_models(settings.artifacts, loop) if needs_named else {}
        except ValueError as error:
            code = 1
            sys.stdout.write(f"{loop}: nothing expires, since a model's snapshots are not known: {error}\n")
            continue
        for name in TABLE_OF.values():
            table = ensure_table(catalog, loop, name)
            try:
                said = step(table, named.get(name, frozenset()))
            except Unavailable as error:
                said, code = f"{error}", 1
            sys.stdout.write(f"{loop}.{name}: {said}\n")
    return code


def _compacted(settings: MaintenanceSettings, table: Table) -> str:
    done = compact(
        table,
        target_bytes=settings.features_compact_bytes,
        min_files=settings.features_compact_files,
    )
    return f"{done.files:,} small files into {done.into:,}, {done.rows:,} rows"


def _expired(settings: MaintenanceSettings, table: Table, named: frozenset[int]) -> str:
    done = expire(
        table,
        keep=timedelta(seconds=settings.features_snapshot_retention_s),
        keep_count=settings.features_min_snapshots,
        named=named,
        orphan_age=timedelta(seconds=settings.features_orphan_retention_s),
        now=datetime.now(UTC),
    )
    return f"{done.snapshots:,} snapshots expired, {done.files:,} files and {done.orphans:,} orphans deleted"
