"""How large a record is bounds what a producer may send; what Kafka holds is decided alike, however large it is."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from gyre.events.v1 import behavior_pb2 as behavior
from gyre.events.v1.features_pb2 import BatchApplied
from gyre_core.spec import LoopSpec
from gyre_core.topics import dead_letter_topic, declared, max_record_bytes, topic
from gyre_features.settings import FeaturesSettings
from gyre_local.testing import eventually
from gyre_runtime.events import Record, encode, message_types
from gyre_runtime.kafka import create_topics, read_log, read_records
from gyre_warehouse.tables import IMPRESSIONS, ITEMS, TABLE_OF, ensure_table, offsets_of, open_catalog

pytestmark = pytest.mark.adapter
BEGIN = 1_370_000_000.0
SHOWN = "  - {name: shown, kind: decayed_count, scope: item, events: [impression], half_lives: [365d]}\n"
TEXTS = [f"text{number}" for number in range(300)]
GYRE = str(Path(sys.executable).parent / "gyre")


class Loop:
    """The test's loop, as a producer of its own, with compression, and a reader see it."""

    def __init__(self, spec: LoopSpec, kafka: str, warehouse: Path) -> None:
        self.spec, self.kafka, self.warehouse = spec, kafka, warehouse

    def name(self, suffix: str) -> str:
        """The full name of a topic."""
        return topic(self.spec.loop, suffix)

    async def send(self, suffix: str, *records: Record) -> None:
        """Records, each in a batch that is compressed."""
        producer = AIOKafkaProducer(
            bootstrap_servers=self.kafka, compression_type="gzip", max_request_size=16 * 1024 * 1024
        )
        await producer.start()
        try:
            for each in records:
                await producer.send_and_wait(self.name(suffix), each.value, key=each.key, headers=each.headers)
        finally:
            await producer.stop()

    async def letters(self, suffix: str) -> list[tuple[dict[str, str], int]]:
        """The headers, as text, and the size of each dead letter."""
        found = [each async for each in read_records(self.kafka, dead_letter_topic(self.name(suffix)))]
        return [({name: (value or b"").decode() for name, value in each.headers}, len(each.value)) for each in found]

    def rows(self, table: str) -> list[dict[str, Any]]:
        """The rows of a table."""
        catalog = open_catalog(FeaturesSettings(warehouse=str(self.warehouse)))
        found: list[dict[str, Any]] = ensure_table(catalog, self.spec.loop, table).scan().to_arrow().to_pylist()
        return found

    def archived(self, suffix: str) -> int:
        """How many records of a topic, in which all offsets hold one, the archive has decided."""
        catalog = open_catalog(FeaturesSettings(warehouse=str(self.warehouse)))
        return sum(offsets_of(ensure_table(catalog, self.spec.loop, TABLE_OF[suffix])).values())

    async def applied(self) -> int:
        """How many events the stream says that it applied."""
        types = message_types(BatchApplied)
        log = read_log(self.kafka, self.name("features.applied"), types)
        return sum([event.message.events async for event in log])

    async def replay(self) -> str:
        """What `gyre dlq replay` prints."""
        command, env = [GYRE, "dlq", "replay", self.spec.loop], {**os.environ, "GYRE_KAFKA": self.kafka}
        done = await asyncio.to_thread(
            subprocess.run, command, env=env, capture_output=True, text=True, check=False, timeout=100
        )
        return done.stdout + done.stderr


@pytest.fixture
async def loop(spec: LoopSpec, kafka: str, tmp_path: Path) -> Loop:
    """The loop, with its topics."""
    await create_topics(kafka, declared(spec))
    return Loop(spec, kafka, tmp_path / "warehouse")


def impression(request: str, *, columns: int, **more: Any) -> Record:
    """An application's own impression of 1,000 items, whose features have so many columns."""
    features = behavior.FeatureBlock(layout="shop", rows=1000, columns=columns, values=bytes(4 * 1000 * columns))
    message = behavior.Impression(
        request_id=request,
        user_id="u1",
        item_ids=[f"i{number}".ljust(128, "-") for number in range(1000)],
        shown=1000,
        features=features,
        method=behavior.IMPRESSION_METHOD_RANK,
        **more,
    )
    return encode(message, source="shop", id=request, time=BEGIN, key="u1")


