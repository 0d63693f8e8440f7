"""Brings the world to what the log says and takes the next step, again and again; each step may be repeated."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial

from gyre_core.spec import LoopSpec
from gyre_runtime.errors import is_transient
from opentelemetry.trace import Span

from gyre_deployer.domain.decisions import (
    Decision,
    Step,
    StepProgress,
    advance,
    decide,
    follow,
    next_step,
    open_traffic,
    refuse,
    roll_back,
    unjudged,
    unread,
)
from gyre_deployer.domain.guardrails import is_breach, judge
from gyre_deployer.domain.observation import (
    SETTLING_S,
    Observation,
    ObservedGateway,
    lagging,
    tripped,
    without_features,
)
from gyre_deployer.domain.rollouts import Candidate, Change, Kind, LoopState, Rollout, RolloutState
from gyre_deployer.domain.strangers import may_be_asked
from gyre_deployer.handlers.clock import SYSTEM_CLOCK, Clock
from gyre_deployer.handlers.ledger import ConcurrentChange, RolloutLedger
from gyre_deployer.handlers.loading import Postponed
from gyre_deployer.handlers.recovery import Recovery, span_of
from gyre_deployer.handlers.waiting import Waiting
from gyre_deployer.ports import CandidateRefused, Gateways

_REPORT_DELAY_S = 2.0
"""How long a gateway's outcome takes to the deployer, seconds: reports are sent once a second."""
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Watch:
    """A step under observation.

    Attributes:
        epoch: of the change that began the step.
        began: when the watching began, on the monotonic clock; after a restart of this process it begins anew.
        observation: what was seen since.
        outages: of the model server, when the watching began; a further one lets it begin anew.
        without_features: of both versions, requests that had got no features when each gateway was first seen.
    """

    epoch: int
    began: float
    observation: Observation
    outages: int
    without_features: tuple[Mapping[str, int], Mapping[str, int]]

    def without_features_since(self, reports: Sequence[ObservedGateway]) -> tuple[int, int]:
        """Requests of the candidate, and of the live model, that got no features since the watching began."""
        found = []
        for version, before in zip(self.observation.versions, self.without_features, strict=True):
            counts = without_features(reports, version)
            found.append(sum(max(count - before[instance], 0) for instance, count in counts.items()))
        return found[0], found[1]

    def advanced(self, reports: Sequence[ObservedGateway], now: float) -> Watch:
        """With newer reports; a gateway that was not seen before is counted from this report on."""
        candidate, live = (without_features(reports, version) for version in self.observation.versions)
        known = {**candidate, **self.without_features[0]}, {**live, **self.without_features[1]}
        return replace(self, observation=self.observation.advanced(reports, now), without_features=known)


