"""What the checks of single events count in one window: how many they looked at, and how many of these are at fault.

Everything is counted again when the window is, so a successor needs nothing but the events. Memory is bounded: beyond
a few thousand ids or users in a window of a partition, those of a sample are counted, and windows that ended a while
ago rest.
"""

from __future__ import annotations

from array import array
from collections import Counter, OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import isfinite

import numpy as np
from gyre.events.v1 import behavior_pb2 as behavior
from gyre.events.v1 import features_pb2 as pb
from gyre_core.features import Layout
from gyre_core.spec import LoopSpec
from gyre_privacy.detection import scanner
from gyre_quality.sampling import HashSample
from gyre_quality.sequences import BotRule, behaviour, bot_like
from gyre_runtime.events import Event

from gyre_features.quality.served import features_served

_MAX_IDS = 2048
_MAX_USERS = 2048
_MAX_REQUESTS = 4096
_TIMES_OF_USER = 256
"""So many events of a user in a window show its pace; the others are only counted."""


class LoopChecks:
    """The settings of a loop's checks that single events can fail, from its spec; it counts nothing: `Tallies` do.

    Args:
        spec: the loop.
    """

    def __init__(self, spec: LoopSpec) -> None:
        checks, layout = spec.quality.checks, Layout.compile(spec)
        ranges = {name: (each.min, each.max) for name, each in checks.ranges.columns.items()}
        declared = {kind: each.value for kind, each in spec.events.interactions.items()}
        self.value_ranges = {kind: (each.min, each.max) for kind, each in declared.items() if each is not None}
        self.item_ranges = {name: (each.min, each.max) for name, each in checks.ranges.of_items.items()}
        self.feature_ranges = {at: ranges[name] for at, name in enumerate(layout.columns) if name in ranges}
        self.complete = checks.completeness.of_items
        self.columns = layout.columns
        self.layout = layout.hash
        self.personal_items = checks.personal_data.of("items")
        self.personal_users = checks.personal_data.of("users")
        self.personal_ids = checks.personal_data.of("interactions")
        self._personal = scanner(regions=spec.privacy.regions or None)
        self.searches = bool(self.personal_items or self.personal_users or self.personal_ids)
        self.max_texts = checks.personal_data.sample
        self.tolerance_s = checks.sequences.tolerance.seconds
        self.bots = BotRule(min_rate_per_minute=checks.bots.min_per_minute)

    def has_personal_data(self, text: str) -> bool:
        """Whether a text holds personal data, by the scanner's default kinds for the loop's regions.

        Takes milliseconds.
        """
        return bool(self._personal.scan(text))


class ShownRequests:
    """The newest 4096 requests of a partition: when they were answered, and hashes of the items that were shown.

    Impressions and interactions of a user have partitions of one number, which one process has.
    """

    def __init__(self) -> None:
        self._requests: OrderedDict[int, tuple[float, array[int]]] = OrderedDict()

    def note(self, time: float, message: behavior.Impression) -> None:
        """Hold what an impression showed at its event time, unix seconds; later ones of the same request are ignored.

        Beyond 4096 requests the one noted first is dropped.
        """
        code = hash((message.user_id, message.request_id))
        if code in self._requests:
            return
        items = message.item_ids[: message.shown] if message.shown else message.item_ids
        self._requests[code] = time, array("q", map(hash, items))
        if len(self._requests) > _MAX_REQUESTS:
            self._requests.popitem(last=False)

    def find(self, request: int) -> tuple[float, array[int]] | None:
        """When a request, by its hash, was answered and the hashes of the items that it showed.

        None where it is not held.
        """
        return self._requests.get(request)


@dataclass(slots=True)
class _Pace:
    """What one user did in the window."""

    events: int = 0
    times: array[float] = field(default_factory=lambda: array("d"))


