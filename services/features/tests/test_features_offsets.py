"""Positions on the real Kafka, Redis and warehouse: what was decided is decided once, and every log is known again."""

import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from gyre.events.v1 import behavior_pb2 as behavior
from gyre_core.features import Layout
from gyre_core.spec import LoopSpec
from gyre_core.topics import dead_letter_topic, declared, topic
from gyre_features.online.store import OnlineStore
from gyre_features.settings import FeaturesSettings
from gyre_local.testing import eventually
from gyre_runtime.events import Record, encode
from gyre_runtime.kafka import Producer, TransactionalProducer, create_topics, read_records
from gyre_warehouse.tables import TRAINING_TABLE_OF, ensure_table, offsets_of, open_catalog
from redis.asyncio import Redis

pytestmark = pytest.mark.adapter
CLICKS = "behavior.interactions"
Start = Callable[..., Any]


async def _ends(kafka: str, spec: LoopSpec) -> dict[str, dict[int, int]]:
    """The end of each partition of the archived topics that has one, as committed readers see it, by table."""
    consumer = AIOKafkaConsumer(bootstrap_servers=kafka, isolation_level="read_committed")
    await consumer.start()
    try:
        names = {topic(spec.loop, suffix): table for suffix, table in TRAINING_TABLE_OF.items()}
        places = [TopicPartition(name, each) for name in names for each in range(spec.shards.kafka_partitions)]
        found: dict[str, dict[int, int]] = {}
        for place, end in (await consumer.end_offsets(places)).items():
            if end:
                found.setdefault(names[place.topic], {})[place.partition] = end
        return found
    finally:
        await consumer.stop()


def _held(warehouse: Path, spec: LoopSpec) -> dict[str, dict[int, int]]:
    """The offsets that the tables say that they hold."""
    catalog = open_catalog(FeaturesSettings(warehouse=str(warehouse)))
    found = {table: offsets_of(ensure_table(catalog, spec.loop, table)) for table in TRAINING_TABLE_OF.values()}
    return {table: {each: end for each, end in offsets.items() if end} for table, offsets in found.items() if offsets}


async def _letters(kafka: str, spec: LoopSpec) -> list[str]:
    """The places that the dead letters of clicks are from."""
    records = [record async for record in read_records(kafka, dead_letter_topic(topic(spec.loop, CLICKS)))]
    headers = [dict(record.headers) for record in records]
    return [f"{each['gyre_partition'].decode()}/{each['gyre_offset'].decode()}" for each in headers]


async def _until_fences(store: OnlineStore, kafka: str, spec: LoopSpec) -> None:
    """Wait until the store's fences stand at the ends of all clicks."""
    places = [(topic(spec.loop, CLICKS), each) for each in range(spec.shards.kafka_partitions)]

    async def reached() -> bool:
        ends = (await _ends(kafka, spec)).get(TRAINING_TABLE_OF[CLICKS], {})
        (applied_offsets,) = await store.applied_offsets(places)
        return all(applied_offsets[place] == ends.get(place[1], 0) for place in places)

    await eventually(reached, timeout_s=60, message="the store stands at the end of the log")


async def test_a_refused_record_is_decided_once(
    kafka: str, redis: Redis, spec: LoopSpec, layout: Layout, history: Any, start_process: Start
) -> None:
    """A refused last record is dead-lettered once, whoever restarts; the store's position is behind it."""
    await create_topics(kafka, declared(spec))
    store, name = OnlineStore(redis, spec, layout), topic(spec.loop, CLICKS)
    broken = encode(history.rating(1, 1), source="shop", key="u1")
    async with Producer(kafka, source="shop") as producer:
        await producer.send(name, history.rating(1, 1), key="u1", time=history.ratings(1)[0].time)
        await producer.send_record(name, Record(b"u1", b"\xff", broken.headers))

        async def one_letter() -> bool:
            return len(await _letters(kafka, spec)) == 1

        first = start_process("stream")
        await eventually(one_letter, timeout_s=60, message="the record is dead-lettered")
        await _until_fences(store, kafka, spec)
        first.send_signal(signal.SIGTERM)
        assert first.wait(20) == 0
        start_process("stream")
        await producer.send(name, history.rating(2, 2), key="u1", time=history.ratings(1)[0].time)
        await _until_fences(store, kafka, spec)
    assert len(await _letters(kafka, spec)) == 1


async def test_the_tables_stand_at_the_end_of_the_log_also_where_no_row_came(
    kafka: str, tmp_path: Path, spec: LoopSpec, history: Any, produce: Callable[..., Awaitable[None]],
    start_process: Start,
) -> None:  # fmt: skip
    """Refused records, deletions of a key and the markers of transactions are behind the tables' offsets, too."""
    await create_topics(kafka, declared(spec))
    await produce([*history.catalogue(), *history.ratings(40)])
    name = topic(spec.loop, CLICKS)
    async with Producer(kafka, source="shop") as producer:
        for number in range(9):
            bad = encode(behavior.Interaction(user_id=f"u{number}", item_id="i1", type="unheard"), source="shop")
            await producer.send_record(name, Record(f"u{number}".encode(), bad.value, bad.headers))
        await producer.delete(topic(spec.loop, "catalog.users"), "u1")
    good = encode(history.rating(1, 1), source="shop", key="u1", time=history.ratings(41)[-1].time)
    async with (
        TransactionalProducer(kafka, f"{spec.loop}-test", source="shop") as transactional,
        transactional.transaction() as transaction,
    ):
        await transaction.send_record(name, good)
    start_process("archive", GYRE_FEATURES_ARCHIVE_S="0.2")

    async def reached() -> bool:
        return _held(tmp_path / "warehouse", spec) == await _ends(kafka, spec)

    await eventually(reached, timeout_s=60, message="the tables stand at the ends of Kafka's logs")
