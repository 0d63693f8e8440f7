"""Records as they are, on the real broker: read without decoding, sent within a transaction, flushed from the queue."""

from collections.abc import Awaitable, Callable

import pytest
from gyre.events.v1.behavior_pb2 import Interaction
from gyre_runtime.events import Record
from gyre_runtime.kafka import Producer, TransactionalProducer, read_records

pytestmark = [pytest.mark.adapter, pytest.mark.timeout(30)]
MakeTopic = Callable[..., Awaitable[str]]


async def test_records_are_read_even_where_nothing_can_decode_them(kafka: str, make_topic: MakeTopic) -> None:
    """`read_records` gives key, value and headers of every committed record, whatever they hold."""
    topic = await make_topic()
    async with TransactionalProducer(kafka, f"id-{topic}", source="test") as producer:
        async with producer.transaction() as transaction:
            await transaction.send_record(topic, Record(b"k", b"no protobuf", [("h", b"1")]))
        with pytest.raises(KeyError):  # noqa: PT012 - the block is what is tested
            async with producer.transaction() as transaction:
                await transaction.send_record(topic, Record(b"k", b"aborted", []))
                raise KeyError
    found = [(each.key, each.value, list(each.headers)) async for each in read_records(kafka, topic)]
    assert found == [(b"k", b"no protobuf", [("h", b"1")])]


async def test_keys_and_headers_count_against_the_queues_bytes(kafka: str) -> None:
    """What a record takes in memory is bounded, not its value alone: of many with a long key and source few wait."""
    message, dropped = Interaction(user_id="u", item_id="i", type="click"), []
    async with Producer(
        kafka, source="test", max_queue_bytes=100_000, on_drop=lambda *why: dropped.append(why)
    ) as made:
        name = "tests.keys"
        taken = [made.enqueue(name, message, key="k" * 20_000, source="s" * 20_000) for _ in range(10)]
        assert taken == [True] * 2 + [False] * 8
        assert 80_000 < made.queued[1] <= 100_000
        assert dropped == [(name, "QUEUE_FULL")] * 8


async def test_after_a_flush_all_that_was_enqueued_is_in_kafka(kafka: str, make_topic: MakeTopic) -> None:
    """`flush` returns once the queue is empty and acknowledged, while the producer stays open."""
    topic = await make_topic()
    async with Producer(kafka, source="test") as producer:
        for number in range(500):
            assert producer.enqueue(topic, Interaction(user_id=f"u{number}", item_id="i", type="click"), key=None)
        await producer.flush()
        assert producer.queued == (0, 0)
        assert len([each async for each in read_records(kafka, topic)]) == 500
