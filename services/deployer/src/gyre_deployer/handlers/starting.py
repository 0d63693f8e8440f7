"""Begins rollouts, in the span that everything of the rollout descends from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from gyre_runtime import current_traceparent, model_tracer

from gyre_deployer.domain.decisions import begin, rollout_id
from gyre_deployer.domain.rollouts import Candidate, Kind, LoopState
from gyre_deployer.handlers.ledger import RolloutLedger


async def start_rollout(
    ledger: RolloutLedger, basis: LoopState, waiting: Sequence[Candidate], chosen: Candidate, *, offer: str = ""
) -> LoopState:
    """Start the rollout of one of the waiting candidates, and refuse those that waited longer.

    Args:
        ledger: of the loop.
        basis: the state upon which this is decided.
        waiting: candidates without a rollout, oldest first.
        chosen: one of them, or with an `offer` one whose rollout has ended.
        offer: id of the request that offers it again.

    Raises:
        ConcurrentChange: the state is another by now.
        Unavailable: the log cannot be written.
    """
    attributes = {
        "gyre.loop": basis.loop,
        "gyre.version": chosen.version,
        "gyre.run_id": chosen.run_id,
        "gyre.rollout_id": rollout_id(basis.loop, chosen.version, offer),
    }
    links = [chosen.traceparent] if chosen.traceparent else []
    with model_tracer().span("rollout", links=links, attributes=attributes):
        traceparent = current_traceparent() or ""
        changes = [
            replace(change, traceparent=traceparent) if change.kind == Kind.STARTED else change
            for change in begin(waiting, chosen, basis, offer)
        ]
        return await ledger.append(basis, changes)
