"""What follows where the model server was away or cannot load a version: rollbacks, traffic withdrawn, an alert."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import replace

from gyre_core.spec import RolloutStep
from gyre_runtime import Unavailable, model_tracer
from opentelemetry.trace import Span

from gyre_deployer.domain.alerts import Alert, live_model_alert
from gyre_deployer.domain.decisions import give_up, return_traffic, roll_back, withdraw_traffic
from gyre_deployer.domain.loading import LoadRecord
from gyre_deployer.domain.outages import last_withdrawal, trial_of
from gyre_deployer.domain.rollouts import Change, LoopState, Rollout, RolloutState
from gyre_deployer.handlers.clock import SYSTEM_CLOCK, Ages, Clock
from gyre_deployer.handlers.ledger import RolloutLedger
from gyre_deployer.handlers.serving import ServedVersions
from gyre_deployer.ports import REPOSITORY_UNAVAILABLE, Alerts

_WITHDRAWAL = "withdrawal"
_LOG = logging.getLogger(__name__)


def span_of(loop: str, name: str, rollout: Rollout) -> AbstractContextManager[Span]:
    """A span of a step of a rollout, in the rollout's own trace."""
    attributes = {"gyre.loop": loop, "gyre.version": rollout.version, "gyre.rollout_id": rollout.id}
    return model_tracer().span(f"rollout {name}", parent=rollout.traceparent or None, attributes=attributes)


