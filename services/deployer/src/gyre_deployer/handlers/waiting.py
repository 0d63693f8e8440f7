"""The candidates whose rollout has not begun: which one is next, and what the others wait for."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from gyre_deployer.domain.decisions import pending, refuse_waiting
from gyre_deployer.handlers.ledger import RolloutLedger
from gyre_deployer.handlers.starting import start_rollout
from gyre_deployer.ports import Candidates, Layouts

_LOG = logging.getLogger(__name__)


@dataclass
class Waiting:
    """Begins the rollout of the newest candidate whose layout is served, and lets the others wait, with a deadline.

    Attributes:
        ledger: of the loop.
        candidates: that were ever registered.
        layouts: of the loop.
        deadline_s: how long a candidate waits for its layout, seconds; after that it is refused.
        monotonic: a clock that only goes on, seconds.
        problem: what candidates wait for, in words for a person; empty for nothing.
    """

    ledger: RolloutLedger
    candidates: Candidates
    layouts: Layouts
    deadline_s: float
    monotonic: Callable[[], float]
    problem: str = field(default="", init=False)
    _since: dict[str, float] = field(default_factory=dict, init=False)
    _named: frozenset[str] = field(default=frozenset(), init=False)

    async def look(self) -> None:
        """Refuse who waited too long, begin the next rollout where none is under way, and name those that wait.

        What waits is named in the projection, so that its layout is maintained.

        Raises:
            ConcurrentChange: the state is another by now.
            Unavailable: the log cannot be written.
        """
        state = self.ledger.state
        waiting = pending(self.candidates.all(), state)
        reasons = {each.version: self.layouts.waits_for(each.layout) for each in waiting}
        for version, reason in reasons.items():
            if reason and version not in self._since:
                _LOG.info("a candidate waits", extra={"loop": state.loop, "version": version, "problem": reason})
        now = self.monotonic()
        self._since = {each: self._since.get(each, now) for each, reason in reasons.items() if reason}
        self.problem = "; ".join(f"{each}: {reasons[each]}" for each in self._since)
        late = [each for each in waiting if now - self._since.get(each.version, now) > self.deadline_s]
        ready = [each for each in waiting if not reasons[each.version]]
        if late:
            after = f"after {self.deadline_s:g} s"
            refused = [refuse_waiting(each, state, f"{reasons[each.version]} {after}") for each in late]
            await self.ledger.append(state, refused)
        elif ready and state.under_way is None:
            await start_rollout(self.ledger, state, waiting, ready[-1])
        elif (named := frozenset(each.version for each in waiting)) != self._named:
            await self.ledger.append(state, [])
            self._named = named
