"""Producers: idempotent with acks=all, a bounded queue for what must not wait, and transactions that fence a twin."""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, NamedTuple, Self

from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError, MessageSizeTooLargeError, ProducerFenced
from google.protobuf.message import Message

from gyre_runtime import tracing
from gyre_runtime.errors import Invalid, Precondition, Unavailable
from gyre_runtime.events import Headers, Record, encode
from gyre_runtime.kafka._names import start_when_up, topic_labels
from gyre_runtime.metrics import instrument

_LOG = logging.getLogger(__name__)
_LINGER_MS = 2
_BATCH_BYTES = 128 * 1024
_MAX_REQUEST_BYTES = 8 * 1024 * 1024
_REQUEST_TIMEOUT_MS = 15_000
_COUNT_EVERY = 256
_FLUSH_S = 10.0


class Fenced(Precondition):
    """Another process took over this transactional id: stop writing, at once and for good."""


def _translate(error: KafkaError) -> Exception:
    """Return our error for one of aiokafka's."""
    if isinstance(error, ProducerFenced):
        return Fenced("FENCED", "another process took over the transactional id")
    if isinstance(error, MessageSizeTooLargeError):
        return Invalid("RECORD_TOO_LARGE", "the record is larger than Kafka accepts")
    return Unavailable("KAFKA_UNAVAILABLE", f"Kafka did not take the record: {type(error).__name__}")


class _Queued(NamedTuple):
    """A record on its way, and who wants to know whether it arrived."""

    topic: str
    record: Record
    on_settled: Callable[[bool], None] | None = None