class Recovery:
    """Brings one loop's rollouts in line with what the model server can hold.

    Args:
        ledger: of the loop.
        serving: the loop's versions on the model server.
        alerts: publishes the loop's.
        first_pause_s: how long the server must answer after an outage before the candidate has traffic again, seconds;
            see `OutageTrial`.
        clock: of the process.

    Attributes:
        serving: the loop's versions on the model server.
        outages: how often the server was found to be away, or to have lost its models.
    """

    def __init__(
        self,
        ledger: RolloutLedger,
        serving: ServedVersions,
        alerts: Alerts,
        *,
        first_pause_s: float,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._clock = clock
        self._ages = Ages(clock)
        self._ledger = ledger
        self.serving = serving
        self.outages = 0
        self._alerts = alerts
        self._first_pause_s = first_pause_s
        self._published: Alert | None = None
        self._answers_since: float | None = None
        self._missing: Mapping[str, str] = {}

    async def restore(self) -> Mapping[str, str]:
        """Have the model server hold what it should, also after its restart, and give up what it cannot load.

        A restart is not the fault of a candidate that has traffic, which is withdrawn before anything is loaded again;
        a load that the server does not survive is.

        Returns:
            The versions that it does not hold all the same, with the reason in words for a person.

        Raises:
            ConcurrentChange: the state is another by now.
            Unavailable: the model server or the log is away.
        """
        async with self._server_asked():
            unloadable = await self.serving.unloadable()
        await self._give_up(unloadable)
        async with self._server_asked():
            lost = await self.serving.lost(self._ledger.state)
        if not self._missing.keys() >= set(lost):
            await self._note_outage(lost)
        async with self._server_asked():
            self._missing = await self.serving.restore(self._ledger.state, lost)
        if self._answers_since is None:
            self._answers_since = self._clock.monotonic()
        return self._missing

    @asynccontextmanager
    async def _server_asked(self) -> AsyncIterator[None]:
        try:
            yield
        except Unavailable as error:
            if error.reason != REPOSITORY_UNAVAILABLE:
                await self._note_outage([])
            raise

    async def _give_up(self, unloadable: Mapping[str, LoadRecord]) -> None:
        """Write down what follows from versions that cannot be loaded; a live one without a successor stays."""
        for version in sorted(unloadable, key=lambda each: each == self._ledger.state.live):
            state = self._ledger.state
            reason = f"cannot be loaded, after attempt {unloadable[version].failures}: {unloadable[version].problem}"
            changes = give_up(state, version, reason)
            if changes:
                _LOG.error("a version is given up", extra={"loop": state.loop, "version": version, "problem": reason})
                await self._append("give up", state, changes)

    async def _note_outage(self, lost: Sequence[str]) -> None:
        """Withdraw the traffic of a candidate, also of a paused one, once for each outage.

        Before the first answer nobody knows of one, unless the server has lost a candidate that has traffic.

        Args:
            lost: versions that the server held before.
        """
        state = self._ledger.state
        rollout = state.under_way
        is_broken = rollout is not None and rollout.is_on_traffic and rollout.version in lost
        if self._answers_since is None and not is_broken:
            return
        if rollout is not None and rollout.stage == RolloutState.CANARY:
            changes = self._after_outage(rollout)
            if changes:
                await self._append("withdraw traffic", state, changes)
        self.outages += 1
        self._answers_since = None

    def _after_outage(self, rollout: Rollout) -> list[Change]:
        before = trial_of(rollout, self._first_pause_s)
        trial = before.with_outage(self._clock.wall())
        if trial.is_failed:
            problem = f"{trial.suspicious} times in a row soon after the candidate had traffic, and never without it"
            return [roll_back(rollout, f"Triton went away {problem}")]
        if rollout.is_on_traffic or before.suspicious:
            reason = f"Triton was away: no traffic until it has answered for {trial.pause_s:.1f} s"
            return [withdraw_traffic(rollout, reason)]
        return []

    async def return_traffic(self, rollout: Rollout, steps: Sequence[RolloutStep]) -> str:
        """Give traffic again to a candidate from which it was withdrawn, once the server has answered for the pause.

        Returns:
            What it waits for, in words for a person; empty for nothing.

        Raises:
            ConcurrentChange: the state is another by now.
            Unavailable: the log cannot be written.
        """
        trial, withdrawn = trial_of(rollout, self._first_pause_s), last_withdrawal(rollout)
        now = self._clock.monotonic()
        answered_s = now - (now if self._answers_since is None else self._answers_since)
        if withdrawn is not None:
            answered_s = min(answered_s, self._ages.of(_WITHDRAWAL, withdrawn.time))
        left_s = trial.pause_s - answered_s
        if left_s > 0:
            return f"step {rollout.step + 1}: no traffic for {left_s:.1f} s more, since Triton was away"
        reason = f"Triton has answered for {trial.pause_s:.1f} s: the step is observed anew"
        await self._append("return traffic", self._ledger.state, [return_traffic(rollout, steps, reason)])
        return ""

    async def _append(self, what: str, state: LoopState, changes: Sequence[Change]) -> None:
        with span_of(state.loop, what, state.rollouts[changes[0].rollout_id]):
            await self._ledger.append(state, changes)

    async def publish_alert(self, missing: Mapping[str, str]) -> None:
        """Publish what people must know of the live model, where that is new; Kafka being away delays it.

        Args:
            missing: versions that the model server does not hold, with the reason.
        """
        alert = await self._alert(self._ledger.state, missing)
        if alert is None or alert == self._published:
            return
        try:
            await self._alerts.publish(alert)
        except Unavailable as error:
            _LOG.warning("an alert is not published yet", extra={"loop": alert.loop, "problem": str(error)})
        else:
            self._published = alert

    async def _alert(self, state: LoopState, missing: Mapping[str, str]) -> Alert | None:
        alone = state.live in missing and not state.last_good
        record = (await self.serving.unloadable()).get(state.live) if alone else None
        firing = self._published if self._published is not None and self._published.end_time is None else None
        if record is not None:
            since = firing.start_time if firing is not None else record.start_time
            return live_model_alert(state, missing_since=since, problem=record.problem)
        alert = live_model_alert(state, missing_since=None, problem="")
        if firing is not None and (alert is None or alert.start_time != firing.start_time):
            return replace(firing, end_time=self._clock.wall())
        return alert
