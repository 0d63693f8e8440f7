"""What a person must know of the live model: that it cannot be served, and what answers in its place."""

from __future__ import annotations

from dataclasses import dataclass

from gyre_deployer.domain.rollouts import Change, Kind, LoopState


@dataclass(frozen=True, slots=True)
class Alert:
    """An alert, firing or ended.

    Attributes:
        alert_id: the same from its start to its end.
        loop: it belongs to.
        name: of the rule.
        message: what is wrong, in words for a person.
        start_time: when it began to fire, unix seconds.
        end_time: when it ended, unix seconds; None while it fires.
    """

    alert_id: str
    loop: str
    name: str
    message: str
    start_time: float
    end_time: float | None = None


def live_model_alert(state: LoopState, *, missing_since: float | None, problem: str) -> Alert | None:
    """The alert about the live model as it stands now; None where there never was a reason.

    It fires from a fall-back to the last good version until the next promotion, and while the live version cannot be
    loaded and nothing is left to fall back to.

    Args:
        state: of the loop.
        missing_since: since when the live version is known to be unloadable, unix seconds; None where it is loaded.
        problem: why it cannot be loaded.
    """
    if missing_since is not None:
        message = f"{state.live} is live, cannot be loaded, and no version is left to fall back to: {problem}"
        return _alert(state.loop, message, missing_since, None)
    fallen = _newest(state, Kind.FELL_BACK)
    if fallen is None:
        return None
    promoted = _newest(state, Kind.PROMOTED)
    ended = promoted.time if promoted is not None and promoted.epoch > fallen.epoch else None
    return _alert(state.loop, f"{fallen.version} was live: {fallen.reason}", fallen.time, ended)


def _newest(state: LoopState, kind: Kind) -> Change | None:
    changes = (each for rollout in state.rollouts.values() for each in rollout.changes if each.kind == kind)
    return max(changes, key=lambda change: change.epoch, default=None)


def _alert(loop: str, message: str, start_time: float, end_time: float | None) -> Alert:
    return Alert(f"{loop}-deployer-live-model", loop, "live model cannot be loaded", message, start_time, end_time)
