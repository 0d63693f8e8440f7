"""Records of every size and content: a producer goes on after a refusal, and no record stops a consumer."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from gyre.events.v1.behavior_pb2 import Interaction
from gyre_local.process import Process
from gyre_local.records import corrupt, send_undecodable
from gyre_local.testing import eventually
from gyre_local.timeouts import scaled
from gyre_runtime import Invalid
from gyre_runtime.events import Event, Record, encode, message_types
from gyre_runtime.kafka import Consumer, Producer, View, read_log, read_records

pytestmark = [pytest.mark.adapter, pytest.mark.timeout(60)]

MakeTopic = Callable[..., Awaitable[str]]
TYPES = message_types(Interaction)


def interaction(number: int = 0) -> Interaction:
    """Return a valid payload."""
    return Interaction(user_id=f"u{number}", item_id="i1", type="click")


async def ids_in(kafka: str, topic: str) -> list[str]:
    """The ids of a topic's events, in order."""
    return [event.id async for event in read_log(kafka, topic, TYPES)]


async def test_a_record_over_the_limit_is_refused_and_the_next_arrive(kafka: str, make_topic: MakeTopic) -> None:
    """What is larger than its topic takes is refused before it is sent, and every later record arrives."""
    topic = await make_topic()
    large = Interaction(user_id="u", item_id="i", type="x" * 1_100_000)
    async with Producer(kafka, source="test") as producer:
        outcomes = []
        for name in ("before", "large", "after0", "after1"):
            payload = large if name == "large" else interaction()
            outcomes += await asyncio.gather(producer.send(topic, payload, key="k", id=name), return_exceptions=True)
    assert [getattr(each, "reason", each) for each in outcomes] == [None, "RECORD_TOO_LARGE", None, None]
    assert await ids_in(kafka, topic) == ["before", "after0", "after1"]


async def test_what_stands_beside_a_refused_record_arrives(kafka: str, make_topic: MakeTopic) -> None:
    """Of a batch that the broker refuses, only the record at fault is given up: all others arrive, in order, once."""
    topic, dropped = await make_topic(compacted=True), []
    settled: dict[str, bool] = {}
    async with Producer(kafka, source="test", gather_s=0.2, on_drop=lambda *facts: dropped.append(facts)) as producer:
        for number in range(20):
            name = f"e{number}"
            # A compacted topic takes no record without a key, and the broker refuses the whole batch for it.
            key = None if number == 10 else "k"
            producer.enqueue(
                topic, interaction(), key=key, id=name, on_settled=lambda ok, n=name: settled.update({n: ok})
            )
        await producer.flush()
        await producer.send(topic, interaction(), key="k", id="last")
    assert await ids_in(kafka, topic) == [*(f"e{number}" for number in range(20) if number != 10), "last"]
    assert [name for name, arrived in settled.items() if not arrived] == ["e10"]
    assert [where for where, _ in dropped] == [topic]


async def test_records_too_large_for_the_broker_alone_do_not_stop_the_others(kafka: str, make_topic: MakeTopic) -> None:
    """A record that the broker refuses raises; those sent before, beside and after it arrive."""
    topic = await make_topic(max_bytes=2_000)
    async with Producer(kafka, source="test") as producer:
        for number in range(3):
            large = encode(Interaction(user_id="u", item_id="i", type="x" * 3_000), source="test", key="k")
            outcomes = await asyncio.gather(
                producer.send(topic, interaction(), key="k", id=f"a{number}"),
                producer.send_record(topic, large),
                producer.send(topic, interaction(), key="k", id=f"b{number}"),
                return_exceptions=True,
            )
            assert [type(each) for each in outcomes] == [type(None), Invalid, type(None)]
    assert sorted(await ids_in(kafka, topic)) == sorted(f"{name}{number}" for name in "ab" for number in range(3))


