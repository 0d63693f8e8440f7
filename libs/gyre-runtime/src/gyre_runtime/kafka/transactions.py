"""Transactions: what is sent in one becomes visible together or not at all, and a newer producer fences an older."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Self

from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError
from google.protobuf.message import Message

from gyre_runtime import tracing
from gyre_runtime.errors import Precondition
from gyre_runtime.events import Record, encode
from gyre_runtime.kafka._connection import require_fits, retrieve_errors, started_producer, translate
from gyre_runtime.kafka._names import topic_labels
from gyre_runtime.metrics import instrument


class Transaction:
    """An open transaction of a `TransactionalProducer`: what is sent in it becomes visible together, or not at all."""

    def __init__(self, kafka: AIOKafkaProducer, source: str, *, compressed: bool) -> None:
        self._kafka = kafka
        self._source = source
        self._compressed = compressed

    async def send(
        self,
        topic: str,
        message: Message,
        *,
        key: str | None,
        time: float | None = None,
        id: str | None = None,  # noqa: A002 - CloudEvents' name
    ) -> int:
        """Send one event within the transaction and return its offset in its partition; raises what `send_record` does.

        The current trace context goes along; `time` is unix seconds, now without it.
        """
        record = encode(
            message, source=self._source, id=id, time=time, key=key, traceparent=tracing.current_traceparent()
        )
        return await self.send_record(topic, record)

    async def send_record(self, topic: str, record: Record) -> int:
        """Send a record as it is within the transaction, wait until the broker holds it, and return its offset.

        Raises:
            Invalid: it is larger than its topic takes (RECORD_TOO_LARGE); nothing was sent.
            KafkaError: Kafka did not take it; let it out of the block, which aborts, and `transaction` says what it
                means.
        """
        require_fits(topic, *record, compressed=self._compressed)
        place = await self._kafka.send_and_wait(topic, record.value, key=record.key, headers=record.headers)
        instrument("gyre_producer_records_total").add(**topic_labels(topic))
        offset: int = place.offset
        return offset

    async def commit_offsets(self, offsets: Mapping[tuple[str, int], int], *, group: str) -> None:
        """Commit a group's next offsets to read, by (topic, partition), with the transaction and not before."""
        named = {TopicPartition(topic, partition): offset for (topic, partition), offset in offsets.items()}
        await self._kafka.send_offsets_to_transaction(named, group)


class TransactionalProducer:
    """A producer that fences any other with the same id when it is entered; an async context manager.

    The fenced one raises Fenced from its next transaction on, and does not end by itself.

    Args:
        bootstrap: Kafka's host:port list.
        transactional_id: such as `deployer-movies`; one live producer each.
        source: CloudEvents source of its events.
        compressed: send with gzip, so that what other producers compressed fits again.
    """

    def __init__(self, bootstrap: str, transactional_id: str, *, source: str, compressed: bool = False) -> None:
        self._bootstrap = bootstrap
        self._id = transactional_id
        self._source = source
        self._compressed = compressed
        self._kafka: AIOKafkaProducer | None = None
        self._lock = asyncio.Lock()

    async def __aenter__(self) -> Self:
        """Connect and fence every older producer of the id."""
        self._kafka = await started_producer(self._bootstrap, self._id, self._id, compressed=self._compressed)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Disconnect."""
        if self._kafka is not None:
            await self._kafka.stop()
            retrieve_errors(self._kafka)
            self._kafka = None

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """Commit what the block sends when it ends, abort it when it raises; one transaction at a time, others wait.

        What the block raises is raised after the abort, but for errors of Kafka, which are these:

        Raises:
            Fenced: a newer producer holds the id; nothing was written.
            Precondition: the producer was not entered (NOT_STARTED).
            Unavailable: Kafka did not answer, and it is not known whether the commit happened: read before going on.
        """
        if self._kafka is None:
            raise Precondition("NOT_STARTED", "the producer is used outside of its context")
        async with self._lock:
            try:
                async with self._kafka.transaction():
                    yield Transaction(self._kafka, self._source, compressed=self._compressed)
            except KafkaError as error:
                raise translate(error) from error