class Producer:
    """Sends events; an async context manager that waits for the broker on enter and flushes on exit.

    Args:
        bootstrap: Kafka's host:port list.
        source: CloudEvents source of its events, such as `gyre/gateway`.
        max_queue_records: bound on what is enqueued and not yet acknowledged.
        max_queue_bytes: bound on its bytes.
        on_drop: called with topic and reason for each enqueued record given up.
        gather_s: how long what is enqueued waits for more, so that Kafka and its readers get few and large batches.
    """

    def __init__(
        self,
        bootstrap: str,
        *,
        source: str,
        max_queue_records: int = 20_000,
        max_queue_bytes: int = 64 * 1024 * 1024,
        on_drop: Callable[[str, str], None] | None = None,
        gather_s: float = 0.0,
    ) -> None:
        self._bootstrap = bootstrap
        self._source = source
        self._max_records, self._max_bytes = max_queue_records, max_queue_bytes
        self._on_drop = on_drop
        self._gather_s = gather_s
        self._queue: asyncio.Queue[_Queued] = asyncio.Queue()
        self._records = self._bytes = 0
        self._acknowledged_by_topic: Counter[str] = Counter()
        self._idle = asyncio.Event()
        self._idle.set()
        self._kafka: AIOKafkaProducer | None = None
        self._pump: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Connect, waiting for the broker as long as it takes."""
        self._kafka = await _started(self._bootstrap, self._source)
        self._pump = asyncio.create_task(self._drain_queue(), name="kafka-producer-queue")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Flush what is enqueued and disconnect, within ten seconds."""
        try:
            async with asyncio.timeout(_FLUSH_S):
                await self._idle.wait()
                await self._client.stop()
        except TimeoutError:
            _LOG.error("records dropped at the end: Kafka did not take them in time", extra={"records": self._records})
        if self._pump is not None:
            self._pump.cancel()
            await asyncio.gather(self._pump, return_exceptions=True)
        while not self._queue.empty():
            self._settle(self._queue.get_nowait(), "CLOSED")

    async def send(
        self,
        topic: str,
        message: Message,
        *,
        key: str | None,
        time: float | None = None,
        source: str | None = None,
        id: str | None = None,  # noqa: A002 - CloudEvents' name
    ) -> None:
        """Send one event and wait until Kafka has acknowledged it; the current trace context goes along.

        Raises:
            Unavailable: Kafka did not take it in time.
            Invalid: it is too large.
        """
        record = encode(message, source=source or self._source, id=id, time=time, key=key, traceparent=tracing.inject())
        await self.send_record(topic, record)

    async def send_record(self, topic: str, record: Record) -> None:
        """Send a record as it is and wait for Kafka's acknowledgement; raises what `send` raises."""
        await self._send(topic, record.key, record.value, record.headers)

    async def delete(self, topic: str, key: str) -> None:
        """Delete a key from a compacted topic, by records without a value; raises what `send` raises.

        Every partition gets one, since producers choose the partition of a key by different hashes.
        """
        for partition in sorted(await self._client.partitions_for(topic)):
            await self._send(topic, key.encode(), None, [], partition=partition)

    async def _send(
        self, topic: str, key: bytes | None, value: bytes | None, headers: Headers, *, partition: int | None = None
    ) -> None:
        try:
            await self._client.send_and_wait(topic, value, key=key, headers=headers, partition=partition)
        except KafkaError as error:
            raise _translate(error) from error
        instrument("gyre_producer_records_total").add(**topic_labels(topic))

    def enqueue(  # noqa: PLR0913 - the attributes that CloudEvents has
        self,
        topic: str,
        message: Message,
        *,
        key: str | None,
        time: float | None = None,
        source: str | None = None,
        id: str | None = None,  # noqa: A002 - CloudEvents' name
        on_settled: Callable[[bool], None] | None = None,
    ) -> bool:
        """Enqueue one event without waiting.

        What is enqueued and not acknowledged is lost with the process; the bounds are the most that can be.
        `on_settled` is told once, after this call: True when Kafka has the event, False when it was given up.

        Returns:
            False when the queue is full: the event is dropped and counted.
        """
        record = encode(message, source=source or self._source, id=id, time=time, key=key, traceparent=tracing.inject())
        if self._records >= self._max_records or self._bytes + len(record.value) > self._max_bytes:
            self._count_drop(topic, "QUEUE_FULL")
            return False
        self._records += 1
        self._bytes += len(record.value)
        self._idle.clear()
        self._queue.put_nowait(_Queued(topic, record, on_settled))
        return True

    async def flush(self) -> None:
        """Wait until all that was enqueued is acknowledged or given up."""
        await self._idle.wait()

    async def ping(self) -> None:
        """Check that the broker answers; for a `Dependency`."""
        await self._client.client.fetch_all_metadata()

    @property
    def queued(self) -> tuple[int, int]:
        """Records and bytes that are enqueued and not yet acknowledged."""
        return self._records, self._bytes

    @property
    def _client(self) -> AIOKafkaProducer:
        if self._kafka is None:
            raise Precondition("NOT_STARTED", "the producer is used outside of its context")
        return self._kafka

    async def _drain_queue(self) -> None:
        while True:
            queued = await self._queue.get()
            try:
                if self._gather_s:
                    await asyncio.sleep(self._gather_s)
                await self._forward(queued)
            except asyncio.CancelledError:
                self._settle(queued, "CLOSED")
                raise
            while not self._queue.empty():
                queued = self._queue.get_nowait()
                try:
                    await self._forward(queued)
                except asyncio.CancelledError:
                    self._settle(queued, "CLOSED")
                    raise

    async def _forward(self, queued: _Queued) -> None:
        record = queued.record
        try:
            sent = await self._client.send(queued.topic, record.value, key=record.key, headers=record.headers)
        except KafkaError as error:
            self._settle(queued, type(error).__name__)
        else:
            sent.add_done_callback(lambda done: self._acknowledged(done, queued))

    def _acknowledged(self, done: "asyncio.Future[Any]", queued: _Queued) -> None:
        error = None if done.cancelled() else done.exception()
        reason = "CANCELLED" if done.cancelled() else type(error).__name__ if error else None
        self._settle(queued, reason)

    def _settle(self, queued: _Queued, dropped: str | None) -> None:
        self._records -= 1
        self._bytes -= len(queued.record.value)
        if queued.on_settled is not None:
            queued.on_settled(not dropped)
        if dropped:
            self._count_drop(queued.topic, dropped)
        else:
            self._acknowledged_by_topic[queued.topic] += 1
        if self._records == 0:
            self._idle.set()
        if self._records == 0 or self._acknowledged_by_topic.total() >= _COUNT_EVERY:
            self._tell()

    def _tell(self) -> None:
        """Write the counts to the metrics: now and then, since a metric costs more than a record."""
        for topic, count in self._acknowledged_by_topic.items():
            instrument("gyre_producer_records_total").add(count, **topic_labels(topic))
        self._acknowledged_by_topic.clear()
        instrument("gyre_producer_queue_bytes").set(self._bytes)

    def _count_drop(self, topic: str, reason: str) -> None:
        instrument("gyre_producer_dropped_total").add(**topic_labels(topic), reason=reason)
        if self._on_drop is not None:
            self._on_drop(topic, reason)