async def test_a_failing_callback_stops_no_record(kafka: str, make_topic: MakeTopic) -> None:
    """The queue goes on when who is told of a record's arrival, or of its loss, fails."""
    topic = await make_topic()

    def fail(*_: object) -> None:
        raise ValueError("told")

    too_large = Interaction(user_id="u", item_id="i", type="x" * 9_000_000)
    async with Producer(kafka, source="test", on_drop=fail) as producer:
        producer.enqueue(topic, interaction(), key="k", id="e0", on_settled=fail)
        with contextlib.suppress(ValueError):
            producer.enqueue(topic, too_large, key="k", on_settled=fail)
        producer.enqueue(topic, interaction(), key="k", id="e1")
        await eventually(lambda: producer.queued == (0, 0), timeout_s=20, message="the queue is sent")
    assert await ids_in(kafka, topic) == ["e0", "e1"]


@asynccontextmanager
async def consuming(kafka: str, topic: str) -> AsyncIterator[list[str]]:
    """The ids of the events that a consumer of a topic was handed, while it runs."""
    seen: list[str] = []

    async def handle(events: list[Event]) -> None:
        seen.extend(event.id for event in events)

    async with Consumer(kafka, group=topic, topics=[topic], types=TYPES) as consumer:
        task = asyncio.create_task(consumer.run(handle))
        try:
            yield seen
        finally:
            consumer.stop()
            await asyncio.gather(task, return_exceptions=True)


async def put(kafka: str, topic: str, *records: Record, **options: Any) -> None:
    """Send records as any Kafka client may."""
    producer = AIOKafkaProducer(bootstrap_servers=kafka, **{"max_request_size": 16 * 1024 * 1024, **options})
    await producer.start()
    try:
        for record in records:
            await producer.send_and_wait(topic, record.value, key=record.key, headers=record.headers)
    finally:
        await producer.stop()


async def letters(kafka: str, topic: str) -> list[tuple[Any, dict[str, str]]]:
    """The dead letters of a topic, with their headers as text."""
    found = [each async for each in read_records(kafka, f"{topic}.dlq")]
    return [(each, {name: (value or b"").decode() for name, value in each.headers}) for each in found]


def unreadable(size: int) -> Record:
    """A record that is no event, of about `size` bytes."""
    return Record(b"u", b"\xff" * size, encode(interaction(), source="shop", id="bad").headers)


_AT_THE_LIMIT = 1_048_588 - DefaultRecordBatchBuilder.estimate_size_in_bytes(b"u", b"", unreadable(0).headers) - 3
"""Bytes of a value with which `unreadable` is a batch of the most bytes that Kafka takes by default."""


@pytest.mark.parametrize(("size", "options"), [(_AT_THE_LIMIT, {}), (6_000_000, {"compression_type": "gzip"})])
async def test_no_size_of_an_unreadable_record_stops_its_consumer(
    kafka: str, make_topic: MakeTopic, size: int, options: dict[str, Any]
) -> None:
    """An unreadable record of the greatest size, compressed or not, is dead-lettered, and the next is handled."""
    topic, good = await make_topic(), encode(interaction(), source="shop", id="good")
    await put(kafka, topic, unreadable(size), good, **options)
    async with consuming(kafka, topic) as seen:
        await eventually(lambda: seen == ["good"], timeout_s=20, message="the next event is handled")
    ((letter, headers),) = await letters(kafka, topic)
    assert (headers["gyre_reason"], headers["gyre_offset"]) == ("BAD_PAYLOAD", "0")
    whole = size < 2_000_000
    assert len(letter.value) == (size if whole else 65_536)
    assert ("gyre_record_sha256" in headers) is not whole


async def test_a_record_of_huge_headers_and_key_stops_nobody(kafka: str, make_topic: MakeTopic) -> None:
    """Headers and keys count, too: a record that is nothing but them is dead-lettered by its place and hash."""
    topic, good = await make_topic(), encode(interaction(), source="shop", id="good")
    headers = [("big", b"\x00" * 3_000_000), ("none", None)]
    await put(kafka, topic, Record(b"k" * 2_000_000, b"", headers), good, compression_type="gzip")  # type: ignore[arg-type]
    async with consuming(kafka, topic) as seen:
        await eventually(lambda: seen == ["good"], timeout_s=20, message="the next event is handled")
    ((letter, told),) = await letters(kafka, topic)
    assert (letter.key, told["gyre_offset"], told["gyre_record_bytes"]) == (None, "0", "5000000")


