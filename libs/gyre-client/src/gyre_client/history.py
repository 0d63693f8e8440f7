"""Imports history: items, interactions and made-up impressions, fast, and so that a second import adds nothing.

Events go straight to Kafka with the source `IMPORT_SOURCE` and an id that their content alone decides. What the topics
hold already is left out, so an import that was cut short is simply started again.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import blake2b
from time import time as now
from types import TracebackType
from typing import Any, NamedTuple, Self

from google.protobuf.message import Message
from gyre.events.v1 import behavior_pb2 as behavior
from gyre_core.admission import PartitionClock, Refusal
from gyre_core.event_time import parse_time
from gyre_core.features import Event, FieldsChanged, Impression, UserInteraction
from gyre_core.spec import LoopSpec
from gyre_core.topics import BEHAVIOR, IMPORT_SOURCE, max_record_bytes, topic
from gyre_runtime import Invalid, Unavailable
from gyre_runtime.admission import Admission, Rules, refuse
from gyre_runtime.checkpoints import Place
from gyre_runtime.events import Event as RawEvent
from gyre_runtime.events import encode, header_texts, message_types
from gyre_runtime.kafka import Producer, ensure_topics, read_records, require_fits
from gyre_runtime.settings import KafkaSettings

from gyre_client.clock import clock_mark
from gyre_client.gateway import item_changed, user_changed

_CHUNK = 1000
_UNKNOWN_PARTITION = ("", -1)
_ENVELOPE_BYTES = 4096
"""More than key and headers of an event take."""
_BEHAVIOR_TYPES = message_types(behavior.Interaction, behavior.Impression)
_SUFFIXES = ("catalog.items", "catalog.users", "behavior.interactions", "behavior.impressions")


class Imported(NamedTuple):
    """What an import did, in numbers of events; `sent` and `known` make up all that were given.

    Attributes:
        sent: sent now, and acknowledged by Kafka.
        known: not sent, since Kafka holds them already.
        superseded: of the sent ones, changes of the catalogue that are older than what their item or user has, and
            change nothing.
    """

    sent: int
    known: int
    superseded: int = 0


class Prepared(NamedTuple):
    """One event, ready to be sent: its topic without the loop, id, key, event time in unix seconds, and payload."""

    suffix: str
    id: str
    key: str
    time: float
    message: Message

    @property
    def place(self) -> tuple[str, str]:
        """The topic and the key, so of a catalogue topic the item or user that it changes."""
        return self.suffix, self.key


class _Change(NamedTuple):
    """A record of a catalogue topic: its event time, unix seconds, and its id where it was imported."""

    time: float
    id: str


OnProgress = Callable[[int], object]


async def import_history(
    settings: KafkaSettings,
    spec: LoopSpec,
    events: Sequence[Event],
    *,
    on_progress: OnProgress = lambda _count: None,
) -> Imported:
    """Send a history to Kafka, without what Kafka holds of it already, and wait until all of it is acknowledged.

    Topics of the loop that are missing are created. What `HistoryImport.send` says of known events holds here.

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
    """A history that is sent part by part, one part after the other; an async context manager.

    What Kafka holds already is read on entering, and after a part that was cut short: about 100 bytes of memory for
    each imported event.

    Args:
        settings: uses `kafka` and `kafka_replication`.
        spec: the loop.
        suffixes: of the topics that the events go to, all by default; events of others would be sent again.
    """

    def __init__(self, settings: KafkaSettings, spec: LoopSpec, *, suffixes: Iterable[str] = _SUFFIXES) -> None:
        self._settings, self._spec, self._suffixes = settings, spec, set(suffixes)
        self._held, self._is_cut_short = _StoredIds(), False
        self._dropped: list[str] = []
        self._producer = Producer(
            settings.kafka,
            source=IMPORT_SOURCE,
            on_drop=lambda _topic, reason: self._dropped.append(reason),
            max_queue_records=2 * _CHUNK,
            max_queue_bytes=256 * 1024 * 1024,
        )

    async def __aenter__(self) -> Self:
        """Create topics of the loop that are missing, read what is there already, and connect."""
        await ensure_topics(self._settings, [self._spec])
        await self._read_held()
        await self._producer.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Send what a cancelled send left enqueued, within ten seconds, and disconnect."""
        await self._producer.__aexit__(kind, error, trace)

    async def _read_held(self) -> None:
        replayed = self._spec if self._spec.clock == "replay" else None
        self._held = await _held(self._settings.kafka, self._spec.loop, self._suffixes, replayed=replayed)

    async def send(self, events: Iterable[Event]) -> Imported:
        """Send the events that Kafka does not hold yet, wait for acknowledgement, and return how many were sent or not.

        An event is known by its id, which its content decides. A change of the catalogue goes again although Kafka has
        its id where the item or user was deleted, or has another change of that time since: a price of 10 that is
        corrected to 20 and back to 10 ends at 10.

        Raises:
            Invalid: an event breaks the loop's rules; no event of this call was sent.
            Unavailable: Kafka gave events up, and some may have been sent; call again with the same events, here or in
                another import: only what Kafka does not hold is sent.
        """
        return await self.send_prepared([prepare(self._spec, event) for event in events])

    async def send_prepared(
        self, prepared: Sequence[Prepared], *, on_progress: OnProgress = lambda _count: None
    ) -> Imported:
        """Send prepared events as `send` does; `on_progress` is called with the count of events done since the last."""
        if self._is_cut_short:
            await self._producer.flush()
            self._dropped.clear()
            await self._read_held()
        self._is_cut_short = True  # until all of the part is acknowledged
        last = {each.place: index for index, each in enumerate(prepared)}
        fresh: list[Prepared] = []
        superseded = 0
        for index, each in enumerate(prepared):
            if not self._held.knows(each, is_last=last[each.place] == index):
                superseded += self._held.is_superseded(each)
                self._held.add(each)
                fresh.append(each)
        on_progress(len(prepared) - len(fresh))
        for start in range(0, len(fresh), _CHUNK):
            chunk = fresh[start : start + _CHUNK]
            for suffix, id_, key, time, message in chunk:
                if self._spec.clock == "replay" and suffix in BEHAVIOR:
                    await self._cross_gap(time)
                self._producer.enqueue(topic(self._spec.loop, suffix), message, key=key, time=time, id=id_)
            await self._producer.flush()
            if self._dropped:
                raise Unavailable(
                    "IMPORT_CUT_SHORT", f"Kafka gave up {len(self._dropped)} events ({self._dropped[0]}): import again"
                )
            on_progress(len(chunk))
        self._is_cut_short = False
        return Imported(len(fresh), len(prepared) - len(fresh), superseded)

    async def _cross_gap(self, time: float) -> None:
        """Set the clock of every partition of the loop's behaviour where an event would be too far ahead of one.

        What is sent before goes first. Topics that the import does not write are marked, too, since what users do and
        are shown next is of its time. Half of `max_future` is left to what comes next in any partition.
        """
        clocks = self._held.clocks
        if not clocks or time - min(clocks.values()) <= self._spec.events.max_future_s / 2:
            clocks.setdefault(_UNKNOWN_PARTITION, time)
            return
        await self._producer.flush()
        for suffix in BEHAVIOR:
            name = topic(self._spec.loop, suffix)
            await self._producer.send_to_partitions(name, clock_mark(time), time=time, id=f"clock-{time!r}")
        self._held.clocks = {_UNKNOWN_PARTITION: time}


@dataclass(slots=True)
class _StoredIds:
    """What the topics of a loop hold.

    Attributes:
        ids: of imported events.
        clocks: of each partition of the topics of behaviour the newest event time, unix seconds, as far as is known.
        changed: what each key of a catalogue topic has: its change with the newest event time, of equal ones the last.
    """

    ids: set[str] = field(default_factory=set)
    clocks: dict[Place, float] = field(default_factory=dict)
    changed: dict[tuple[str, str], _Change] = field(default_factory=dict)

    def knows(self, event: Prepared, *, is_last: bool) -> bool:
        """Whether an event need not be sent.

        A change of the catalogue is there only where it is what its key has, or would not be if it were sent: a
        correction from 10 to 20 and back to 10, all of one time, is three changes.

        Args:
            event: to be imported.
            is_last: whether no later one of the same topic and key is imported with it.
        """
        if event.id not in self.ids:
            return False
        if event.suffix in BEHAVIOR or not is_last:
            return True
        newest = self.changed.get(event.place)
        return newest is not None and (newest.id == event.id or newest.time > event.time)

    def is_superseded(self, event: Prepared) -> bool:
        """Whether an event changes the catalogue before a later change of the same key."""
        newest = self.changed.get(event.place)
        return newest is not None and newest.time > event.time

    def add(self, event: Prepared) -> None:
        """Take in an event that is sent."""
        self.ids.add(event.id)
        if event.suffix not in BEHAVIOR:
            self._change(event.place, _Change(event.time, event.id))

    def _change(self, place: tuple[str, str], change: _Change) -> None:
        newest = self.changed.get(place)
        if newest is None or newest.time <= change.time:
            self.changed[place] = change

    def note(self, suffix: str, record: Any) -> None:
        """Take in a record of a topic."""
        headers = header_texts(record.headers)
        id_ = headers.get("ce_id", "") if headers.get("ce_source") == IMPORT_SOURCE else ""
        if id_:
            self.ids.add(id_)
        if suffix in BEHAVIOR:
            return
        place = suffix, (record.key or b"").decode("utf-8", "replace")
        if record.value is None:  # the key was deleted
            self.changed.pop(place, None)
            return
        with suppress(ValueError):
            self._change(place, _Change(parse_time(headers.get("ce_time", "")), id_))


async def _held(kafka: str, loop: str, suffixes: Iterable[str], *, replayed: LoopSpec | None = None) -> _StoredIds:
    """What some topics of a loop hold; the clocks only of a loop that is replayed, whose spec is given.

    Those are of all behaviour once some of it is imported: the import moves the clocks of all.
    """
    found = _StoredIds()
    if replayed is not None and not set(suffixes).isdisjoint(BEHAVIOR):
        suffixes = {*suffixes, *BEHAVIOR}
    admission = Admission({loop: replayed} if replayed is not None else {}, _BEHAVIOR_TYPES)
    for suffix in suffixes:
        name = topic(loop, suffix)
        async for record in read_records(kafka, name):
            found.note(suffix, record)
            if replayed is not None and suffix in BEHAVIOR:
                admission.decide(record)
                clock = admission.clock(name, record.partition)
                if clock.is_set:
                    found.clocks[name, record.partition] = clock.newest
    return found


async def imported_ids(kafka: str, loop: str, suffixes: Iterable[str] = _SUFFIXES) -> set[str]:
    """The ids of all imported events that some topics of a loop hold; reads these from begin to end."""
    return (await _held(kafka, loop, suffixes)).ids


def refusal_of(spec: LoopSpec, event: Event) -> Refusal | None:
    """Why the loop would refuse an event that is imported now, or why Kafka would (too large); None where it fits."""
    made = _made(event)
    name, kind = topic(spec.loop, made.suffix), made.message.DESCRIPTOR.full_name
    raw = RawEvent(made.id, IMPORT_SOURCE, kind, event.time, made.message, None, name, 0, 0, arrival_time=now())
    return refuse(raw, Rules({}, spec), PartitionClock()) or _too_large(name, made)


def _too_large(name: str, made: Prepared) -> Refusal | None:
    """That an event is larger than its topic takes, or None."""
    if made.message.ByteSize() + _ENVELOPE_BYTES <= max_record_bytes(name):
        return None
    record = encode(made.message, source=IMPORT_SOURCE, id=made.id, time=made.time, key=made.key)
    try:
        require_fits(name, *record)
    except Invalid as error:
        field = "fields" if isinstance(made.message, behavior.ItemChanged | behavior.UserChanged) else "item_ids"
        return Refusal(error.reason, error.message, field)
    return None


def prepare(spec: LoopSpec, event: Event) -> Prepared:
    """One event with its topic, key and the id that its topic, time and content decide; sends nothing.

    Raises:
        Invalid: the loop would refuse it, or it is larger than its topic takes.
    """
    refusal = refusal_of(spec, event)
    if refusal is not None:
        what = event.kind if isinstance(event, FieldsChanged) else type(event).__name__.lower()
        raise Invalid(refusal.reason, f"{what} of {event.time:.0f}: {refusal.detail}")
    return _made(event)


def _made(event: Event) -> Prepared:
    if isinstance(event, UserInteraction):
        return _interaction(event)
    return _impression(event) if isinstance(event, Impression) else _fields(event)


def _interaction(event: UserInteraction) -> Prepared:
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


def _fields(event: FieldsChanged) -> Prepared:
    if event.kind == "user":
        return _prepared("catalog.users", event.id, event.time, user_changed(event.id, event.fields))
    if event.kind == "item":
        return _prepared("catalog.items", event.id, event.time, item_changed(event.id, event.fields))
    raise Invalid("KIND_UNKNOWN", f"fields of kind {event.kind!r}: only those of items and users can be imported")


def _prepared(suffix: str, key: str, time: float, message: Message) -> Prepared:
    content = message.SerializeToString(deterministic=True)
    id_ = blake2b(b"\0".join([suffix.encode(), repr(time).encode(), content]), digest_size=16).hexdigest()
    return Prepared(suffix, id_, key, time, message)
