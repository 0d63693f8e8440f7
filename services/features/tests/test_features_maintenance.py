"""Compaction and expiry: no row is lost or doubled beside an archive, and what a model names stays."""

from __future__ import annotations

import json
import os
import threading
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest
from gyre_core.models import PINS_FOLDER
from gyre_features.privacy.erasure import erase_user
from gyre_features.processes.maintain import compact_all, maintain_all, plan_all
from gyre_features.settings import FeaturesSettings
from gyre_features.warehouse.maintenance import Expired, _groups, _replaced, compact, expire, snapshots_of_models
from gyre_features.warehouse.table_files import Levels, files_of, orphans
from gyre_runtime.checkpoints import Checkpoint
from gyre_runtime.settings import WarehouseSettings
from gyre_warehouse.tables import INTERACTIONS, append, arrow_schema, ensure_table, offsets_of, open_catalog
from pyiceberg.exceptions import CommitFailedException
from pyiceberg.table import Table

BEGIN = datetime(2026, 3, 1, tzinfo=UTC)
DAY = timedelta(days=1)
MEGABYTE = 1024 * 1024


def rows(first: int, *, day: int, count: int = 10) -> pa.Table:
    """Interactions of a day with consecutive offsets."""
    moment = BEGIN + day * DAY
    made = [
        {
            "event_id": f"e{number}",
            "source": "test",
            "event_time": moment + timedelta(seconds=number),
            "user_id": f"u{number % 7}",
            "item_id": "i",
            "type": "click",
            "kafka_partition": 0,
            "kafka_offset": number,
        }
        for number in range(first, first + count)
    ]
    return pa.Table.from_pylist(made, arrow_schema(INTERACTIONS))


def load(folder: Path) -> Table:
    """The table, as a process of its own opens it."""
    return ensure_table(open_catalog(WarehouseSettings(warehouse=str(folder))), "shop", INTERACTIONS)