@pytest.mark.parametrize("name", ["gyre_append_time", "ce_id", "gyre_reason", "other"])
async def test_no_header_of_a_refused_record_costs_it_its_dead_letter(
    kafka: str, make_topic: MakeTopic, name: str
) -> None:
    """Whatever header a producer makes too large for a dead letter, the record gets one."""
    topic, good = await make_topic(), encode(interaction(), source="shop", id="good")
    bad = encode(Interaction(user_id="u", item_id="i", type="click"), source="shop", id="bad")
    headers = [*(each for each in bad.headers if each[0] not in (name, "ce_type")), (name, b"1" * 2_000_000)]
    await put(kafka, topic, Record(b"u", bad.value, headers), good, compression_type="gzip")
    async with consuming(kafka, topic) as seen:
        await eventually(lambda: seen == ["good"], timeout_s=20, message="the next event is handled")
    found = await letters(kafka, topic)
    assert [(told["gyre_reason"], told["gyre_offset"]) for _, told in found] == [("NO_TYPE", "0")]
    assert found[0][1]["gyre_append_time"].isdigit()
    assert len(found[0][1]["gyre_append_time"]) <= 15


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
async def test_no_codec_of_a_producer_stops_a_consumer(kafka: str, make_topic: MakeTopic, codec: str) -> None:
    """Whatever Kafka's producers compress with is read."""
    topic = await make_topic()
    await put(kafka, topic, encode(interaction(), source="shop", id="good"), compression_type=codec)
    async with consuming(kafka, topic) as seen:
        await eventually(lambda: seen == ["good"], timeout_s=20, message="the event is handled")