async def _started(bootstrap: str, client: str, transactional_id: str | None = None) -> AIOKafkaProducer:
    """Return a started producer, waiting for the broker."""
    made: list[AIOKafkaProducer] = []

    async def start() -> None:
        producer = AIOKafkaProducer(
            bootstrap_servers=bootstrap,
            client_id=client,
            enable_idempotence=True,
            acks="all",
            linger_ms=_LINGER_MS,
            max_batch_size=_BATCH_BYTES,
            max_request_size=_MAX_REQUEST_BYTES,
            request_timeout_ms=_REQUEST_TIMEOUT_MS,
            transactional_id=transactional_id,
        )
        try:
            await producer.start()
        except BaseException:
            await producer.stop()
            raise
        made.append(producer)

    await start_when_up(start, bootstrap, client)
    return made[0]


def _retrieve_errors(kafka: AIOKafkaProducer) -> None:
    """Look at the errors that aiokafka 0.14 leaves in futures of its own after a fence, which asyncio would log."""
    accumulator = kafka._message_accumulator  # noqa: SLF001 - nothing public reaches them
    batches = [batch for queue in accumulator._batches.values() for batch in queue]  # noqa: SLF001
    futures = [batch._drain_waiter for batch in (*batches, *accumulator._pending_batches)]  # noqa: SLF001
    for future in (*futures, kafka._txn_manager._transaction_waiter):  # noqa: SLF001
        if future is not None and future.done() and not future.cancelled():
            future.exception()


class Transaction:
    """An open transaction: what is sent in it becomes visible together, or not at all."""

    def __init__(self, kafka: AIOKafkaProducer, source: str) -> None:
        self._kafka = kafka
        self._source = source

    async def send(
        self,
        topic: str,
        message: Message,
        *,
        key: str | None,
        time: float | None = None,
        id: str | None = None,  # noqa: A002 - CloudEvents' name
    ) -> None:
        """Send one event within the transaction and wait until the broker holds it."""
        record = encode(message, source=self._source, id=id, time=time, key=key, traceparent=tracing.inject())
        await self.send_record(topic, record)

    async def send_record(self, topic: str, record: Record) -> None:
        """Send a record as it is within the transaction and wait until the broker holds it."""
        await self._kafka.send_and_wait(topic, record.value, key=record.key, headers=record.headers)
        instrument("gyre_producer_records_total").add(**topic_labels(topic))

    async def commit_offsets(self, offsets: Mapping[tuple[str, int], int], *, group: str) -> None:
        """Commit a consumer's next offsets, by (topic, partition), in the same transaction."""
        named = {TopicPartition(topic, partition): offset for (topic, partition), offset in offsets.items()}
        await self._kafka.send_offsets_to_transaction(named, group)


class TransactionalProducer:
    """A producer that fences any other with the same id when it starts.

    Args:
        bootstrap: Kafka's host:port list.
        transactional_id: such as `deployer-movies`; one live producer each.
        source: CloudEvents source of its events.
    """

    def __init__(self, bootstrap: str, transactional_id: str, *, source: str) -> None:
        self._bootstrap = bootstrap
        self._id = transactional_id
        self._source = source
        self._kafka: AIOKafkaProducer | None = None
        self._lock = asyncio.Lock()

    async def __aenter__(self) -> Self:
        """Connect and fence every older producer of the id."""
        self._kafka = await _started(self._bootstrap, self._id, self._id)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Disconnect."""
        if self._kafka is not None:
            await self._kafka.stop()
            _retrieve_errors(self._kafka)
            self._kafka = None

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """Commit what the block sends when it ends, abort it when it raises; one transaction at a time.

        Raises:
            Fenced: a newer producer holds the id; nothing was written.
            Unavailable: Kafka did not answer, and it is not known whether the commit happened: read before going on.
        """
        if self._kafka is None:
            raise Precondition("NOT_STARTED", "the producer is used outside of its context")
        async with self._lock:
            try:
                async with self._kafka.transaction():
                    yield Transaction(self._kafka, self._source)
            except KafkaError as error:
                raise _translate(error) from error