class Reconciler:
    """One loop's rollouts."""

    def __init__(
        self,
        spec: LoopSpec,
        ledger: RolloutLedger,
        recovery: Recovery,
        waiting: Waiting,
        gateways: Gateways,
        *,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._spec = spec
        self._recovery = recovery
        self._ledger = ledger
        self._serving = recovery.serving
        self._gateways = gateways
        self._waiting = waiting
        self._monotonic = clock.monotonic
        self._stopping = False
        self._watch: Watch | None = None
        self._missing: Mapping[str, str] = {}
        self._held_for = ""
        self._acknowledged: dict[str, float] = {}
        self._swept: tuple[int, bool] | None = None

    def stop(self) -> None:
        """End `run` after the step under way."""
        self._stopping = True

    async def run(self, *, tick_s: float, arrived: asyncio.Event) -> None:
        """Reconcile until stopped.

        Args:
            tick_s: pause after a look that changed nothing, seconds.
            arrived: set when a candidate arrives, to look at once.

        Raises:
            FencedByPeer: another deployer took over.
        """
        while not self._stopping:
            arrived.clear()
            before = self._ledger.state
            try:
                await self.reconcile()
            except ConcurrentChange:
                continue
            except Exception as error:
                if not is_transient(error):
                    raise
                await self._wait_out(error)
            if self._ledger.state is before:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(arrived.wait(), tick_s)

    async def _wait_out(self, error: Exception) -> None:
        """Triton or Kafka is away, for which no rollout fails: say so, and try again."""
        problem = f"waiting: {error}"
        if problem != self._ledger.waiting_for:
            _LOG.warning("the rollout waits", extra={"loop": self._spec.loop, "problem": str(error)})
        self._ledger.waiting_for = problem
        await self._ledger.reconnect()

    async def reconcile(self) -> None:
        """One look at everything.

        Raises:
            ConcurrentChange: a person changed the state meanwhile: look again.
            Unavailable: Triton or Kafka is away.
            FencedByPeer: another deployer took over.
        """
        self._held_for = ""
        await self._ledger.sync()
        await self._waiting.look()
        await self._keep_loaded()
        await self._take_step()
        await self._ledger.snapshot()
        await self._retire()
        await self._sweep()
        self._ledger.waiting_for = self._held_for or self._waiting.problem

    async def _keep_loaded(self) -> None:
        self._missing = await self._recovery.restore()
        await self._recovery.publish_alert(self._missing)

    async def _take_step(self) -> None:
        state = self._ledger.state
        rollout = state.under_way
        if rollout is None:
            return
        steps = {
            Step.VALIDATE: self._validate,
            Step.LOAD: self._load,
            Step.WARM: self._warm,
            Step.OPEN: self._open,
            Step.OBSERVE: self._observe,
            Step.RETURN: self._return_traffic,
        }
        take = steps.get(next_step(rollout))
        if rollout.version in self._missing:
            self._held_for = self._missing[rollout.version]
        elif take is not None:
            await take(state, rollout)

    async def _validate(self, state: LoopState, rollout: Rollout) -> None:
        with self._span("validate", rollout):
            await self._prepare(state, rollout, Kind.VALIDATED, self._serving.validate)

    async def _load(self, state: LoopState, rollout: Rollout) -> None:
        """Validation loaded it to ask its golden requests; from now on others rely on that."""
        with self._span("load", rollout):
            await self._prepare(state, rollout, Kind.LOADED, self._serving.load)

    async def _warm(self, state: LoopState, rollout: Rollout) -> None:
        with self._span("warm", rollout):
            await self._prepare(state, rollout, Kind.WARMED, self._serving.warm)

    async def _prepare(
        self, state: LoopState, rollout: Rollout, kind: Kind, work: Callable[[Candidate], Awaitable[str]]
    ) -> None:
        """Do one step before traffic; whatever it finds wrong with the candidate refuses it."""
        try:
            change = follow(rollout, kind, await work(rollout.candidate))
        except Postponed as pause:
            self._held_for = str(pause)
            return
        except CandidateRefused as error:
            change = refuse(rollout, str(error))
        await self._ledger.append(state, [change])

    async def _open(self, state: LoopState, rollout: Rollout) -> None:
        change = open_traffic(rollout, self._spec.rollout.steps)
        await self._write(state, change, "shift" if change.kind == Kind.SHIFTED else "promote")

    async def _return_traffic(self, _: LoopState, rollout: Rollout) -> None:
        self._held_for = await self._recovery.return_traffic(rollout, self._spec.rollout.steps)

    async def _observe(self, state: LoopState, rollout: Rollout) -> None:
        """Judge the candidate by what the gateways saw of it in this step."""
        now, reports = self._monotonic(), self._gateways.reports()
        watch = self._watched(rollout, reports, now)
        seen, open_circuits = watch.observation, tripped(reports, rollout.version, rollout.observed_epoch, now)
        guardrails = self._spec.rollout.guardrails
        verdict = judge(seen.candidate, seen.live, guardrails)
        in_all = judge(seen.candidate_in_all, seen.live_in_all, guardrails)
        counted, all_requests = seen.candidate.requests, seen.candidate_in_all.requests
        unserved, live_unserved = watch.without_features_since(reports)
        # Where most of the live model's get none either, what both share is away.
        held = StepProgress(
            now - watch.began,
            counted,
            seen.spoiled,
            len(open_circuits),
            all_requests,
            spoiled_s=seen.spoiled_s,
            without_features=unserved if live_unserved < seen.live_in_all.requests else 0,
        )
        steps, wait_s = self._spec.rollout.steps, self._waiting.deadline_s
        decision, reason = decide(rollout, verdict, held, steps, verdict_in_all=in_all)
        if problem := unread(held, wait_s) or unjudged(rollout, in_all, held, steps, wait_s):
            decision, reason = Decision.ROLL_BACK, problem
        await self._act(state, rollout, decision, reason)

    def _watched(self, rollout: Rollout, reports: Sequence[ObservedGateway], now: float) -> Watch:
        watch, outages = self._watch, self._recovery.outages
        if watch is None or (watch.epoch, watch.outages) != (rollout.observed_epoch, outages):
            versions, guardrails = (rollout.version, rollout.live_version), self._spec.rollout.guardrails
            # How live answers the requests that the candidate fails is known when their deadlines are over.
            settling_s = max(SETTLING_S, self._spec.serving.deadline_s + _REPORT_DELAY_S)
            breached = partial(is_breach, guardrails=guardrails)
            begun = Observation.begin(reports, versions, breached, settling_s=settling_s)
            watch = Watch(rollout.observed_epoch, now, begun, outages, ({}, {}))
        self._watch = watch.advanced(reports, now)
        return self._watch

    async def _act(self, state: LoopState, rollout: Rollout, decision: Decision, reason: str) -> None:
        if decision == Decision.HOLD:
            is_paused = rollout.state == RolloutState.PAUSED  # whoever paused it said why
            self._held_for = "" if is_paused else f"step {rollout.step + 1}: {reason}"
        elif decision == Decision.OBSERVE_ANEW:
            self._held_for = f"step {rollout.step + 1} is observed anew: {reason}"
            self._watch = None
        elif decision == Decision.ROLL_BACK:
            await self._write(state, roll_back(rollout, reason), "roll back")
        else:
            change = advance(rollout, self._spec.rollout.steps, reason)
            await self._write(state, change, "shift" if change.kind == Kind.SHIFTED else "promote")

    async def _write(self, state: LoopState, change: Change, what: str) -> None:
        with self._span(what, state.rollouts[change.rollout_id]):
            await self._ledger.append(state, [change])

    async def _retire(self) -> None:
        """Unload what no gateway uses any more: all that live have acknowledged it, and the last call is over."""
        now, reports = self._monotonic(), self._gateways.reports()
        unnamed = self._ledger.state.unnamed
        self._acknowledged = {version: at for version, at in self._acknowledged.items() if version in unnamed}
        for version, epoch in unnamed.items():
            if lagging(reports, epoch, now):
                self._acknowledged.pop(version, None)
                continue
            acknowledged = self._acknowledged.setdefault(version, now)
            if now - acknowledged > self._spec.serving.deadline_s:
                await self._unload(version)
                return

    async def _unload(self, version: str) -> None:
        state = self._ledger.state
        rollout = state.of_version(version)
        if rollout is None:
            return
        with self._span("unload", rollout):
            await self._serving.unload(version)
            change = follow(rollout, Kind.UNLOADED, "no gateway asks it any more", share=0.0)
            await self._ledger.append(state, [change])

    async def _sweep(self) -> None:
        """Remove what a change, or a kill in the middle of one, left behind on Triton and in its repository.

        An empty log removes nothing: Kafka was made anew, and what serves is not known. Nor does the new log remove
        what it never knew, as long as that may still be asked.
        """
        state = self._ledger.state
        with_strangers = not may_be_asked(state, self._gateways.reports(), self._monotonic())
        if state.epoch and (state.epoch, with_strangers) != self._swept:
            await self._serving.sweep(state, with_strangers=with_strangers)
            self._swept = state.epoch, with_strangers

    def _span(self, name: str, rollout: Rollout) -> AbstractContextManager[Span]:
        return span_of(self._spec.loop, name, rollout)
