"""Triton's model repository: a folder for each version, which appears and vanishes as a whole."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import uuid
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import ParamSpec, TypeVar

from gyre_core.models import INPUT, LAYOUT_PARAMETER, MODEL_FILE, OUTPUT, SEPARATOR, triton_model
from gyre_runtime import Unavailable

from gyre_deployer.domain.loading import LoadRecord
from gyre_deployer.domain.rollouts import Candidate
from gyre_deployer.ports import REPOSITORY_UNAVAILABLE

MAX_BATCH_ROWS = 4096
CONFIG_FILE = "config.pbtxt"
LOAD_RECORDS = ".load-records"
"""Folder beside the models that holds the records of attempts to load, a file for each version."""
_HALF_WRITTEN = "."
_REMOVED = ".removed"
"""How the name of what is being removed ends: nobody writes to it, so that anybody may finish that."""
_LOG = logging.getLogger(__name__)
T = TypeVar("T")
P = ParamSpec("P")


def config(candidate: Candidate, columns: int) -> str:
    """Triton's configuration of a version, whose graph reads that many columns.

    https://github.com/triton-inference-server/server/blob/main/docs/user_guide/model_configuration.md
    """
    return f"""name: "{triton_model(candidate.loop, candidate.version)}"
backend: "onnxruntime"
max_batch_size: {MAX_BATCH_ROWS}
input [ {{ name: "{INPUT}" data_type: TYPE_FP32 dims: [ {columns} ] }} ]
output [ {{ name: "{OUTPUT}" data_type: TYPE_FP32 dims: [ 1 ] }} ]
parameters {{ key: "{LAYOUT_PARAMETER}" value {{ string_value: "{candidate.layout}" }} }}
dynamic_batching {{ }}
"""


async def _in_thread(work: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
    """Do something with files in a thread.

    Raises:
        Unavailable: the file system does not do it now (REPOSITORY_UNAVAILABLE).
    """
    try:
        return await asyncio.to_thread(work, *args, **options)
    except OSError as error:
        raise Unavailable(REPOSITORY_UNAVAILABLE, f"Triton's repository: {error}") from error


class TritonRepository:
    """See `ModelRepository`."""

    def __init__(self, root: Path) -> None:
        self._root = root

    async def install(self, candidate: Candidate, graph: bytes, columns: int) -> bool:
        """See `ModelRepository`."""
        return await _in_thread(self._install, candidate, graph, columns)

    async def holds(self, loop: str, version: str) -> bool:
        """See `ModelRepository`."""
        return await _in_thread((self._root / triton_model(loop, version)).is_dir)

    async def versions(self, loop: str) -> list[str]:
        """See `ModelRepository`."""
        return await _in_thread(self._versions, loop)

    async def installed(self, loop: str) -> list[str]:
        """The versions of a loop that are there; half-written ones are left alone."""
        return await _in_thread(self._installed, loop)

    async def remove(self, loop: str, version: str) -> None:
        """See `ModelRepository`."""
        await _in_thread(self._remove, self._root / triton_model(loop, version))

    async def finish_removals(self, loop: str) -> None:
        """Remove what is left of a loop's versions whose removal was killed; what is being written stays."""
        await _in_thread(self._delete, f"{_HALF_WRITTEN}{loop}{SEPARATOR}*{_REMOVED}")

    async def load_records(self) -> dict[str, LoadRecord]:
        """See `ModelRepository`."""
        return await _in_thread(_load_records, self._root / LOAD_RECORDS)

    async def write_load_record(self, model: str, record: LoadRecord | None) -> None:
        """See `ModelRepository`."""
        await _in_thread(_write_load_record, self._root / LOAD_RECORDS / f"{model}.json", record)

    def _install(self, candidate: Candidate, graph: bytes, columns: int) -> bool:
        name = triton_model(candidate.loop, candidate.version)
        wanted = {Path(CONFIG_FILE): config(candidate, columns).encode(), Path("1", MODEL_FILE): graph}
        final = self._root / name
        if _holds(final, wanted):
            return False
        draft = self._root / f"{_HALF_WRITTEN}{name}{SEPARATOR}{uuid.uuid4().hex}"
        for path, content in wanted.items():
            _write(draft / path, content)
        self._remove(final)
        draft.rename(final)
        return True

    def _versions(self, loop: str) -> list[str]:
        self._delete(f"{_HALF_WRITTEN}{loop}{SEPARATOR}*")
        return self._installed(loop)

    def _delete(self, pattern: str) -> None:
        for draft in self._root.glob(pattern):
            shutil.rmtree(draft, ignore_errors=True)

    def _installed(self, loop: str) -> list[str]:
        prefix = f"{loop}{SEPARATOR}"
        return sorted(each.name.removeprefix(prefix) for each in self._root.glob(f"{prefix}*"))

    def _remove(self, folder: Path) -> None:
        """Rename it first: nobody ever sees a part of it."""
        if folder.exists():
            gone = self._root / f"{_HALF_WRITTEN}{folder.name}{SEPARATOR}{uuid.uuid4().hex}{_REMOVED}"
            folder.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)


def _holds(folder: Path, wanted: dict[Path, bytes]) -> bool:
    return all((folder / path).is_file() and (folder / path).read_bytes() == each for path, each in wanted.items())


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _load_records(folder: Path) -> dict[str, LoadRecord]:
    """What an older version of this program knew of a record, and this one does not, is left out."""
    known = {each.name for each in fields(LoadRecord)}
    records = {}
    for path in sorted(folder.glob("[!.]*.json")):
        try:
            body = {
                name: value for name, value in json.loads(path.read_text(encoding="utf-8")).items() if name in known
            }
            record = LoadRecord(**{**body, "ready_before": tuple(body["ready_before"])})
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            _LOG.warning(
                "a load record cannot be read: it is left out", extra={"path": str(path), "problem": str(error)}
            )
            continue
        records[path.stem] = record
    return records


def _write_load_record(path: Path, record: LoadRecord | None) -> None:
    if record is None:
        path.unlink(missing_ok=True)
        return
    draft = path.with_name(f".{path.name}")
    _write(draft, json.dumps(asdict(record)).encode())
    draft.rename(path)
