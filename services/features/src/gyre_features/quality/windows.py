"""The windows of one partition of the raw stream: what is counted, when a window is published, where to begin again.

A window is published as soon as the partition's time has passed its end, or the partition has been idle for a while of
wall time, so that the last window of a replay is seen too; and once more, finally, when that time has passed its end by
the loop's `max_lateness`, after which the loop takes nothing in for it. Only then is it forgotten.

The partition's time is when Kafka took its newest record in (the wall's time, once it is idle), and on the replay clock
the newest event's. So windows of a backlog stay open until it is read, and no producer's clock closes them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import floor, inf, isfinite
from time import monotonic
from time import time as wall_time

from gyre.events.v1 import behavior_pb2 as behavior
from gyre.events.v1 import features_pb2 as pb
from gyre_core.spec import LoopSpec, NumberField
from gyre_runtime.events import Event

from gyre_features.quality.tallies import Tallies

VALUE = "value"
"""The name of an interaction's value among the ranges."""
OTHER_TYPES = "(other)"
_MAX_TYPES = 64
_COMPARED = 2
"""In so many windows before the present one, events that come late are compared with the others still."""


@dataclass(slots=True)
class Range:
    """Count, least, greatest and sum of one numeric field; infinities stand for least and greatest before a value."""

    count: int = 0
    missing: int = 0
    minimum: float = float("inf")
    maximum: float = float("-inf")
    total: float = 0.0

    def add(self, value: float | None) -> None:
        """Count a value; None, and what is no finite number, is missing."""
        if value is None or not isfinite(value):
            self.missing += 1
            return
        self.count += 1
        self.total += value
        self.minimum = min(self.minimum, value)
        self.maximum = max(self.maximum, value)

    def message(self, name: str) -> pb.FieldRange:
        """The range as it is published; least and greatest are 0 without a value."""
        minimum, maximum = (self.minimum, self.maximum) if self.count else (0.0, 0.0)
        return pb.FieldRange(
            field=name, count=self.count, missing=self.missing, min=minimum, max=maximum, sum=self.total
        )


@dataclass(slots=True)
class Window:
    """What one partition looked like between two event times, `start` included and the end not.

    Attributes:
        start: event time, unix seconds.
        first_offset: of the first record counted: where counting the window begins again after a crash.
        tallies: what the checks counted.
        events: count of readable ones; `unreadable` are beside them.
        types: count of interactions by type; beyond 64 types as `OTHER_TYPES`.
        ranges: of numeric fields by name, and of interactions' values as `VALUE`.
        newest: the greatest event time, at most the arrival time, unix seconds; 0 before an event.
        changed: something was counted since the window was last published.
        published_at: when that was, seconds of the process's monotonic clock; -inf for never.
    """

    start: float
    first_offset: int
    tallies: Tallies
    events: int = 0
    unreadable: int = 0
    types: Counter[str] = field(default_factory=Counter)
    ranges: dict[str, Range] = field(default_factory=dict)
    newest: float = 0.0
    changed: bool = True
    published_at: float = -inf

    def count(self, spec: LoopSpec, event: Event) -> None:
        """Count a readable event, whatever its time; the caller has chosen the window."""
        message = event.message
        self.events += 1
        self.changed = True
        # A producer whose clock is fast makes no data fresh.
        self.newest = max(self.newest, min(event.time, event.arrival_time or event.time))
        self.tallies.count(event)
        if isinstance(message, behavior.Interaction):
            known = message.type in self.types or len(self.types) < _MAX_TYPES
            self.types[message.type if known else OTHER_TYPES] += 1
            declared = spec.events.interactions.get(message.type)
            if message.HasField("value"):
                self._range(VALUE).add(message.value)
            elif declared is not None and declared.value is not None:
                self._range(VALUE).add(None)
        elif isinstance(message, behavior.ItemChanged | behavior.UserChanged):
            scope = "item" if isinstance(message, behavior.ItemChanged) else "user"
            for name, declared_field in spec.fields(scope).items():
                if isinstance(declared_field, NumberField):
                    given = message.fields.get(name)
                    is_number = given is not None and given.WhichOneof("kind") == "number"
                    self._range(name).add(given.number if given is not None and is_number else None)

    def _range(self, name: str) -> Range:
        return self.ranges.setdefault(name, Range())

    def message(self, source: str, partition: int, *, seconds: float, final: bool) -> pb.QualityWindow:
        """The window as it is published, so far.

        Args:
            source: full name of the topic.
            partition: its number.
            seconds: length of the window.
            final: whether nothing is added to it any more.
        """
        published = pb.QualityWindow(
            loop=source.partition(".")[0],
            topic=source,
            events=self.events,
            unreadable=self.unreadable,
            types=self.types,
            ranges=[each.message(name) for name, each in sorted(self.ranges.items())],
            partition=partition,
            final=final,
            tallies=self.tallies.published(),
        )
        if self.events:
            published.newest_event_time.FromNanoseconds(round(self.newest * 1e9))
        published.window_start_time.FromNanoseconds(round(self.start * 1e9))
        published.window_end_time.FromNanoseconds(round((self.start + seconds) * 1e9))
        return published


