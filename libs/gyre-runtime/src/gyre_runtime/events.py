"""CloudEvents 1.0 in Kafka's binary mode: headers carry what an event is, the value is the payload.

https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/kafka-protocol-binding.md. Payloads are protobuf
(`application/protobuf`) or protobuf's JSON mapping (`application/json`); `ce_type` is the payload's full proto name.
"""

from __future__ import annotations

import time as clock
import uuid
from collections.abc import Iterable, Mapping
from math import inf
from typing import Any, NamedTuple, Protocol

from google.protobuf import json_format
from google.protobuf.message import DecodeError, Message
from gyre_core.event_time import format_time, parse_time
from gyre_core.shown import shown
from gyre_core.topics import carries, is_compacted

from gyre_runtime.json_payloads import parse_json
from gyre_runtime.tracing import TRACEPARENT

PROTOBUF = b"application/protobuf"
JSON = b"application/json"
_SPEC_VERSION = "1.0"
_MAX_DETAIL_CHARS = 200
_LOG_APPEND_TIME = 1
_MAX_MILLISECONDS_CHARS = 15
_REQUIRED = ("ce_id", "ce_source", "ce_type", "ce_time")
FIRST_APPEND_TIME = "gyre_append_time"
"""Header of a dead letter that was replayed: when Kafka first took the record in, unix milliseconds."""
_TRACING = (TRACEPARENT, "ce_traceparent")
_READ = frozenset((*_REQUIRED, "ce_specversion", "content-type", FIRST_APPEND_TIME, *_TRACING))
"""The headers that an event is made of: what others hold is the producer's own affair."""

Headers = list[tuple[str, bytes]]
MessageTypes = Mapping[str, type[Message]]


class Record(NamedTuple):
    """What is sent to Kafka: key (None for none), payload and headers; topic and partition are not in it."""

    key: bytes | None
    value: bytes
    headers: Headers


class ReceivedRecord(Protocol):
    """What came from Kafka; aiokafka's `ConsumerRecord` is one. faust's message, whose time is in seconds, is none."""

    @property
    def topic(self) -> str:
        """Full name."""

    @property
    def partition(self) -> int:
        """Number of the partition."""

    @property
    def offset(self) -> int:
        """Offset in the partition."""

    @property
    def key(self) -> Any:
        """The key's bytes; None for none."""

    @property
    def value(self) -> Any:
        """The payload's bytes; None for a deletion."""

    @property
    def headers(self) -> Any:
        """Names and values, in pairs."""

    @property
    def timestamp(self) -> int:
        """Kafka's time of the record, whole unix milliseconds; 0 where it has none."""

    @property
    def timestamp_type(self) -> int:
        """Whose time that is: 0 for the producer's, 1 for the broker's."""


class Event(NamedTuple):
    """One decoded event.

    Attributes:
        id: the producer's id, unique within `source`.
        source: who produced it.
        type: full proto name of the payload.
        time: event time, unix seconds.
        message: the payload.
        traceparent: the producer's trace context, or None.
        topic: where it came from, with `partition` and `offset`.
        key: the record's key, empty when it has none.
        arrival_time: when Kafka got it, unix seconds; 0 when not known.
        has_append_time: whether `arrival_time` is the broker's own (the topic's `message.timestamp.type` is
            LogAppendTime), and not what the producer says (CreateTime).
        first_arrival_time: of a dead letter that was replayed, when Kafka got it before, as the record says; else 0.
        clock: the newest time of its partition's clock once it was decided, unix seconds; -inf where it has none.
    """

    id: str
    source: str
    type: str
    time: float
    message: Any
    traceparent: str | None
    topic: str
    partition: int
    offset: int
    key: str = ""
    arrival_time: float = 0.0
    has_append_time: bool = False
    first_arrival_time: float = 0.0
    clock: float = -inf

    def placed(self, offset: int, clock: float) -> Event:
        """A copy at an offset, with the clock of its partition after it, unix seconds; cheaper than `_replace`."""
        return Event._make((*self[:_OFFSET_AT], offset, *self[_OFFSET_AT + 1 : -1], clock))


