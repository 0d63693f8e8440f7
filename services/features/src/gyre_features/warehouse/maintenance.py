"""Keeps tables small: rewrites the small files of old days into few, expires old snapshots, deletes what nobody names.

The archive goes on meanwhile. Each commit names the snapshot that it was made from, so of two at once one is refused:
the archive then reads its offsets again, and a rewrite looks whether the files that it replaces are still there.
"""

import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from gyre_core.models import MANIFEST_FILE, PINS_FOLDER
from gyre_runtime import Unavailable
from pyiceberg.exceptions import CommitFailedException
from pyiceberg.expressions import AlwaysTrue
from pyiceberg.io.pyarrow import ArrowScan, _dataframe_to_data_files
from pyiceberg.manifest import DataFile
from pyiceberg.table import FileScanTask, Table

from gyre_features.warehouse.table_files import delete_file, delete_files, files_of, orphans

COMPACTION = "gyre.compaction"
"""The property of a snapshot that holds the same rows as the one before, in other files."""
_ATTEMPTS = 50
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Compacted:
    """What a compaction did: count of files that were replaced, of those that replace them, and of rows in them."""

    files: int = 0
    into: int = 0
    rows: int = 0

    def __add__(self, other: "Compacted") -> "Compacted":
        return Compacted(self.files + other.files, self.into + other.into, self.rows + other.rows)


@dataclass(frozen=True, slots=True)
class Expired:
    """What an expiry did: count of snapshots that expired, of files that only those held, and of orphans deleted."""

    snapshots: int
    files: int
    orphans: int


def compact(table: Table, *, target_bytes: int, min_files: int) -> Compacted:
    """Rewrite the small files of each day before the newest into files of about the target's size.

    Memory holds the rows of one target file at once. Offsets, which are properties of the table, stay as they are.

    Args:
        table: partitioned by day.
        target_bytes: size of a file as written; one of at least half of it is not small.
        min_files: how many small files a day must have before it is worth it.

    Raises:
        Unavailable: others commit all the time (WAREHOUSE_BUSY); what was rewritten by then stands.
    """
    done = Compacted()
    for tasks in _groups(table, target_bytes, min_files):
        done += _rewrite(table, tasks)
    return done


def compactable(table: Table, *, target_bytes: int, min_files: int) -> int:
    """How many small files `compact` would rewrite now; changes nothing."""
    return sum(len(tasks) for tasks in _groups(table, target_bytes, min_files))


