"""The catalogue after a stop: from the warehouse where the store lost it, which Kafka compacts, else from Kafka."""

import time
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from gyre.events.v1 import behavior_pb2 as behavior
from gyre_core.features import Layout, Reader, RequestContext
from gyre_core.spec import LoopSpec, parse_loop
from gyre_core.topics import declared, topic
from gyre_features.online.store import OnlineStore
from gyre_features.processes.archive import ARCHIVED
from gyre_features.settings import FeaturesSettings
from gyre_features.warehouse.archive import Archive
from gyre_local.testing import eventually
from gyre_runtime.admission import Admission
from gyre_runtime.checkpoints import Checkpoint, witness_of
from gyre_runtime.events import Event, encode
from gyre_runtime.kafka import create_topics, read_records
from gyre_warehouse.tables import open_catalog
from redis.asyncio import Redis

pytestmark = [pytest.mark.adapter, pytest.mark.timeout(240)]
NOW = time.time()
LOOP = """
version: 1
loop: {loop}
events: {{interactions: {{click: {{}}}}}}
items: {{fields: {{price: {{kind: number}}}}}}
features: [{{name: price, kind: field, scope: item, field: price}}]
shards: {{kafka_partitions: 1}}
"""


class Catalogue:
    """A catalogue topic with the producers' times."""

    partitions = 1

    def __init__(self, name: str) -> None:
        self.name = name

    def config(self) -> dict[str, str]:
        """What is set of the topic."""
        return {"cleanup.policy": "compact", "message.timestamp.type": "CreateTime"}


class CompactedSoon(Catalogue):
    """One that Kafka compacts as soon as it can."""

    def config(self) -> dict[str, str]:
        """Each record closes the segment before it."""
        soon = {"segment.ms": "1", "max.compaction.lag.ms": "1", "min.cleanable.dirty.ratio": "0.0001"}
        return {**super().config(), **soon}


@pytest.fixture
def spec(loop_name: str, tmp_path: Path) -> LoopSpec:
    """A loop whose items have a price, in a file of its own."""
    text = LOOP.format(loop=loop_name[:31].strip("-"))
    (tmp_path / "own.yaml").write_text(text)
    return parse_loop(text)


async def _send(
    producer: AIOKafkaProducer, spec: LoopSpec, item: str, price: float, *, at: float, field: str = "price"
) -> None:
    """A change of an item at some time, which Kafka took in an hour ago; by these times it closes segments."""
    message = behavior.ItemChanged(item_id=item, fields={field: behavior.FieldValue(number=price)})
    record = encode(message, source="shop", time=at, key=item)
    taken_in_ms = round((time.time() - 3600) * 1000)
    await producer.send_and_wait(
        topic(spec.loop, "catalog.items"),
        record.value,
        key=record.key,
        headers=record.headers,
        timestamp_ms=taken_in_ms,
    )


async def _archive(kafka: str, spec: LoopSpec, warehouse: Path) -> None:
    """Write what the catalogue's log holds to the warehouse, as the archive does."""
    name = topic(spec.loop, "catalog.items")
    archive = Archive(
        open_catalog(FeaturesSettings(warehouse=str(warehouse))), rows=10, seconds=60, payload_bytes=10**9
    )
    admission = Admission({spec.loop: spec}, ARCHIVED)
    records = [each async for each in read_records(kafka, name)]
    end = Checkpoint(records[-1].offset + 1, 0, witness_of(records[-1]))
    decided = [admission.decide(each) for each in records]
    await archive.add([each for each in decided if isinstance(each, Event)], {(name, 0): end})
    await archive.flush()


async def test_a_lost_store_has_the_price_that_wins_by_its_event_time(
    kafka: str, redis: Redis, spec: LoopSpec, tmp_path: Path, start_process: Any
) -> None:
    """A late change that lost is all that Kafka holds of an item; the warehouse's earlier record stands again."""
    name, store = topic(spec.loop, "catalog.items"), OnlineStore(redis, spec, Layout.compile(spec))
    await create_topics(kafka, [CompactedSoon(name)])
    await create_topics(kafka, declared(spec))
    async with AIOKafkaProducer(bootstrap_servers=kafka) as producer:
        await _send(producer, spec, "i", 2.0, at=NOW - 7200)
        await _send(producer, spec, "i", 1.0, at=NOW - 9000)
        await _archive(kafka, spec, tmp_path / "warehouse")

        async def is_compacted() -> bool:
            await _send(producer, spec, "other", 0.0, at=NOW - 7200)
            return [each.offset async for each in read_records(kafka, name) if each.key == b"i"] == [1]

        await eventually(is_compacted, timeout_s=60)
        await _send(producer, spec, "last", 5.0, at=NOW - 7200)
    start_process("stream", GYRE_LOOPS=str(tmp_path / "own.yaml"), GYRE_WAREHOUSE=str(tmp_path / "warehouse"))

    async def prices() -> list[float]:
        values = await store.read("u", ["i", "last"])
        matrix, _ = Reader(store.layout).matrix(
            values.user, values.everyone, values.items, ["i", "last"], RequestContext(NOW)
        )
        return [row[store.layout.columns.index("price")] for row in matrix.tolist()]

    async def is_filled() -> bool:
        return (await prices())[1] == 5.0

    await eventually(is_filled, timeout_s=60)
    assert await prices() == [2.0, 5.0]


@pytest.mark.parametrize("warehouse", ["filled", "away"])
async def test_what_is_refused_while_the_stream_is_stopped_has_its_dead_letter(
    kafka: str, redis: Redis, spec: LoopSpec, tmp_path: Path, start_process: Any, warehouse: str
) -> None:
    """A start that finds its checkpoints reads Kafka from there, whatever the warehouse holds, or with none at all."""
    name, store = topic(spec.loop, "catalog.items"), OnlineStore(redis, spec, Layout.compile(spec))
    await create_topics(kafka, [Catalogue(name)])
    await create_topics(kafka, declared(spec))
    env = {"GYRE_LOOPS": str(tmp_path / "own.yaml"), "GYRE_WAREHOUSE": str(tmp_path / "warehouse")}

    async def knows(item: str) -> bool:
        return (await store.read("u", [item])).items[0] is not None

    refused = [f"refused-{number}" for number in range(3)]

    async with AIOKafkaProducer(bootstrap_servers=kafka) as producer:
        await _send(producer, spec, "before", 1.0, at=NOW - 7200)
        running = start_process("stream", **env)
        await eventually(lambda: knows("before"), timeout_s=60)
        running.terminate()
        running.wait()
        for item in refused:
            await _send(producer, spec, item, 2.0, at=NOW - 7200, field="prise")
        await _send(producer, spec, "after", 3.0, at=NOW - 7200)
    if warehouse == "filled":
        await _archive(kafka, spec, tmp_path / "warehouse")
    else:
        (tmp_path / "no-folder").touch()
        env["GYRE_WAREHOUSE"] = str(tmp_path / "no-folder")
    start_process("stream", **env)
    await eventually(lambda: knows("after"), timeout_s=30, message="the stream goes on")

    async def all_refused() -> bool:
        return [each.key.decode() async for each in read_records(kafka, f"{name}.dlq")] == refused

    await eventually(all_refused, timeout_s=30, message="each refused change has its dead letter")
