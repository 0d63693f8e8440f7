"""What follows where the model server was away or cannot load a version: rollbacks, a step observed anew, an alert."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace

from gyre_runtime import Unavailable, model_tracer
from opentelemetry.trace import Span

from gyre_deployer.domain.alerts import Alert, live_model_alert
from gyre_deployer.domain.decisions import MAX_REOPENINGS, give_up, reopen, reopenings, roll_back
from gyre_deployer.domain.rollouts import LoopState, Rollout, State
from gyre_deployer.handlers.ledger import RolloutLedger
from gyre_deployer.handlers.serving import Serving
from gyre_deployer.ports import Alerts

_LOG = logging.getLogger(__name__)


def span_of(loop: str, name: str, rollout: Rollout) -> AbstractContextManager[Span]:
    """A span of a step of a rollout, in the rollout's own trace."""
    attributes = {"gyre.loop": loop, "gyre.version": rollout.version, "gyre.rollout_id": rollout.id}
    return model_tracer().span(f"rollout {name}", parent=rollout.traceparent or None, attributes=attributes)


class Recovery:
    """Brings one loop's rollouts in line with what the model server can hold.

    Attributes:
        serving: the loop's versions on the model server.
    """

    def __init__(
        self, ledger: RolloutLedger, serving: Serving, alerts: Alerts, *, now: Callable[[], float] = time.time
    ) -> None:
        self._now = now
        self._ledger = ledger
        self.serving = serving
        self._alerts = alerts
        self._published: Alert | None = None
        self._outages: dict[str, int] = {}

    async def give_up(self) -> None:
        """Write down what follows from versions that cannot be loaded; a live one without a successor stays.

        Raises:
            ConcurrentChange: the state is another by now.
            Unavailable: the model server or the log is away.
        """
        unloadable = await self.serving.unloadable()
        for version in sorted(unloadable, key=lambda each: each == self._ledger.state.live):
            state = self._ledger.state
            reason = f"cannot be loaded, after attempt {unloadable[version].attempts}: {unloadable[version].problem}"
            changes = give_up(state, version, reason)
            if changes:
                _LOG.error("a version is given up", extra={"loop": state.loop, "version": version, "problem": reason})
                with span_of(state.loop, "give up", state.rollouts[changes[0].rollout_id]):
                    await self._ledger.append(state, changes)

    async def observe_anew(self) -> None:
        """Let the step be watched anew, under an epoch for which gateways ask the candidate again.

        That is bounded: a candidate during whose rollout the model server was away again and again is rolled back.
        """
        state = self._ledger.state
        rollout = state.under_way
        if rollout is None:
            return
        self._outages = {rollout.id: self._outages.get(rollout.id, 0) + 1}
        outages = max(self._outages[rollout.id], reopenings(rollout) + 1)
        if outages > MAX_REOPENINGS:
            change = roll_back(rollout, f"Triton was away {outages} times during the rollout")
        elif rollout.state == State.CANARY:
            change = reopen(rollout, "Triton was away: the step is observed anew")
        else:
            return
        with span_of(state.loop, "observe anew", rollout):
            await self._ledger.append(state, [change])

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
            return replace(firing, end_time=self._now())
        return alert
