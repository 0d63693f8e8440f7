"""The files of a table: which snapshots name which, and deleting what nothing names any more."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime

from pyarrow.fs import FileSelector, FileType
from pyiceberg.io.pyarrow import PyArrowFileIO
from pyiceberg.table import Table
from pyiceberg.table.snapshots import Snapshot

Levels = tuple[set[str], set[str], set[str]]


def files_of(table: Table, snapshots: Iterable[Snapshot]) -> Levels:
    """The data files of some snapshots, the manifests that name them and tell their bounds, and the lists of those."""
    data: set[str] = set()
    manifests: set[str] = set()
    lists: set[str] = set()
    for snapshot in snapshots:
        lists.add(snapshot.manifest_list)
        with suppress(FileNotFoundError):  # a call that was cut short has deleted it already
            for manifest in snapshot.manifests(table.io):
                if manifest.manifest_path not in manifests:
                    manifests.add(manifest.manifest_path)
                    with suppress(FileNotFoundError):
                        data.update(each.data_file.file_path for each in manifest.fetch_manifest_entry(table.io))
    return data, manifests, lists


def delete_files(table: Table, old: Levels, kept: Levels) -> int:
    """Delete files that only old snapshots name; answer how many went.

    Data before the manifests that name them, and those before their lists: a second call must find what is left.
    """
    needed = set().union(*kept)
    return sum(delete_file(table, path) for level in old for path in sorted(level - needed))


def delete_file(table: Table, path: str) -> bool:
    """Delete a file; whether it was there."""
    try:
        table.io.delete(path)
    except FileNotFoundError:
        return False
    return True


def orphans(table: Table, *, before: datetime) -> Iterator[str]:
    """Paths of files in the table's folder that no snapshot and no metadata names, last changed before a time.

    The newest are left out, since a commit under way has written files that nothing names yet.
    """
    location = table.location()
    if not isinstance(table.io, PyArrowFileIO):
        return
    scheme, netloc, path = PyArrowFileIO.parse_location(location)
    prefix = location[: len(location) - len(path)] if location.endswith(path) else ""
    named = set().union(*files_of(table, table.snapshots()))
    named |= {table.metadata_location, *(each.metadata_file for each in table.metadata.metadata_log)}
    for found in table.io.fs_by_scheme(scheme, netloc).get_file_info(FileSelector(path, recursive=True)):
        changed = found.mtime
        if found.type != FileType.File or changed is None or prefix + found.path in named:
            continue
        if changed.astimezone(UTC) < before:
            yield prefix + found.path
