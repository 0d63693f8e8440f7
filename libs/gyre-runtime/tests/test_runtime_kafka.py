"""The Kafka adapter against the real broker: delivery, dead letters, restart, fencing, views."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from gyre.events.v1.behavior_pb2 import Interaction, UserChanged
from gyre_core.topics import declared
from gyre_local.components import kafka as kafka_component
from gyre_local.process import running
from gyre_local.reserve import free_ports
from gyre_local.testing import eventually
from gyre_local.timeouts import scaled
from gyre_runtime import Invalid, Unavailable, load_loops, start_span
from gyre_runtime.events import Event, Record, encode, message_types
from gyre_runtime.kafka import (
    Consumer,
    ConsumerOptions,
    Fenced,
    Producer,
    TransactionalProducer,
    create_topics,
    ensure_topics,
    read_compacted,
    read_log,
    read_records,
)
from gyre_runtime.kafka.topics import DeadLetterTopic
from gyre_runtime.settings import KafkaSettings, LoopSettings
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

pytestmark = [pytest.mark.adapter, pytest.mark.timeout(30)]

MakeTopic = Callable[..., Awaitable[str]]
TYPES = message_types(Interaction, UserChanged)


@dataclass(frozen=True)
class DeclaredForTest:
    """A topic's declaration."""

    name: str
    partitions: int

    def config(self) -> dict[str, str]:
        """Keep Kafka's defaults."""
        return {}


def interaction(number: int = 0) -> Interaction:
    """Return a valid payload."""
    return Interaction(user_id=f"u{number}", item_id="i1", type="click")


@asynccontextmanager
async def consuming(
    kafka: str, topic: str, handler: Callable[[list[Event]], Awaitable[object]], **options: Any
) -> AsyncIterator[Consumer]:
    """Run a consumer in the background, and stop it in order."""
    group = options.pop("group", topic)
    settings = ConsumerOptions(**options)
    async with Consumer(kafka, group=group, topics=[topic], types=TYPES, options=settings) as consumer:
        task = asyncio.create_task(consumer.run(handler))
        try:
            yield consumer
        finally:
            consumer.stop()
            await task


async def letters(kafka: str, topic: str, count: int) -> list[tuple[Any, dict[str, str]]]:
    """Read dead letters with their headers as text."""
    consumer = AIOKafkaConsumer(f"{topic}.dlq", bootstrap_servers=kafka, auto_offset_reset="earliest")
    await consumer.start()
    try:
        async with asyncio.timeout(scaled(8)):
            records = [await consumer.getone() for _ in range(count)]
    finally:
        await consumer.stop()
    return [(record, {name: value.decode() for name, value in record.headers}) for record in records]


async def test_an_event_arrives_as_it_was_sent(kafka: str, make_topic: MakeTopic) -> None:
    """What is sent is handed over with payload, id, source, time, key and place."""
    topic, seen = await make_topic(), []

    async def handle(events: list[Event]) -> None:
        seen.extend(events)

    async with Producer(kafka, source="test") as producer, consuming(kafka, topic, handle):
        await producer.send(topic, interaction(7), key="u7", time=1_400_000_000.25, id="e1")
        await eventually(lambda: seen)
    event = seen[0]
    assert event.message == interaction(7)
    assert (event.id, event.source, event.time, event.key) == ("e1", "test", 1_400_000_000.25, "u7")
    assert (event.topic, event.partition, event.offset) == (topic, 0, 0)


async def test_a_time_in_lower_case_is_taken(kafka: str, make_topic: MakeTopic) -> None:
    """RFC 3339 allows `t` and `z` in a `ce_time`: an event whose producer writes so is handed over, at its time."""
    topic, seen = await make_topic(), []

    async def handle(events: list[Event]) -> None:
        seen.extend(events)

    good = encode(interaction(), source="test", key="u0", id="e1", time=1_400_000_000.25)
    headers = [(name, value.lower() if name == "ce_time" else value) for name, value in good.headers]
    async with Producer(kafka, source="test") as producer, consuming(kafka, topic, handle):
        await producer.send_record(topic, Record(good.key, good.value, headers))
        await producer.send(topic, interaction(), key="u0", id="e2")
        await eventually(lambda: "e2" in [event.id for event in seen])
    assert [(event.id, event.time) for event in seen][:1] == [("e1", 1_400_000_000.25)]