class Tallies:
    """Counts, for one window of one partition, how many events each check looked at, and how many are at fault.

    Args:
        checks: of the loop.
        shown: of the partition, which its impressions feed and its interactions ask.
    """

    def __init__(self, checks: LoopChecks, shown: ShownRequests) -> None:
        self._checks, self._shown = checks, shown
        self._seen: Counter[tuple[str, str]] = Counter()
        self._at_fault: Counter[tuple[str, str]] = Counter()
        self._ids: HashSample[int] = HashSample(_MAX_IDS)
        self._users: HashSample[_Pace] = HashSample(_MAX_USERS)
        self._waiting: list[tuple[int, int, float]] = []
        self._texts = 0
        self._ids_of = ""
        self._rests = False

    def count(self, event: Event) -> None:
        """Count a readable event in all checks that concern it; its repeat counts again, and as a duplicate."""
        message = event.message
        if isinstance(message, behavior.Interaction):
            self._value(message)
            for name in self._checks.personal_ids:
                self._personal_data(f"interactions.{name}", getattr(message, name))
            if not self._rests:
                self._compare(event, message)
        elif isinstance(message, behavior.Impression):
            if not self._rests:
                self._repeats(event, "impressions")
            self._shown.note(event.time, message)
            self._features(message)
        elif isinstance(message, behavior.ItemChanged):
            self._item(message)
        elif isinstance(message, behavior.UserChanged):
            for name in self._checks.personal_users:
                self._personal_data(f"users.{name}", _text(message, name))

    def published(self) -> list[pb.CheckTally]:
        """Everything so far, ordered by check and column; may be asked again.

        Interactions whose impression has come are judged here; those that still wait for theirs are not in it.
        """
        self._sequences()
        compared = {key: (self._seen[key], self._at_fault[key]) for key in self._seen} | self._compared()
        return [
            pb.CheckTally(name=name, column=column, seen=seen, at_fault=at_fault)
            for (name, column), (seen, at_fault) in sorted(compared.items())
        ]

    def end_comparisons(self) -> None:
        """Compare events with each other no more, and free the memory that it takes; numbers so far stay.

        Later events count only in checks that look at single events: not as duplicates, in sequences, or as of bots.
        """
        if not self._rests:
            self._sequences()
            for (name, column), (seen, at_fault) in self._compared().items():
                self._note(name, column, seen=seen, at_fault=at_fault)
            self._rests = True
            self._ids.clear()
            self._users.clear()
            self._waiting.clear()

    def _compared(self) -> dict[tuple[str, str], tuple[int, int]]:
        """What comparing events with each other finds: how many were looked at, and how many are at fault."""
        found: dict[tuple[str, str], tuple[int, int]] = {}
        if self._ids:
            seen = sum(self._ids.values())
            found["completeness.duplicates", f"{self._ids_of}.event_id"] = seen, seen - len(self._ids)
        if self._users:
            found["bots", ""] = self._bots()
        return found

    def _compare(self, event: Event, message: behavior.Interaction) -> None:
        self._repeats(event, "interactions")
        self._pace(message.user_id, event.time)
        if message.request_id and len(self._waiting) < _MAX_REQUESTS:
            request = hash((message.user_id, message.request_id))
            self._waiting.append((request, hash(message.item_id), event.time))

    def _note(self, name: str, column: str, *, at_fault: int, seen: int = 1) -> None:
        self._seen[name, column] += seen
        self._at_fault[name, column] += at_fault

    def _repeats(self, event: Event, of: str) -> None:
        self._ids_of, code = of, hash((event.source, event.id))
        if self._ids.takes(code):
            self._ids[code] = self._ids.get(code, 0) + 1
            self._ids.bound()

    def _pace(self, user: str, time: float) -> None:
        code = hash(user)
        if not self._users.takes(code):
            return
        pace = self._users.get(code)
        if pace is None:
            pace = self._users[code] = _Pace()
            self._users.bound()
        pace.events += 1
        if len(pace.times) < _TIMES_OF_USER:
            pace.times.append(time)

    def _value(self, message: behavior.Interaction) -> None:
        range_ = self._checks.value_ranges.get(message.type)
        if range_ is None:
            return
        column, given = f"interactions.value.{message.type}", message.HasField("value") and isfinite(message.value)
        self._note("completeness.missing", column, at_fault=not given)
        if given:
            self._note("completeness.range", column, at_fault=not _within(message.value, range_))

    def _features(self, message: behavior.Impression) -> None:
        ranges = self._checks.feature_ranges
        matrix = features_served(message, self._checks.layout, len(self._checks.columns)) if ranges else None
        if matrix is None:
            return
        for index, (low, high) in ranges.items():
            values = matrix[:, index]
            outside, present = (values < low) | (values > high), ~np.isnan(values)
            found, seen = int(np.count_nonzero(outside)), int(np.count_nonzero(present))
            self._note("completeness.range", self._checks.columns[index], at_fault=found, seen=seen)

    def _item(self, message: behavior.ItemChanged) -> None:
        checks = self._checks
        for name in checks.complete:
            self._note("completeness.missing", f"items.{name}", at_fault=not _given(message, name))
        for name, range_ in checks.item_ranges.items():
            value = message.fields.get(name)
            if value is not None and value.WhichOneof("kind") == "number" and isfinite(value.number):
                self._note("completeness.range", f"items.{name}", at_fault=not _within(value.number, range_))
        for name in checks.personal_items:
            self._personal_data(f"items.{name}", _text(message, name))

    def _personal_data(self, column: str, text: str) -> None:
        if self._texts < self._checks.max_texts:
            self._texts += 1
            self._note("personal_data", column, at_fault=self._checks.has_personal_data(text))

    def _sequences(self) -> None:
        """Judge the interactions whose impression has come; the others wait for theirs."""
        waiting = []
        for request, item, time in self._waiting:
            shown = self._shown.find(request)
            if shown is None:
                waiting.append((request, item, time))
                continue
            shown_at, items = shown
            was_shown = item in items
            early = was_shown and time < shown_at - self._checks.tolerance_s
            self._note("sequence.before_impression", "", at_fault=early)
            self._note("sequence.never_shown", "", at_fault=not was_shown)
        self._waiting = waiting

    def _bots(self) -> tuple[int, int]:
        """How many events the users of the sample made, and how many of these the bot-like ones."""
        paces = list(self._users.values())
        owners = np.repeat(np.arange(len(paces)), [len(pace.times) for pace in paces])
        seen = behaviour(owners, np.concatenate([np.frombuffer(pace.times) for pace in paces]))
        suspects = seen.users[bot_like(seen, self._checks.bots)]
        return sum(pace.events for pace in paces), sum(paces[each].events for each in suspects.tolist())


def _given(message: behavior.ItemChanged, name: str) -> bool:
    """Whether an item has a field; an empty text is none, as in the warehouse's checks."""
    value = message.fields.get(name)
    kind = None if value is None else value.WhichOneof("kind")
    return value is not None and kind is not None and not (kind == "text" and not value.text)


def _text(message: behavior.ItemChanged | behavior.UserChanged, name: str) -> str:
    return message.fields[name].text if name in message.fields else ""


def _within(value: float, range_: tuple[float, float]) -> bool:
    return range_[0] <= value <= range_[1]


def merged(parts: Iterable[pb.CheckTally]) -> list[pb.CheckTally]:
    """New tallies with the sums over several windows or partitions, ordered by check and column."""
    whole: dict[tuple[str, str], pb.CheckTally] = {}
    for part in parts:
        into = whole.setdefault((part.name, part.column), pb.CheckTally(name=part.name, column=part.column))
        into.seen += part.seen
        into.at_fault += part.at_fault
    return [whole[key] for key in sorted(whole)]
