"""What the gateways see of the versions: counts from their reports, summed from a moment on.

What can be held against a candidate leaves out *spoiled* intervals, those in which the live model suffered as a
candidate at its limits would, since what stalls both, such as the server that they share, says nothing of the
candidate. The sums over all intervals may speak for it: one that is good where the live model is not should replace it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf

from gyre_core.statistics import percentile

SETTLING_S = 5.0
"""The longest that an interval waits for one after it that says how the live model was; more where deadlines are."""
BREACH_HOLDS_S = 30.0
"""The longest that a breach spoils what follows while nothing says how the live model is."""
FORGET_S = 120.0
"""How long after the end of its lease a gateway is forgotten: each process reports under a name of its own."""


@dataclass(frozen=True, slots=True)
class VersionRequests:
    """Requests of one version.

    Attributes:
        requests: that it was to score.
        failures: of these, those that it failed to score in time.
        bounds: upper bounds of the latency buckets, seconds.
        latencies: scored requests by bucket, one more than bounds.
        paced: requests with too little time for the counts above whose pace says whether the version stood still.
        stalled: of these, those that failed or were late.
    """

    requests: int = 0
    failures: int = 0
    bounds: tuple[float, ...] = ()
    latencies: tuple[int, ...] = ()
    paced: int = 0
    stalled: int = 0

    @property
    def has_outcomes(self) -> bool:
        """Whether the counts say how the version was."""
        return bool(self.requests or self.paced)

    @property
    def scored(self) -> int:
        """Requests with a known latency."""
        return sum(self.latencies)

    def since(self, earlier: VersionRequests) -> VersionRequests:
        """What was added after `earlier`; all of it where a counter shrank, because the gateway began anew."""
        comparable = self.bounds == earlier.bounds
        steps = [now - then for now, then in zip(self.latencies, earlier.latencies, strict=False)]
        counts = self._counts()
        grown = [now - then for now, then in zip(counts, earlier._counts(), strict=True)]
        if min(*grown, *(steps if comparable else ())) < 0:
            return self
        return self._of(grown, self.bounds, tuple(steps) if comparable else self.latencies)

    def plus(self, more: VersionRequests) -> VersionRequests:
        """The sum; latencies in other buckets than ours, from a gateway of another release, are left out."""
        counts = [a + b for a, b in zip(self._counts(), more._counts(), strict=True)]
        if not self.bounds:
            return self._of(counts, more.bounds, more.latencies)
        if more.bounds != self.bounds:
            return self._of(counts, self.bounds, self.latencies)
        return self._of(counts, self.bounds, tuple(a + b for a, b in zip(self.latencies, more.latencies, strict=True)))

    def _counts(self) -> tuple[int, ...]:
        return self.requests, self.failures, self.paced, self.stalled

    @staticmethod
    def _of(counts: Sequence[int], bounds: tuple[float, ...], latencies: tuple[int, ...]) -> VersionRequests:
        requests, failures, paced, stalled = counts
        return VersionRequests(requests, failures, bounds, latencies, paced=paced, stalled=stalled)

    def slower_than(self, limit_s: float) -> int:
        """Requests that surely took longer: those of the buckets that lie above the limit as a whole."""
        lower = (0.0, *self.bounds)
        return sum(count for bound, count in zip(lower, self.latencies, strict=False) if bound >= limit_s)

    def p99_s(self) -> float:
        """The 99th percentile, seconds; infinite in the open bucket, NaN without requests."""
        return percentile(self.bounds, self.latencies, 0.99) if self.latencies else float("nan")


@dataclass(frozen=True, slots=True)
class ObservedGateway:
    """What one gateway said last.

    Attributes:
        instance: the gateway process.
        epoch: the newest that all of its new requests use.
        time: when the report came, seconds on the reader's monotonic clock.
        lease_s: how long it holds from then on.
        is_leaving: it takes no more requests.
        counts: by version, since the gateway started.
        tripped: versions that it keeps requests from.
        without_features: by version, requests that are in no counts, since they got no features of its layout.
    """

    instance: str
    epoch: int
    time: float
    lease_s: float
    is_leaving: bool = False
    counts: Mapping[str, VersionRequests] = field(default_factory=dict)
    tripped: frozenset[str] = frozenset()
    without_features: Mapping[str, int] = field(default_factory=dict)

    def is_live(self, now: float) -> bool:
        """Whether the gateway may still be sending requests."""
        return not self.is_leaving and now <= self.time + self.lease_s


@dataclass(frozen=True, slots=True)
class Interval:
    """What one gateway saw between two of its reports: one second, or more where the deployer was busy meanwhile.

    Attributes:
        time: when the deployer learnt of it, seconds on its monotonic clock.
        candidate: requests that the candidate was to score.
        live: requests that the live model was to score.
        is_breached: the live model was past a limit of the guardrails.
    """

    time: float
    candidate: VersionRequests
    live: VersionRequests
    is_breached: bool


@dataclass(frozen=True, slots=True)
class Series:
    """The newest intervals of one gateway, oldest first, which are not judged yet.

    Attributes:
        waiting: the intervals.
        breach_time: when live was last seen past a limit, monotonic seconds; -inf once it was seen well again.
    """

    waiting: tuple[Interval, ...] = ()
    breach_time: float = -inf

    def judged(self, now: float, settling_s: float) -> tuple[list[tuple[Interval, bool]], Series]:
        """Take out the intervals of which it is known whether they are spoiled, each with the answer.

        A stall begins and ends within intervals, and the first to time out in it may be the candidate's requests alone.
        So an interval is spoiled, too, by a breach in the last one before it that says how the live model was, or in
        the next one that does.
        """
        judged, series = [], self
        while series.waiting:
            interval, later = series.waiting[0], series.waiting[1:]
            following = next((each for each in later if each.live.has_outcomes), None)
            if following is None and now - interval.time < settling_s:
                break
            follows_breach = interval.time - series.breach_time <= BREACH_HOLDS_S
            breaches = (follows_breach, interval.is_breached, following is not None and following.is_breached)
            judged.append((interval, any(breaches)))
            series = Series(later, series.breach_time)
            if interval.live.has_outcomes:
                series = Series(later, interval.time if interval.is_breached else -inf)
        return judged, series


@dataclass(frozen=True, slots=True)
class Observation:
    """A candidate beside the live model since a moment, over all gateways.

    Attributes:
        versions: the candidate's and the live model's.
        is_breach: whether counts of one interval are past a limit of the guardrails.
        last: the newest counters by (instance, version).
        times: of the newest report of each gateway, see `ObservedGateway`.
        series: by gateway, what is not judged yet.
        candidate: what was seen of the candidate in intervals that are not spoiled.
        live: the same of the live model.
        candidate_in_all: what was seen of the candidate in all intervals that were judged.
        live_in_all: the same of the live model.
        spoiled: intervals left out since the live model suffered in them, or beside them.
        spoiled_times: of the first and the last of these in which the candidate had requests, monotonic seconds; empty
            for none.
        settling_s: how long an interval waits for one after it that says how the live model was, seconds.
    """

    versions: tuple[str, str]
    is_breach: Callable[[VersionRequests], bool]
    last: Mapping[tuple[str, str], VersionRequests]
    times: Mapping[str, float] = field(default_factory=dict)
    series: Mapping[str, Series] = field(default_factory=dict)
    candidate: VersionRequests = VersionRequests()
    live: VersionRequests = VersionRequests()
    candidate_in_all: VersionRequests = VersionRequests()
    live_in_all: VersionRequests = VersionRequests()
    spoiled: int = 0
    spoiled_times: tuple[float, ...] = ()
    settling_s: float = SETTLING_S

    @property
    def spoiled_s(self) -> float:
        """For how long what the candidate did was spoiled, from its first request so to the last one, seconds."""
        return self.spoiled_times[-1] - self.spoiled_times[0] if self.spoiled_times else 0.0

    @classmethod
    def begin(
        cls,
        reports: Iterable[ObservedGateway],
        versions: tuple[str, str],
        is_breach: Callable[[VersionRequests], bool],
        *,
        settling_s: float = SETTLING_S,
    ) -> Observation:
        """Count from these reports on."""
        reports = list(reports)
        last = {(each.instance, version): counts for each in reports for version, counts in each.counts.items()}
        return cls(versions, is_breach, last, {each.instance: each.time for each in reports}, settling_s=settling_s)

    def advanced(self, reports: Iterable[ObservedGateway], now: float) -> Observation:
        """Take in newer reports; the same report again adds nothing.

        A gateway that was not seen before, or not for `FORGET_S`, is counted from this report on: it counts since it
        began, and what it saw meanwhile is no interval that can be judged.
        """
        last, times, series = dict(self.last), dict(self.times), dict(self.series)
        for report in reports:
            before = times.get(report.instance)
            times[report.instance] = report.time
            grown = {}
            for version in self.versions:
                counts = report.counts.get(version, VersionRequests())
                grown[version] = counts.since(last.get((report.instance, version), VersionRequests()))
                last[report.instance, version] = counts
            if before is None or report.time - before > FORGET_S:
                continue
            candidate, live = (grown[version] for version in self.versions)
            if candidate.requests or live.has_outcomes:
                interval = Interval(now, candidate, live, self.is_breach(live))
                known = series.get(report.instance, Series())
                series[report.instance] = replace(known, waiting=(*known.waiting, interval))
        return replace(self, last=last, times=times, series=series).settled(now)

    def settled(self, now: float) -> Observation:
        """Sum up what can be judged by now."""
        seen = self
        for instance, each in self.series.items():
            judged, rest = each.judged(now, self.settling_s)
            seen = replace(seen, series={**seen.series, instance: rest})
            for interval, is_spoiled in judged:
                seen = seen.counted(interval, is_spoiled=is_spoiled)
        return seen

    def counted(self, interval: Interval, *, is_spoiled: bool) -> Observation:
        """With one more interval that was judged."""
        seen = replace(
            self,
            candidate_in_all=self.candidate_in_all.plus(interval.candidate),
            live_in_all=self.live_in_all.plus(interval.live),
        )
        if is_spoiled:
            times = (*self.spoiled_times[:1], interval.time) if interval.candidate.requests else self.spoiled_times
            return replace(seen, spoiled=self.spoiled + 1, spoiled_times=times)
        return replace(seen, candidate=self.candidate.plus(interval.candidate), live=self.live.plus(interval.live))


def without_features(reports: Iterable[ObservedGateway], version: str) -> dict[str, int]:
    """Requests of a version that got no features of its layout, since each gateway began, by gateway."""
    return {each.instance: each.without_features.get(version, 0) for each in reports}


def lagging(reports: Iterable[ObservedGateway], epoch: int, now: float) -> list[str]:
    """Live gateways that have not acknowledged an epoch yet."""
    return [each.instance for each in reports if each.is_live(now) and each.epoch < epoch]


def tripped(reports: Iterable[ObservedGateway], version: str, epoch: int, now: float) -> list[str]:
    """Live gateways that keep requests from a version, under `epoch` or a later one."""
    return [each.instance for each in reports if each.is_live(now) and each.epoch >= epoch and version in each.tripped]
