"""What `GetReport` answers from: the newest windows of each topic, its partitions added up."""

from collections.abc import Collection

from gyre.events.v1 import features_pb2 as pb

from gyre_features.quality.tallies import merged

_Windows = dict[int, dict[int, pb.QualityWindow]]


class QualityWindows:
    """The newest windows of each topic; a window published again replaces what was published before.

    Args:
        kept: how many windows of each topic at most; the oldest go.
    """

    def __init__(self, *, kept: int) -> None:
        self._max_windows = kept
        self._windows: dict[str, _Windows] = {}

    def note(self, window: pb.QualityWindow) -> None:
        """Hold what one partition published of a window, in place of what it had published of it before.

        A window that is older than all `kept` ones of its topic is not held.
        """
        windows = self._windows.setdefault(window.topic, {})
        windows.setdefault(window.window_start_time.ToNanoseconds(), {})[window.partition] = window
        if len(windows) > self._max_windows:
            del windows[min(windows)]

    def newest(self, loop: str, count: int) -> list[pb.QualityWindow]:
        """The newest `count` windows of each topic of a loop, partitions added up.

        Newest first, at one start by topic.
        """
        found = [
            added_up(windows[start].values())
            for topic, windows in self._windows.items()
            if topic.startswith(f"{loop}.")
            for start in sorted(windows, reverse=True)[:count]
        ]
        return sorted(found, key=lambda each: (-each.window_start_time.ToNanoseconds(), each.topic))

    def counts(self, topic: str) -> dict[float, int]:
        """How many readable events each window of a topic holds, by its start, unix seconds.

        Empty for an unknown topic.
        """
        return {
            start / 1e9: sum(part.events for part in parts.values())
            for start, parts in self._windows.get(topic, {}).items()
        }


def added_up(parts: Collection[pb.QualityWindow]) -> pb.QualityWindow:
    """A new window with the sums of its partitions', which are all of one window; final when each of them is."""
    whole = pb.QualityWindow(final=True)
    ranges: dict[str, pb.FieldRange] = {}
    for part in parts:
        whole.loop, whole.topic = part.loop, part.topic
        whole.window_start_time.CopyFrom(part.window_start_time)
        whole.window_end_time.CopyFrom(part.window_end_time)
        whole.events += part.events
        whole.unreadable += part.unreadable
        whole.final = whole.final and part.final
        for name, count in part.types.items():
            whole.types[name] += count
        for each in part.ranges:
            _widen(ranges.setdefault(each.field, pb.FieldRange(field=each.field)), each)
        if part.newest_event_time.ToNanoseconds() > whole.newest_event_time.ToNanoseconds():
            whole.newest_event_time.CopyFrom(part.newest_event_time)
    whole.tallies.extend(merged(tally for part in parts for tally in part.tallies))
    whole.ranges.extend(ranges[name] for name in sorted(ranges))
    return whole


def _widen(into: pb.FieldRange, part: pb.FieldRange) -> None:
    if part.count:
        into.min = min(into.min, part.min) if into.count else part.min
        into.max = max(into.max, part.max) if into.count else part.max
    into.count += part.count
    into.missing += part.missing
    into.sum += part.sum
