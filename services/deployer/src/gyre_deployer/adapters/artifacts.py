"""Artefact folders on a file system that the trainer and the deployer share."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import io
import json
import zipfile
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
from gyre_core.models import GOLDEN_FILE, MANIFEST_FILE, MODEL_FILE
from gyre_runtime import Unavailable

from gyre_deployer.adapters.repository import MAX_BATCH_ROWS
from gyre_deployer.domain.rollouts import Candidate
from gyre_deployer.ports import F32, REPOSITORY_UNAVAILABLE, Artifact, CandidateRefused

_MAX_GOLDEN_BYTES = 64 * 1024 * 1024
"""The largest size of all golden requests and answers, unpacked."""
_MISSING = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG})
"""Errors that say that there is no such file; any other says that the file system does not give it now."""


class ArtifactFolders:
    """See `Artifacts`."""

    async def read(self, candidate: Candidate) -> Artifact:
        """See `Artifacts`.

        Whatever goes wrong with what stands in the files is the candidate's fault, since it goes wrong again each time.
        """
        try:
            return await asyncio.to_thread(_read, candidate)
        except (CandidateRefused, Unavailable):
            raise
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            raise CandidateRefused(f"artifact_uri = {candidate.artifact_uri!r}: cannot be read: {what}") from error


def _read(candidate: Candidate) -> Artifact:
    folder = _folder(candidate.artifact_uri)
    graph = _bytes(folder / MODEL_FILE)
    found = hashlib.sha256(graph).hexdigest()
    if found != candidate.sha256:
        raise CandidateRefused(f"{MODEL_FILE}: sha256 = {found}: must be {candidate.sha256}, as announced")
    _check_manifest(folder / MANIFEST_FILE, candidate)
    features, scores = _golden(folder / GOLDEN_FILE)
    return Artifact(graph, features, scores)


def _folder(uri: str) -> Path:
    parts = urlsplit(uri)
    if parts.scheme not in ("", "file") or parts.netloc not in ("", "localhost"):
        raise CandidateRefused(f"artifact_uri = {uri!r}: must be an absolute path or a file URI")
    path = Path(unquote(parts.path) if parts.scheme else uri)
    if not path.is_absolute():
        raise CandidateRefused(f"artifact_uri = {uri!r}: must be an absolute path or a file URI")
    return path


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        problem = f"{path}: cannot be read: {error.strerror}"
        if error.errno in _MISSING:
            raise CandidateRefused(problem) from error
        raise Unavailable(REPOSITORY_UNAVAILABLE, problem) from error


def _check_manifest(path: Path, candidate: Candidate) -> None:
    """What the manifest says about the model must be what was announced; it may say more."""
    try:
        manifest = json.loads(_bytes(path))
    except ValueError as error:
        raise CandidateRefused(f"{path.name}: is not JSON") from error
    if not isinstance(manifest, dict):
        raise CandidateRefused(f"{path.name}: must be a JSON object")
    announced = {
        "loop": candidate.loop,
        "version": candidate.version,
        "run_id": candidate.run_id,
        "layout": candidate.layout,
        "sha256": candidate.sha256,
    }
    for name, wanted in announced.items():
        if manifest.get(name, wanted) != wanted:
            raise CandidateRefused(f"{path.name}: {name} = {manifest[name]!r}: must be {wanted!r}, as announced")


def _arrays(content: io.BytesIO) -> tuple[F32, F32]:
    """Golden requests and answers as numpy stores them; their size is looked at before they are unpacked."""
    with zipfile.ZipFile(content) as packed:
        size = sum(each.file_size for each in packed.infolist())
    if size > _MAX_GOLDEN_BYTES:
        raise CandidateRefused(f"{GOLDEN_FILE}: {size} bytes when unpacked: must be at most {_MAX_GOLDEN_BYTES}")
    content.seek(0)
    with np.load(content, allow_pickle=False) as golden:
        features, scores = golden["features"], golden["scores"]
    if not (isinstance(features, np.ndarray) and isinstance(scores, np.ndarray)):
        raise CandidateRefused(f"{GOLDEN_FILE}: features and scores must be arrays")
    return features, scores


def _golden(path: Path) -> tuple[F32, F32]:
    content = io.BytesIO(_bytes(path))
    try:
        features, scores = _arrays(content)
    except CandidateRefused:
        raise
    except Exception as error:  # numpy, zipfile and zlib raise whatever a flipped bit leads them to
        raise CandidateRefused(f"{path.name}: cannot be read: {type(error).__name__}: {error}") from error
    if features.ndim != 2 or features.dtype != np.float32 or len(features) == 0:
        raise CandidateRefused(
            f"{path.name}: features = {features.dtype} {features.shape}: must be float32 [n, columns], n >= 1"
        )
    if len(features) > MAX_BATCH_ROWS:
        raise CandidateRefused(f"{path.name}: features = {len(features)} rows: must be at most {MAX_BATCH_ROWS}")
    if scores.dtype != np.float32 or scores.shape != (len(features),):
        raise CandidateRefused(
            f"{path.name}: scores = {scores.dtype} {scores.shape}: must be float32 [{len(features)}]"
        )
    return np.ascontiguousarray(features), np.ascontiguousarray(scores)
