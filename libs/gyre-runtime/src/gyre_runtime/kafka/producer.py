"""The producer: idempotent with acks=all, each record checked for its size, a bounded queue for what must not wait."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Self

from aiokafka.errors import ProducerClosed
from google.protobuf.message import Message

from gyre_runtime import tracing
from gyre_runtime.errors import Invalid
from gyre_runtime.events import Headers, Record, encode
from gyre_runtime.kafka._connection import require_fits, translate
from gyre_runtime.kafka._names import topic_labels
from gyre_runtime.kafka._queues import PartitionQueues, Queued
from gyre_runtime.kafka._sending import Outgoing, ProducerDelivery
from gyre_runtime.metrics import instrument

_LOG = logging.getLogger(__name__)
_COUNT_EVERY = 256
_FLUSH_S = 10.0


def _size_of(record: Record) -> int:
    """Bytes of a record's key, value and headers."""
    parts = (record.key, record.value, *(text for _, text in record.headers))
    return sum(len(part or b"") for part in parts) + sum(len(name) for name, _ in record.headers)


class Producer:
    """Sends events; an async context manager that connects by itself, whenever the broker is up, and flushes on exit.

    `send` waits for Kafka, `enqueue` does not.

    Until it is connected what is enqueued waits within its bounds, and what is sent fails once an attempt to connect
    has failed. What Kafka does not take of one topic partition waits, or is given up, alone: where the bounds are
    reached, room for a record is made in the longest partition's queue.

    Args:
        bootstrap: Kafka's host:port list.
        source: CloudEvents source of its events, such as `gyre/gateway`.
        max_queue_records: bound on what is enqueued and not yet acknowledged.
        max_queue_bytes: bound on the bytes of its keys, values and headers.
        on_drop: called with topic and reason for each record of `enqueue` given up; those of `send` raise.
        gather_s: how many seconds what is enqueued waits for more, so that Kafka and its readers get few and large
            batches.
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
        self._source = source
        self._max_records, self._max_bytes = max_queue_records, max_queue_bytes
        self._on_drop = on_drop
        self._records = self._bytes = 0
        self._acknowledged_by_topic: Counter[str] = Counter()
        self._idle = asyncio.Event()
        self._idle.set()
        self._delivery = ProducerDelivery(bootstrap, source)
        self._queues = PartitionQueues(
            self._delivery.partition_of, self._delivery.locate, self._forward, self._settle, gather_s
        )

    async def __aenter__(self) -> Self:
        """Begin to connect."""
        self._delivery.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Flush what is enqueued and disconnect, within ten seconds."""
        try:
            async with asyncio.timeout(_FLUSH_S):
                await self._idle.wait()
                await self._delivery.flush()
        except TimeoutError:
            _LOG.error("records dropped at the end: Kafka did not take them in time", extra={"records": self._records})
        await self._queues.close()
        await self._delivery.stop()

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
            Unavailable: Kafka did not acknowledge it in time; it may hold it all the same.
            Invalid: it is larger than its topic takes (RECORD_TOO_LARGE); nothing was sent.
        """
        record = encode(
            message, source=source or self._source, id=id, time=time, key=key, traceparent=tracing.current_traceparent()
        )
        await self.send_record(topic, record)

    async def send_record(self, topic: str, record: Record) -> None:
        """Send a record as it is, no header added, and wait for its acknowledgement; raises what `send` raises."""
        await self._send(topic, record.key, record.value, record.headers)

    async def send_to_partitions(self, topic: str, message: Message, *, time: float | None = None, id: str) -> None:  # noqa: A002
        """Send an event to every partition of a topic, without a key, one after the other, each acknowledged.

        Raises what `send` raises; partitions before have it then.

        Args:
            topic: full name.
            message: the payload.
            time: event time, unix seconds; now by default.
            id: unique within the source; each partition's event has `-` and its number put behind it.
        """
        for partition in sorted(await (await self._delivery.connected()).partitions_for(topic)):
            record = encode(message, source=self._source, id=f"{id}-{partition}", time=time)
            await self._send(topic, None, record.value, record.headers, partition=partition)

    async def delete(self, topic: str, key: str) -> None:
        """Delete a key from a compacted topic, by records without a value, and wait until they are acknowledged.

        Raises what `send` raises; a key that is not there is no error. Kafka removes older records when it compacts.

        Every partition gets one, since producers choose the partition of a key by different hashes.
        """
        for partition in sorted(await (await self._delivery.connected()).partitions_for(topic)):
            await self._send(topic, key.encode(), None, [], partition=partition)

    async def _send(
        self, topic: str, key: bytes | None, value: bytes | None, headers: Headers, *, partition: int | None = None
    ) -> None:
        require_fits(topic, key, value, headers)
        await self._delivery.connected()
        arrived: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def settled(error: Exception | None) -> None:
            if arrived.done():
                return
            if error is None:
                arrived.set_result(None)
            else:
                arrived.set_exception(translate(error))

        await self._delivery.put(Outgoing(topic, key, value, headers, settled, partition))
        await arrived
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
        `on_settled` is called once, after this call: with True when Kafka has the event, False when it was given up.

        Returns:
            False when the queue is full and its partition's part of it is the longest, or the event is larger than its
            topic takes: it is dropped and counted.
        """
        record = encode(
            message, source=source or self._source, id=id, time=time, key=key, traceparent=tracing.current_traceparent()
        )
        try:
            require_fits(topic, *record)
        except Invalid as error:
            self._count_drop(topic, error.reason)
            return False
        size, partition = _size_of(record), self._queues.partition_of(topic, record.key)
        while self._records >= self._max_records or self._bytes + size > self._max_bytes:
            by_bytes = self._records < self._max_records
            if not self._queues.make_room(topic, partition, size, by_bytes=by_bytes):
                self._count_drop(topic, "QUEUE_FULL")
                return False
        self._records += 1
        self._bytes += size
        self._idle.clear()
        self._queues.put(Queued(topic, record, size, on_settled), partition)
        return True

    async def flush(self) -> None:
        """Wait, without limit, until all that was enqueued is acknowledged or given up, without saying which."""
        await self._idle.wait()

    async def ping(self) -> None:
        """Ask the broker for its metadata and return; for a `Dependency`.

        Raises:
            Unavailable: no connection could be made.
            KafkaError: the broker does not answer.
        """
        await (await self._delivery.connected()).client.fetch_all_metadata()

    @property
    def queued(self) -> tuple[int, int]:
        """Counts of (records, bytes) that are enqueued and neither acknowledged nor given up."""
        return self._records, self._bytes

    async def _forward(self, queued: Queued, partition: int) -> None:
        def settled(error: Exception | None) -> None:
            reason = "CLOSED" if isinstance(error, ProducerClosed) else type(error).__name__ if error else None
            self._settle(queued, reason)

        key, value, headers = queued.record
        await self._delivery.put(Outgoing(queued.topic, key, value, headers, settled, partition))

    def _settle(self, queued: Queued, dropped: str | None) -> None:
        self._records -= 1
        self._bytes -= queued.size
        if self._records == 0:
            self._idle.set()
        if dropped:
            self._count_drop(queued.topic, dropped)
        else:
            self._acknowledged_by_topic[queued.topic] += 1
        if self._records == 0 or self._acknowledged_by_topic.total() >= _COUNT_EVERY:
            self._count_acknowledged()
        if queued.on_settled is not None:
            self._call(queued.on_settled, not dropped)

    def _count_acknowledged(self) -> None:
        """Write the counts to the metrics: now and then, since a metric costs more than a record."""
        for topic, count in self._acknowledged_by_topic.items():
            instrument("gyre_producer_records_total").add(count, **topic_labels(topic))
        self._acknowledged_by_topic.clear()
        instrument("gyre_producer_queue_bytes").set(self._bytes)

    def _count_drop(self, topic: str, reason: str) -> None:
        instrument("gyre_producer_dropped_total").add(**topic_labels(topic), reason=reason)
        if self._on_drop is not None:
            self._call(self._on_drop, topic, reason)

    @staticmethod
    def _call(callback: Callable[..., object], *arguments: object) -> None:
        """Call back; a failure of who is called is logged, since it stops no other record."""
        try:
            callback(*arguments)
        except Exception as error:  # noqa: BLE001 - whatever it is, the queue goes on
            _LOG.error("a callback of the producer failed", exc_info=error)
