"""The archive: every event is one row, whatever dies and however many archivers write."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from gyre.events.v1 import behavior_pb2 as behavior
from gyre_core.spec import LoopSpec
from gyre_core.topics import declared, topic
from gyre_features.archive import Archive
from gyre_features.settings import FeaturesSettings
from gyre_local.testing import eventually
from gyre_runtime.events import Event
from gyre_runtime.kafka import Producer, create_topics
from gyre_runtime.warehouse import INTERACTIONS, ensure_table, open_catalog

Start = Callable[..., "subprocess.Popen[bytes]"]
BEGIN = 1_370_000_000.0


def _interaction(number: int) -> behavior.Interaction:
    return behavior.Interaction(user_id=f"u{number % 7}", item_id=f"i{number % 11}", type="rating", value=number % 10)


def _events(spec: LoopSpec, first: int, end: int) -> list[Event]:
    name = topic(spec.loop, "behavior.interactions")
    return [
        Event(f"e{each}", "test", "", BEGIN + each, _interaction(each), None, name, 0, each, "k", BEGIN)
        for each in range(first, end)
    ]


def _stored(warehouse: Path, loop: str) -> list[str]:
    catalog = open_catalog(FeaturesSettings(warehouse=str(warehouse)))
    return sorted(ensure_table(catalog, loop, INTERACTIONS).scan().to_arrow()["event_id"].to_pylist())


async def test_a_zombie_archiver_neither_loses_nor_repeats_a_row(tmp_path: Path, spec: LoopSpec) -> None:
    """Two archivers that hold overlapping events leave each event in the table once."""
    catalog = open_catalog(FeaturesSettings(warehouse=str(tmp_path)))
    zombie, successor = (Archive(catalog, rows=1000, seconds=60, payload_bytes=10**9) for _ in range(2))
    await zombie.add(_events(spec, 0, 40))
    await successor.add(_events(spec, 0, 25))
    await successor.flush()
    await zombie.flush()
    await successor.add(_events(spec, 25, 60))
    await successor.flush()
    assert _stored(tmp_path, spec.loop) == sorted(f"e{each}" for each in range(60))


@pytest.mark.adapter
async def test_a_killed_archive_goes_on_where_the_table_stands(
    kafka: str, tmp_path: Path, spec: LoopSpec, start_process: Start
) -> None:
    """SIGKILL between reading and committing, and a restart, leave each event in the table once."""
    await create_topics(kafka, declared(spec))
    name, warehouse = topic(spec.loop, "behavior.interactions"), tmp_path / "warehouse"

    async def produce(first: int, end: int) -> None:
        async with Producer(kafka, source="test") as producer:
            for each in range(first, end):
                await producer.send(name, _interaction(each), key="k", time=BEGIN + each, id=f"e{each}")

    await produce(0, 400)
    env = {"GYRE_FEATURES_ARCHIVE_ROWS": "60", "GYRE_FEATURES_ARCHIVE_S": "0.2"}
    victim = start_process("archive", **env)
    await eventually(lambda: len(_stored(warehouse, spec.loop)) > 0, timeout_s=40, message="the archive began")
    await produce(400, 700)
    victim.kill()
    victim.wait()
    start_process("archive", **env)
    await eventually(lambda: len(_stored(warehouse, spec.loop)) >= 700, timeout_s=60, message="all rows are there")
    assert _stored(warehouse, spec.loop) == sorted(f"e{each}" for each in range(700))
