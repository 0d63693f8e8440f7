"""Sends what cannot be handled to `<topic>.dlq`, with the reason in its headers: whole, or as an excerpt that fits.

`max.message.bytes` bounds the compressed batch, so a record may be larger than its dead-letter topic takes. Its letter
then holds the record's place, its hash and the first 64 KB; the record itself is read again where it came from.
"""

import hashlib
import logging
from collections.abc import Iterable, Iterator
from typing import Any

from gyre_core.topics import dead_letter_topic

from gyre_runtime.errors import Invalid, Unavailable
from gyre_runtime.events import FIRST_APPEND_TIME, Headers, Record, is_append_time
from gyre_runtime.kafka._names import topic_labels
from gyre_runtime.kafka.producer import Producer
from gyre_runtime.metrics import instrument
from gyre_runtime.retrying import retry_transient

_LOG = logging.getLogger(__name__)
_MAX_ERROR_CHARS = 500
_MAX_BACKOFF_S = 1.0
_EXCERPT_BYTES = 64 * 1024
_EXCERPT_HEADER_BYTES = 4 * 1024
RECORD_HASH = "gyre_record_sha256"
"""Header of a letter that holds an excerpt: SHA-256 of its record, hexadecimal, as `record_hash` computes it."""
ADDED_HEADERS = (
    "gyre_reason", "gyre_error", "gyre_topic", "gyre_partition", "gyre_offset", "gyre_group", RECORD_HASH,
    "gyre_record_bytes",
)  # fmt: skip


async def dead_letter(producer: Producer, record: Any, *, reason: str, error: str, group: str) -> None:
    """Send a record to its dead-letter topic and wait for the acknowledgement, however long Kafka is away.

    Counted in `gyre_dead_letters_total`, and logged by its place. One that does not fit goes as an excerpt; where even
    its place alone does not fit, that is logged as critical and nothing is sent. No offset is committed.

    Args:
        producer: with which to send.
        record: as it was consumed; key, value and headers are kept as far as they fit. The
            header `FIRST_APPEND_TIME` goes with it when it is replayed.
        reason: UPPER_SNAKE.
        error: a sentence; cut at 500 characters.
        group: the consumer group that could not handle it.
    """
    added: Headers = [
        ("gyre_reason", reason.encode()),
        ("gyre_error", error[:_MAX_ERROR_CHARS].encode("utf-8", "replace")),
        ("gyre_topic", record.topic.encode()),
        ("gyre_partition", str(record.partition).encode()),
        ("gyre_offset", str(record.offset).encode()),
        ("gyre_group", group.encode()),
        (FIRST_APPEND_TIME, _first_append_time(record)),
    ]
    place = {"topic": record.topic, "partition": record.partition, "offset": record.offset}
    if not await _send_first_that_fits(producer, dead_letter_topic(record.topic), _letters(record, added)):
        _LOG.critical("a dead letter is larger than its topic takes, even empty", extra={**place, "reason": reason})
        return
    instrument("gyre_dead_letters_total").add(**topic_labels(record.topic), reason=reason)
    _LOG.warning("dead-lettered", extra={**place, "reason": reason})


def _first_append_time(record: Any) -> bytes:
    """When Kafka first took a record in, unix milliseconds: a replayed one says so itself, whose word is a number."""
    said = next((value for name, value in record.headers if name == FIRST_APPEND_TIME), None)
    return said if said is not None and is_append_time(said) else str(record.timestamp).encode()


def record_hash(record: Any) -> str:
    """SHA-256 of a record's key, value and headers in their order, hexadecimal; place and timestamp are not in it."""
    digest = hashlib.sha256()
    names = [part for name, value in record.headers for part in (name.encode(), value)]
    for part in (record.key, record.value, *names):
        digest.update(b"-" if part is None else b"%d:" % len(part) + part)
    return digest.hexdigest()


def _letters(record: Any, added: Headers) -> Iterator[Record]:
    """The letters of a record, the largest first: all of it, an excerpt, its place and hash alone."""
    own = [(name, value) for name, value in record.headers if name not in (*ADDED_HEADERS, FIRST_APPEND_TIME)]
    if not hasattr(record, "problem"):  # of one that cannot be decoded nothing is known but its place
        yield Record(record.key, record.value, own + added)
    size = sum(len(part or b"") for part in (record.key, record.value, *(value for _, value in own)))
    added = [*added, (RECORD_HASH, record_hash(record).encode()), ("gyre_record_bytes", str(size).encode())]
    key = record.key if record.key is not None and len(record.key) <= _EXCERPT_HEADER_BYTES else None
    yield Record(key, (record.value or b"")[:_EXCERPT_BYTES], [*_within(own, _EXCERPT_HEADER_BYTES), *added])
    yield Record(None, b"", added)


def _within(headers: Iterable[tuple[str, bytes]], max_bytes: int) -> Headers:
    """The first headers that have together at most so many bytes."""
    kept: Headers = []
    for name, value in headers:
        max_bytes -= len(name) + len(value or b"")
        if max_bytes < 0:
            break
        kept.append((name, value))
    return kept


async def _send_first_that_fits(producer: Producer, topic: str, letters: Iterable[Record]) -> bool:
    for letter in letters:
        try:
            await retry_transient(
                lambda letter=letter: producer.send_record(topic, letter),  # type: ignore[misc]
                what=f"dead letter to {topic}",
                transient=lambda error: isinstance(error, Unavailable),
                max_backoff_s=_MAX_BACKOFF_S,
            )
        except Invalid:
            continue
        return True
    return False
