"""Dead letters that are put back: each counts once, online and in the table, whatever happened in between."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from gyre.events.v1 import behavior_pb2 as behavior
from gyre_core.features import Layout, Reader, RequestContext
from gyre_core.layouts import LayoutState
from gyre_core.spec import LoopSpec, load_loop
from gyre_core.topics import dead_letter_topic, declared, topic
from gyre_features.online.store import OnlineStore
from gyre_features.settings import FeaturesSettings
from gyre_local.testing import eventually
from gyre_runtime.events import Record, encode
from gyre_runtime.kafka import Producer, create_topics, read_records
from gyre_runtime.layouts import read_layouts
from gyre_warehouse.tables import INTERACTIONS, ensure_table, offsets_of, open_catalog
from redis.asyncio import Redis

pytestmark = pytest.mark.adapter
CLICKS = "behavior.interactions"
BEGIN, LATER_S = 1_370_000_000.0, 3700.0
WINDOW_S = 1
"""How long the stream's windows of append times are where they are to pass."""
LETTERS = 5
Start = Callable[..., Any]


def _replay(kafka: str, loop: str) -> "subprocess.Popen[bytes]":
    """Start the command that puts dead letters back."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("GYRE_")}
    command = [str(Path(sys.executable).parent / "gyre"), "dlq", "replay", loop]
    return subprocess.Popen(
        command, env={**clean, "GYRE_KAFKA": kafka}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


async def _ends(kafka: str, spec: LoopSpec) -> dict[int, int]:
    consumer = AIOKafkaConsumer(bootstrap_servers=kafka, isolation_level="read_committed")
    await consumer.start()
    try:
        places = [TopicPartition(topic(spec.loop, CLICKS), each) for each in range(spec.shards.kafka_partitions)]
        return {place.partition: end for place, end in (await consumer.end_offsets(places)).items() if end}
    finally:
        await consumer.stop()


async def _applied(redis: Redis, kafka: str, spec: LoopSpec) -> bool:
    """Whether the loop's layout stands at the end of the clicks."""
    store, ends = OnlineStore(redis, spec, Layout.compile(spec)), await _ends(kafka, spec)
    (applied_offsets,) = await store.applied_offsets([(topic(spec.loop, CLICKS), each) for each in ends])
    return all(applied_offsets[topic(spec.loop, CLICKS), partition] >= end for partition, end in ends.items())


async def _ready(kafka: str, spec: LoopSpec) -> bool:
    """Whether the loop's layout is announced as ready."""
    known = (await read_layouts(kafka, spec.loop)).get(Layout.compile(spec).hash)
    return known is not None and known.state is LayoutState.READY


async def _counted(redis: Redis, spec: LoopSpec) -> float:
    """How often the item was clicked, by the online store."""
    layout = Layout.compile(spec)
    values = await OnlineStore(redis, spec, layout).read("u1", ["i1"])
    context = RequestContext(BEGIN + LATER_S)
    matrix, _ = Reader(layout).matrix(values.user, values.everyone, values.items, ["i1"], context)
    return float(matrix[0][layout.columns.index("popular_7d")])


def _edited(loop_file: Path, old: str, new: str) -> LoopSpec:
    """The loop with a part of its file replaced."""
    loop_file.write_text(loop_file.read_text().replace(old, new))
    return load_loop(loop_file)


def _changed(loop_file: Path) -> LoopSpec:
    """The loop with another layout, which its file then says, too."""
    return _edited(loop_file, "[1d, 7d]", "[1d, 7d, 14d]")


