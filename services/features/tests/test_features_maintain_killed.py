"""The job that keeps the warehouse small, killed at each of its steps: no snapshot names what is gone."""

import json
import os
import shutil
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest
from gyre_core.models import MANIFEST_FILE
from gyre_features.warehouse.table_files import files_of, orphans
from gyre_local.killing import KILLED, KillableJob
from gyre_runtime.checkpoints import Checkpoint
from gyre_runtime.settings import WarehouseSettings
from gyre_warehouse.tables import INTERACTIONS, append, arrow_schema, ensure_table, open_catalog
from pyiceberg.table import Table

DAY_S = 86_400.0
BEGIN = datetime(2026, 3, 1, tzinfo=UTC)
SPEC = (
    "version: 1\nloop: shop\nevents: {interactions: {click: {}}}\n"
    "features: [{name: clicks, kind: decayed_count, scope: item, events: [click], half_lives: [1d]}]\n"
)
STEPS = (
    "pyiceberg.io.pyarrow:PyArrowFile.create",
    "pyiceberg.io.pyarrow:PyArrowFileIO.delete",
    "pyiceberg.catalog.sql:SqlCatalog.commit_table",
)
pytestmark = pytest.mark.timeout(300)


def rows(first: int, *, day: int) -> pa.Table:
    """Two interactions of a day."""
    made = [
        {
            "event_id": f"e{number}",
            "source": "test",
            "event_time": BEGIN + timedelta(days=day, seconds=number),
            "user_id": f"u{number % 3}",
            "kafka_partition": 0,
            "kafka_offset": number,
        }
        for number in (first, first + 1)
    ]
    return pa.Table.from_pylist(made, arrow_schema(INTERACTIONS))


def load(place: Path) -> Table:
    """The table, as a process of its own opens it."""
    return ensure_table(open_catalog(WarehouseSettings(warehouse=str(place / "warehouse"))), "shop", INTERACTIONS)


def age(place: Path) -> None:
    """Let ten days go by for every file."""
    for path in place.rglob("*"):
        if path.is_file():
            os.utime(path, (time.time() - 10 * DAY_S,) * 2)


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[KillableJob, Callable[[], Table]]:
    """The job, and what brings its warehouse to where it begins: old days of small files, a model that names one."""
    place, spare = tmp_path / "place", tmp_path / "spare"
    with monkeypatch.context() as patched:
        old = SimpleNamespace(time=lambda: time.time() - 10 * DAY_S)
        patched.setattr("pyiceberg.table.snapshots.time", old)
        table = load(place)
        for number in range(5):
            append(table, rows(2 * number, day=number // 2), {0: Checkpoint(2 * number + 2)})
    named = table.snapshots()[1].snapshot_id
    manifest = place / "artifacts" / "shop" / "v1" / MANIFEST_FILE
    manifest.parent.mkdir(parents=True)
    manifest.write_text(json.dumps({"snapshots": {INTERACTIONS: named}}))
    (place / "gyre.yaml").write_text(SPEC)
    shutil.copytree(place, spare)
    env = {
        "GYRE_LOOPS": str(place / "gyre.yaml"),
        "GYRE_WAREHOUSE": str(place / "warehouse"),
        "GYRE_ARTIFACTS": str(place / "artifacts"),
        "GYRE_FEATURES_COMPACT_FILES": "2",
        "GYRE_FEATURES_MIN_SNAPSHOTS": "1",
    }

    def begin() -> Table:
        shutil.rmtree(place)
        shutil.copytree(spare, place)
        age(place)
        return load(place)

    return KillableJob("gyre_features.__main__:main", ("gyre_features", "maintain"), env, STEPS), begin


def rows_of_snapshots(table: Table) -> dict[int, list[str]]:
    """The events of every snapshot, each of which must be readable as a whole."""
    return {
        each.snapshot_id: sorted(table.scan(snapshot_id=each.snapshot_id).to_arrow()["event_id"].to_pylist())
        for each in table.snapshots()
    }


def files_on_disk(table: Table) -> set[str]:
    """The files that the remaining snapshots name, each of which must be there."""
    named = set().union(*files_of(table, table.snapshots()))
    assert all(Path(each.removeprefix("file://")).exists() for each in named)
    return named


@pytest.mark.parametrize("stride", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_a_job_killed_at_any_step_leaves_every_snapshot_whole(
    job: tuple[KillableJob, Callable[[], Table]], stride: int
) -> None:
    """Whatever a snapshot names is there, the model's, too; no row is lost or doubled; the next run finishes."""
    maintain, begin = job
    place = Path(maintain.env["GYRE_LOOPS"]).parent
    before = rows_of_snapshots(begin())
    named, newest = sorted(before, key=lambda each: len(before[each]))[1::3]
    kill_at = 1
    while True:
        begin()
        ended = maintain.run(kill_at=kill_at)
        for _ in range(2):
            table = load(place)
            after = rows_of_snapshots(table)
            assert after[named] == before[named], kill_at
            assert after[table.metadata.current_snapshot_id] == before[newest], kill_at
            assert files_on_disk(table), kill_at
            age(place)
            assert maintain.run() == 0, kill_at
        table = load(place)
        assert len(list(table.scan().plan_files())) == 3, kill_at
        assert not orphans(table, before=datetime.now(UTC)), kill_at
        if ended != KILLED:
            assert ended == 0
            break
        kill_at += stride
    assert kill_at > 30
