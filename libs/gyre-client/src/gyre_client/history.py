"""Imports history: items, interactions and made-up impressions, fast, and so that a second import adds nothing.

Events go straight to Kafka with the source `IMPORT_SOURCE` and an id that their content alone decides. What the topics
hold already is left out, so an import that was cut short is simply started again.
"""

from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b
from types import TracebackType
from typing import NamedTuple, Self

from google.protobuf.message import Message
from gyre.events.v1 import behavior_pb2 as behavior
from gyre_core.admission import refuse_fields, refuse_interaction
from gyre_core.features import Event, FieldsChanged, Impression, Interaction
from gyre_core.spec import LoopSpec
from gyre_core.topics import IMPORT_SOURCE, topic
from gyre_runtime import Invalid, Unavailable
from gyre_runtime.kafka import Producer, ensure_topics, read_records
from gyre_runtime.settings import KafkaSettings

from gyre_client.gateway import item_changed, user_changed

_CHUNK = 1000
_SUFFIXES = ("catalog.items", "catalog.users", "behavior.interactions", "behavior.impressions")


class Imported(NamedTuple):
    """What an import did: events sent, and events that were there already."""

    sent: int
    known: int


class Prepared(NamedTuple):
    """One event, ready to be sent."""

    suffix: str
    id: str
    key: str
    time: float
    message: Message


OnProgress = Callable[[int], object]


async def import_history(
    settings: KafkaSettings,
    spec: LoopSpec,
    events: Sequence[Event],
    *,
    on_progress: OnProgress = lambda _count: None,
) -> Imported:
    """Send a history to Kafka and wait until all of it is acknowledged.

    Features learn an item's categories from the catalogue: import the items first, or earlier in the same call, and
    wait for the feature store before the interactions if every affinity is to count.

    Args:
        settings: uses `kafka` and `kafka_replication`.
        spec: the loop.
        events: in the order of time; `Impression`s are marked as simulated, their items all count as shown.
        on_progress: called with the count of events done since the last call.

    Raises:
        Invalid: an event breaks the loop's rules; nothing was sent.
        Unavailable: Kafka gave events up; import again, nothing is sent twice.
    """
    prepared = [prepare(spec, event) for event in events]
    async with HistoryImport(settings, spec, suffixes={each.suffix for each in prepared}) as history:
        return await history.send_prepared(prepared, on_progress=on_progress)


