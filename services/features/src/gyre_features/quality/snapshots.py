"""The reports that training runs left in the artefact folder on the snapshots that they checked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gyre.features.v1 import data_quality_pb2 as pb
from gyre_core.models import QUALITY_FILE

from gyre_features.quality.findings import ACTIONS

_MAX_RUNS = 1000


class SnapshotReports:
    """Finds reports by run or snapshot among the newest 1000 versions of a loop; blocking.

    A report is read again only where its file changed. Several threads may ask at once.

    Args:
        artifacts: the artefact folder of all loops.
    """

    def __init__(self, artifacts: Path) -> None:
        self._artifacts = artifacts
        self._known: dict[Path, tuple[int, pb.SnapshotReport]] = {}

    def find(self, loop: str, *, run_id: str = "", snapshot_id: int = 0) -> pb.SnapshotReport | None:
        """The newest report that is of a run and on a snapshot; None where there is none.

        Newest by the time of the data, with which a version's name begins.

        Args:
            loop: its name.
            run_id: of the training run; empty for any.
            snapshot_id: of any table that the run read; 0 for any.

        Raises:
            ValueError: a report is not JSON.
            KeyError: something is missing in it.
        """
        paths = self._paths(loop)
        gone = {path for path in list(self._known) if path.parent.parent.name == loop}.difference(paths)
        for path in gone:
            self._known.pop(path, None)
        for path in paths:
            report = self._read(path)
            if report is None or (run_id and report.run_id != run_id):
                continue
            if not snapshot_id or snapshot_id in report.snapshots.values():
                return report
        return None

    def _paths(self, loop: str) -> list[Path]:
        """The reports of a loop, newest first: versions begin with the time of their data."""
        paths = (self._artifacts / loop).glob(f"[!.]*/{QUALITY_FILE}")
        return sorted(paths, key=lambda path: path.parent.name, reverse=True)[:_MAX_RUNS]

    def _read(self, path: Path) -> pb.SnapshotReport | None:
        try:
            changed = path.stat().st_mtime_ns
            known = self._known.get(path)
            if known is None or known[0] != changed:
                known = self._known[path] = changed, _report(json.loads(path.read_bytes()))
        except FileNotFoundError:
            # A run that begins anew replaces its folder.
            self._known.pop(path, None)
            return None
        return known[1]


def _report(body: Mapping[str, Any]) -> pb.SnapshotReport:
    report = pb.SnapshotReport(
        run_id=body["run_id"],
        version=body["version"],
        snapshots=body["snapshots"],
        passed=body["passed"],
        blocks=body["blocks"],
        checks=[_check(each) for each in body["checks"]],
        quarantined=body["quarantined"],
    )
    report.data_time.FromNanoseconds(round(body["data_time"] * 1e9))
    return report


def _check(body: Mapping[str, Any]) -> pb.QualityCheck:
    return pb.QualityCheck(**{**body, "action": ACTIONS[body["action"]]})
