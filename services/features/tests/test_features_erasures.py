"""What the eraser does where something is cut short, fails, or goes on beside another process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from gyre.events.v1 import privacy_pb2 as privacy
from gyre_core.keyring import Keyring
from gyre_core.spec import LoopSpec
from gyre_core.topics import declared, topic
from gyre_features.privacy import erasure
from gyre_features.privacy.erasure import ERASED, Eraser
from gyre_features.settings import FeaturesSettings
from gyre_features.warehouse.archive import Archive
from gyre_local.testing import eventually
from gyre_privacy.pseudonyms import record_key, user_hash
from gyre_runtime import Unavailable
from gyre_runtime.kafka import Producer, create_topics, read_compacted
from gyre_warehouse.tables import INTERACTIONS, ensure_table, open_catalog
from pyiceberg.catalog import Catalog
from pyiceberg.table import Table

from .marked_user import MARKED, OTHER, ratings

KEYRING = Keyring(b"k" * 32)


class _FirstFails:
    """A producer of which the first send fails, before Kafka has anything."""

    def __init__(self, producer: Producer, error: BaseException) -> None:
        self._producer, self._error = producer, error
        self.failed = asyncio.Event()

    async def send(self, *arguments: Any, **options: Any) -> None:
        """Send, or fail."""
        if not self.failed.is_set():
            self.failed.set()
            raise self._error
        await self._producer.send(*arguments, **options)


class _Killed(Exception):  # noqa: N818 - no error: it stands for the end of a process
    """The process ends here."""


@pytest.mark.adapter
@pytest.mark.parametrize("error", [Unavailable("KAFKA_UNAVAILABLE", "away"), _Killed()], ids=["refused", "killed"])
async def test_what_was_erased_is_published_whole_by_a_later_try(
    tmp_path: Path, spec: LoopSpec, history: Any, kafka: str, error: Exception
) -> None:
    """Rows and snapshots that went before Kafka could take the report stand in the report that it takes later."""
    await create_topics(kafka, declared(spec))
    archive, catalog = await _archived(tmp_path, spec, history, kafka)
    table = ensure_table(catalog, spec.loop, INTERACTIONS)
    read = {each.snapshot_id for each in table.snapshots()}
    message = privacy.UserForgotten(user_hash=user_hash(KEYRING, spec.loop, MARKED))
    message.forgotten_time.GetCurrentTime()

    async def reports() -> list[privacy.UserErased]:
        events = await read_compacted(kafka, topic(spec.loop, "privacy.erasures"), ERASED)
        return [each.message for each in events.values()]

    async with Producer(kafka, source="test") as producer:
        flaky, kept_s = _FirstFails(producer, error), {spec.loop: 1e6}
        eraser = Eraser({spec.loop: archive}, flaky, kafka, KEYRING, kept_s)  # type: ignore[arg-type]  # its one method
        eraser.note(spec.loop, message)
        running = asyncio.create_task(eraser.run())
        await flaky.failed.wait()
        if isinstance(error, _Killed):
            with suppress(_Killed):
                await running
            archive = Archive(catalog, rows=1000, seconds=60, payload_bytes=10**9)
            eraser = Eraser({spec.loop: archive}, producer, kafka, KEYRING, kept_s)
            eraser.note(spec.loop, message)
            running = asyncio.create_task(eraser.run())
        (report,) = await eventually(reports, timeout_s=30, message="the erasure is published")
        assert report.rows[INTERACTIONS] == 3
        assert read <= set(report.expired[INTERACTIONS].ids)
        assert report.found_rows == 0
        await eventually(lambda: not _notes(table), timeout_s=30, message="the note of what went is gone")
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def _archived(warehouse: Path, spec: LoopSpec, history: Any, kafka: str) -> tuple[Archive, Catalog]:
    """An archive that appended three rows of the marked user in three snapshots, and its catalogue."""
    await create_topics(kafka, declared(spec))
    catalog = open_catalog(FeaturesSettings(warehouse=str(warehouse)))
    archive = Archive(catalog, rows=1000, seconds=60, payload_bytes=10**9)
    for number in range(3):
        await archive.add(ratings(history, f"i{number}", start=2 * number))
        await archive.flush()
    return archive, catalog


def _tombstone(loop: str) -> privacy.UserForgotten:
    message = privacy.UserForgotten(user_hash=user_hash(KEYRING, loop, MARKED))
    message.forgotten_time.GetCurrentTime()
    return message


@asynccontextmanager
async def _erasing(kafka: str, loop: str, archive: Archive, producer: Any) -> AsyncIterator[Eraser]:
    """An eraser that runs inside of the block."""
    eraser = Eraser({loop: archive}, producer, kafka, KEYRING, {loop: 1e6})
    running = asyncio.create_task(eraser.run())
    try:
        yield eraser
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def _report(kafka: str, loop: str, since: privacy.UserForgotten) -> privacy.UserErased | None:
    """What is published of a tombstone, or of a later one; None for nothing yet."""
    events = await read_compacted(kafka, topic(loop, "privacy.erasures"), ERASED)
    for event in events.values():
        if event.message.forgotten_time.ToNanoseconds() >= since.forgotten_time.ToNanoseconds():
            return event.message
    return None


def _files_that_name(folder: Path, user: str) -> list[Path]:
    return [each for each in folder.rglob("*") if each.is_file() and user.encode() in each.read_bytes()]


def _notes(table: Table) -> set[str]:
    table.refresh()
    return {name for name in table.properties if "erasure" in name}


@pytest.mark.adapter
@pytest.mark.parametrize("fails", ["files", "report"])
async def test_a_repeated_call_finishes_an_erasure_that_was_cut_short(
    tmp_path: Path, spec: LoopSpec, history: Any, kafka: str, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    """Where the first call's erasure waits for its next try, the second call's removes and reports what that began."""
    archive, catalog = await _archived(tmp_path, spec, history, kafka)
    table = ensure_table(catalog, spec.loop, INTERACTIONS)
    read = {each.snapshot_id for each in table.snapshots()}
    delete_files, failures = erasure.delete_files, [OSError("the bucket does not answer")]

    def flaky(*arguments: Any) -> None:
        if failures:
            raise failures.pop()
        delete_files(*arguments)

    async with Producer(kafka, source="test") as producer:
        first_fails = _FirstFails(producer, Unavailable("KAFKA_UNAVAILABLE", "away"))
        if fails == "files":
            monkeypatch.setattr(erasure, "delete_files", flaky)
            first_fails.failed.set()
        async with _erasing(kafka, spec.loop, archive, first_fails) as eraser:
            eraser.note(spec.loop, _tombstone(spec.loop))
            await eventually(
                lambda: first_fails.failed.is_set() and not (failures and fails == "files"),
                timeout_s=30,
                message="fails",
            )
            again = _tombstone(spec.loop)
            eraser.note(spec.loop, again)
            report = await eventually(
                lambda: _report(kafka, spec.loop, again), timeout_s=30, message="the second erasure is published"
            )
            table.refresh()
            assert report.rows[INTERACTIONS] == 3
            assert read <= set(report.expired[INTERACTIONS].ids)
            assert not read & {each.snapshot_id for each in table.snapshots()}
            assert not _files_that_name(tmp_path, MARKED)
            await eventually(lambda: not _notes(table), timeout_s=30, message="the notes of what went are gone")


@pytest.mark.adapter
async def test_rows_that_waited_in_a_second_archive_are_erased(
    tmp_path: Path, spec: LoopSpec, history: Any, kafka: str
) -> None:
    """Where two processes write a loop's tables, rows that one appends after the other's report go, too."""
    archive, catalog = await _archived(tmp_path, spec, history, kafka)
    second, tombstone = Archive(catalog, rows=1000, seconds=60, payload_bytes=10**9), _tombstone(spec.loop)
    late = [each._replace(partition=1) for each in ratings(history, "i9")]
    await second.add(late)
    async with Producer(kafka, source="test") as producer:
        for own in (archive, second):
            async with _erasing(kafka, spec.loop, own, producer) as eraser:
                eraser.note(spec.loop, tombstone)
                last = _tombstone(spec.loop)
                last.user_hash = user_hash(KEYRING, spec.loop, f"somebody {own is second}")
                eraser.note(spec.loop, last)
                await eventually(
                    lambda last=last: _report(kafka, spec.loop, last), timeout_s=30, message="both are done"
                )
    await second.flush()
    users = ensure_table(catalog, spec.loop, INTERACTIONS).scan().to_arrow()["user_id"].to_pylist()
    assert users.count(OTHER) == 4
    assert users.count(MARKED) == 0
    events = await read_compacted(kafka, topic(spec.loop, "privacy.erasures"), ERASED)
    assert events[record_key(tombstone)].message.rows[INTERACTIONS] == 4


@pytest.mark.adapter
@pytest.mark.parametrize("state", ["forgotten", "nobody", "erased", "away"])
async def test_a_process_that_ends_appends_no_rows_of_who_is_forgotten(
    tmp_path: Path, spec: LoopSpec, history: Any, kafka: str, state: str
) -> None:
    """Rows that wait are left to the next owner where a tombstone is not done here, or Kafka does not say of any."""
    archive, catalog = await _archived(tmp_path, spec, history, kafka)
    tombstone = _tombstone(spec.loop)
    async with Producer(kafka, source="test") as producer:
        if state in ("forgotten", "erased"):
            await producer.send(topic(spec.loop, "privacy.tombstones"), tombstone, key=record_key(tombstone))
        async with _erasing(kafka, spec.loop, archive, producer) as eraser:
            if state == "erased":
                eraser.note(spec.loop, tombstone)
                await eventually(lambda: _report(kafka, spec.loop, tombstone), timeout_s=30, message="it is published")
        late = [each._replace(partition=1) for each in ratings(history, "i9")]
        await archive.add([each for each in late if state != "erased" or each.message.user_id != MARKED])
        if state == "away":
            eraser = Eraser({spec.loop: archive}, producer, "127.0.0.1:1", KEYRING, {spec.loop: 1e6})
        await eraser.release(spec.loop)
    await archive.flush()
    users = ensure_table(catalog, spec.loop, INTERACTIONS).scan().to_arrow()["user_id"].to_pylist()
    appended = state in ("nobody", "erased")
    assert users.count(OTHER) == (4 if appended else 3)
    assert users.count(MARKED) == {"nobody": 4, "erased": 0}.get(state, 3)


@pytest.mark.adapter
async def test_a_report_stands_though_its_note_could_not_be_dropped(
    tmp_path: Path, spec: LoopSpec, history: Any, kafka: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a note cannot be dropped once the report was published, a later try drops it and reports no less."""
    archive, catalog = await _archived(tmp_path, spec, history, kafka)
    table, drop_notes, tables = ensure_table(catalog, spec.loop, INTERACTIONS), erasure.drop_notes, list[str]()

    def flaky(table: Table, *arguments: Any, **options: Any) -> None:
        tables.append(table.name()[-1])
        if len(tables) == 2:
            raise OSError("another writer committed")
        drop_notes(table, *arguments, **options)

    monkeypatch.setattr(erasure, "drop_notes", flaky)
    async with Producer(kafka, source="test") as producer, _erasing(kafka, spec.loop, archive, producer) as eraser:
        tombstone = _tombstone(spec.loop)
        eraser.note(spec.loop, tombstone)
        await eventually(lambda: len(tables) >= 5, timeout_s=30, message="the notes are dropped again")
        # The queue is in order: once the next tombstone is done, the first one's last try is, too.
        last = _tombstone(spec.loop)
        last.user_hash = user_hash(KEYRING, spec.loop, "nobody")
        eraser.note(spec.loop, last)
        await eventually(lambda: _report(kafka, spec.loop, last), timeout_s=30, message="the last one is done")
    events = await read_compacted(kafka, topic(spec.loop, "privacy.erasures"), ERASED)
    assert events[record_key(tombstone)].message.rows[INTERACTIONS] == 3
    assert not _notes(table)
