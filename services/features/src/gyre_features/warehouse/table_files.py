"""The files of a table: which snapshots name which, and deleting what nothing names any more."""

from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime

from pyarrow.fs import FileSelector, FileType
from pyiceberg.io.pyarrow import PyArrowFileIO
from pyiceberg.table import Table
from pyiceberg.table.snapshots import Snapshot

Levels = tuple[set[str], set[str], set[str]]


def files_of(table: Table, snapshots: Iterable[Snapshot]) -> Levels:
    """URIs of some snapshots' data files, of the manifests that name them with their bounds, and of the manifest lists.

    What a deleted list or manifest named is missing.
    """
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
    """Delete the files in `old` that are not in `kept`; answer how many were there. No snapshot is expired.

    Data before the manifests that name them, and those before their lists: a second call must find what is left.
    """
    needed = set().union(*kept)
    return sum(delete_file(table, path) for level in old for path in sorted(level - needed))


def delete_file(table: Table, path: str) -> bool:
    """Delete a file, at once and for good; answer whether it was there."""
    try:
        table.io.delete(path)
    except FileNotFoundError:
        return False
    return True


def orphans(table: Table, *, before: datetime) -> list[str]:
    """URIs, sorted, of files in the table's folder that no snapshot and no metadata names, last changed before a time.

    The newest are left out, since a commit under way has written files that nothing names yet. None are found where the
    folder does not hold the table's own metadata, which says that names cannot be compared, or where it is not read by
    pyarrow. Deletes nothing.
    """
    if not isinstance(table.io, PyArrowFileIO):
        return []
    scheme, netloc, folder = PyArrowFileIO.parse_location(table.location())
    metadata = {table.metadata_location, *(each.metadata_file for each in table.metadata.metadata_log)}
    named = {_path(uri) for uri in metadata.union(*files_of(table, table.snapshots()))}
    found = table.io.fs_by_scheme(scheme, netloc).get_file_info(FileSelector(folder, recursive=True))
    files = {each.path: each.mtime for each in found if each.type == FileType.File}
    if _path(table.metadata_location) not in files:
        return []
    old = {path for path, changed in files.items() if changed is not None and changed.astimezone(UTC) < before}
    return [f"{scheme}://{path}" for path in sorted(old - named)]


def _path(uri: str) -> str:
    """Where a file lies, however it is written: file:/a, file:///a, s3://bucket/a and s3a://bucket/a."""
    return PyArrowFileIO.parse_location(uri)[2]
