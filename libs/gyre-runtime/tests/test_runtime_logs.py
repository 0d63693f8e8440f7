"""Checkpoints and the logs that they are of, on the real broker: another log is told from the one that was applied."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from math import inf

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from gyre.events.v1.behavior_pb2 import Interaction
from gyre_core.admission import PartitionClock
from gyre_local.process import Process
from gyre_local.records import corrupt, send_undecodable
from gyre_local.testing import eventually
from gyre_runtime import Unavailable
from gyre_runtime.checkpoints import Batch, Checkpoint, Place, Witness, base_at
from gyre_runtime.events import Event, encode, message_types
from gyre_runtime.kafka import Consumer, ConsumerOptions, LogReplaced, Producer, TransactionalProducer, accept_log
from gyre_runtime.kafka.logs import check_logs

pytestmark = [pytest.mark.adapter, pytest.mark.timeout(90)]
MakeTopic = Callable[..., Awaitable[str]]
TYPES = message_types(Interaction)


class Store:
    """What a consumer's batches leave: ids in their order, and the checkpoints after them."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.ends: dict[Place, Checkpoint] = {}
        self.away = False

    async def stored(self, places: Sequence[Place]) -> dict[Place, list[Checkpoint]]:
        """The checkpoints of partitions."""
        return {(name, number): [self.ends.get((name, number), Checkpoint())] for name, number in places}

    async def apply(self, batch: Batch) -> None:
        """Take a batch in."""
        if self.away:
            raise Unavailable("STORE_AWAY", "the store is away")
        self.ids += [event.id for event in batch.events]
        self.ends.update(batch.ends)


@asynccontextmanager
async def consuming(kafka: str, topic: str, store: Store) -> AsyncIterator[Consumer]:
    """Run a consumer of the store in the background, and stop it in order."""
    options = ConsumerOptions(stored=store.stored)
    async with Consumer(kafka, group=topic, topics=[topic], types=TYPES, options=options) as consumer:
        task = asyncio.create_task(consumer.run_batches(store.apply))
        try:
            yield consumer
        finally:
            consumer.stop()
            await task


async def send(kafka: str, topic: str, *ids: str) -> None:
    """Send an event under each id."""
    async with Producer(kafka, source="test") as producer:
        for each in ids:
            await producer.send(topic, Interaction(user_id="u", item_id="i", type="click"), key="u", id=each)


async def delete_topic(kafka: str, topic: str) -> None:
    """Delete a topic, and wait until it is gone."""
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    try:
        await admin.delete_topics([topic])

        async def gone() -> bool:
            return topic not in await admin.list_topics()

        await eventually(gone, timeout_s=20)
    finally:
        await admin.close()


@pytest.mark.parametrize(
    "checkpoint",
    [
        Checkpoint(),
        Checkpoint(7, 0, Witness(6, 1_700_000_000_123, "ab" * 8), PartitionClock(1_370_000_000.25)),
        Checkpoint(base_at(1.8e9) + 7, base_at(1.8e9)),
    ],
)
def test_a_checkpoint_is_read_as_it_was_written(checkpoint: Checkpoint) -> None:
    """A checkpoint survives its text; a bare offset, as older versions wrote, is one without a witness."""
    assert Checkpoint.decoded(checkpoint.encoded().encode()) == checkpoint
    assert Checkpoint.decoded("12") == Checkpoint(12, 0, None, PartitionClock(-inf))