def change(loop_file: Path, after: str, added: str) -> None:
    """Put something behind a part of gyre.yaml."""
    loop_file.write_text(loop_file.read_text().replace(after, after + added, 1))


def described(item_id: str) -> Record:
    """An item of 300 texts, 3 MB in all."""
    texts = {name: behavior.FieldValue(text=f"{name} ".ljust(10_000, "x")) for name in TEXTS}
    return encode(behavior.ItemChanged(item_id=item_id, fields=texts), source="shop", time=BEGIN, key=item_id)


async def test_stream_and_archive_say_the_same_of_a_record_of_any_size(
    loop: Loop, loop_file: Path, start_process: Callable[..., Any]
) -> None:
    """What is larger, uncompressed, than a broker or its topic takes is admitted by both, or refused by both."""
    change(loop_file, "features:\n", SHOWN)
    sent = [impression("good", columns=350), impression("larger", columns=520)]
    bad = [impression(f"bad-{each}", columns=each, epoch=2**63) for each in (350, 520)]
    most = max_record_bytes(loop.name("behavior.impressions"))
    assert 1_500_000 < len(sent[0].value) < most < len(sent[1].value)
    await loop.send("behavior.impressions", *sent, *bad)
    start_process("stream")
    start_process("archive", GYRE_FEATURES_ARCHIVE_S="0.2")

    async def alike() -> bool:
        rows = loop.rows(IMPRESSIONS)
        found = [(each["request_id"], len(each["features"])) for each in rows]
        assert found == [("good", 1_400_000), ("larger", 2_080_000)]
        reasons = [headers["gyre_reason"] for headers, _ in await loop.letters("behavior.impressions")]
        assert reasons == ["INVALID_FIELD"] * 2
        assert await loop.applied() == 2
        return True

    await eventually(alike, timeout_s=90, message="both took the same impressions")


async def test_dead_letters_of_large_records_are_replayed(
    loop: Loop, loop_file: Path, start_process: Callable[..., Any]
) -> None:
    """What fits into its letter, and what does not, is back in its topic with every byte after `gyre dlq replay`."""
    bad = [impression(f"bad-{each}", columns=each, epoch=2**63) for each in (350, 520)]
    await loop.send("behavior.impressions", *bad)
    start_process("stream")

    async def refused() -> bool:
        sizes = [size for _, size in await loop.letters("behavior.impressions")]
        assert sizes == [len(bad[0].value), 65_536]
        return True

    await eventually(refused, timeout_s=90, message="both are dead-lettered")
    assert "2 replayed" in await loop.replay()
    values = [each.value async for each in read_records(loop.kafka, loop.name("behavior.impressions"))]
    assert values == [each.value for each in (*bad, *bad)]


async def test_an_item_too_large_for_its_letter_is_archived_once_its_cause_is_mended(
    loop: Loop, loop_file: Path, start_process: Callable[..., Any]
) -> None:
    """3 MB of texts that gyre.yaml does not know are refused; once it does, a replay brings the item into the table."""
    await loop.send("catalog.items", described("i1"))
    running = [start_process("stream"), start_process("archive", GYRE_FEATURES_ARCHIVE_S="0.2")]

    async def refused() -> bool:
        found = [(headers["gyre_reason"], size) for headers, size in await loop.letters("catalog.items")]
        assert found == [("UNKNOWN_FIELD", 65_536)]
        assert loop.archived("catalog.items") == 1
        return True

    await eventually(refused, timeout_s=90, message="the item is dead-lettered")
    for process in running:
        process.terminate()
        await asyncio.to_thread(process.wait, 30)
    declared_texts = "".join(f"    {name}: {{kind: text}}\n" for name in TEXTS)
    change(loop_file, "items:\n  fields:\n", declared_texts)
    start_process("archive", GYRE_FEATURES_ARCHIVE_S="0.2")
    start_process("stream")
    assert "1 replayed" in await loop.replay()

    async def archived() -> bool:
        assert [(each["item_id"], len(each["fields"]) > 3_000_000) for each in loop.rows(ITEMS)] == [("i1", True)]
        assert (await loop.applied(), len(await loop.letters("catalog.items"))) == (1, 1)
        return True

    await eventually(archived, timeout_s=90, message="the item is in the store and in the table")
