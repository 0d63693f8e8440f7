"""aiokafka producers as Gyre opens, ends and reads them; what they raise, in our errors; how large a record is."""

import asyncio
import contextlib
import gzip
import logging
from collections.abc import Callable

from aiokafka import AIOKafkaProducer
from aiokafka.errors import (
    KafkaError,
    MessageSizeTooLargeError,
    ProducerClosed,
    ProducerFenced,
    RecordListTooLargeError,
)
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from gyre_core.topics import max_record_bytes

from gyre_runtime.errors import GyreError, Invalid, Precondition, Unavailable
from gyre_runtime.events import Headers
from gyre_runtime.kafka._names import start_when_up

_LOG = logging.getLogger(__name__)
_LINGER_MS = 2
_BATCH_BYTES = 128 * 1024
_MAX_REQUEST_BYTES = 8 * 1024 * 1024
_REQUEST_TIMEOUT_MS = 15_000
_CLOSE_S = 5.0
_FRAME_BYTES = 128
"""More than a batch, a record and the lengths of its parts take beside the parts themselves; also than a header's."""


class Fenced(Precondition):
    """Another process took over this transactional id: stop writing, at once and for good."""


def translate(error: Exception) -> GyreError:
    """Return our error for what a producer raised."""
    if isinstance(error, GyreError):
        return error
    if isinstance(error, ProducerFenced):
        return Fenced("FENCED", "another process took over the transactional id")
    if isinstance(error, MessageSizeTooLargeError | RecordListTooLargeError):
        return Invalid("RECORD_TOO_LARGE", "the record is larger than Kafka accepts")
    if isinstance(error, KafkaError):
        return Unavailable("KAFKA_UNAVAILABLE", f"Kafka did not take the record: {type(error).__name__}")
    return GyreError("RECORD_REFUSED", f"the record cannot be sent: {type(error).__name__}")


def record_bytes(key: bytes | None, value: bytes | None, headers: Headers) -> int:
    """At most the bytes of a batch that holds one record, which the broker compares with `max.message.bytes`."""
    return int(DefaultRecordBatchBuilder.estimate_size_in_bytes(key, value, headers))


def require_fits(
    topic: str, key: bytes | None, value: bytes | None, headers: Headers, *, compressed: bool = False
) -> None:
    """Check a record's size, or what gzip makes of it, against what its topic is declared to take.

    Raises:
        Invalid: it is larger (RECORD_TOO_LARGE).
    """
    max_bytes = max_record_bytes(topic)
    rough = _FRAME_BYTES + len(key or b"") + len(value or b"")
    for name, text in headers:
        rough += 4 * len(name) + len(text or b"") + _FRAME_BYTES
    if rough <= max_bytes:  # it fits, whatever aiokafka's slower estimate says
        return
    size = record_bytes(key, value, headers)
    if compressed and max_bytes < size <= _MAX_REQUEST_BYTES:
        size = record_bytes(key, gzip.compress(value or b"", compresslevel=6), headers)
    if size > max_bytes:
        name = topic.partition(".")[2]
        raise Invalid("RECORD_TOO_LARGE", f"the record has {size:,} bytes: {name} takes at most {max_bytes:,}")


async def started_producer(
    bootstrap: str,
    client: str,
    transactional_id: str | None = None,
    *,
    compressed: bool = False,
    on_failure: Callable[[], object] = lambda: None,
) -> AIOKafkaProducer:
    """Return a started idempotent producer, waiting for the broker; `on_failure` is called where an attempt fails."""
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
            compression_type="gzip" if compressed else None,
        )
        try:
            await producer.start()
        except BaseException:
            await producer.stop()
            raise
        made.append(producer)

    async def attempt() -> None:
        try:
            await start()
        except BaseException:
            on_failure()
            raise

    try:
        await start_when_up(attempt, bootstrap, client)
    except BaseException:
        for producer in made:
            await producer.stop()
        raise
    return made[0]


async def abandon(kafka: AIOKafkaProducer, *, flush_s: float) -> None:
    """End a producer: every future that it gave is done afterwards, with ProducerClosed where it did not deliver."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(flush_s):
            await kafka.flush()
    kafka._message_accumulator.fail_all(ProducerClosed())  # noqa: SLF001 - nothing public gives up what is pending
    try:
        async with asyncio.timeout(_CLOSE_S):
            await kafka.stop()
    except Exception as error:  # noqa: BLE001 - it is of no use any more, however it ends
        _LOG.warning("a producer did not end in order", extra={"problem": f"{type(error).__name__}: {error}"[:200]})
        await kafka.client.close()
    retrieve_errors(kafka)


def retrieve_errors(kafka: AIOKafkaProducer) -> None:
    """Look at the errors that aiokafka 0.14 leaves in futures of its own, which asyncio would log."""
    accumulator = kafka._message_accumulator  # noqa: SLF001 - nothing public reaches them
    batches = [batch for queue in accumulator._batches.values() for batch in queue]  # noqa: SLF001
    futures = [batch._drain_waiter for batch in (*batches, *accumulator._pending_batches)]  # noqa: SLF001
    for future in (*futures, kafka._txn_manager._transaction_waiter):  # noqa: SLF001
        if future is not None and future.done() and not future.cancelled():
            future.exception()