async def test_unreadable_records_are_dead_lettered_with_their_reason(kafka: str, make_topic: MakeTopic) -> None:
    """A poisoned record lands in the dead-letter topic as it came, with reason and origin; the next is handled."""
    topic, seen = await make_topic(), []

    async def handle(events: list[Event]) -> None:
        seen.extend(events)

    good = encode(interaction(), source="test", key="u0")
    async with Producer(kafka, source="test") as producer, consuming(kafka, topic, handle):
        await producer.send_record(topic, Record(b"k", b"\xff\xff", good.headers))
        await producer.send_record(topic, Record(b"k", b"{}", []))
        await producer.send(topic, Interaction(user_id="u"), key="u")
        await producer.send(topic, interaction(), key="u0")
        await eventually(lambda: seen)
        found = await letters(kafka, topic, 3)
    assert [headers["gyre_reason"] for _, headers in found] == ["BAD_PAYLOAD", "NO_ID", "INVALID_FIELD"]
    record, headers = found[0]
    assert (record.key, record.value) == (b"k", b"\xff\xff")
    assert (headers["gyre_topic"], headers["gyre_partition"], headers["gyre_offset"]) == (topic, "0", "0")
    assert headers["ce_id"] == dict(good.headers)["ce_id"].decode()
    assert "item_id: is required" in found[2][1]["gyre_error"]


async def test_a_deletion_is_in_every_partition_and_no_dead_letter(kafka: str, make_topic: MakeTopic) -> None:
    """Whatever hash chose the partition of a key, its record is deleted there; consumers pass over such records."""
    topic, seen = await make_topic("catalog.users", partitions=3, compacted=True), []

    async def handle(events: list[Event]) -> None:
        seen.extend(events)

    async with Producer(kafka, source="test") as producer, consuming(kafka, topic, handle):
        await producer.delete(topic, "u7")
        for number in range(12):
            await producer.send(topic, UserChanged(user_id=f"u{number}"), key=f"u{number}")
        await eventually(lambda: len(seen) == 12)
    deleted = [record.partition async for record in read_records(kafka, topic) if record.value is None]
    assert sorted(deleted) == [0, 1, 2]
    assert [record async for record in read_records(kafka, f"{topic}.dlq")] == []


async def test_one_bad_event_does_not_take_its_batch_along(kafka: str, make_topic: MakeTopic) -> None:
    """When a handler refuses a batch for good, only the event that it refuses alone is dead-lettered."""
    topic, handled = await make_topic(), set()

    async def handle(events: list[Event]) -> None:
        if any(event.message.user_id == "u3" for event in events):
            raise Invalid("UNKNOWN_ITEM", "no such item")
        handled.update(event.message.user_id for event in events)

    async with Producer(kafka, source="test") as producer:
        for number in range(6):
            await producer.send(topic, interaction(number), key=None)
        async with consuming(kafka, topic, handle):
            await eventually(lambda: len(handled) == 5)
            ((record, headers),) = await letters(kafka, topic, 1)
    assert handled == {"u0", "u1", "u2", "u4", "u5"}
    assert headers["gyre_reason"] == "UNKNOWN_ITEM"
    assert Interaction.FromString(record.value).user_id == "u3"


async def test_a_transient_failure_is_tried_again(kafka: str, make_topic: MakeTopic) -> None:
    """A handler that is Unavailable gets the same batch again, and nothing is dead-lettered."""
    topic, attempts = await make_topic(), []

    async def handle(events: list[Event]) -> None:
        attempts.append([event.id for event in events])
        if len(attempts) < 3:
            raise Unavailable("STORE_DOWN", "the store is down")

    async with Producer(kafka, source="test") as producer, consuming(kafka, topic, handle):
        await producer.send(topic, interaction(), key=None, id="e1")
        await eventually(lambda: len(attempts) == 3)
    assert attempts == [["e1"]] * 3


async def test_offsets_are_committed_after_success_only(kafka: str, make_topic: MakeTopic) -> None:
    """A batch that fails until the consumer stops comes again after a restart; a handled one does not."""
    topic, first, second = await make_topic(), [], []

    async def fails_second(events: list[Event]) -> None:
        first.extend(event.id for event in events)
        if "e2" in first:
            raise Unavailable("STORE_DOWN", "the store is down")

    async def handle(events: list[Event]) -> None:
        second.extend(event.id for event in events)

    async with Producer(kafka, source="test") as producer:
        async with consuming(kafka, topic, fails_second):
            await producer.send(topic, interaction(), key=None, id="e1")
            await eventually(lambda: first == ["e1"])
            await producer.send(topic, interaction(), key=None, id="e2")
            await eventually(lambda: "e2" in first)
        async with consuming(kafka, topic, handle):
            await eventually(lambda: second)
    assert second == ["e2"]


