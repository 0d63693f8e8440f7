"""What a person may ask of the rollouts of one loop."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

from gyre_runtime import NotFound, Precondition, Unavailable, model_tracer

from gyre_deployer.domain.decisions import follow, pending, promote, roll_back, rollout_id
from gyre_deployer.domain.rollouts import Candidate, Change, Kind, LoopState, Rollout, RolloutState
from gyre_deployer.handlers.ledger import ConcurrentChange, RolloutLedger
from gyre_deployer.handlers.starting import start_rollout
from gyre_deployer.ports import Candidates, FencedByPeer

_Decide = Callable[[LoopState, Rollout], Change | None]


class Commands:
    """Verbs upon the rollouts; each is idempotent, and asks for a state in which it makes sense."""

    def __init__(self, ledger: RolloutLedger, candidates: Candidates) -> None:
        self.ledger = ledger
        self._candidates = candidates

    async def start(self, version: str, request_id: str) -> Rollout:
        """Start the rollout of a registered candidate, again where an earlier one was rolled back or refused.

        The rollout that the request started before, or that has not ended or been promoted, is returned.

        Raises:
            NotFound: no such candidate was registered (UNKNOWN_VERSION).
            Precondition: another rollout is under way (ROLLOUT_UNDER_WAY).
            Unavailable: the log cannot be written.
        """
        while True:
            state = self.ledger.state
            own = state.rollouts.get(rollout_id(state.loop, version, request_id))
            known = own or state.of_version(version)
            if known is not None and (own or known.is_under_way or known.state == RolloutState.PROMOTED):
                return known
            chosen = known.candidate if known is not None else self._registered(version)
            if chosen is None:
                raise NotFound(
                    "UNKNOWN_VERSION", f"version = {version!r}: no such candidate of {state.loop} is registered"
                )
            if state.under_way is not None:
                other = state.under_way
                message = f"{other.version} is being rolled out: {version} waits for its end"
                raise Precondition("ROLLOUT_UNDER_WAY", message, metadata={"rollout_id": other.id})
            offer = "" if known is None else request_id
            try:
                waiting = pending(self._candidates.all(), state)
                started = await start_rollout(self.ledger, state, waiting, chosen, offer=offer)
            except ConcurrentChange:
                continue
            except FencedByPeer as error:
                raise _replaced(error) from error
            return started.rollouts[started.current]

    def _registered(self, version: str) -> Candidate | None:
        return next((each for each in self._candidates.all() if each.version == version), None)

    async def promote(self, rollout_id: str, reason: str) -> Rollout:
        """Give a warm candidate all traffic now.

        Raises:
            NotFound: UNKNOWN_ROLLOUT.
            Precondition: it is not warm yet (NOT_WARM) or ended otherwise (ROLLOUT_ENDED).
            Unavailable: the log cannot be written.
        """

        def decide(_: LoopState, rollout: Rollout) -> Change | None:
            if rollout.state == RolloutState.PROMOTED:
                return None
            _require_under_way(rollout)
            if rollout.stage not in (RolloutState.WARMED, RolloutState.CANARY):
                raise Precondition("NOT_WARM", f"rollout {rollout.id} is {rollout.stage}: must be WARMED or CANARY")
            return promote(rollout, reason or "promoted by a person")

        return await self._change(rollout_id, "promote", decide)

    async def roll_back(self, rollout_id: str, reason: str) -> Rollout:
        """Give all traffic to the model that was live before the rollout, also after its promotion.

        Raises:
            NotFound: UNKNOWN_ROLLOUT.
            Precondition: it was refused (ROLLOUT_ENDED), is not the live model any more (NOT_LIVE), nothing is left to
                go back to (NO_LAST_GOOD), or another is under way upon it (ROLLOUT_UNDER_WAY).
            Unavailable: the log cannot be written.
        """

        def decide(state: LoopState, rollout: Rollout) -> Change | None:
            if rollout.state == RolloutState.ROLLED_BACK:
                return None
            if rollout.state == RolloutState.PROMOTED:
                _require_way_back(state, rollout)
            else:
                _require_under_way(rollout)
            return roll_back(rollout, reason or "rolled back by a person")

        return await self._change(rollout_id, "roll back", decide)

    async def pause(self, rollout_id: str, reason: str, *, resume: bool) -> Rollout:
        """Hold a rollout where it stands, or let it go on, watching its step anew.

        Raises:
            NotFound: UNKNOWN_ROLLOUT.
            Precondition: it has ended (ROLLOUT_ENDED).
            Unavailable: the log cannot be written.
        """

        def decide(_: LoopState, rollout: Rollout) -> Change | None:
            _require_under_way(rollout)
            if (rollout.state == RolloutState.PAUSED) != resume:
                return None
            kind, default = (Kind.RESUMED, "resumed by a person") if resume else (Kind.PAUSED, "paused by a person")
            return follow(rollout, kind, reason or default)

        return await self._change(rollout_id, "resume" if resume else "pause", decide)

    def get(self, rollout_id: str) -> Rollout:
        """One rollout; raises NotFound (UNKNOWN_ROLLOUT)."""
        return _require(self.ledger.state, rollout_id)

    async def watch(self, rollout_id: str) -> AsyncIterator[Rollout]:
        """A rollout now and at each of its changes, until it has ended; raises NotFound (UNKNOWN_ROLLOUT)."""
        seen: Rollout | None = None
        async for state in self.ledger.states():
            rollout = _require(state, rollout_id)
            if rollout is not seen:
                yield rollout
            seen = rollout
            if not rollout.is_under_way:
                return

    async def _change(self, rollout_id: str, what: str, decide: _Decide) -> Rollout:
        while True:
            state = self.ledger.state
            rollout = _require(state, rollout_id)
            change = decide(state, rollout)
            if change is None:
                return rollout
            attributes = {"gyre.loop": state.loop, "gyre.version": rollout.version, "gyre.rollout_id": rollout.id}
            try:
                with model_tracer().span(f"rollout {what}", parent=rollout.traceparent or None, attributes=attributes):
                    return (await self.ledger.append(state, [change])).rollouts[rollout_id]
            except ConcurrentChange:
                continue
            except FencedByPeer as error:
                raise _replaced(error) from error


def _require(state: LoopState, rollout_id: str) -> Rollout:
    rollout = state.rollouts.get(rollout_id)
    if rollout is None:
        raise NotFound("UNKNOWN_ROLLOUT", f"rollout_id = {rollout_id!r}: no such rollout of {state.loop}")
    return rollout


def _require_under_way(rollout: Rollout) -> None:
    if not rollout.is_under_way:
        raise Precondition("ROLLOUT_ENDED", f"rollout {rollout.id} is {rollout.state}: must be under way")


def _require_way_back(state: LoopState, rollout: Rollout) -> None:
    if state.live != rollout.version:
        raise Precondition("NOT_LIVE", f"rollout {rollout.id}: {state.live} is live by now, not {rollout.version}")
    if state.under_way is not None:
        other = state.under_way
        message = f"{other.version} is being rolled out upon {rollout.version}: roll that back first"
        raise Precondition("ROLLOUT_UNDER_WAY", message, metadata={"rollout_id": other.id})
    if not state.last_good or state.last_good != rollout.live_version:
        raise Precondition("NO_LAST_GOOD", f"rollout {rollout.id}: no model is left to go back to")


def _replaced(error: FencedByPeer) -> Unavailable:
    return Unavailable("REPLACED", f"{error}: call again to reach it", retry_after_s=1)
