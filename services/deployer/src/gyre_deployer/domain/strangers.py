"""Versions on the model server that the log knows nothing of: left behind, or still asked under a log that is gone.

Where Kafka was made anew the new log begins without the version that serves. Gateways ask that one until they learn of
another, so it stays until the new log has a live version and nobody asks what the log does not know.
"""

from __future__ import annotations

from collections.abc import Iterable

from gyre_deployer.domain.observation import ObservedGateway
from gyre_deployer.domain.rollouts import LoopState


def _known(state: LoopState) -> set[str]:
    return {rollout.version for rollout in state.rollouts.values()}


def may_be_asked(state: LoopState, reports: Iterable[ObservedGateway], now: float) -> bool:
    """Whether gateways may still ask versions of which the log knows nothing.

    Args:
        state: what the log says.
        reports: of the gateways.
        now: on the clock of the reports, seconds.
    """
    if not state.live:
        return True
    known = _known(state)
    live = [each for each in reports if each.is_live(now)]
    # A gateway that is ahead of the log follows another log, and counts only versions that it may ask.
    return any(each.epoch > state.epoch or not known.issuperset(each.counts) for each in live)


def spare(versions: Iterable[str], state: LoopState, *, with_strangers: bool) -> list[str]:
    """Those of some versions that the log does not need: neither loaded nor under way.

    Args:
        versions: of the loop.
        state: what the log says.
        with_strangers: whether versions of which the log knows nothing are among them.
    """
    known = _known(state)
    return [each for each in versions if each not in state.used and (with_strangers or each in known)]
