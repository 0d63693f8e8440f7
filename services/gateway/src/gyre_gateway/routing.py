"""Which model a user gets: the rollout view, the arms, and the local circuit that trips a failing candidate."""

from bisect import bisect_left
from collections import deque
from dataclasses import dataclass, field

from gyre.events.v1 import models_pb2
from gyre_core.experiments import Arm, assign, bucket

LATENCY_BOUNDS_S = (0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0)
LIVE, CANDIDATE = "live", "candidate"
_WINDOW, _MOST_FAILURES = 20, 5


@dataclass(frozen=True, slots=True)
class Route:
    """Where a request goes.

    Attributes:
        version: the model version; empty before the first model.
        epoch: of the rollout state.
        arm: `live`, `candidate`, or empty.
        propensity: of the arm.
        layout: that the version reads; empty when not known.
        fallback: version to try when this one fails; empty for none.
        tripped: the user's own arm is the candidate, which this gateway does not ask any more.
        traceparent: of the rollout.
        rollout_id: of the rollout.
    """

    version: str = ""
    epoch: int = 0
    arm: str = ""
    propensity: float = 1.0
    layout: str = ""
    fallback: str = ""
    tripped: bool = False
    traceparent: str = ""
    rollout_id: str = ""


@dataclass
class VersionCounts:
    """What this gateway saw of a version since it started."""

    requests: int = 0
    failures: int = 0
    latency_counts: list[int] = field(default_factory=lambda: [0] * (len(LATENCY_BOUNDS_S) + 1))
    recent: deque[bool] = field(default_factory=lambda: deque(maxlen=_WINDOW))
    tripped_epoch: int = -1


class Router:
    """One loop's routes and counts."""

    def __init__(self, loop: str, salt: str) -> None:
        self.loop = loop
        self._salt = salt
        self._view = models_pb2.RolloutView(loop=loop)
        self._arms: list[Arm] = []
        self._counts: dict[str, VersionCounts] = {}

    @property
    def epoch(self) -> int:
        """The epoch that every new request uses."""
        return self._view.epoch

    def adopt(self, view: models_pb2.RolloutView) -> bool:
        """Use a newer view from now on; answer whether it was newer."""
        if view.epoch < self._view.epoch:
            return False
        self._view = view
        self._arms = [Arm(arm.version, arm.share, view.epoch) for arm in view.arms]
        return True

    def route(self, user_id: str) -> Route:
        """Where a user's request goes now."""
        view = self._view
        if not self._arms:
            return Route(epoch=view.epoch)
        chosen, propensity = assign(self._arms, bucket(user_id, self._salt))
        arm = next(each for each in view.arms if each.version == chosen.version)
        live = next((each for each in view.arms if each.name == LIVE), None)
        tripped = arm.name == CANDIDATE and live is not None and self._is_tripped(arm.version)
        served = live if tripped and live is not None else arm
        fallback = live.version if live is not None and live.version != served.version else view.last_good_version
        return Route(
            version=served.version,
            epoch=view.epoch,
            arm=arm.name,
            propensity=propensity,
            layout=served.layout,
            fallback=fallback if fallback != served.version else "",
            tripped=tripped,
            traceparent=view.traceparent,
            rollout_id=view.rollout_id,
        )

    def _is_tripped(self, version: str) -> bool:
        counts = self._counts.get(version)
        return counts is not None and counts.tripped_epoch == self._view.epoch

    def note(self, version: str, *, seconds: float | None) -> None:
        """Count a request to a version: its latency, or None when it failed to score in time."""
        counts = self._counts.setdefault(version, VersionCounts())
        counts.requests += 1
        counts.recent.append(seconds is None)
        if seconds is not None:
            counts.latency_counts[bisect_left(LATENCY_BOUNDS_S, seconds)] += 1
            return
        counts.failures += 1
        if sum(counts.recent) >= _MOST_FAILURES:
            counts.tripped_epoch = self._view.epoch
            counts.recent.clear()

    def report(self, instance: str, *, lease_s: float, leaving: bool = False) -> models_pb2.GatewayReport:
        """The acknowledgement of the epoch with all counts."""
        report = models_pb2.GatewayReport(
            loop=self.loop, instance=instance, epoch=self.epoch, lease_s=lease_s, leaving=leaving
        )
        report.report_time.GetCurrentTime()
        for version, counts in self._counts.items():
            report.versions.add(
                version=version,
                requests=counts.requests,
                failures=counts.failures,
                latency_bounds_s=LATENCY_BOUNDS_S,
                latency_counts=counts.latency_counts,
                tripped=counts.tripped_epoch == self.epoch,
            )
        return report
