"""One decision for every record of a loop: an event, or why it is refused. Pure: it does no I/O and asks no clock.

The order is: the types that the topic declares, decoding, the event's id and source, the proto's constraints and
shapes, masking, the loop's spec, time. What it says follows from the log alone (the record and when Kafka took it in),
the spec and the partition's clock, which is stored with the applied offset, so that stream, archive, quality and
monitor say the same, also after a restart at any offset. The gateway asks `refuse` before it sends; the stream alone
writes dead letters.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from gyre.events.v1 import behavior_pb2 as behavior
from gyre_core.admission import (
    EventTimes,
    PartitionClock,
    Refusal,
    first_repeat,
    refuse_fields,
    refuse_identity,
    refuse_interaction,
    refuse_times,
)
from gyre_core.request_ids import GATEWAY_SOURCE, has_gateway_form
from gyre_core.shown import cut
from gyre_core.spec import LoopSpec
from gyre_core.topics import DEAD_LETTERS_KEPT_S

from gyre_runtime.constraints import checker_for
from gyre_runtime.events import Event, MessageTypes, ReceivedRecord, Unreadable, decode, is_deletion, message_types
from gyre_runtime.fields import field_values

__all__ = ["Admission", "PartitionClock", "Refusal", "Rules", "decide", "refuse"]

_LOG = logging.getLogger(__name__)
_BEHAVIOR = (behavior.Interaction, behavior.Impression)
_CATALOGUE = (behavior.ItemChanged, behavior.UserChanged)
_MARKS = message_types(behavior.ClockMark)
_FLOAT32_BYTES = 4
_UNSET = PartitionClock()
_STALLED_BY = ("IN_THE_FUTURE", "TOO_OLD")
_MIN_REFUSED = 10
"""How many events in a row a partition refuses before its clock is said to stand: fewer are stragglers."""
_LOGGED_AT = frozenset(_MIN_REFUSED * 10**power for power in range(11))
"""At which numbers of events in a row a standing clock is logged."""
Mask = Callable[[Event], None]
Place = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Rules:
    """What records of one loop are decided by.

    Attributes:
        types: the payload classes by full proto name; those that the record's topic does not declare are refused.
        spec: the loop; None for what no loop's spec says anything about.
        mask: takes what the loop does not keep out of an event's message, in place; None where it keeps everything.
    """

    types: MessageTypes
    spec: LoopSpec | None = None
    mask: Mask | None = None


def decide(record: ReceivedRecord, rules: Rules, clock: PartitionClock) -> Event | Refusal:
    """Decide one record; the clock is not moved, which `Admission` does.

    Args:
        record: as Kafka gave it, with the time at which Kafka took it in.
        rules: of its loop.
        clock: of its partition, before the record.

    Returns:
        The event, masked, or the refusal with the reason that its dead letter gives.
    """
    return examine(record, rules, clock)[-1]


def examine(record: ReceivedRecord, rules: Rules, clock: PartitionClock) -> tuple[Event | Refusal, ...]:
    """What `decide` returns, alone in a tuple.

    (masked event, refusal) where the loop's spec refuses a well-formed event. Nothing is counted, and no clock is
    moved.
    """
    try:
        event = decode(record, rules.types)
    except Unreadable as error:
        return (Refusal(error.reason, error.message),)
    refusal = _refuse_form(event, rules)
    if refusal is not None:
        return (refusal,)
    refusal = None if rules.spec is None else _refuse_by_spec(rules.spec, event, clock)
    return (event,) if refusal is None else (event, refusal)


def refuse(event: Event, rules: Rules, clock: PartitionClock) -> Refusal | None:
    """Why a decoded event is refused, or None; its message is masked in place in both cases.

    What `decide` checks before (the topic's
    types, decoding) is taken to hold. Nothing is raised, counted or sent.
    """
    refusal = _refuse_form(event, rules)
    if refusal is not None or rules.spec is None:
        return refusal
    return _refuse_by_spec(rules.spec, event, clock)


def _refuse_form(event: Event, rules: Rules) -> Refusal | None:
    """What breaks the rules of ids or the proto's, or cannot be masked; the message is masked in place."""
    message = event.message
    refusal = refuse_identity(event.id, event.source)
    if refusal is not None:
        return refusal
    broken = checker_for(message.DESCRIPTOR)(message)
    if broken:
        return Refusal("INVALID_FIELD", "; ".join(map(str, broken)), broken[0].field)
    if isinstance(message, behavior.Impression):
        refusal = refuse_shape(message) or _refuse_request_id(event.source, message.request_id)
        if refusal is not None:
            return refusal
    if rules.mask is not None:
        try:
            rules.mask(event)
        except Exception as error:  # noqa: BLE001 - whatever failed, the event goes no further unmasked
            # The text of the error could hold what was to be masked, and the event's id a user's.
            place = {"topic": event.topic, "partition": event.partition, "offset": event.offset}
            _LOG.error("an event cannot be masked", extra={**place, "problem": type(error).__name__})
            return Refusal("MASKING_FAILED", type(error).__name__)
    return None