READER = """
import asyncio, resource, sys
from gyre.events.v1.behavior_pb2 import Interaction
from gyre_runtime.events import message_types
from gyre_runtime.kafka import Consumer, View, read_records

kafka, topic, limit = sys.argv[1], sys.argv[2], 512 << 20
types = message_types(Interaction)

async def main():
    seen = []
    async def handle(events):
        seen.extend(event.id for event in events)
        consumer.stop()
    async with Consumer(kafka, group=topic, topics=[topic], types=types) as consumer:
        await consumer.run(handle)
    async with View(kafka, topic, types) as view:
        await view.ready()
        viewed = view.get("k").id
    read = [len(record.value) async for record in read_records(kafka, topic)]
    print(*seen, viewed, max(read))

with open("/proc/self/status") as status:
    (now,) = (int(line.split()[1]) << 10 for line in status if line.startswith("VmSize"))
resource.setrlimit(resource.RLIMIT_AS, (now + limit, now + limit))
asyncio.run(main())
"""
"""Reads a topic in each way, with half a gigabyte of memory beside its programs; prints what it has read."""


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("codec", "mebibytes"), [("gzip", 480), ("zstd", 480), ("lz4", 120), ("snappy", 40)])
async def test_no_batch_is_unpacked_beyond_its_bound(
    kafka: str, make_topic: MakeTopic, codec: str, mebibytes: int
) -> None:
    """A batch of some kilobytes that unpacks to hundreds of megabytes is one dead letter, and every reader goes on."""
    topic, good = await make_topic(max_bytes=4 * 1024 * 1024), encode(interaction(), source="shop", id="good", key="k")
    bomb = encode(interaction(), source="shop", id="bomb").headers
    size = mebibytes * 1024 * 1024
    await put(kafka, topic, Record(b"k", b"\0" * size, bomb), max_request_size=2 * size, compression_type=codec)
    await put(kafka, topic, good)
    reader = await asyncio.create_subprocess_exec(
        sys.executable, "-c", READER, kafka, topic, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    said, complained = await reader.communicate()
    assert (said.decode().split(), reader.returncode) == (["good", "good", str(len(good.value))], 0), complained[-500:]
    found = [(told["gyre_reason"], told["gyre_offset"]) for _, told in await letters(kafka, topic)]
    assert found == [("BAD_RECORD", "0")]


async def test_what_a_poll_hands_over_is_bounded_in_bytes(kafka: str, make_topic: MakeTopic) -> None:
    """Many batches that unpack to much, each within its bound, are not in memory together; all are decided."""
    topic, sizes = await make_topic(), list[int]()
    large = [Record(b"k", b"\0" * 12_000_000, encode(interaction(), source="shop", id="b").headers)] * 6
    await put(kafka, topic, *large, compression_type="zstd")
    await put(kafka, topic, encode(interaction(), source="shop", id="good"))
    consumer = AIOKafkaConsumer(topic, bootstrap_servers=kafka, auto_offset_reset="earliest")
    await consumer.start()
    try:
        while sum(sizes) < 7:
            for records in (await consumer.getmany(timeout_ms=1000, max_records=500)).values():
                sizes.append(len(records))
                assert sum(len(record.value) for record in records) <= 32 * 1024 * 1024
    finally:
        await consumer.stop()
    async with consuming(kafka, topic) as seen:
        await eventually(lambda: seen == ["good"], timeout_s=20, message="the next event is handled")
    assert len(await letters(kafka, topic)) == 6


async def test_a_header_name_that_is_no_text_stops_nobody(kafka: str, make_topic: MakeTopic) -> None:
    """A record whose header's name cannot be decoded is dead-lettered by its place, and the next is handled."""
    topic, good = await make_topic(), encode(interaction(), source="shop", id="good")
    await send_undecodable(kafka, topic)
    await put(kafka, topic, good)
    async with consuming(kafka, topic) as seen:
        await eventually(lambda: seen == ["good"], timeout_s=20, message="the next event is handled")
    ((_, told),) = await letters(kafka, topic)
    assert (told["gyre_reason"], told["gyre_offset"]) == ("BAD_RECORD", "0")


async def test_records_of_other_partitions_are_not_lost_beside_an_undecodable_one(
    kafka: str, make_topic: MakeTopic
) -> None:
    """What was fetched together with a record that cannot be decoded is handed over, of every partition."""
    topic, wanted = await make_topic(partitions=4), []
    producer = AIOKafkaProducer(bootstrap_servers=kafka)
    await producer.start()
    for partition in range(4):
        for number in range(50):
            name = f"{partition}-{number}"
            record = encode(interaction(), source="shop", id=name)
            await producer.send(topic, record.value, headers=record.headers, partition=partition)
            wanted.append(name)
            if partition in (1, 2) and number == 25:
                await producer.flush()
                await send_undecodable(kafka, topic, partition=partition)
    await producer.stop()
    read = [record async for record in read_records(kafka, topic)]
    assert len(read) == len(wanted) + 2
    async with consuming(kafka, topic) as seen:
        await eventually(
            lambda: sorted(seen) == sorted(wanted), timeout_s=20, message="every event of every partition is handled"
        )
    assert {headers["gyre_partition"] for _, headers in await letters(kafka, topic)} == {"1", "2"}


async def test_a_header_name_that_is_no_text_costs_no_record_of_its_batch(kafka: str, make_topic: MakeTopic) -> None:
    """Of a batch, only the records that cannot be decoded are dead-lettered, by their offsets; all others are read."""
    topic = await make_topic()
    good = [encode(interaction(), source="shop", id=f"e{number}", key="k") for number in range(3)]
    await send_undecodable(kafka, topic, good[0], None, good[1], None, None, good[2])
    await put(kafka, topic, encode(interaction(), source="shop", id="next"))
    async with consuming(kafka, topic) as seen:
        await eventually(lambda: "next" in seen, timeout_s=20, message="the next event is handled")
    assert seen == ["e0", "e1", "e2", "next"]
    assert [told["gyre_offset"] for _, told in await letters(kafka, topic)] == ["1", "3", "4"]


_COMPACTED_SOON = {"segment.ms": "1", "max.compaction.lag.ms": "1", "min.cleanable.dirty.ratio": "0.0001"}


@pytest.mark.timeout(120)
async def test_an_undecodable_record_behind_a_gap_is_one_dead_letter(
    kafka: str, kafka_process: Process, make_topic: MakeTopic
) -> None:
    """However many offsets Kafka compacted away before it, a record that cannot be decoded is dead-lettered once."""
    topic = await make_topic(compacted=True, settings=_COMPACTED_SOON)
    headers = encode(interaction(), source="shop", id="old").headers
    await put(kafka, topic, *(Record(b"k", b"overwritten", headers) for _ in range(40)))
    await send_undecodable(kafka, topic)  # of the same key
    for name in ("good", "last"):
        await put(kafka, topic, encode(interaction(), source="shop", id=name, key=name))
    segments = kafka_process.recipe.directory

    def compacted() -> bool:
        with contextlib.suppress(FileNotFoundError):
            return not any(b"overwritten" in each.read_bytes() for each in segments.rglob(f"{topic}-0/*.log"))
        return False

    await eventually(compacted, timeout_s=90, message="Kafka has dropped what was overwritten")
    async with consuming(kafka, topic) as seen:
        await eventually(lambda: seen == ["good", "last"], timeout_s=20, message="the next events are handled")
    assert [told["gyre_offset"] for _, told in await letters(kafka, topic)] == ["40"]


async def test_a_corrupt_batch_is_one_dead_letter(kafka: str, kafka_process: Process, make_topic: MakeTopic) -> None:
    """A batch whose checksum is wrong is passed as a whole, and dead-lettered once, by its last offset."""
    topic, marker = await make_topic(), b"the-record-that-a-disk-spoils-in-a-batch"
    spoilt = Interaction(user_id="u", item_id=marker.decode(), type="click")
    producer = AIOKafkaProducer(bootstrap_servers=kafka, linger_ms=1000)
    await producer.start()
    batch = [encode(spoilt if number == 2 else interaction(), source="shop", id=f"e{number}") for number in range(5)]
    sent = [await producer.send(topic, each.value, headers=each.headers) for each in batch]
    await producer.stop()
    assert [each.result().offset for each in sent] == [0, 1, 2, 3, 4]
    await put(kafka, topic, encode(interaction(), source="shop", id="good"))
    corrupt(kafka_process.recipe.directory, topic, marker)
    async with consuming(kafka, topic) as seen:
        await eventually(lambda: seen == ["good"], timeout_s=20, message="the next event is handled")
    assert [told["gyre_offset"] for _, told in await letters(kafka, topic)] == ["4"]


async def test_a_corrupt_record_stops_nobody(kafka: str, kafka_process: Process, make_topic: MakeTopic) -> None:
    """A record whose checksum is wrong, as a bad disk makes it, is dead-lettered by its place; views go around it."""
    topic, marker = await make_topic(), b"the-record-that-a-disk-spoils"
    spoilt = Interaction(user_id="u", item_id=marker.decode(), type="click")
    for message, name in ((interaction(), "before"), (spoilt, "spoilt"), (interaction(), "good")):
        await put(kafka, topic, encode(message, source="shop", id=name, key="k"))
    corrupt(kafka_process.recipe.directory, topic, marker)
    async with consuming(kafka, topic) as seen:
        await eventually(lambda: seen == ["before", "good"], timeout_s=20, message="the next event is handled")
    ((_, told),) = await letters(kafka, topic)
    assert (told["gyre_reason"], told["gyre_offset"]) == ("BAD_RECORD", "1")
    async with View(kafka, topic, TYPES) as view, asyncio.timeout(scaled(20)):
        await view.ready()
        assert view.get("k").id == "good"  # type: ignore[union-attr]
