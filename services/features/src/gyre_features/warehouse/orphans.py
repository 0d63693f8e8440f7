"""Files that no snapshot names and that hold rows of a user: what a job left that was killed before its commit.

Others may be writing meanwhile. A complete file with rows of an erased user can still be waiting for its commit, which
is refused, for a file that it replaces is gone; one that is not complete cannot be read and stays until it is old.
"""

import logging
import re
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.io.pyarrow import PyArrowFileIO
from pyiceberg.manifest import ManifestContent, ManifestFile
from pyiceberg.table import Table

from gyre_features.warehouse.table_files import delete_file, orphans

_MANIFEST = re.compile(r"-m\d+\.avro$")
_USER = "user_id"
_LOG = logging.getLogger(__name__)


def delete_orphans_of(table: Table, is_user: Callable[[str], bool], *, gone: frozenset[str]) -> int:
    """Delete the orphans of any age with rows of a user, and the manifests that tell bounds of such.

    Answers how many files went. Orphans are files that no snapshot names. Those that cannot be read stay.

    Args:
        table: with a column `user_id`.
        is_user: whether a user id is that of the one who is erased.
        gone: URIs of data files of the table that are to be deleted, which orphans may name.
    """
    found = orphans(table, before=datetime.now(UTC))
    held = [uri for uri in found if uri.endswith(".parquet") and _holds(table, uri, is_user)]
    named = {_path(uri) for uri in (*held, *gone)}
    manifests = [uri for uri in found if _MANIFEST.search(uri) and named & _named_by(table, uri)]
    deleted = sum(delete_file(table, uri) for uri in (*manifests, *held))
    if deleted:
        _LOG.info("files of a killed job were erased", extra={"table": ".".join(table.name()), "files": deleted})
    return deleted


def _holds(table: Table, uri: str, is_user: Callable[[str], bool]) -> bool:
    """Whether a data file has rows of a user."""
    with suppress(FileNotFoundError, pa.ArrowException), table.io.new_input(uri).open() as file:
        source: Any = file  # a file as pyarrow takes it, of a narrower type
        parquet = pq.ParquetFile(source)
        if _USER in parquet.schema_arrow.names:
            users = parquet.read(columns=[_USER]).column(_USER).unique().to_pylist()
            return any(each is not None and is_user(each) for each in users)
    return False


def _named_by(table: Table, uri: str) -> set[str]:
    """The paths of the data files that a manifest names, of whatever state."""
    manifest = ManifestFile.from_args(
        manifest_path=uri, manifest_length=0, partition_spec_id=table.spec().spec_id, content=ManifestContent.DATA,
        sequence_number=0, min_sequence_number=0, added_snapshot_id=0,
    )  # fmt: skip
    try:
        entries = manifest.fetch_manifest_entry(table.io, discard_deleted=False)
    except (FileNotFoundError, ValueError, EOFError, AssertionError) as error:
        _LOG.warning("an orphan cannot be read", extra={"uri": uri, "problem": repr(error)[:200]})
        return set()
    return {_path(each.data_file.file_path) for each in entries}


def _path(uri: str) -> str:
    return PyArrowFileIO.parse_location(uri)[2]
