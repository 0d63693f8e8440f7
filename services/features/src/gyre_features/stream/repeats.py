"""Which events of a batch count: not what a producer sent twice, nor later impressions of a request.

What counted before, only the store knows. It keeps the identities of each topic partition's two newest windows of
append times (`gyre_core.append_windows`), under the checkpoint that says how far the partition is applied. So
what it knows at an offset follows from the log alone, whenever and in whatever batches that is read.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b

from gyre.events.v1 import behavior_pb2 as behavior
from gyre_core.append_windows import AppendWindow, AppendWindows
from gyre_runtime.checkpoints import Checkpoint, Place
from gyre_runtime.events import Event

from gyre_features.online.script import AppliedOffsets, Identities, RepeatedIdentity

_IDENTITY_BYTES = 8


def identity(source: str, event_id: str) -> bytes:
    """Eight bytes, a hash of (source, id), that stand for an event among the applied identities."""
    return blake2b(f"{source}\0{event_id}".encode(), digest_size=_IDENTITY_BYTES).digest()


def request_identity(user_id: str, request_id: str) -> bytes:
    """Eight bytes, a hash, that stand there for one user's request, of which only the first impression counts."""
    text = f"{user_id}\0{request_id}".encode()
    return blake2b(text, digest_size=_IDENTITY_BYTES, person=b"request").digest()


class _PlaceWindows:
    """The windows that a topic partition's log passes through from a checkpoint on, by offset."""

    __slots__ = ("_end", "_firsts", "_windows", "_within")

    def __init__(self, window_s: int, checkpoint: Checkpoint) -> None:
        self._windows = AppendWindows(window_s, checkpoint.append_window)
        self._end = checkpoint.offset
        self._firsts, self._within = [-1], [(self._windows.number, self._windows.window)]

    def number_of(self, event: Event) -> int:
        """The number of the window that an event is in; what was not looked at before comes in the log's order."""
        if event.offset < self._end:
            return self._within[bisect_right(self._firsts, event.offset) - 1][0]
        self._end = event.offset + 1
        number = self._windows.reach(event.arrival_time)
        if self._windows.window != self._within[-1][1]:
            self._firsts.append(event.offset)
            self._within.append((number, self._windows.window))
        return number

    def reached(self, offset: int) -> tuple[int, AppendWindow]:
        """The number of the window that the log has reached once all before an offset is applied, and that window."""
        return self._within[bisect_left(self._firsts, offset) - 1]

    def applied(self, offset: int) -> None:
        """Forget the windows that nobody asks for once all before an offset is applied."""
        passed = bisect_left(self._firsts, offset) - 1
        del self._firsts[:passed], self._within[:passed]


@dataclass(slots=True)
class _Identities:
    """The identities of one topic partition in one batch: of each the newest window that it stands in, and the runs."""

    newest: dict[bytes, int] = field(default_factory=dict)
    runs: list[tuple[int, list[bytes]]] = field(default_factory=list)

    def is_repeat(self, code: bytes, number: int) -> bool:
        """Whether an identity came before in a window, or in the one before it; otherwise it does from now on."""
        before = self.newest.get(code)
        if before is not None and number - before < 2:
            return True
        self.newest[code] = number
        if not self.runs or self.runs[-1][0] != number:
            self.runs.append((number, []))
        self.runs[-1][1].append(code)
        return False


@dataclass(frozen=True, slots=True)
class WithoutRepeats:
    """What counts of a batch.

    Attributes:
        kept: the events that count, those of the catalogue first.
        runs: by topic partition, the identities to remember, those of later impressions of a request, too: by the
            number of their window, in the order of the log.
        repeats: how many events were left out as repeats, by reason; those of forgotten users are not counted.
        version: the filter's, when they were selected.
    """

    kept: list[Event]
    runs: Mapping[Place, Sequence[tuple[int, Sequence[bytes]]]]
    repeats: Mapping[str, int]
    version: int