async def test_a_second_member_takes_partitions_over_without_loss_or_repetition(
    kafka: str, make_topic: MakeTopic
) -> None:
    """While members join and leave in order, every event is handled exactly once."""
    topic, seen = await make_topic(partitions=4), []

    async def handle(events: list[Event]) -> None:
        seen.extend(event.id for event in events)

    async with Producer(kafka, source="test") as producer, consuming(kafka, topic, handle):
        for number in range(20):
            await producer.send(topic, interaction(), key=str(number), id=f"a{number}")
        async with consuming(kafka, topic, handle) as second:
            await eventually(second.kafka.assignment)
            for number in range(20):
                await producer.send(topic, interaction(), key=str(number), id=f"b{number}")
            await eventually(lambda: len(seen) >= 40)
        for number in range(20):
            await producer.send(topic, interaction(), key=str(number), id=f"c{number}")
        await eventually(lambda: len(seen) >= 60)
    assert sorted(seen) == sorted(f"{letter}{number}" for letter in "abc" for number in range(20))


async def test_a_service_may_seek_when_partitions_come(kafka: str, make_topic: MakeTopic) -> None:
    """A consumer that seeks on assignment begins there; a failing hook ends `run` with its error."""
    topic, seen = await make_topic(), []

    async def handle(events: list[Event]) -> None:
        seen.extend(event.id for event in events)

    async def seek(consumer: Consumer, partitions: tuple[TopicPartition, ...]) -> None:
        for partition in partitions:
            consumer.kafka.seek(partition, 2)

    async def fail(consumer: Consumer, partitions: tuple[TopicPartition, ...]) -> None:
        raise KeyError("no fence")

    async with Producer(kafka, source="test") as producer:
        for number in range(4):
            await producer.send(topic, interaction(), key=None, id=f"e{number}")
    async with consuming(kafka, topic, handle, on_assigned=seek):
        await eventually(lambda: len(seen) >= 2)
    assert seen == ["e2", "e3"]
    options = ConsumerOptions(on_assigned=fail)
    async with Consumer(kafka, group=f"{topic}-fails", topics=[topic], types=TYPES, options=options) as consumer:
        with pytest.raises(KeyError, match="no fence"):
            await consumer.run(handle)


async def test_a_slow_hook_is_awaited_before_the_first_record(kafka: str, make_topic: MakeTopic) -> None:
    """While the assignment hook still works nothing is handed over, and a held partition waits for its release."""
    topic, seen = await make_topic(partitions=2), []
    working: list[bool] = []

    async def handle(events: list[Event]) -> None:
        seen.extend(f"early {event.id}" if working else event.id for event in events)

    async def slow(consumer: Consumer, partitions: tuple[TopicPartition, ...]) -> None:
        working.append(True)
        for _ in range(100):
            await consumer.kafka.end_offsets(partitions)
        for partition in partitions:
            consumer.kafka.seek(partition, 1)
        consumer.hold(TopicPartition(topic, 1))
        working.clear()

    async with Producer(kafka, source="test") as producer:
        for number in range(3):
            for partition in range(2):
                record = encode(interaction(), source="test", id=f"{partition}:{number}")
                await (await producer._delivery.connected()).send_and_wait(
                    topic, record.value, headers=record.headers, partition=partition
                )
    async with consuming(kafka, topic, handle, on_assigned=slow) as consumer:
        await eventually(lambda: len(seen) >= 2)
        assert seen == ["0:1", "0:2"]
        consumer.release(TopicPartition(topic, 1))
        await eventually(lambda: len(seen) >= 4)
    assert seen == ["0:1", "0:2", "1:1", "1:2"]