@pytest.fixture
def table(tmp_path: Path) -> Table:
    """Three days of six small files each."""
    made = load(tmp_path)
    for number in range(18):
        append(made, rows(10 * number, day=number // 6), {0: Checkpoint(10 * number + 10)})
    return made


def held(table: Table) -> Counter[str]:
    """How often each event is in the table."""
    return Counter(table.scan(selected_fields=("event_id",)).to_arrow()["event_id"].to_pylist())


def files(table: Table) -> int:
    """How many data files the newest snapshot has."""
    return len(list(table.scan().plan_files()))


def test_small_files_of_old_days_become_one(table: Table) -> None:
    """Each day but the newest is one file afterwards; rows and offsets are the same, and a second call does nothing."""
    before = table.scan().to_arrow().sort_by("kafka_offset")
    done = compact(table, target_bytes=MEGABYTE, min_files=2)
    assert (done.files, done.into, done.rows) == (12, 2, 120)
    assert files(table) == 2 + 6
    assert table.scan().to_arrow().sort_by("kafka_offset") == before
    assert offsets_of(table) == {0: 180}
    assert compact(table, target_bytes=MEGABYTE, min_files=2).files == 0


def test_files_grow_to_the_target_only(table: Table) -> None:
    """Files are put together as long as their sizes stay within the target, and large ones are left alone."""
    (size, *_) = [task.file.file_size_in_bytes for task in table.scan().plan_files()]
    done = compact(table, target_bytes=int(size * 3.5), min_files=2)
    assert (done.files, done.into) == (12, 4)
    assert compact(table, target_bytes=size, min_files=2).files == 0
    assert compact(table, target_bytes=MEGABYTE, min_files=3).files == 0


def archive(folder: Path, first: int, stop: threading.Event, written: list[int]) -> None:
    """Append as the archive does, reading the offsets again after a conflict, into old days, too."""
    own = load(folder)
    while not stop.wait(0.1):
        own.refresh()
        stand = offsets_of(own)[0]
        try:
            append(own, rows(stand, day=stand // 10 % 3), {0: Checkpoint(stand + 10)})
        except CommitFailedException:
            continue
        written.append(stand)


def test_an_archive_goes_on_meanwhile(table: Table, tmp_path: Path) -> None:
    """Compactions and expiries beside an archive that commits ten times a second neither lose nor double a row."""
    stop, written = threading.Event(), list[int]()
    archiver = threading.Thread(target=archive, args=(tmp_path, 180, stop, written))
    archiver.start()
    own, rewritten, rounds = load(tmp_path), 0, 0
    try:
        while (len(written) < 15 or rewritten < 30) and rounds < 200:
            rounds += 1
            own.refresh()
            rewritten += compact(own, target_bytes=MEGABYTE, min_files=2).files
            later = datetime.now(UTC) + DAY
            expire(own, keep=DAY, keep_count=3, named=frozenset(), orphan_age=10 * DAY, now=later)
    finally:
        stop.set()
        archiver.join(timeout=30)
    own.refresh()
    assert len(written) >= 15
    assert rewritten >= 30
    end = offsets_of(own)[0]
    assert held(own) == Counter(f"e{number}" for number in range(end))


def test_a_file_that_is_gone_is_not_brought_back(table: Table, tmp_path: Path) -> None:
    """A user who was erased after a compaction had read the files stays erased; nothing is left of the attempt."""
    group = next(iter(_groups(table, MEGABYTE, 2)))
    erase_user(load(tmp_path), "u3".__eq__, since_ms=0)
    assert not _replaced(table, [task.file for task in group], [])
    assert not table.scan(row_filter="user_id = 'u3'").to_arrow().num_rows


def test_a_compaction_is_no_erasure(table: Table) -> None:
    """An erasure of somebody without rows after a compaction leaves old snapshots, and so runs, as they are."""
    compact(table, target_bytes=MEGABYTE, min_files=2)
    assert erase_user(table, "nobody".__eq__, since_ms=0) == (0, [], 0)
    assert len(table.snapshots()) == 20


def test_old_snapshots_go_with_their_files(table: Table) -> None:
    """Those that are old, not among the newest and named by no model go, with the files that only they held."""
    named = table.snapshots()[2].snapshot_id
    compact(table, target_bytes=MEGABYTE, min_files=2)
    kept = table.scan(snapshot_id=named).to_arrow()
    later = datetime.now(UTC) + 2 * DAY
    rule = {"keep": DAY, "keep_count": 2, "named": frozenset({named}), "orphan_age": 10 * DAY}
    assert expire(table, **rule, now=datetime.now(UTC)) == Expired(0, 0, 0)
    done = expire(table, **rule, now=later)
    assert done.snapshots == 20 - 3
    assert done.files > 9
    assert len(table.snapshots()) == 3
    assert table.scan(snapshot_id=named).to_arrow() == kept
    assert held(table) == Counter(f"e{number}" for number in range(180))


def test_orphans_go_when_they_are_old(table: Table) -> None:
    """A file that no snapshot names goes after its time; younger ones and all that are named stay."""
    folder = Path(table.location().removeprefix("file://")) / "data"
    old, young = folder / "old.parquet", folder / "young.parquet"
    for path in (old, young):
        path.write_bytes(b"left by a crash")
    os.utime(old, (0, 0))
    rule = {"keep": DAY, "keep_count": 99, "named": frozenset(), "orphan_age": DAY}
    assert expire(table, **rule, now=datetime.now(UTC)) == Expired(0, 0, 1)
    assert not old.exists()
    assert young.exists()
    assert len(held(table)) == 180


def test_the_same_file_is_known_however_it_is_written(table: Table, monkeypatch) -> None:
    """Catalogues write file:/a for file:///a: what is named so is no orphan, and without its metadata nothing is."""
    written = files_of

    def otherwise(*given: object) -> Levels:
        data, manifests, lists = written(*given)
        return tuple({path.replace("file:///", "file:/") for path in level} for level in (data, manifests, lists))

    monkeypatch.setattr("gyre_features.warehouse.table_files.files_of", otherwise)
    later = datetime.now(UTC) + DAY
    assert orphans(table, before=later) == []
    monkeypatch.setattr(table, "metadata_location", "file:/elsewhere/00000.metadata.json")
    stray = Path(table.location().removeprefix("file://")) / "data" / "stray.parquet"
    stray.write_bytes(b"left by a crash")
    assert orphans(table, before=later) == []
    monkeypatch.undo()
    assert orphans(table, before=later) == [f"file://{stray}"]


def test_models_name_their_snapshots(tmp_path: Path) -> None:
    """Artefacts and runs under way count; one that cannot be read stops the expiry instead of losing what it names."""
    for version, snapshots in (("v1", {INTERACTIONS: 11}), ("v2", {INTERACTIONS: 12, "catalog_items": 7})):
        folder = tmp_path / "shop" / version
        folder.mkdir(parents=True)
        (folder / "model.json").write_text(json.dumps({"snapshots": snapshots}))
    pinned = tmp_path / "shop" / PINS_FOLDER / "run-1"
    pinned.mkdir(parents=True)
    (pinned / "model.json").write_text(json.dumps({"snapshots": {INTERACTIONS: 13}}))
    found = snapshots_of_models(tmp_path, "shop")
    assert found == {INTERACTIONS: {11, 12, 13}, "catalog_items": {7}}
    (tmp_path / "shop" / "v1" / "model.json").write_text("{}")
    with pytest.raises(ValueError, match=r"v1/model\.json: must name the snapshots"):
        snapshots_of_models(tmp_path, "shop")


LOOP = (
    "version: 1\nloop: {loop}\nevents: {{interactions: {{click: {{}}}}}}\n"
    "features: [{{name: clicks, kind: decayed_count, scope: item, events: [click], half_lives: [1d]}}]\n"
)


def test_the_jobs_go_through_every_table(table: Table, tmp_path: Path, capsys) -> None:
    """The commands do it for each table of each loop, say what they did, and end with 0."""
    spec = tmp_path / "gyre.yaml"
    spec.write_text(LOOP.format(loop="shop"))
    settings = FeaturesSettings(warehouse=str(tmp_path), artifacts=tmp_path / "artifacts", loops=(spec,))
    assert compact_all(settings) == 0
    assert f"shop.{INTERACTIONS}: 12 small files into 2, 120 rows" in capsys.readouterr().out
    assert maintain_all(settings) == 0
    assert f"shop.{INTERACTIONS}: 0 snapshots expired" in capsys.readouterr().out
    table.refresh()
    assert files(table) == 8


@pytest.mark.parametrize("content", ["{}", "no JSON", None])
def test_a_manifest_that_nobody_can_read_keeps_its_own_loop_only(
    table: Table, tmp_path: Path, capsys, content: str | None
) -> None:
    """Nothing of that loop expires, which the job says and answers 1 for; its files are compacted, others expire."""
    specs = tuple(tmp_path / f"{loop}.yaml" for loop in ("shop", "unread"))
    for spec in specs:
        spec.write_text(LOOP.format(loop=spec.stem))
    manifest = tmp_path / "artifacts" / "unread" / "v1" / "model.json"
    manifest.parent.mkdir(parents=True)
    if content is None:
        manifest.mkdir()  # stands for a file system that does not give it
    else:
        manifest.write_text(content)
    settings = FeaturesSettings(warehouse=str(tmp_path), artifacts=tmp_path / "artifacts", loops=specs[::-1])
    assert maintain_all(settings) == 1
    said = capsys.readouterr().out
    assert f"unread.{INTERACTIONS}: 0 small files" in said
    assert "unread: nothing expires, since a model's snapshots are not known: " in said
    assert str(manifest) in said
    assert f"unread.{INTERACTIONS}: 0 snapshots expired" not in said
    assert f"shop.{INTERACTIONS}: 0 snapshots expired" in said
    assert plan_all(settings) == 1
    assert f"shop.{INTERACTIONS}: " in capsys.readouterr().out