_OFFSET_AT = Event._fields.index("offset")


class Unreadable(Exception):  # noqa: N818 - reads as what it says about the record
    """A record that is no event of this topic.

    Attributes:
        reason: BAD_RECORD, NO_VALUE, NO_ID, NO_SOURCE, NO_TYPE, UNKNOWN_TYPE, NO_TIME, BAD_TIME, BAD_CONTENT_TYPE,
            BAD_HEADER or BAD_PAYLOAD.
        message: a sentence for people.
    """

    def __init__(self, reason: str, message: str) -> None:
        self.reason, self.message = reason, message[:_MAX_DETAIL_CHARS]
        super().__init__(f"{reason}: {self.message}")


def header_texts(headers: Iterable[tuple[str, bytes | None]]) -> dict[str, str]:
    """Headers by name, each as `header_text` has it; of a name given twice the last counts, as for the event."""
    return {name: header_text(value) for name, value in headers}


def header_text(value: bytes | None) -> str:
    """A header's value as text, whatever a producer wrote: a null is empty, what is not UTF-8 is replaced."""
    return (value or b"").decode("utf-8", "replace")


def is_deletion(record: ReceivedRecord) -> bool:
    """Whether a record only deletes its key: it has no value, and its topic is declared as compacted."""
    return record.value is None and is_compacted(record.topic)


def message_types(*types: type[Message]) -> dict[str, type[Message]]:
    """Return each payload class by its full proto name, as `decode` and consumers take them."""
    return {each.DESCRIPTOR.full_name: each for each in types}


def encode(  # noqa: PLR0913 - the attributes that CloudEvents has
    message: Message,
    *,
    source: str,
    type: str | None = None,  # noqa: A002 - CloudEvents' name
    id: str | None = None,  # noqa: A002 - CloudEvents' name
    time: float | None = None,
    key: str | bytes | None = None,
    traceparent: str | None = None,
) -> Record:
    """Encode an event as protobuf; nothing is sent, and neither constraints nor size are checked.

    Args:
        message: the payload.
        source: who produces it, such as `gyre/gateway`.
        type: full proto name; the message's own by default.
        id: unique within the source; a new one by default.
        time: event time, unix seconds; now by default.
        key: the record's key.
        traceparent: trace context to carry, or None.
    """
    headers: Headers = [
        ("ce_specversion", _SPEC_VERSION.encode()),
        ("ce_id", (id or uuid.uuid4().hex).encode()),
        ("ce_source", source.encode()),
        ("ce_type", (type or message.DESCRIPTOR.full_name).encode()),
        ("ce_time", format_time(clock.time() if time is None else time).encode()),
        ("content-type", PROTOBUF),
    ]
    if traceparent:
        headers.append((TRACEPARENT, traceparent.encode()))
    return Record(key.encode() if isinstance(key, str) else key, message.SerializeToString(), headers)


