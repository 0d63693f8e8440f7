"""Answers and interactions into SQL, with what they change: outcomes, totals by version and arm, the volume count."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gyre.events.v1 import behavior_pb2 as behavior
from gyre_core.keyring import Keyring
from gyre_core.spec import LoopSpec
from gyre_core.topics import IMPORT_SOURCE
from gyre_privacy.pseudonyms import user_hash
from gyre_runtime.events import Event
from gyre_runtime.tracing import is_sampled, trace_id_of
from sqlalchemy import ColumnElement, Connection, bindparam, select

from gyre_monitor.domain.outcomes import Action, ArmTotals, LoggedAnswer, Request, attributed, latency_bucket
from gyre_monitor.store.database import chunks, insert_new, upsert
from gyre_monitor.store.schema import ARMS, IMPRESSIONS, INTERACTIONS, LATENCIES, TRACES

_MAX_TIPPING = 16
Arm = tuple[str, str, int]
Row = dict[str, Any]


@dataclass(slots=True)
class BehaviourBatch:
    """What a batch of one loop changed.

    Attributes:
        totals: by version, arm and epoch.
        answers: count of new answers that were neither imported nor simulated, with the newest one's version.
        outcomes: count of answers that were clicked or converted just now, with the version of one of them.
        counted: count of interactions for the volume trigger, and the newest sampled traceparents among them.
        clock: newest event time that was not imported.
    """

    totals: dict[Arm, ArmTotals] = field(default_factory=lambda: defaultdict(ArmTotals))
    answers: int = 0
    version: str = ""
    outcomes: int = 0
    outcome_version: str = ""
    counted: int = 0
    tipping: list[str] = field(default_factory=list)
    clock: float | None = None


@dataclass(slots=True)
class _Known:
    """An answer with its arm and what is known to have come of it; `row_id` is None for a new one."""

    answer: LoggedAnswer
    arm: Arm
    clicked: bool = False
    converted: bool = False
    row_id: int | None = None


class BehaviourTables:
    """Writes one loop's behaviour; to be used within a transaction.

    Args:
        connection: within a transaction.
        spec: of the loop.
        keyring: user ids are hashed under.
        now: wall clock, unix seconds.
    """

    def __init__(self, connection: Connection, spec: LoopSpec, keyring: Keyring, *, now: float) -> None:
        self._connection, self._spec, self._keyring, self._now = connection, spec, keyring, now
        self._clicks, self._conversions = set(spec.experiment.clicks), set(spec.experiment.conversions)
        self._window_s = spec.training.label.attribution_window_s

    def record(self, events: Sequence[Event], count_from: Mapping[tuple[str, int], int]) -> BehaviourBatch:
        """Store a batch and say what it changed; what is stored already changes nothing.

        Args:
            events: impressions and interactions of the loop.
            count_from: the first offset that counts for the volume trigger, by topic and partition.
        """
        change = BehaviourBatch()
        answers = self._new_answers([each for each in events if isinstance(each.message, behavior.Impression)])
        actions = self._new_actions([each for each in events if isinstance(each.message, behavior.Interaction)])
        for event, known in answers:
            self._count_answer(change, event, known)
        for event, _ in actions:
            _count_action(change, event, count_from)
        known_answers = [known for _, known in answers]
        fresh = [action for _, action in actions if action.type in self._clicks | self._conversions]
        old_answers = self._answers_of(fresh, {each.answer.key for each in known_answers})
        self._credit(change, known_answers + old_answers, fresh + self._actions_of(known_answers))
        self._insert_answers(known_answers)
        self._insert_actions(actions)
        self._insert_traces(events)
        self._write_totals(change.totals)
        return change

    def _new_answers(self, events: Iterable[Event]) -> list[tuple[Event, _Known]]:
        """The answers that are not stored; of several to one request of a user the first counts."""
        new: dict[Request, tuple[Event, _Known]] = {}
        for event in filter(_is_answer, events):
            known = self._known(event)
            new.setdefault(known.answer.key, (event, known))
        table = IMPRESSIONS.c
        for some in chunks({request_id for _, request_id in new}):
            stored = select(table.user_key, table.request_id).where(self._own(IMPRESSIONS), table.request_id.in_(some))
            for user_key, request_id in self._connection.execute(stored):
                new.pop((user_key, request_id), None)
        return list(new.values())

    def _known(self, event: Event) -> _Known:
        message: behavior.Impression = event.message
        user = user_hash(self._keyring, self._spec.loop, message.user_id)
        answer = LoggedAnswer(message.request_id, user, event.time, tuple(message.item_ids[: message.shown]))
        return _Known(answer, (message.model_version, message.arm, message.epoch))

    def _new_actions(self, events: Iterable[Event]) -> list[tuple[Event, Action]]:
        by_id = {(event.id, event.source): event for event in events if event.source != IMPORT_SOURCE}
        table = INTERACTIONS.c
        for some in chunks({event_id for event_id, _ in by_id}):
            stored = select(table.event_id, table.source).where(self._own(INTERACTIONS), table.event_id.in_(some))
            for event_id, source in self._connection.execute(stored):
                by_id.pop((event_id, source), None)
        return [(event, self._action(event)) for event in by_id.values()]

    def _action(self, event: Event) -> Action:
        message: behavior.Interaction = event.message
        user = user_hash(self._keyring, self._spec.loop, message.user_id)
        return Action(event.id, message.request_id, user, message.item_id, message.type, event.time)

    def _count_answer(self, change: BehaviourBatch, event: Event, known: _Known) -> None:
        message: behavior.Impression = event.message
        totals = change.totals[known.arm]
        totals.add(impressions=1, degraded=bool(message.degraded_reason))
        totals.add_latency(latency_bucket(message.latency_s))
        change.answers += 1
        change.version = message.model_version
        change.clock = max(change.clock or event.time, event.time)

    def _credit(self, change: BehaviourBatch, answers: Sequence[_Known], actions: Sequence[Action]) -> None:
        """Mark the answers that were clicked or converted, and count each once."""
        found = attributed((each.answer for each in answers), actions, window_s=self._window_s)
        stored: list[Row] = []
        for known in answers:
            types = {action.type for action in found.get(known.answer.key, ())}
            clicks = bool(types & self._clicks) and not known.clicked
            converts = bool(types & self._conversions) and not known.converted
            if not clicks and not converts:
                continue
            known.clicked, known.converted = known.clicked or clicks, known.converted or converts
            change.totals[known.arm].add(clicked=clicks, converted=converts)
            change.outcomes += 1
            change.outcome_version = known.arm[0]
            if known.row_id is not None:
                stored.append({"row_id": known.row_id, "clicks": known.clicked, "converts": known.converted})
        if stored:
            update = IMPRESSIONS.update().where(IMPRESSIONS.c.id == bindparam("row_id"))
            values: Row = {"clicked": bindparam("clicks"), "converted": bindparam("converts")}
            self._connection.execute(update.values(values), stored)

    def _answers_of(self, actions: Sequence[Action], known: Collection[Request]) -> list[_Known]:
        """The stored answers that actions may belong to."""
        table = IMPRESSIONS.c
        found: dict[int, _Known] = {}
        named = {(action.user_key, action.request_id) for action in actions if action.request_id} - set(known)
        for some in chunks({request_id for _, request_id in named}):
            self._read_answers(found, table.request_id.in_(some))
        unnamed = [action for action in actions if not action.request_id]
        if unnamed:
            first = min(action.event_time for action in unnamed) - self._window_s
            last = max(action.event_time for action in unnamed)
            for some_users in chunks({action.user_key for action in unnamed}):
                self._read_answers(found, table.user_key.in_(some_users), table.event_time.between(first, last))
        return list(found.values())

    def _read_answers(self, found: dict[int, _Known], *conditions: ColumnElement[bool]) -> None:
        table = IMPRESSIONS.c
        columns = (
            table.id, table.request_id, table.user_key, table.event_time, table.shown_items, table.version, table.arm,
            table.epoch, table.clicked, table.converted,
        )  # fmt: skip
        for row in self._connection.execute(select(*columns).where(self._own(IMPRESSIONS), *conditions)):
            answer = LoggedAnswer(row.request_id, row.user_key, row.event_time, json.loads(row.shown_items))
            arm = (row.version, row.arm, row.epoch)
            found[row.id] = _Known(answer, arm, clicked=row.clicked, converted=row.converted, row_id=row.id)

    def _actions_of(self, answers: Sequence[_Known]) -> list[Action]:
        """The stored interactions that may belong to new answers: those that were read before their answer."""
        table = INTERACTIONS.c
        found: list[Action] = []
        for some in chunks(answers):
            ids = [known.answer.request_id for known in some]
            found += read_actions(self._connection, self._own(INTERACTIONS), table.request_id.in_(ids))
            times = [known.answer.event_time for known in some]
            found += read_actions(
                self._connection,
                self._own(INTERACTIONS),
                table.user_key.in_({known.answer.user_key for known in some}),
                table.event_time.between(min(times), max(times) + self._window_s),
                table.request_id == "",
            )
        return found

    def _insert_answers(self, answers: Iterable[_Known]) -> None:
        rows = [
            {
                "loop": self._spec.loop,
                "request_id": known.answer.request_id,
                "user_key": known.answer.user_key,
                "event_time": known.answer.event_time,
                "version": known.arm[0],
                "arm": known.arm[1],
                "epoch": known.arm[2],
                "shown_items": json.dumps(known.answer.items),
                "clicked": known.clicked,
                "converted": known.converted,
            }
            for known in answers
        ]
        insert_new(self._connection, IMPRESSIONS, rows)

    def _insert_actions(self, actions: Iterable[tuple[Event, Action]]) -> None:
        loop = self._spec.loop
        rows = [{"loop": loop, "source": event.source, **action._asdict()} for event, action in actions]
        insert_new(self._connection, INTERACTIONS, rows)

    def _insert_traces(self, events: Iterable[Event]) -> None:
        """Note whose the sampled traces are: the spans of a trace stay longer than its answers, or have none here."""
        found = {
            (trace_id_of(event.traceparent), user_hash(self._keyring, self._spec.loop, event.message.user_id))
            for event in events
            if event.traceparent is not None and is_sampled(event.traceparent)
        }
        loop = self._spec.loop
        rows = [{"loop": loop, "trace_id": trace_id, "user_key": user} for trace_id, user in sorted(found)]
        insert_new(self._connection, TRACES, rows)

    def _write_totals(self, totals: Mapping[Arm, ArmTotals]) -> None:
        sums = ("impressions", "clicked", "converted", "degraded")
        arms, latencies = [], []
        for (version, arm, epoch), each in totals.items():
            key = {"loop": self._spec.loop, "version": version, "arm": arm, "epoch": epoch}
            arms.append({**key, **{name: getattr(each, name) for name in sums}, "change_time": self._now})
            latencies += [{**key, "bucket": bucket, "answers": count} for bucket, count in each.latencies.items()]
        upsert(self._connection, ARMS, arms, sums=sums)
        upsert(self._connection, LATENCIES, latencies, sums=("answers",))

    def _own(self, table: Any) -> ColumnElement[bool]:
        own: ColumnElement[bool] = table.c.loop == self._spec.loop
        return own


def read_actions(connection: Connection, *conditions: ColumnElement[bool]) -> list[Action]:
    """Read interactions, in the order in which they were stored."""
    table = INTERACTIONS.c
    columns = (table.event_id, table.request_id, table.user_key, table.item_id, table.type, table.event_time)
    rows = connection.execute(select(*columns).where(*conditions).order_by(table.id))
    return [Action(*row) for row in rows]


def _is_answer(event: Event) -> bool:
    message: behavior.Impression = event.message
    imported = message.method == behavior.IMPRESSION_METHOD_IMPORT or event.source == IMPORT_SOURCE
    return not imported and not message.simulated


def _count_action(change: BehaviourBatch, event: Event, count_from: Mapping[tuple[str, int], int]) -> None:
    change.clock = max(change.clock or event.time, event.time)
    if event.offset < count_from.get((event.topic, event.partition), 0):
        return
    change.counted += 1
    if event.traceparent is not None and is_sampled(event.traceparent):
        change.tipping = [*change.tipping, event.traceparent][-_MAX_TIPPING:]
