"""Whether it is a candidate's doing that the model server goes away again and again: an experiment decides.

A server goes away for many reasons, so an outage says nothing of the candidate that had traffic meanwhile, and never
counts against it. But a candidate whose requests end the server must not do so for ever. At each outage its traffic is
withdrawn, until the server has answered for a pause without it. If outages have nothing to do with the candidate, the
next one comes during that pause, rather than within a third of its length after the traffic returned, with a
probability of 3/4 at least. So `MAX_SUSPICIOUS_OUTAGES` that come soon after traffic, one after the other with none in
a pause, happen to an innocent candidate with a probability of (1/4)^5 at most, which is below `guardrails.LEVEL`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from gyre_deployer.domain.rollouts import Change, Kind, Rollout

MAX_SUSPICIOUS_OUTAGES = 5
"""Suspicious outages in a row, with none while the candidate had no traffic, after which it is rolled back."""
MAX_PAUSE_S = 600.0
"""The longest pause without traffic, seconds."""
_PAUSE_TO_TRAFFIC = 3.0
"""How many times as long as the candidate had traffic before an outage the pause is, or was for it to be suspicious."""


@dataclass(frozen=True, slots=True)
class OutageTrial:
    """The evidence on whether one candidate's traffic makes the model server go away, from the outages so far.

    Attributes:
        first_pause_s: the first pause, seconds; it doubles with each outage under traffic, up to `MAX_PAUSE_S`.
        outages: how many came while the candidate had traffic.
        suspicious: of the last ones, how many came soon after traffic returned, with none without traffic since.
        pause_s: how long the server must answer before the traffic returns, seconds.
        traffic_since: when the traffic began or returned, unix seconds; None while there is none.
    """

    first_pause_s: float
    outages: int = 0
    suspicious: int = 0
    pause_s: float = 0.0
    traffic_since: float | None = None

    @property
    def is_failed(self) -> bool:
        """Whether the outages are held against the candidate."""
        return self.suspicious >= MAX_SUSPICIOUS_OUTAGES

    def with_traffic(self, time: float) -> OutageTrial:
        """The trial after the candidate got traffic, or more of it."""
        return self if self.traffic_since is not None else replace(self, traffic_since=time)

    def with_outage(self, time: float) -> OutageTrial:
        """After an outage at `time`, unix seconds: with traffic count it and set the pause, else clear `suspicious`."""
        if self.traffic_since is None:
            return replace(self, suspicious=0)
        seconds = _PAUSE_TO_TRAFFIC * (time - self.traffic_since)
        # The clock was put back where it ends before it began: nobody knows how long it was, so it is no evidence.
        is_soon = self.outages > 0 and 0.0 <= seconds <= self.pause_s
        pause_s = min(max(self.first_pause_s * 2.0 ** min(self.outages, 20), seconds), MAX_PAUSE_S)
        return OutageTrial(self.first_pause_s, self.outages + 1, self.suspicious + is_soon, pause_s)


def trial_of(rollout: Rollout, first_pause_s: float) -> OutageTrial:
    """The trial as a rollout's changes tell it: a share of 0 says that the server was away.

    Args:
        rollout: of the candidate.
        first_pause_s: see `OutageTrial`.
    """
    trial = OutageTrial(first_pause_s)
    for change in rollout.changes:
        if change.kind == Kind.SHIFTED:
            trial = trial.with_traffic(change.time) if change.share > 0 else trial.with_outage(change.time)
    return trial


def last_withdrawal(rollout: Rollout) -> Change | None:
    """The change that withdrew a rollout's traffic last, or said of an outage in the pause; None for none."""
    shifts = (each for each in reversed(rollout.changes) if each.kind == Kind.SHIFTED and each.share == 0)
    return next(shifts, None)
