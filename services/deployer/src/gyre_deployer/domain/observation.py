"""What the gateways see of the versions: counts from their reports, summed from a moment on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from gyre_core.statistics import percentile


@dataclass(frozen=True, slots=True)
class Counts:
    """Requests of one version.

    Attributes:
        requests: that it was to score.
        failures: of these, those that it failed to score in time.
        bounds: upper bounds of the latency buckets, seconds.
        latencies: scored requests by bucket, one more than bounds.
    """

    requests: int = 0
    failures: int = 0
    bounds: tuple[float, ...] = ()
    latencies: tuple[int, ...] = ()

    @property
    def scored(self) -> int:
        """Requests with a known latency."""
        return sum(self.latencies)

    def since(self, earlier: Counts) -> Counts:
        """What was added after `earlier`; all of it where a counter shrank, because the gateway began anew."""
        comparable = self.bounds == earlier.bounds
        steps = [now - then for now, then in zip(self.latencies, earlier.latencies, strict=False)]
        pairs = (self.requests - earlier.requests, self.failures - earlier.failures, *(steps if comparable else ()))
        if min(pairs) < 0:
            return self
        latencies = tuple(steps) if comparable else self.latencies
        return Counts(self.requests - earlier.requests, self.failures - earlier.failures, self.bounds, latencies)

    def plus(self, more: Counts) -> Counts:
        """The sum; latencies in other buckets than ours, from a gateway of another release, are left out."""
        requests, failures = self.requests + more.requests, self.failures + more.failures
        if not self.bounds:
            return Counts(requests, failures, more.bounds, more.latencies)
        if more.bounds != self.bounds:
            return Counts(requests, failures, self.bounds, self.latencies)
        latencies = tuple(a + b for a, b in zip(self.latencies, more.latencies, strict=True))
        return Counts(requests, failures, self.bounds, latencies)

    def slower_than(self, limit_s: float) -> int:
        """Requests that surely took longer: those of the buckets that lie above the limit as a whole."""
        lower = (0.0, *self.bounds)
        return sum(count for bound, count in zip(lower, self.latencies, strict=False) if bound >= limit_s)

    def p99_s(self) -> float:
        """The 99th percentile, seconds; infinite in the open bucket, NaN without requests."""
        return percentile(self.bounds, self.latencies, 0.99) if self.latencies else float("nan")


@dataclass(frozen=True, slots=True)
class Report:
    """What one gateway said last.

    Attributes:
        instance: the gateway process.
        epoch: the newest that all of its new requests use.
        time: of the report, unix seconds.
        lease_s: how long it holds.
        is_leaving: it takes no more requests.
        counts: by version, since the gateway started.
        tripped: versions that it keeps requests from.
    """

    instance: str
    epoch: int
    time: float
    lease_s: float
    is_leaving: bool = False
    counts: Mapping[str, Counts] = field(default_factory=dict)
    tripped: frozenset[str] = frozenset()

    def is_live(self, now: float) -> bool:
        """Whether the gateway may still be sending requests."""
        return not self.is_leaving and now <= self.time + self.lease_s


@dataclass(frozen=True, slots=True)
class Observation:
    """Counts by version since a moment, over all gateways.

    Attributes:
        last: the newest counters by (instance, version).
        totals: what was added to them, by version.
    """

    last: Mapping[tuple[str, str], Counts]
    totals: Mapping[str, Counts] = field(default_factory=dict)

    @classmethod
    def begin(cls, reports: Iterable[Report]) -> Observation:
        """Count from these reports on."""
        return cls({(each.instance, version): counts for each in reports for version, counts in each.counts.items()})

    def advanced(self, reports: Iterable[Report]) -> Observation:
        """Take in newer reports; the same report again adds nothing."""
        last, totals = dict(self.last), dict(self.totals)
        for report in reports:
            for version, counts in report.counts.items():
                added = counts.since(last.get((report.instance, version), Counts()))
                last[report.instance, version] = counts
                totals[version] = totals.get(version, Counts()).plus(added)
        return Observation(last, totals)

    def of(self, version: str) -> Counts:
        """What was seen of a version."""
        return self.totals.get(version, Counts())


def lagging(reports: Iterable[Report], epoch: int, now: float) -> list[str]:
    """Live gateways that have not acknowledged an epoch yet."""
    return [each.instance for each in reports if each.is_live(now) and each.epoch < epoch]


def tripped(reports: Iterable[Report], version: str, epoch: int, now: float) -> list[str]:
    """Live gateways that keep requests from a version, under `epoch` or a later one."""
    return [each.instance for each in reports if each.is_live(now) and each.epoch >= epoch and version in each.tripped]