def _refuse_by_spec(spec: LoopSpec, event: Event, clock: PartitionClock) -> Refusal | None:
    message, refusal = event.message, None
    if isinstance(message, behavior.Interaction):
        refusal = refuse_interaction(spec, message.type, message.value if message.HasField("value") else None)
    elif isinstance(message, behavior.ItemChanged):
        refusal = refuse_fields(spec, "item", field_values(message.fields))
    elif isinstance(message, behavior.UserChanged):
        refusal = refuse_fields(spec, "user", field_values(message.fields))
    elif not isinstance(message, behavior.Impression | behavior.ClockMark):
        return None  # the mesh's own, which may come late: what was not acknowledged is sent again
    return refusal or refuse_times(spec, clock, times_of(spec, event))


def _clock_after(event: Event, clock: PartitionClock) -> PartitionClock:
    """A partition's replay clock once an event, or a mark, was admitted."""
    message = event.message
    if isinstance(message, behavior.ClockMark):
        at = message.clock_time.ToNanoseconds() / 1e9
        return PartitionClock(at) if message.back else clock.after(at)
    return clock.after(event.time) if isinstance(message, _BEHAVIOR) else clock


def _refuse_request_id(source: str, request_id: str) -> Refusal | None:
    """A request id that the gateway made, on an impression of somebody else, which would stand for the gateway's."""
    if source == GATEWAY_SOURCE or not has_gateway_form(request_id):
        return None
    rule = f"is of the form that only {GATEWAY_SOURCE} may use"
    return Refusal.of("RESERVED_REQUEST_ID", f"request_id = {request_id}", rule, "request_id")


def times_of(spec: LoopSpec, event: Event) -> EventTimes:
    """Event time, append time and source by which an event may be too old or too new.

    A replayed dead letter has the append time of its first arrival, where the spec trusts it; at most 30 days back.
    """
    arrival = event.arrival_time
    if event.first_arrival_time and spec.events.trust_replayed_append_time:
        oldest = arrival - DEAD_LETTERS_KEPT_S  # no letter is older: it is no replay that says so
        arrival = min(arrival, max(event.first_arrival_time, oldest))
    message = event.message
    if isinstance(message, behavior.ClockMark):
        at = message.clock_time.ToNanoseconds() / 1e9
        return EventTimes(at, arrival, event.source, is_behavior=False, name="clock_time")
    return EventTimes(event.time, arrival, event.source, isinstance(message, _BEHAVIOR))


def refuse_shape(message: behavior.Impression) -> Refusal | None:
    """The refusal of an impression that names an item twice, or whose lists and features differ in length; or None."""
    items, shown = len(message.item_ids), message.shown
    if shown > items:
        return Refusal.of("INVALID_FIELD", f"shown = {shown}", f"must be at most the {items} item_ids", "shown")
    second = first_repeat(message.item_ids)
    if second is not None:
        found, place = f"item_ids[{second}] = {cut(message.item_ids[second])!r}", f"item_ids[{second}]"
        return Refusal.of("INVALID_FIELD", found, "is given twice", place)
    wanted = {"scores": items, "item_batches": items, "positions": items, "item_propensities": shown}
    for name, count in wanted.items():
        given = len(getattr(message, name))
        if given not in (0, count):
            of = "items are shown" if name == "item_propensities" else "item_ids are given"
            return Refusal.of("INVALID_FIELD", f"{name} = {given} values", f"must be none, or {count}, as {of}", name)
    problem = _features_problem(message.features, items) if message.features.values else None
    return Refusal.of("INVALID_FIELD", "features", problem, "features") if problem else None


def _features_problem(block: behavior.FeatureBlock, items: int) -> str | None:
    """The rule that the features of so many items break, or None."""
    if not block.layout:
        return "must name their layout"
    if block.rows != items or len(block.values) != block.rows * block.columns * _FLOAT32_BYTES:
        return f"must be {items} rows, as item_ids are given, and 4 bytes for each of rows × columns"
    return None if np.isfinite(np.frombuffer(block.values, "<f4")).all() else "must be finite"


@dataclass(frozen=True, slots=True)
class StalledClock:
    """A partition whose replay clock lets no event in: all are too far ahead of it, or too old beside it.

    Attributes:
        newest: what the clock shows, unix seconds.
        next_time: the earliest event time that was refused since, unix seconds: `gyre clock` sets the clock to it,
            `--back` where that is before `newest`.
        refused: how many events in a row were refused as IN_THE_FUTURE, or in a row as TOO_OLD, since the process
            started; at least ten.
    """

    newest: float
    next_time: float
    refused: int

    @property
    def is_ahead(self) -> bool:
        """Whether the clock is ahead of the events, which are TOO_OLD, and not behind them."""
        return self.next_time < self.newest


@dataclass(frozen=True, slots=True)
class RefusalCount:
    """How many events of one topic were refused for one reason, since the process started; read again ones count again.

    Attributes:
        count: of events.
        last_time: Kafka's time of the record that was refused last, unix seconds.
    """

    count: int
    last_time: float