async def test_a_log_that_was_replaced_between_two_fetches_is_not_read(
    kafka: str, make_topic: MakeTopic, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A running consumer whose topic is another one, longer than its position, hands nothing of it over."""
    monkeypatch.setattr("gyre_runtime.kafka._positions._CHECK_EVERY_S", 0.0)
    name, store = await make_topic("clicks"), Store()
    await send(kafka, name, "a", "b", "c")
    async with consuming(kafka, name, store) as consumer:
        await eventually(lambda: store.ids == ["a", "b", "c"], timeout_s=30)
        await delete_topic(kafka, name)
        assert await make_topic("clicks") == name
        await send(kafka, name, *(f"n{number}" for number in range(8)))

        async def told() -> bool:
            try:
                await consumer.check()
            except LogReplaced as error:
                return "the record at offset 2 was" in str(error)
            return False

        await eventually(told, timeout_s=30)
        assert store.ids == ["a", "b", "c"]
        await accept_log(kafka, name, from_start=True)
        await eventually(lambda: store.ids[3:] == [f"n{number}" for number in range(8)], timeout_s=30)
    assert store.ends[name, 0].kafka_offset == 8


@pytest.mark.parametrize("time_ms", [-(2**62), 9_405_000_000_000_000], ids=["before all calendars", "year 300000"])
async def test_a_replaced_log_is_told_whatever_time_its_records_have(
    kafka: str, make_topic: MakeTopic, time_ms: int
) -> None:
    """A producer may write any time into a topic that takes it: the loop is told of the other log, and reads none."""
    name, store = await make_topic("clicks"), Store()
    await send(kafka, name, "a")
    async with consuming(kafka, name, store):
        await eventually(lambda: store.ids == ["a"], timeout_s=30)
    await delete_topic(kafka, name)
    await make_topic("clicks", settings={"message.timestamp.after.max.ms": str(2**63 - 1)})
    record = encode(Interaction(user_id="u", item_id="i", type="click"), source="test", id="n")
    producer = AIOKafkaProducer(bootstrap_servers=kafka)
    await producer.start()
    await producer.send_and_wait(name, record.value, key=b"u", headers=record.headers, timestamp_ms=time_ms)
    await producer.stop()
    async with consuming(kafka, name, store) as consumer:

        async def told() -> bool:
            try:
                await consumer.check()
            except LogReplaced as error:
                return f"of {time_ms // 1000} s since 1970" in str(error)
            return False

        await eventually(told, timeout_s=30, message="the other log is told")
    assert store.ids == ["a"]


async def test_an_acceptance_is_of_one_log(kafka: str, make_topic: MakeTopic) -> None:
    """A log that replaces an accepted one is not accepted with it."""
    name, store = await make_topic("clicks"), Store()
    for ids in (("a", "b", "c"), ("d", "e", "f")):
        await send(kafka, name, *ids)
        async with consuming(kafka, name, store):
            await eventually(lambda ids=ids: store.ids[-3:] == list(ids), timeout_s=30)
        await delete_topic(kafka, name)
        await make_topic("clicks")
        await send(kafka, name, "x", "y")
        stored = {(name, 0): [store.ends[name, 0]]}
        assert (name, 0) in (await check_logs(kafka, stored)).replaced
        if ids[0] == "a":
            await accept_log(kafka, name, from_start=False)
            check = await check_logs(kafka, stored)
            assert not check.replaced
            assert check.starts[name, 0].kafka_offset == 2


async def test_a_witness_that_cannot_be_decoded_is_no_other_log(
    kafka: str, kafka_process: Process, make_topic: MakeTopic, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A consumer goes on after a last record that cannot be decoded, or that a disk spoilt since, also at its start."""
    monkeypatch.setattr("gyre_runtime.kafka._positions._CHECK_EVERY_S", 0.0)
    name, store = await make_topic("clicks"), Store()
    await send(kafka, name, "a")
    await send_undecodable(kafka, name)
    async with consuming(kafka, name, store):
        await eventually(lambda: (end := store.ends.get((name, 0))) and end.kafka_offset == 2, timeout_s=30)
        await send(kafka, name, "b")
        await eventually(lambda: store.ids == ["a", "b"], timeout_s=30, message="the next record is handled")
    await send_undecodable(kafka, name)
    for last in ("c", "the-record-that-a-disk-spoils"):
        async with consuming(kafka, name, store):
            await send(kafka, name, last)
            await eventually(lambda last=last: store.ids[-1] == last, timeout_s=30, message="the log is read on")
    corrupt(kafka_process.recipe.directory, name, b"the-record-that-a-disk-spoils")
    async with consuming(kafka, name, store):
        await send(kafka, name, "d")
        await eventually(lambda: store.ids[-1] == "d", timeout_s=30, message="the log is read on")


async def test_what_holds_no_record_is_no_other_log(kafka: str, make_topic: MakeTopic) -> None:
    """Aborted transactions and their markers are passed over: positions move behind them, and the log is the same."""
    name, store = await make_topic("clicks"), Store()
    await send(kafka, name, "a")
    record = encode(Interaction(user_id="u", item_id="i", type="click"), source="test", id="aborted")
    async with TransactionalProducer(kafka, f"{name}-test", source="test") as producer:

        async def aborted() -> None:
            async with producer.transaction() as transaction:
                await transaction.send_record(name, record)
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await aborted()
    async with consuming(kafka, name, store):
        await eventually(lambda: (name, 0) in store.ends and store.ends[name, 0].offset == 3, timeout_s=30)
    check = await check_logs(kafka, {(name, 0): [store.ends[name, 0]]})
    assert store.ids == ["a"]
    assert (check.starts, check.gaps, check.replaced) == ({(name, 0): store.ends[name, 0]}, [], {})


async def test_no_progress_is_told(kafka: str, make_topic: MakeTopic, monkeypatch: pytest.MonkeyPatch) -> None:
    """While records wait and the store takes none, the check says which partition stands; then it is well again."""
    monkeypatch.setattr("gyre_runtime.kafka._positions._STALLED_S", 0.2)
    name, store = await make_topic("clicks"), Store()
    store.away = True
    await send(kafka, name, "a")
    async with consuming(kafka, name, store) as consumer:

        async def stalls() -> bool:
            try:
                return not await consumer.check()
            except Unavailable as error:
                return error.reason == "NO_PROGRESS" and f"{name} partition 0: 1 records wait" in str(error)

        await eventually(stalls, timeout_s=30)
        store.away = False
        await eventually(lambda: store.ids == ["a"], timeout_s=30)
        await eventually(consumer.check, timeout_s=10)


async def test_a_group_without_a_store_reads_a_shorter_log_from_its_start(kafka: str, make_topic: MakeTopic) -> None:
    """A running consumer that handles events at least once goes on with a topic that was made again, and is shorter."""
    name, seen = await make_topic("clicks"), list[str]()

    async def handle(events: list[Event]) -> None:
        seen.extend(event.id for event in events)

    await send(kafka, name, "a", "b", "c")
    async with Consumer(kafka, group=name, topics=[name], types=TYPES) as consumer:
        task = asyncio.create_task(consumer.run(handle))
        await eventually(lambda: seen == ["a", "b", "c"], timeout_s=30)
        await delete_topic(kafka, name)
        await make_topic("clicks")
        await send(kafka, name, "d")
        await eventually(lambda: seen[3:] == ["d"], timeout_s=40)
        consumer.stop()
        await task