def decode(record: ReceivedRecord, types: MessageTypes) -> Event:
    """Decode one record; constraints are not checked, and no id is looked up: see `admission.decide`.

    Args:
        record: as Kafka gave it.
        types: payload classes by full proto name; of them those are read that the record's topic is declared to carry.

    Raises:
        Unreadable: with the reason why the record is no such event.
    """
    problem = getattr(record, "problem", "")
    if problem:
        raise Unreadable("BAD_RECORD", problem)
    if record.value is None:
        raise Unreadable("NO_VALUE", "the record has no value")
    try:
        headers = {name: value.decode() for name, value in record.headers if name in _READ}
    except (UnicodeDecodeError, AttributeError):
        headers = _readable(record.headers)
    event_id, source, type_, time = map(headers.get, _REQUIRED)
    if not (event_id and source and type_ and time):
        name = next(each for each in _REQUIRED if not headers.get(each))
        raise Unreadable(f"NO_{name[3:].upper()}", f"the header {name} is missing")
    version = headers.get("ce_specversion", _SPEC_VERSION)
    if version != _SPEC_VERSION:
        raise Unreadable("BAD_HEADER", f"ce_specversion = {shown(version)}: must be {_SPEC_VERSION}")
    kind = types.get(type_)
    if kind is None or not carries(record.topic, type_):
        raise Unreadable("UNKNOWN_TYPE", f"ce_type {type_} is not carried by {record.topic}")
    return Event(
        event_id,
        source,
        type_,
        _time(time),
        _payload(record.value, kind, headers.get("content-type")),
        headers.get(TRACEPARENT) or headers.get("ce_traceparent"),
        record.topic,
        record.partition,
        record.offset,
        (record.key or b"").decode("utf-8", "replace"),
        record.timestamp / 1000,
        record.timestamp_type == _LOG_APPEND_TIME,
        _milliseconds(headers[FIRST_APPEND_TIME]) if FIRST_APPEND_TIME in headers else 0.0,
    )


def is_append_time(value: bytes | None) -> bool:
    """Whether the value of a header `FIRST_APPEND_TIME` is one: a count of milliseconds, of a few digits."""
    return value is not None and len(value) <= _MAX_MILLISECONDS_CHARS and value.isdigit()


def _readable(headers: Iterable[tuple[str, bytes | None]]) -> dict[str, str]:
    """The headers that are read, where one is no text: a trace context that is none is left out.

    Raises:
        Unreadable: another one is null or no UTF-8 text (BAD_HEADER).
    """
    texts: dict[str, str] = {}
    for name, value in headers:
        if name not in _READ:
            continue
        text = _text(value)
        if text is not None:
            texts[name] = text
        elif name in _TRACING:
            texts.pop(name, None)
        else:
            raise Unreadable("BAD_HEADER", f"the header {name} is not UTF-8 text")
    return texts


def _text(value: bytes | None) -> str | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return None


def _time(text: str) -> float:
    try:
        return parse_time(text)
    except ValueError as error:
        raise Unreadable("BAD_TIME", f"ce_time is no RFC 3339 time that can be stored: {error}") from error


def _milliseconds(text: str) -> float:
    if not is_append_time(text.encode()):
        raise Unreadable("BAD_HEADER", f"{FIRST_APPEND_TIME} is no count of milliseconds")
    return int(text) / 1000


def _payload(value: bytes, kind: type[Message], content_type: str | None) -> Message:
    try:
        if content_type is None or content_type == "application/protobuf":
            return kind.FromString(value)
        media = content_type.partition(";")[0].strip().lower()
        if media in ("application/protobuf", "application/x-protobuf"):
            return kind.FromString(value)
        if media == "application/json":
            return parse_json(value, kind)
    except DecodeError as error:
        rule = f"must be a {kind.DESCRIPTOR.full_name} in protobuf"
        if content_type is None or value.lstrip()[:1] in b"{[":
            rule += "; JSON needs the header content-type: application/json"
        raise Unreadable("BAD_PAYLOAD", f"payload of {len(value):,} bytes: {rule}") from error
    except (json_format.ParseError, UnicodeDecodeError) as error:
        raise Unreadable("BAD_PAYLOAD", f"no {kind.DESCRIPTOR.full_name} in JSON: {error}") from error
    raise Unreadable("BAD_CONTENT_TYPE", f"{content_type} is neither application/protobuf nor application/json")


def decode_many(
    records: Iterable[ReceivedRecord], types: MessageTypes
) -> tuple[list[Event], list[tuple[Any, Unreadable]]]:
    """Decode records; return the events, and the unreadable records with their error, not raised; both in order."""
    events: list[Event] = []
    unreadable: list[tuple[Any, Unreadable]] = []
    for record in records:
        try:
            events.append(decode(record, types))
        except Unreadable as error:
            unreadable.append((record, error))
    return events, unreadable