class Admission:
    """Decides the records of several loops' topics in their order, and holds the clock of each partition.

    Deciding moves the clock (on the replay clock) and counts refusals; it sends, writes and commits nothing. A record
    of a loop that is not given is decided without a spec.

    Args:
        loops: specs by name.
        types: payload classes of all topics, by full proto name.
        mask: as in `Rules`.
        is_slow: whether deciding a batch takes long enough to be done in a thread, as searching texts does.
    """

    def __init__(
        self, loops: Mapping[str, LoopSpec], types: MessageTypes, mask: Mask | None = None, *, is_slow: bool = False
    ) -> None:
        self.is_slow = is_slow
        types = {**types, **_MARKS}
        self._rules = {name: Rules(types, spec, mask) for name, spec in loops.items()}
        self._others = Rules(types, None, mask)
        self._rules_of_topic: dict[str, Rules] = {}
        self._clocks: dict[Place, PartitionClock] = {}
        self._refused_in_a_row: dict[Place, StalledClock] = {}
        self._refusals: dict[tuple[str, str], RefusalCount] = {}

    def start(self, topic: str, partition: int, clock: PartitionClock = _UNSET) -> None:
        """Set a partition's clock to the one stored with the offset it is read from; refusals stay counted."""
        self._clocks[topic, partition] = clock
        self._refused_in_a_row.pop((topic, partition), None)

    def clock(self, topic: str, partition: int) -> PartitionClock:
        """A partition's clock after the last record that was decided; unset where none was, or without replay clock."""
        return self._clocks.get((topic, partition), _UNSET)

    @property
    def stalled(self) -> Mapping[Place, StalledClock]:
        """The partitions whose replay clock let no event in of late, ten or more in a row: see `StalledClock`."""
        return {place: each for place, each in self._refused_in_a_row.items() if each.refused >= _MIN_REFUSED}

    @property
    def refusals(self) -> Mapping[tuple[str, str], RefusalCount]:
        """How many events were refused since the process started, by (topic, reason); a view that counts on."""
        return self._refusals

    def decide(self, record: ReceivedRecord) -> Event | Refusal | None:
        """Decide the next record of its partition; None for one that only deletes its key, or sets the clock.

        Call it once a record, in the order of offsets: it moves the clock and counts.
        """
        examined = self.examine(record)
        return examined[-1] if examined else None

    def examine(self, record: ReceivedRecord) -> tuple[Event | Refusal, ...]:
        """Decide the next record of its partition, in place of `decide`; what it returns, see the function `examine`.

        Nothing for what is neither event nor refusal: the deletion of a key, and a mark that set the clock.
        """
        if record.value is None and is_deletion(record):
            return ()
        place = (record.topic, record.partition)
        clock = self._clocks.get(place, _UNSET)
        rules = self._rules_of_topic.get(record.topic) or self._rules_for(record.topic)
        examined = examine(record, rules, clock)
        decision = examined[-1]
        if isinstance(decision, Event):
            if rules.spec is not None and rules.spec.clock == "replay":
                self._note_admitted(place, decision, clock)
            return () if isinstance(decision.message, behavior.ClockMark) else examined
        self._note_refused(record, decision)
        event = examined[0]
        if rules.spec is not None and decision.reason in _STALLED_BY and clock.is_set and isinstance(event, Event):
            self._note_refused_by_clock(rules.spec, place, event, clock)
        return examined

    def _rules_for(self, topic: str) -> Rules:
        rules = self._rules_of_topic[topic] = self._rules.get(topic.partition(".")[0], self._others)
        return rules

    def _note_admitted(self, place: Place, event: Event, clock: PartitionClock) -> None:
        moved = self._clocks[place] = _clock_after(event, clock)
        if self._refused_in_a_row and (moved is not clock or isinstance(event.message, _BEHAVIOR)):
            self._refused_in_a_row.pop(place, None)

    def _note_refused(self, record: ReceivedRecord, refusal: Refusal) -> None:
        key = (record.topic, refusal.reason)
        before = self._refusals.get(key)
        self._refusals[key] = RefusalCount(before.count + 1 if before else 1, record.timestamp / 1000)

    def _note_refused_by_clock(self, spec: LoopSpec, place: Place, event: Event, clock: PartitionClock) -> None:
        times = times_of(spec, event)
        if not times.is_behavior or times.event_time - times.append_time > spec.events.max_future_s:
            return  # it is ahead of the wall clock, too, so that no mark would help
        now, before = StalledClock(clock.newest, times.event_time, 1), self._refused_in_a_row.get(place)
        if before is not None and before.is_ahead == now.is_ahead:
            now = StalledClock(clock.newest, min(before.next_time, now.next_time), before.refused + 1)
        self._refused_in_a_row[place] = now
        if now.refused in _LOGGED_AT:
            facts = {"topic": place[0], "partition": place[1], "clock": now.newest, "refused": now.refused}
            remedy = f"gyre clock {spec.loop} --to {now.next_time:.0f}{' --back' if now.is_ahead else ''}"
            far = "too old beside it" if now.is_ahead else "further ahead of it than events.max_future"
            _LOG.warning("a replay clock stands: events are %s", far, extra={**facts, "remedy": remedy})
