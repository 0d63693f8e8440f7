"""The reports of training runs: found by run and by snapshot, read once, told over gRPC."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from gyre.features.v1 import data_quality_pb2 as pb
from gyre.features.v1.data_quality_pb2_grpc import DataQualityServiceStub
from gyre_core.spec import LoopSpec
from gyre_features.processes.serve import serve
from gyre_features.quality.snapshots import SnapshotReports
from gyre_features.settings import FeaturesSettings
from gyre_local.timeouts import scaled
from gyre_runtime import Lifespan, NotFound, ServiceSettings, channel


def report(artifacts: Path, loop: str, version: str, run_id: str, snapshot_id: int, **changes: Any) -> Path:
    """Write the report of a run as the trainer does; its file."""
    body = {
        "subject": "test",
        "passed": False,
        "blocks": True,
        "checks": [
            {
                "name": "drift.psi",
                "column": "popular",
                "value": 0.4,
                "threshold": 0.1,
                "passed": False,
                "action": "block",
                "detail": "p = 0",
                "rows": 0,
            },
            {
                "name": "labels.consistency",
                "column": "",
                "value": None,
                "threshold": -0.5,
                "passed": True,
                "action": "warn",
                "detail": "",
                "rows": 3,
            },
        ],
        "loop": loop,
        "run_id": run_id,
        "version": version,
        "snapshots": {"behavior_impressions": snapshot_id, "catalog_items": 5},
        "data_time": 1_370_000_000.5,
        "quarantined": {"interactions": 2},
    }
    path = artifacts / loop / version / "quality.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(body | changes))
    return path


def test_reports_are_found(tmp_path: Path) -> None:
    """By run, by snapshot the newest, with both the one that has both; other loops and temporary folders are none."""
    reports = SnapshotReports(tmp_path)
    assert reports.find("shop", run_id="run-1") is None
    for version, run_id, snapshot_id in (("20130101", "run-1", 1), ("20130102", "run-2", 2), ("20130103", "run-3", 2)):
        report(tmp_path, "shop", version, run_id, snapshot_id)
    report(tmp_path, "news", "20130104", "run-4", 2)
    report(tmp_path, "shop", ".20130105", "run-5", 2)
    assert _run(reports.find("shop", run_id="run-2")) == "run-2"
    assert _run(reports.find("shop", snapshot_id=2)) == "run-3"
    assert _run(reports.find("shop", snapshot_id=5)) == "run-3"
    assert _run(reports.find("shop", run_id="run-1", snapshot_id=1)) == "run-1"
    for wanted in ({"run_id": "run-1", "snapshot_id": 2}, {"run_id": "run-4"}, {"run_id": "run-5"}):
        assert reports.find("shop", **wanted) is None


def test_a_report_that_changes_is_read_again(tmp_path: Path) -> None:
    """A run that begins anew replaces its report, and one that is gone is no longer found."""
    path = report(tmp_path, "shop", "20130101", "run-1", 1)
    reports = SnapshotReports(tmp_path)
    found = reports.find("shop", run_id="run-1")
    assert found is not None
    assert not found.passed
    assert reports.find("shop", run_id="run-1") is found
    path.unlink()
    assert reports.find("shop", run_id="run-1") is None
    report(tmp_path, "shop", "20130101", "run-1", 1, passed=True)
    again = reports.find("shop", run_id="run-1")
    assert again is not None
    assert again.passed


@pytest.fixture
def threads_alternate() -> Iterator[None]:
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("threads_alternate")
async def test_many_ask_while_runs_come_and_go(tmp_path: Path) -> None:
    """Calls side by side, each in a thread of its own, are all answered while reports are added and removed."""
    reports, failed = SnapshotReports(tmp_path), list[str]()

    async def ask() -> None:
        try:
            assert await asyncio.to_thread(reports.find, "shop", run_id="nobody") is None
        except (KeyError, RuntimeError) as error:
            failed.append(repr(error))

    for _ in range(15):
        for number in range(300):
            report(tmp_path, "shop", f"2013-{number}", f"run-{number}", number)
        await asyncio.gather(*(ask() for _ in range(8)))
        shutil.rmtree(tmp_path / "shop")
        await asyncio.gather(*(ask() for _ in range(8)))
    assert failed == []


def _run(found: pb.SnapshotReport | None) -> str:
    return "" if found is None else found.run_id


@pytest.fixture
async def stub(loop_file: Path, kafka: str, redis_url: str, tmp_path: Path) -> AsyncIterator[DataQualityServiceStub]:
    """The read side with an artefact folder."""
    settings = FeaturesSettings(
        loops=(loop_file,), kafka=kafka, redis=redis_url, artifacts=tmp_path / "artifacts", drain_s=1
    )
    async with Lifespan(drain_s=1) as lifespan:
        running = await serve(lifespan, settings)
        await lifespan.health.start()
        async with asyncio.timeout(scaled(30)):
            await running.caught_up.wait()
        connected = await lifespan.enter(channel(running.server.address, ServiceSettings(), name="features"))
        yield DataQualityServiceStub(connected)


@pytest.mark.adapter
async def test_a_report_is_told(stub: DataQualityServiceStub, spec: LoopSpec, tmp_path: Path) -> None:
    """GetReport gives a run's checks as they were found, windows without a run, and NOT_FOUND for an unknown one."""
    report(tmp_path / "artifacts", spec.loop, "20130101", "run-1", 7)
    asked = pb.GetReportRequest(loop=spec.loop, run_id="run-1")
    found = (await stub.GetReport(asked, timeout=30)).snapshot
    assert (found.version, found.passed, found.blocks, found.snapshots["behavior_impressions"]) == (
        "20130101",
        False,
        True,
        7,
    )
    assert found.data_time.ToMilliseconds() == 1_370_000_000_500
    assert dict(found.quarantined) == {"interactions": 2}
    drift, labels = found.checks
    assert (drift.name, drift.column, drift.value, drift.action) == ("drift.psi", "popular", 0.4, 3)
    assert not labels.HasField("value")
    assert labels.rows == 3
    by_snapshot = pb.GetReportRequest(loop=spec.loop, snapshot_id=7)
    assert (await stub.GetReport(by_snapshot, timeout=30)).snapshot == found
    assert not (await stub.GetReport(pb.GetReportRequest(loop=spec.loop), timeout=30)).HasField("snapshot")
    with pytest.raises(NotFound, match="run_id = 'run-9': must be of a training run") as caught:
        await stub.GetReport(pb.GetReportRequest(loop=spec.loop, run_id="run-9"), timeout=30)
    assert caught.value.reason == "UNKNOWN_REPORT"
