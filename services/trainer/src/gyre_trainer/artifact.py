"""The artefact folder of a version: it appears whole or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gyre_core.models import MANIFEST_FILE, MODEL_FILE, QUARANTINE_FILE

if TYPE_CHECKING:
    from gyre_trainer.ranker import Ranker
    from gyre_trainer.training_set import F32


@dataclass(frozen=True)
class Manifest:
    """What `model.json` says of a model.

    Attributes:
        loop: the loop.
        version: of the model.
        run_id: the run that made it.
        trigger_id: that started the run.
        layout: hash of the feature layout that it reads.
        columns: of the layout, in the order of the graph's input.
        model_columns: of these, the ones that the model uses.
        snapshots: Iceberg snapshot ids of the training set, by table.
        data_time: the loop's time of the training set, unix seconds.
        measurements: by name.
        sha256: of the graph, hexadecimal.
        definition: what the layout is compiled from, a `gyre_core.layouts.LayoutDefinition`; empty in older models.
    """

    loop: str
    version: str
    run_id: str
    trigger_id: str
    layout: str
    columns: list[str]
    model_columns: list[str]
    snapshots: dict[str, int]
    data_time: float
    measurements: dict[str, float]
    sha256: str
    definition: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The manifest of an artefact folder; fields of later times are passed over."""
        known = json.loads((folder / MANIFEST_FILE).read_text())
        return cls(**{name: known[name] for name in cls.__dataclass_fields__ if name in known or name != "definition"})


def graph(folder: Path) -> Path:
    """The ONNX graph of an artefact folder."""
    return folder / MODEL_FILE


def write(
    folder: Path, model: Ranker, golden: F32, manifest: Manifest, *, files: Mapping[str, bytes] | None = None
) -> Manifest:
    """Write the artefact of a model; answer its manifest with the graph's hash.

    Args:
        folder: where it is to be; whatever is there is replaced.
        model: trained.
        golden: rows to take golden requests from, float32 of shape [n, columns of the layout].
        manifest: what is known so far.
        files: what else it holds, by name.
    """
    from gyre_trainer.export import export

    with _appearing(folder) as temporary:
        whole = replace(manifest, sha256=export(model, golden, temporary))
        _put(temporary, {**(files or {}), MANIFEST_FILE: (json.dumps(asdict(whole), indent=2) + "\n").encode()})
    return whole


def write_refusal(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write a folder without a model: what was found in the data of a run that was refused."""
    with _appearing(folder) as temporary:
        _put(temporary, files)


def erase(folder: Path) -> None:
    """Delete what names events of users: the list of what was set aside, and what a killed job left half-written.

    Raises:
        OSError: the file system did not delete it.
    """
    with suppress(FileNotFoundError):
        shutil.rmtree(_draft(folder))
    (folder / QUARANTINE_FILE).unlink(missing_ok=True)


def _draft(folder: Path) -> Path:
    """Where the content of a folder is written before it appears."""
    return folder.with_name(f".{folder.name}")


def _put(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).write_bytes(content)


@contextmanager
def _appearing(folder: Path) -> Iterator[Path]:
    """A folder to write to, which takes the place of `folder` when all is written."""
    temporary = _draft(folder)
    # What an earlier start of the run was killed over.
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