async def test_a_paused_consumer_hands_nothing_over(kafka: str, make_topic: MakeTopic) -> None:
    """Between pause and resume no batch is handed over; afterwards none is missing."""
    topic, seen = await make_topic(), []

    async def handle(events: list[Event]) -> None:
        seen.extend(event.id for event in events)

    async with Producer(kafka, source="test") as producer, consuming(kafka, topic, handle) as consumer:
        await producer.send(topic, interaction(), key=None, id="e1")
        await eventually(lambda: seen == ["e1"])
        consumer.pause()
        async with consuming(kafka, topic, handle, group=f"{topic}-witness", from_beginning=False) as witness:
            await eventually(witness.kafka.assignment)
            await witness.kafka.seek_to_end()
            await producer.send(topic, interaction(), key=None, id="e2")
            await eventually(lambda: "e2" in seen)
        before = seen.count("e2")
        consumer.resume()
        await eventually(lambda: seen.count("e2") == before + 1)


async def test_gathered_records_reach_kafka_in_order_also_at_the_exit(kafka: str, make_topic: MakeTopic) -> None:
    """A queue that gathers keeps its records' order and flushes them at the exit."""
    topic = await make_topic()
    async with Producer(kafka, source="test", gather_s=0.05) as producer:
        for number in range(30):
            assert producer.enqueue(topic, interaction(), key="k", id=f"e{number}")
        await eventually(lambda: producer.queued == (0, 0), message="the queue is sent")
        for number in range(30, 40):
            producer.enqueue(topic, interaction(), key="k", id=f"e{number}")
    events = [event.id async for event in read_log(kafka, topic, TYPES)]
    assert events == [f"e{number}" for number in range(40)]


async def test_the_queue_is_bounded_and_counts_what_it_drops(kafka: str, make_topic: MakeTopic) -> None:
    """Beyond its bound `enqueue` refuses at once and tells so; the rest reaches Kafka before exit."""
    topic, dropped, seen = await make_topic(), [], []

    async def handle(events: list[Event]) -> None:
        seen.extend(event.id for event in events)

    async with Producer(
        kafka, source="test", max_queue_records=5, on_drop=lambda topic, reason: dropped.append((topic, reason))
    ) as producer:
        taken = [producer.enqueue(topic, interaction(), key=None, id=f"e{number}") for number in range(8)]
    assert taken == [True] * 5 + [False] * 3
    assert dropped == [(topic, "QUEUE_FULL")] * 3
    async with consuming(kafka, topic, handle):
        await eventually(lambda: len(seen) == 5)
    assert seen == [f"e{number}" for number in range(5)]


async def test_a_second_producer_of_a_transactional_id_fences_the_first(kafka: str, make_topic: MakeTopic) -> None:
    """After a twin started, the older producer's transaction raises Fenced and leaves nothing to read."""
    topic = await make_topic("tests.log")
    async with TransactionalProducer(kafka, f"id-{topic}", source="test") as first:
        async with first.transaction() as transaction:
            await transaction.send(topic, interaction(1), key=None, id="first")
        async with TransactionalProducer(kafka, f"id-{topic}", source="test") as second:
            async with second.transaction() as transaction:
                await transaction.send(topic, interaction(2), key=None, id="second")
            with pytest.raises(Fenced):
                async with first.transaction() as transaction:
                    await transaction.send(topic, interaction(3), key=None, id="fenced")
    assert [event.id async for event in read_log(kafka, topic, TYPES)] == ["first", "second"]


async def test_an_aborted_transaction_is_not_seen(kafka: str, make_topic: MakeTopic) -> None:
    """What was sent in a block that raised stays invisible in every topic of the transaction."""
    log, view = await make_topic("tests.log"), await make_topic("tests.view", compacted=True)
    async with TransactionalProducer(kafka, f"id-{log}", source="test") as producer:
        with pytest.raises(KeyError):  # noqa: PT012 - the block is what is tested
            async with producer.transaction() as transaction:
                await transaction.send(log, interaction(), key="k", id="aborted")
                await transaction.send(view, interaction(), key="k", id="aborted")
                raise KeyError
        async with producer.transaction() as transaction:
            await transaction.send(log, interaction(), key="k", id="committed")
            await transaction.send(view, interaction(), key="k", id="committed")
    assert [event.id async for event in read_log(kafka, log, TYPES)] == ["committed"]
    assert (await read_compacted(kafka, view, TYPES))["k"].id == "committed"