def _groups(table: Table, target_bytes: int, min_files: int) -> Iterator[list[FileScanTask]]:
    """The small files that are to become one, of one day each."""
    days: dict[int, list[FileScanTask]] = {}
    for task in table.scan().plan_files():
        days.setdefault(task.file.partition[0], []).append(task)
    for day in sorted(days)[:-1]:
        small = [task for task in days[day] if task.file.file_size_in_bytes < target_bytes // 2]
        if len(small) < min_files:
            continue
        group: list[FileScanTask] = []
        size = 0
        for task in sorted(small, key=lambda each: each.file.file_path):
            if group and size + task.file.file_size_in_bytes > target_bytes:
                yield group
                group, size = [], 0
            group.append(task)
            size += task.file.file_size_in_bytes
        if len(group) > 1:
            yield group


def _rewrite(table: Table, tasks: list[FileScanTask]) -> Compacted:
    if len(tasks) < 2:
        return Compacted()
    rows = ArrowScan(table.metadata, table.io, table.schema(), AlwaysTrue()).to_table(tasks)
    rows = rows.sort_by([("event_time", "ascending"), ("kafka_offset", "ascending")])
    made = list(_dataframe_to_data_files(table.metadata, rows, table.io))
    try:
        replaced = _replaced(table, [task.file for task in tasks], made)
    except Unavailable:
        _delete(table, made)
        raise
    # After any other error nobody knows whether the commit went through: the files stay, to be found as orphans if not.
    if not replaced:
        _delete(table, made)
    return Compacted(len(tasks), len(made), len(rows)) if replaced else Compacted()


def _delete(table: Table, made: Iterable[DataFile]) -> None:
    for file in made:
        delete_file(table, file.file_path)


def _replaced(table: Table, old: list[DataFile], new: list[DataFile]) -> bool:
    """Put new files in the place of old ones in one commit; False where an old one is gone, as after an erasure."""
    wanted, made = {file.file_path for file in old}, {file.file_path for file in new}
    for _ in range(_ATTEMPTS):
        table.refresh()
        present = {task.file.file_path for task in table.scan().plan_files()}
        if made & present:
            return True  # a catalogue whose answer was lost had taken the attempt before
        if not wanted <= present:
            return False
        try:
            with table.transaction() as transaction:
                update = transaction.update_snapshot(snapshot_properties={COMPACTION: "true"})
                with update.overwrite() as overwrite:
                    for file in old:
                        overwrite.delete_data_file(file)
                    for file in new:
                        overwrite.append_data_file(file)
        except CommitFailedException:
            _LOG.info("somebody else committed: looking again", extra={"table": ".".join(table.name())})
        else:
            return True
    raise _busy(table)


def _busy(table: Table) -> Unavailable:
    return Unavailable("WAREHOUSE_BUSY", f"{'.'.join(table.name())}: others commit all the time; try again later")


def expire(
    table: Table, *, keep: timedelta, keep_count: int, named: frozenset[int], orphan_age: timedelta, now: datetime
) -> Expired:
    """Expire old snapshots, delete the files that only those held, and orphans.

    Args:
        table: any.
        keep: snapshots younger than this stay.
        keep_count: so many of the newest stay, whatever their age.
        named: ids of snapshots that stay, since a model was made from them.
        orphan_age: files that nothing names stay so long, for a commit under way names its files only at its end.
        now: wall time.

    Raises:
        Unavailable: others commit all the time (WAREHOUSE_BUSY); call again.
    """
    gone, files = 0, 0
    for _ in range(_ATTEMPTS):
        table.refresh()
        old = outdated(table, now - keep, keep_count, named)
        if not old:
            break
        before = files_of(table, [each for each in table.snapshots() if each.snapshot_id in old])
        try:
            table.maintenance.expire_snapshots().by_ids(sorted(old)).commit()
        except CommitFailedException:
            continue
        table.refresh()
        gone, files = len(old), delete_files(table, before, files_of(table, table.snapshots()))
        break
    else:
        raise _busy(table)
    left = sum(delete_file(table, path) for path in orphans(table, before=now - orphan_age))
    return Expired(gone, files, left)


def outdated(table: Table, before: datetime, keep_count: int, named: frozenset[int]) -> set[int]:
    """The ids of the snapshots that `expire` would expire: older than `before`, not among the newest, not named.

    Those of the table's branches and tags stay, too. Changes nothing.
    """
    newest = sorted(table.snapshots(), key=lambda each: each.sequence_number or 0, reverse=True)
    kept = named | {each.snapshot_id for each in table.refs().values()}
    before_ms = int(before.timestamp() * 1000)
    return {
        each.snapshot_id
        for each in newest[keep_count:]
        if each.timestamp_ms < before_ms and each.snapshot_id not in kept
    }


def snapshots_of_models(artifacts: Path, loop: str) -> dict[str, frozenset[int]]:
    """By table, the snapshots that a loop's artefacts were made from, and those that its runs under way read.

    Raises:
        ValueError: an artefact cannot be read, so that nobody knows what it names.
    """
    found: dict[str, set[int]] = {}
    # A run that ends meanwhile has its artefact before its pins go.
    for pattern in (f"{PINS_FOLDER}/*/{MANIFEST_FILE}", f"*/{MANIFEST_FILE}"):
        for path in sorted((artifacts / loop).glob(pattern)):
            for table, snapshot in _named_by(path).items():
                found.setdefault(table, set()).add(snapshot)
    return {table: frozenset(ids) for table, ids in found.items()}


def _named_by(manifest: Path) -> dict[str, int]:
    """The snapshots that a manifest names, by table; none where it was removed meanwhile."""
    try:
        snapshots = json.loads(manifest.read_text(encoding="utf-8"))["snapshots"]
        return {table: int(snapshot) for table, snapshot in snapshots.items()}
    except FileNotFoundError:
        return {}
    except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{manifest}: must name the snapshots that it was made from: {error!r:.100}") from error
