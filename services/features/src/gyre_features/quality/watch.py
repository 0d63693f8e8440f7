"""Counts the raw stream, publishes its windows, and only then moves the offsets that a successor begins at."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from functools import partial

from gyre.events.v1 import features_pb2 as pb
from gyre_core.admission import refuse_times
from gyre_core.spec import LoopSpec
from gyre_runtime import instrument
from gyre_runtime.admission import Admission, PartitionClock, Refusal, times_of
from gyre_runtime.checkpoints import Checkpoint, Place
from gyre_runtime.events import Event, MessageTypes, ReceivedRecord

from gyre_features.quality.clocks import ClockHistory
from gyre_features.quality.sketching import LiveSketches
from gyre_features.quality.tallies import LoopChecks, ShownRequests, Tallies
from gyre_features.quality.windows import PartitionWindows

_AGAIN_S = 1.0

ClosedUntil = Callable[[Collection[Place]], Awaitable[Mapping[Place, float]]]
Publish = Callable[[Sequence[pb.QualityWindow]], Awaitable[None]]
Commit = Callable[[Mapping[Place, Checkpoint]], Awaitable[None]]
ClockAt = Callable[[Place], PartitionClock]


class QualityWatch:
    """Counts the records of all partitions that this process has into windows, publishes these, and commits.

    Args:
        loops: by name.
        types: the payload classes of the topics.
        closed_until: answers for partitions the end of the last window that was published finally, unix seconds.
        publish: sends windows and returns when Kafka has them.
        commit: commits, for partitions, the offset to begin again at, with the replay clock there.
        clock_at: answers what a partition's replay clock showed where this process begins it; unset by default.
        mask: takes what the loops do not keep out of an event; None where they keep everything.
        live: sketches of served features, which are counted beside the windows.
        idle_s: wall seconds without a record after which open windows are published as they stand.
    """

    def __init__(  # noqa: PLR0913 - what it works with, given once
        self,
        loops: Mapping[str, LoopSpec],
        types: MessageTypes,
        *,
        closed_until: ClosedUntil,
        publish: Publish,
        commit: Commit,
        idle_s: float,
        clock_at: ClockAt = lambda _: PartitionClock(),
        mask: Callable[[Event], None] | None = None,
        live: LiveSketches | None = None,
    ) -> None:
        self._loops, self._idle_s = loops, idle_s
        self._admission = Admission(loops, types, mask)
        self._live = live
        self._checks = {name: LoopChecks(spec) for name, spec in loops.items()}
        self._searches = mask is not None or any(each.searches for each in self._checks.values())
        self._shown: dict[Place, ShownRequests] = {}
        self._closed_until, self._publish, self._commit = closed_until, publish, commit
        self._clock_at = clock_at
        self._clocks: dict[Place, ClockHistory] = {}
        self._partitions: dict[Place, PartitionWindows] = {}
        self._last_record: dict[Place, float] = {}
        self._committed: dict[Place, int] = {}
        self._lock = asyncio.Lock()

    async def observe(self, records: Sequence[ReceivedRecord]) -> None:
        """Count records, publish what they closed, and commit what moved.

        Within a partition they are in order of offsets.

        A partition that is new here is taken over first. Records that no window takes are counted in
        `gyre_consumer_skipped_total`.
        """
        async with self._lock:
            places = {(record.topic, record.partition) for record in records}
            await self._take_over(places - self._partitions.keys())
            # Searching texts takes milliseconds each: longer, for a batch, than faust may go without a heartbeat.
            if self._searches:
                await asyncio.to_thread(self._count_all, records)
            else:
                self._count_all(records)
            self._last_record.update(dict.fromkeys(places, time.monotonic()))
            await self._publish_due(places)

    async def tick(self) -> None:
        """Publish the windows that the passing of time closed, and commit what moved; call it about twice a second."""
        async with self._lock:
            await self._publish_due(set(self._partitions))

    async def forget(self, places: Collection[Place]) -> None:
        """Drop partitions that went to another process, unpublished and uncommitted.

        The other process counts their open windows again. Partitions that are not held are ignored.
        """
        async with self._lock:
            for place in places:
                self._partitions.pop(place, None)
                self._clocks.pop(place, None)
                self._last_record.pop(place, None)
                self._committed.pop(place, None)
                self._shown.pop(_requests_of(place), None)
            if self._live is not None:
                self._live.forget(places)

    async def _take_over(self, places: Collection[Place]) -> None:
        if not places:
            return
        known = await self._closed_until(places)
        for topic, partition in places:
            place = topic, partition
            loop = topic.partition(".")[0]
            shown = self._shown.setdefault(_requests_of(place), ShownRequests())
            tallies, until = partial(Tallies, self._checks[loop], shown), known.get(place, 0.0)
            self._partitions[place] = PartitionWindows(
                self._loops[loop], topic, partition, tallies=tallies, closed_until=until, again_s=_AGAIN_S
            )
            clock = self._clock_at(place)
            self._clocks[place] = ClockHistory(clock)
            self._admission.start(topic, partition, clock)

    def _count_all(self, records: Sequence[ReceivedRecord]) -> None:
        for record in records:
            self._count(record)

    def _count(self, record: ReceivedRecord) -> None:
        """Count a record: also an event that the loop's spec refuses for what it says, which the checks look at."""
        place = record.topic, record.partition
        windows, examined = self._partitions[place], self._admission.examine(record)
        self._clocks[place].note(record.offset + 1, self._admission.clock(*place))
        event = examined[0] if examined and isinstance(examined[0], Event) else None
        refusal = examined[-1] if examined and isinstance(examined[-1], Refusal) else None
        windows.observe(self._now(record, event if refusal is None else None))
        if not examined:
            windows.skip(record.offset)
            return
        if self._live is not None:
            self._live.count(place, record.offset, event if refusal is None else None)
        untimely = refusal is not None and event is not None and self._untimely(event)
        left_out = windows.skip(record.offset) if untimely else windows.count(record.offset, event)
        reason = left_out if refusal is None else refusal.reason
        if reason:
            loop = record.topic.partition(".")[0]
            instrument("gyre_consumer_skipped_total").add(loop=loop, topic=record.topic, reason=reason)

    def _now(self, record: ReceivedRecord, admitted: Event | None) -> float:
        """A partition's time after a record: Kafka's time of it; in a replay that of its events, -inf before any."""
        if self._loops[record.topic.partition(".")[0]].clock == "wall":
            return record.timestamp / 1000
        clock = self._admission.clock(record.topic, record.partition)
        return clock.newest if clock.is_set or admitted is None else admitted.time

    def _untimely(self, event: Event) -> bool:
        """Whether an event is too old or in the future, whatever else is wrong with it."""
        spec = self._loops[event.topic.partition(".")[0]]
        return (
            refuse_times(spec, self._admission.clock(event.topic, event.partition), times_of(spec, event)) is not None
        )

    def _idle(self, place: Place) -> bool:
        now = time.monotonic()
        return now - self._last_record.get(place, now) >= self._idle_s

    async def _publish_due(self, places: Collection[Place]) -> None:
        due = [
            (self._partitions[place], window, message)
            for place in places
            for window, message in self._partitions[place].due(idle=self._idle(place))
        ]
        if due:
            await self._publish([message for _, _, message in due])
        for windows, window, message in due:
            windows.published(window, final=message.final)
            instrument("gyre_quality_windows_total").add(loop=message.loop, topic=message.topic)
        resume = {place: self._partitions[place].resume_offset for place in places}
        if self._live is not None:
            await self._live.publish_due(places, self._idle)
            resume = {place: self._live.resume_offset(place, offset) for place, offset in resume.items()}
        moved = {place: offset for place, offset in resume.items() if offset > self._committed.get(place, 0)}
        if moved:
            await self._commit({each: Checkpoint(to, clock=self._clocks[each].at(to)) for each, to in moved.items()})
            self._committed.update(moved)
            for place, offset in moved.items():
                self._clocks[place].forget_before(offset)


def _requests_of(place: Place) -> Place:
    """Under what the requests of a partition are kept: its loop, whatever the topic, and its number."""
    return place[0].partition(".")[0], place[1]
