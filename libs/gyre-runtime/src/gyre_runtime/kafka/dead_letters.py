"""Sends what cannot be handled to `<topic>.dlq`, as it came, with the reason in its headers."""

import asyncio
import logging
from typing import Any

from gyre_core.topics import dead_letter_topic

from gyre_runtime.errors import Unavailable
from gyre_runtime.events import Headers, Record
from gyre_runtime.kafka._names import topic_labels
from gyre_runtime.kafka.producer import Producer
from gyre_runtime.metrics import instrument

_LOG = logging.getLogger(__name__)
_MAX_ERROR_CHARS = 500
_RETRY_S = 0.5
ADDED_HEADERS = ("gyre_reason", "gyre_error", "gyre_topic", "gyre_partition", "gyre_offset", "gyre_group")


async def dead_letter(producer: Producer, record: Any, *, reason: str, error: str, group: str) -> None:
    """Send a record to its dead-letter topic, however long Kafka is away.

    Args:
        producer: with which to send.
        record: as it was consumed; key, value and headers are kept.
        reason: UPPER_SNAKE.
        error: a sentence; cut at 500 characters.
        group: the consumer group that could not handle it.
    """
    added: Headers = [
        ("gyre_reason", reason.encode()),
        ("gyre_error", error[:_MAX_ERROR_CHARS].encode()),
        ("gyre_topic", record.topic.encode()),
        ("gyre_partition", str(record.partition).encode()),
        ("gyre_offset", str(record.offset).encode()),
        ("gyre_group", group.encode()),
    ]
    kept = [(name, value) for name, value in record.headers if name not in ADDED_HEADERS]
    letter = Record(record.key, record.value, kept + added)
    while True:
        try:
            await producer.send_record(dead_letter_topic(record.topic), letter)
            break
        except Unavailable as problem:
            _LOG.warning("dead letter not sent yet", extra={"topic": record.topic, "problem": str(problem)})
            await asyncio.sleep(_RETRY_S)
    instrument("gyre_dead_letters_total").add(**topic_labels(record.topic), reason=reason)
    place = {"topic": record.topic, "partition": record.partition, "offset": record.offset}
    _LOG.warning("dead-lettered", extra={**place, "reason": reason})