class RepeatFilter:
    """Leaves out of one virtual shard's batches what counts for nothing: repeats, and behaviour of forgotten users.

    It holds no identities from before a batch, which only the store knows; what it keeps between batches is where in
    each topic partition the windows of append times begin.

    Args:
        window_s: length of a window of append times, seconds.
        counts_impressions: whether the layout has features of impressions; otherwise those count for nothing.
        forgotten: whether an event is of a user who was forgotten.

    Attributes:
        version: grows with each `restart`; what was selected under a lower one has other numbers of windows.
    """

    def __init__(self, window_s: int, *, counts_impressions: bool, forgotten: Callable[[Event], bool]) -> None:
        self._window_s, self._counts_impressions, self._forgotten = window_s, counts_impressions, forgotten
        self._places: dict[Place, _PlaceWindows] = {}
        self.version = 0

    def restart(self, checkpoints: Mapping[Place, Checkpoint]) -> None:
        """Take the windows of topic partitions from the store's checkpoints; what was selected before is stale."""
        self.version += 1
        for place, checkpoint in checkpoints.items():
            self._places[place] = _PlaceWindows(self._window_s, checkpoint)

    def applied(self, ends: Mapping[Place, Checkpoint]) -> None:
        """Drop the windows before some checkpoints, which the store has applied.

        Places that are unknown are ignored.
        """
        for place, end in ends.items():
            if place in self._places:
                self._places[place].applied(end.offset)

    def select(self, events: Iterable[Event], known: frozenset[RepeatedIdentity]) -> WithoutRepeats:
        """The events that count, without repeats of earlier ones of the batch and what only moves applied offsets.

        Nothing is remembered of the identities until the store has applied them: the same batch may be selected again.

        Args:
            events: that the store does not hold; each topic partition's in the order of its offsets.
            known: those that the store's script found to be repeats of what it holds.
        """
        kept: list[Event] = []
        behaved: list[Event] = []
        repeats: Counter[str] = Counter()
        found: dict[Place, _Identities] = {}
        for event in events:
            if isinstance(event.message, behavior.ItemChanged):
                kept.append(event)
            elif self._forgotten(event):
                continue
            elif isinstance(event.message, behavior.UserChanged):
                kept.append(event)
            elif self._counts_impressions or isinstance(event.message, behavior.Interaction):
                if reason := self._repeat(event, found, known):
                    repeats[reason] += 1
                else:
                    behaved.append(event)
        runs = {place: own.runs for place, own in found.items()}
        return WithoutRepeats([*kept, *behaved], runs, repeats, self.version)

    def _repeat(self, event: Event, found: dict[Place, _Identities], known: frozenset[RepeatedIdentity]) -> str:
        """Why an event is a repeat; an empty text where it is none."""
        place, message = (event.topic, event.partition), event.message
        own, windows = found.get(place), self._places.get(place)
        if own is None:
            own = found[place] = _Identities()
        if windows is None:
            windows = self._places[place] = _PlaceWindows(self._window_s, Checkpoint())
        number, code = windows.number_of(event), identity(event.source, event.id)
        if (known and (place, number, code) in known) or own.is_repeat(code, number):
            return "DUPLICATE"
        if isinstance(message, behavior.Impression) and message.request_id:
            code = request_identity(message.user_id, message.request_id)
            if (known and (place, number, code) in known) or own.is_repeat(code, number):
                return "DUPLICATE_REQUEST"
        return ""

    def identities(
        self, selected: WithoutRepeats, applied_offsets: AppliedOffsets, ends: Mapping[Place, Checkpoint]
    ) -> dict[Place, Identities]:
        """The identities of a batch that the store is to remember, by topic partition; those without news are missing.

        Args:
            selected: what `select` gave for the batch.
            applied_offsets: where the store stands before it; 0 for places that are missing.
            ends: the checkpoints after it.
        """
        found = {}
        for place, end in ends.items():
            windows = self._places.get(place)
            if windows is None:
                continue
            stored, _ = windows.reached(applied_offsets.get(place, 0))
            reached, _ = windows.reached(end.offset)
            runs = selected.runs.get(place, ())
            if runs or reached != stored:
                found[place] = Identities(stored, reached, runs)
        return found

    def with_append_windows(self, ends: Mapping[Place, Checkpoint]) -> dict[Place, Checkpoint]:
        """Copies of checkpoints with `append_window` set: the window of append times that the log has reached there.

        Checkpoints of places that are unknown stay as they are. No identities are in them.
        """
        places = self._places
        return {
            place: replace(end, append_window=places[place].reached(end.offset)[1]) if place in places else end
            for place, end in ends.items()
        }
