"""The checks of the newest windows of the raw stream, by the same thresholds as those of a training run's snapshot."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from gyre.events.v1 import features_pb2 as pb
from gyre_core.spec import LoopSpec
from gyre_core.topics import topic
from gyre_quality.completeness import check_freshness, check_volume
from gyre_quality.report import Check

from gyre_features.quality.report import QualityWindows
from gyre_features.quality.tallies import merged

_INTERACTIONS = "behavior.interactions"
_BEHAVIOR = ("behavior.impressions", _INTERACTIONS)
_MAX_PERIODS = 28
"""As many windows as a snapshot's check of volume has periods."""
_MIN_PERIODS = 3


@dataclass(frozen=True)
class Judged:
    """What the checks of windows said.

    Attributes:
        checks: the findings, passed or not.
        undecided: names of checks of which no column has seen enough to say anything.
    """

    checks: tuple[Check, ...] = ()
    undecided: frozenset[str] = frozenset()


def windows_needed(spec: LoopSpec) -> int:
    """How many of the newest windows of each topic the checks of a loop look at, open and past ones together."""
    open_ones = int(spec.max_lateness_s // spec.quality.window_s) + 1
    return max(spec.quality.live.windows, _MAX_PERIODS + 1 + open_ones)


def judge_windows(spec: LoopSpec, windows: QualityWindows, *, now: float) -> Judged:
    """Judge the newest `quality.live.windows` windows of a loop; publishes nothing.

    A replay's clock moves with its events, so that freshness and volume say something on the wall clock only.

    Args:
        spec: the loop.
        windows: of all loops.
        now: wall time, unix seconds.
    """
    newest = windows.newest(spec.loop, spec.quality.live.windows)
    tallies = merged([*(tally for each in newest for tally in each.tallies), *_unreadable(newest)])
    decided = [each for each in tallies if _decides(spec, each)]
    checks = [_check(spec, each) for each in decided]
    if spec.clock == "wall":
        checks += [*_freshness(spec, newest, now), *_volume(spec, windows, now)]
    names = {check.name for check in checks}
    return Judged(tuple(checks), frozenset(each.name for each in tallies) - names)


def _unreadable(windows: Iterable[pb.QualityWindow]) -> Iterable[pb.CheckTally]:
    for each in windows:
        column, seen = each.topic.partition(".")[2], each.events + each.unreadable
        yield pb.CheckTally(name="completeness.unreadable", column=column, seen=seen, at_fault=each.unreadable)


def _decides(spec: LoopSpec, tally: pb.CheckTally) -> bool:
    """Whether so many events say something; where none may be at fault, each does."""
    return tally.seen >= spec.quality.live.min_events or _threshold(spec, tally) == 0


def _threshold(spec: LoopSpec, tally: pb.CheckTally) -> float:
    """The share that may be at fault."""
    checks, complete = spec.quality.checks, spec.quality.checks.completeness
    if tally.name == "completeness.missing":
        # The types of interactions share one limit, as in a snapshot.
        column = "interactions.value" if tally.column.startswith("interactions.value.") else tally.column
        return complete.columns.get(column, complete.max_missing)
    limits = {
        "completeness.unreadable": complete.max_unreadable,
        "completeness.range": checks.ranges.max_share,
        "completeness.duplicates": checks.duplicates.max_share,
        "sequence.before_impression": checks.sequences.max_share,
        "sequence.never_shown": checks.sequences.max_share,
        "bots": checks.bots.max_share,
        "personal_data": checks.personal_data.max_share,
    }
    return limits[tally.name]


def _check(spec: LoopSpec, tally: pb.CheckTally) -> Check:
    share, threshold = tally.at_fault / max(tally.seen, 1), _threshold(spec, tally)
    detail = f"{tally.at_fault} of {tally.seen} in the newest {spec.quality.live.windows} windows"
    return Check(tally.name, tally.column, share, threshold, share <= threshold, detail)


def _freshness(spec: LoopSpec, newest: Iterable[pb.QualityWindow], now: float) -> Iterable[Check]:
    names = {topic(spec.loop, suffix) for suffix in _BEHAVIOR}
    times = [each.newest_event_time.ToNanoseconds() / 1e9 for each in newest if each.topic in names and each.events]
    if times:
        yield check_freshness(times, now, spec.quality.checks.freshness.max_age.seconds)


def _volume(spec: LoopSpec, windows: QualityWindows, now: float) -> Iterable[Check]:
    """The newest window that nothing can be added to, beside those before it; one that nobody published was empty."""
    length, counts = spec.quality.window_s, windows.counts(topic(spec.loop, _INTERACTIONS))
    if not counts:
        return
    newest = (now - spec.max_lateness_s) // length * length - length
    first = max(min(counts), newest - _MAX_PERIODS * length)
    history = [counts.get(newest - back * length, 0) for back in range(1, int((newest - first) // length) + 1)]
    if len(history) >= _MIN_PERIODS:
        found = check_volume(counts.get(newest, 0), history, max_z=spec.quality.checks.volume.max_z)
        yield replace(found, column="interactions")