async def test_a_replayed_letter_counts_once(  # noqa: PLR0917 - fixtures
    kafka: str, redis: Redis, tmp_path: Path, spec: LoopSpec, loop_file: Path, history: Any, start_process: Start
) -> None:
    """Letters of records without an id count once, after restarts, a new layout and replays at once, an hour later.

    Between letters and replays, and between replays, the stream's windows pass: no identity that it knew is known any
    more. The new layout, which reads the refused records again, writes no second letter of any.
    """
    await create_topics(kafka, declared(spec))
    name, letters = topic(spec.loop, CLICKS), dead_letter_topic(topic(spec.loop, CLICKS))

    async def send(number: int, at: float, *, id_: str | None) -> None:
        record = encode(history.rating(1, 1), source="shop", id=id_, time=at)
        headers = [each for each in record.headers if id_ or each[0] != "ce_id"]
        async with Producer(kafka, source="shop") as producer:
            await producer.send_record(name, Record(f"u{number}".encode(), record.value, headers))

    async def written() -> int:
        return len([each async for each in read_records(kafka, letters)])

    async def has_letters() -> bool:
        return await written() >= LETTERS

    async def windows_pass(name: str) -> None:
        for number in range(2):  # each event is the first of a window
            since = time.time()
            await eventually(lambda since=since: time.time() > since + WINDOW_S, message="a window is over")
            await send(1, BEGIN + LATER_S, id_=f"{name}-{number}")

    await send(1, BEGIN, id_="good")
    for number in range(LETTERS):
        await send(1, BEGIN + number, id_=None)
    first = start_process("stream", GYRE_FEATURES_DUPLICATES_S=str(WINDOW_S))
    start_process("archive", GYRE_FEATURES_ARCHIVE_S="0.2")
    await eventually(has_letters, timeout_s=60, message="the records are dead-lettered")
    await eventually(lambda: _applied(redis, kafka, spec), timeout_s=60, message="the position passes them")
    first.terminate()
    assert await asyncio.to_thread(first.wait, 20) == 0
    newer = _changed(loop_file)
    start_process("stream", GYRE_FEATURES_DUPLICATES_S=str(WINDOW_S))
    await eventually(lambda: _applied(redis, kafka, newer), timeout_s=60, message="a new layout is filled from Kafka")
    await eventually(lambda: _ready(kafka, newer), timeout_s=60, message="the new layout is ready")
    assert await written() == LETTERS
    await windows_pass("later")
    await eventually(lambda: _applied(redis, kafka, newer), timeout_s=60, message="an hour of the stream passes")
    for replay in [_replay(kafka, spec.loop) for _ in range(2)]:
        await asyncio.to_thread(replay.wait, 60)
    await windows_pass("again")
    await send(1, BEGIN + LATER_S, id_="good")  # counts again: the windows hold no identity from before
    assert await asyncio.to_thread(_replay(kafka, spec.loop).wait, 60) == 0

    def held() -> dict[int, int]:
        catalog = open_catalog(FeaturesSettings(warehouse=str(tmp_path / "warehouse")))
        return {each: end for each, end in offsets_of(ensure_table(catalog, spec.loop, INTERACTIONS)).items() if end}

    async def archived() -> bool:
        return held() == await _ends(kafka, spec)

    await eventually(lambda: _applied(redis, kafka, newer), timeout_s=60, message="the replay is applied")
    await eventually(archived, timeout_s=60, message="the replay is archived")
    assert await _counted(redis, newer) == pytest.approx(LETTERS + 6, abs=0.3)
    catalog = open_catalog(FeaturesSettings(warehouse=str(tmp_path / "warehouse")))
    assert ensure_table(catalog, spec.loop, INTERACTIONS).scan().to_arrow().num_rows == LETTERS + 6
    assert len([each async for each in read_records(kafka, name)]) == 2 * LETTERS + 6
    assert await written() == LETTERS


async def test_a_replayed_letter_that_the_archive_had_taken_counts_once(
    kafka: str, redis: Redis, tmp_path: Path, spec: LoopSpec, loop_file: Path, start_process: Start
) -> None:
    """Refused by the stream, archived under a mended file, put back: once online, and one id for training to count."""
    await create_topics(kafka, declared(spec))
    name, letters = topic(spec.loop, CLICKS), dead_letter_topic(topic(spec.loop, CLICKS))
    message = behavior.Interaction(user_id="u1", item_id="i1", type="rating", value=20)
    async with Producer(kafka, source="shop") as producer:
        await producer.send(name, message, key="u1", id="wide", time=BEGIN)

    async def has_letter() -> bool:
        return len([each async for each in read_records(kafka, letters)]) == 1

    async def archived() -> bool:
        catalog = open_catalog(FeaturesSettings(warehouse=str(tmp_path / "warehouse")))
        held = offsets_of(ensure_table(catalog, spec.loop, INTERACTIONS))
        return {each: end for each, end in held.items() if end} == await _ends(kafka, spec)

    refusing = start_process("stream")
    await eventually(has_letter, timeout_s=60, message="the record is dead-lettered")
    await eventually(lambda: _applied(redis, kafka, spec), timeout_s=60, message="the position passes it")
    refusing.terminate()
    assert await asyncio.to_thread(refusing.wait, 20) == 0
    mended = _edited(loop_file, "max: 10}", "max: 100}")
    assert Layout.compile(mended).hash == Layout.compile(spec).hash
    start_process("archive", GYRE_FEATURES_ARCHIVE_S="0.2")
    start_process("stream")
    await eventually(archived, timeout_s=60, message="the record is archived")
    assert await asyncio.to_thread(_replay(kafka, spec.loop).wait, 60) == 0
    await eventually(lambda: _applied(redis, kafka, mended), timeout_s=60, message="the replay is applied")
    await eventually(archived, timeout_s=60, message="the replay is archived")
    assert await _counted(redis, mended) == pytest.approx(1, abs=0.3)
    catalog = open_catalog(FeaturesSettings(warehouse=str(tmp_path / "warehouse")))
    rows = ensure_table(catalog, spec.loop, INTERACTIONS).scan().to_arrow().to_pylist()
    assert {(row["source"], row["event_id"]) for row in rows} == {("shop", "wide")}