class HistoryImport:
    """A history that is sent part by part; an async context manager.

    What Kafka holds already is read once, on entering: about 100 bytes of memory for each imported event.

    Args:
        settings: uses `kafka` and `kafka_replication`.
        spec: the loop.
        suffixes: of the topics that the events go to.
    """

    def __init__(self, settings: KafkaSettings, spec: LoopSpec, *, suffixes: Iterable[str] = _SUFFIXES) -> None:
        self._settings, self._spec, self._suffixes = settings, spec, set(suffixes)
        self._known: set[str] = set()
        self._dropped: list[str] = []
        self._producer = Producer(
            settings.kafka,
            source=IMPORT_SOURCE,
            on_drop=lambda _topic, reason: self._dropped.append(reason),
            max_queue_records=2 * _CHUNK,
            max_queue_bytes=256 * 1024 * 1024,
        )

    async def __aenter__(self) -> Self:
        """Find out what is there already, and connect."""
        await ensure_topics(self._settings, [self._spec])
        self._known = await imported_ids(self._settings.kafka, self._spec.loop, self._suffixes)
        await self._producer.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Send what waits and disconnect."""
        await self._producer.__aexit__(kind, error, trace)

    async def send(self, events: Iterable[Event]) -> Imported:
        """Send events that are not there yet, and wait until they are acknowledged.

        Raises:
            Invalid: an event breaks the loop's rules; none of these was sent.
            Unavailable: Kafka gave events up; import again, nothing is sent twice.
        """
        return await self.send_prepared([prepare(self._spec, event) for event in events])

    async def send_prepared(
        self, prepared: Sequence[Prepared], *, on_progress: OnProgress = lambda _count: None
    ) -> Imported:
        """Send prepared events as `send` does; `on_progress` is told the count of events done since its last call."""
        fresh: list[Prepared] = []
        for each in prepared:
            if each.id not in self._known:
                self._known.add(each.id)
                fresh.append(each)
        on_progress(len(prepared) - len(fresh))
        for start in range(0, len(fresh), _CHUNK):
            chunk = fresh[start : start + _CHUNK]
            for suffix, id_, key, time, message in chunk:
                self._producer.enqueue(topic(self._spec.loop, suffix), message, key=key, time=time, id=id_)
            await self._producer.flush()
            if self._dropped:
                raise Unavailable(
                    "IMPORT_CUT_SHORT", f"Kafka gave up {len(self._dropped)} events ({self._dropped[0]}): import again"
                )
            on_progress(len(chunk))
        return Imported(len(fresh), len(prepared) - len(fresh))


async def imported_ids(kafka: str, loop: str, suffixes: Iterable[str] = _SUFFIXES) -> set[str]:
    """The ids of all imported events that the topics hold."""
    found: set[str] = set()
    source = IMPORT_SOURCE.encode()
    for suffix in suffixes:
        async for record in read_records(kafka, topic(loop, suffix)):
            headers = dict(record.headers)
            if headers.get("ce_source") == source:
                found.add(headers.get("ce_id", b"").decode("utf-8", "replace"))
    return found


def prepare(spec: LoopSpec, event: Event) -> Prepared:
    """One event with its topic, key and the id that its content decides.

    Raises:
        Invalid: it breaks a rule of the loop.
    """
    if isinstance(event, Interaction):
        return _interaction(spec, event)
    if isinstance(event, Impression):
        return _impression(event)
    return _fields(spec, event)


def _interaction(spec: LoopSpec, event: Interaction) -> Prepared:
    refusal = refuse_interaction(spec, event.type, event.value)
    if refusal is not None:
        raise Invalid(refusal.reason, f"interaction of {event.time:.0f}: {refusal.detail}")
    message = behavior.Interaction(user_id=event.user_id, item_id=event.item_id, type=event.type)
    if event.value is not None:
        message.value = event.value
    return _prepared("behavior.interactions", event.user_id, event.time, message)


def _impression(event: Impression) -> Prepared:
    message = behavior.Impression(
        user_id=event.user_id,
        item_ids=event.item_ids,
        shown=len(event.item_ids),
        method=behavior.IMPRESSION_METHOD_IMPORT,
        item_batches=[-1] * len(event.item_ids),
        user_batch=-1,
        feature_age_s=-1.0,
        simulated=True,
    )
    unnamed = _prepared("behavior.impressions", event.user_id, event.time, message)
    message.request_id = f"import-{unnamed.id}"
    return unnamed


def _fields(spec: LoopSpec, event: FieldsChanged) -> Prepared:
    if event.kind not in ("item", "user"):
        raise Invalid("KIND_UNKNOWN", f"fields of kind {event.kind!r}: only those of items and users can be imported")
    refusal = refuse_fields(spec, event.kind, event.fields)
    if refusal is not None:
        raise Invalid(refusal.reason, f"{event.kind} {event.id!r}: {refusal.detail}")
    if event.kind == "user":
        return _prepared("catalog.users", event.id, event.time, user_changed(event.id, event.fields))
    return _prepared("catalog.items", event.id, event.time, item_changed(event.id, event.fields))


def _prepared(suffix: str, key: str, time: float, message: Message) -> Prepared:
    content = message.SerializeToString(deterministic=True)
    id_ = blake2b(b"\0".join([suffix.encode(), repr(time).encode(), content]), digest_size=16).hexdigest()
    return Prepared(suffix, id_, key, time, message)