async def test_topics_are_created_once_and_grow(kafka: str, loop_name: str) -> None:
    """Creating again changes nothing but a higher partition count, and tells what it created."""
    small = DeclaredForTest(f"{loop_name}.alerts", partitions=1)
    assert await create_topics(kafka, [small]) == [small.name]
    assert await create_topics(kafka, [small]) == []
    assert await create_topics(kafka, [DeclaredForTest(small.name, partitions=3)]) == []
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    try:
        (described,) = await admin.describe_topics([small.name])
    finally:
        await admin.close()
    assert len(described["partitions"]) == 3


async def test_a_producer_starts_before_its_broker(tmp_path: Path) -> None:
    """Without a broker it starts, refuses what is sent, keeps what is enqueued within its bound, and delivers that."""
    broker, controller = free_ports(2)
    address = kafka_component.BrokerAddress("127.0.0.1", broker=broker, controller=controller)
    recipe = kafka_component.prepare(tmp_path / "kafka", address, quick_start=True)
    topic, dropped = "early.behavior.interactions", []
    bootstrap = f"127.0.0.1:{broker}"

    def on_drop(_topic: str, reason: str) -> None:
        dropped.append(reason)

    async with Producer(bootstrap, source="test", max_queue_records=2, on_drop=on_drop) as producer:
        with pytest.raises(Unavailable, match=f"Kafka at {bootstrap} has not answered yet"):
            await producer.send(topic, interaction(), key="u")
        with pytest.raises(Unavailable):
            await producer.ping()
        queued = [producer.enqueue(topic, interaction(), key="u", id=f"e{number}") for number in range(3)]
        assert (queued, dropped) == ([True, True, False], ["QUEUE_FULL"])
        with running(recipe, log=tmp_path / "kafka.log"):
            await create_topics(bootstrap, [DeadLetterTopic(topic)])
            await eventually(lambda: producer.queued == (0, 0), timeout_s=60)
            await producer.send(topic, interaction(), key="u", id="e3")
            ids = [event.id async for event in read_log(bootstrap, topic, TYPES)]
    assert ids == ["e0", "e1", "e3"]


async def test_every_declared_topic_of_a_loop_is_created(kafka: str) -> None:
    """A service's start creates what its loops declare, dead-letter topics and compaction included."""
    settings = KafkaSettings(kafka=kafka)
    loops = load_loops(LoopSettings(loops=(Path(__file__).parent / "data" / "minimal.yaml",)))
    await ensure_topics(settings, loops.values())
    await ensure_topics(settings, loops.values())
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    try:
        existing = set(await admin.list_topics())
    finally:
        await admin.close()
    assert {topic.name for topic in declared(loops["tiny"])} <= existing


async def test_a_batch_with_one_sampled_event_belongs_into_its_trace(
    kafka: str, make_topic: MakeTopic, spans: InMemorySpanExporter
) -> None:
    """The span of a batch is the child of its one sampled event's producer, whatever unsampled events came with it."""
    topic = await make_topic()

    async def handle(_events: list[Event]) -> None:
        pass

    async with Producer(kafka, source="test") as producer:
        await producer.send(topic, interaction(), key=None)
        with start_span("publish", flow="model") as sent:
            await producer.send(topic, interaction(), key=None)
        await producer.send(topic, interaction(), key=None)
    async with consuming(kafka, topic, handle):
        await eventually(lambda: any(span.name == f"{topic} process" for span in spans.get_finished_spans()))
    received = next(span for span in spans.get_finished_spans() if span.name == f"{topic} process")
    assert (received.attributes or {})["messaging.batch.message_count"] == 3
    assert received.parent is not None
    assert received.parent.span_id == sent.get_span_context().span_id


async def test_a_span_crosses_kafka(kafka: str, make_topic: MakeTopic, spans: InMemorySpanExporter) -> None:
    """The handler's span is the child of the producer's sampled span, and carries no payload."""
    topic, seen = await make_topic(), []

    async def handle(events: list[Event]) -> None:
        seen.extend(events)

    async with Producer(kafka, source="test") as producer, consuming(kafka, topic, handle):
        with start_span("publish", flow="model") as sent:
            await producer.send(topic, interaction(), key=None)
        await eventually(lambda: any(span.name == f"{topic} process" for span in spans.get_finished_spans()))
    received = next(span for span in spans.get_finished_spans() if span.name == f"{topic} process")
    assert received.parent is not None
    assert received.parent.span_id == sent.get_span_context().span_id
    assert set(received.attributes or {}) == {"gyre.flow", "messaging.system", "messaging.batch.message_count"}