class PartitionWindows:
    """The open windows of one topic partition: which record counts in which, and which are to be published.

    Args:
        spec: the loop.
        source: full name of the topic.
        partition: its number.
        tallies: makes those of a new window.
        closed_until: event time before which every window was published finally, by whomever, unix seconds.
        again_s: wall seconds before a published window is published again as it stands: what its tallies say is worked
            out anew each time, and late events come one by one.
    """

    def __init__(
        self,
        spec: LoopSpec,
        source: str,
        partition: int,
        *,
        tallies: Callable[[], Tallies],
        closed_until: float,
        again_s: float = 0.0,
    ) -> None:
        self.source, self.partition, self._tallies, self._again_s = source, partition, tallies, again_s
        self._spec, self._seconds = spec, spec.quality.window_s
        self._now = closed_until
        self._closed_until = closed_until
        self._windows: dict[float, Window] = {}
        self._unplaced = 0
        self._unplaced_from = 0
        self.next_offset = 0

    def observe(self, now: float) -> None:
        """Move the partition's time on to `now`, unix seconds; an earlier time changes nothing. Counts no record."""
        self._now = max(self._now, now)

    def count(self, offset: int, event: Event | None) -> str | None:
        """Count a record, None for one that cannot be read.

        Answer why it was left out, COUNTED or WINDOW_CLOSED, or None.

        A record without an event has no time of its own and falls into the window of the partition's time. A record at
        an offset that was counted already is left out.
        """
        if offset < self.next_offset:
            return "COUNTED"
        self.next_offset = offset + 1
        if event is None:
            self._count_unreadable(offset)
            return None
        start = self._start_of(event.time)
        if start < self._closed_until:
            return "WINDOW_CLOSED"
        self._window(start, offset).count(self._spec, event)
        return None

    def skip(self, offset: int) -> str | None:
        """Move `next_offset` past a record that no window takes; answer COUNTED where that was done before, or None."""
        was_counted = offset < self.next_offset
        self.next_offset = max(self.next_offset, offset + 1)
        return "COUNTED" if was_counted else None

    def _count_unreadable(self, offset: int) -> None:
        start = max(self._start_of(self._now), self._closed_until) if isfinite(self._now) and self._now > 0 else None
        if start is None:
            # The replay clock has not begun: the first event's window takes it.
            self._unplaced_from = self._unplaced_from if self._unplaced else offset
            self._unplaced += 1
            return
        window = self._window(start, offset)
        window.unreadable += 1
        window.changed = True

    def _window(self, start: float, offset: int) -> Window:
        window = self._windows.get(start)
        if window is None:
            first = self._unplaced_from if self._unplaced else offset
            window = self._windows[start] = Window(start, first, self._tallies())
            window.unreadable, self._unplaced = self._unplaced, 0
            self._rest_before(self._start_of(self._now) - _COMPARED * self._seconds)
        return window

    def _rest_before(self, start: float) -> None:
        for window in self._windows.values():
            if window.start < start:
                window.tallies.end_comparisons()

    def _start_of(self, time: float) -> float:
        return floor(time / self._seconds) * self._seconds

    @property
    def resume_offset(self) -> int:
        """The offset at which a successor begins: the lowest that feeds an open window, else the next to come."""
        waiting = self._unplaced_from if self._unplaced else self.next_offset
        return min((each.first_offset for each in self._windows.values()), default=waiting)

    def due(self, *, idle: bool) -> Iterator[tuple[Window, pb.QualityWindow]]:
        """The windows to publish now and their messages, oldest first; call `published` after each.

        Args:
            idle: no record came for so long that open windows are published as they stand.
        """
        if idle and self._spec.clock == "wall":
            self._now = max(self._now, wall_time())
        now, final_before = self._now, self._now - self._spec.max_lateness_s
        for start in sorted(self._windows):
            window, end = self._windows[start], start + self._seconds
            final = end <= final_before
            is_turn = monotonic() - window.published_at >= self._again_s
            if final or (window.changed and is_turn and (idle or end <= now)):
                yield window, window.message(self.source, self.partition, seconds=self._seconds, final=final)

    def published(self, window: Window, *, final: bool) -> None:
        """Note that a window was published as it stands.

        A final one is dropped, and later events in it are left out.
        """
        window.changed, window.published_at = False, monotonic()
        if final:
            self._closed_until = max(self._closed_until, window.start + self._seconds)
            del self._windows[window.start]
