"""What others write and the deployer follows: candidates, the gateways' reports, and its own projection."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from gyre.events.v1.models_pb2 import CandidateRegistered, GatewayReport, RolloutView
from gyre_core.topics import topic
from gyre_runtime import Invalid
from gyre_runtime.constraints import checker_for
from gyre_runtime.events import Event, message_types
from gyre_runtime.kafka import Consumer, ConsumerOptions, Start, View

from gyre_deployer.domain.candidates import UndecidedCandidates
from gyre_deployer.domain.observation import FORGET_S, ObservedGateway
from gyre_deployer.domain.rollouts import Candidate, LoopState
from gyre_deployer.wire import candidate_of, report_of

_MAX_IDS = 8
"""More than a gateway's producer has under way, all of which it may send again."""
_CANDIDATES, _REPORTS, _VIEWS = (message_types(each) for each in (CandidateRegistered, GatewayReport, RolloutView))


class KafkaCandidates:
    """See `Candidates`: what stands in the topic from an offset on; an async context manager.

    A consumer group beside it dead-letters what is no candidate, once.
    """

    def __init__(self, bootstrap: str, loop: str, *, start: int, on_arrival: Callable[[], None]) -> None:
        self._loop = loop
        self._on_arrival = on_arrival
        self._undecided = UndecidedCandidates(start)
        self._check = checker_for(CandidateRegistered.DESCRIPTOR)
        name = topic(loop, "models.candidates")
        self._view = View(bootstrap, name, _CANDIDATES, on_change=self._take, start=Start(start), holds_events=False)
        self.consumer = Consumer(
            bootstrap,
            group=f"deployer-{loop}",
            topics=[name],
            types=_CANDIDATES,
            options=ConsumerOptions(flow="model"),
        )
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Read all candidates so far, waiting for Kafka as long as it takes."""
        await self._stack.enter_async_context(self._view)
        await self._view.ready()
        await self._stack.enter_async_context(self.consumer)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop following."""
        await self._stack.aclose()

    def all(self) -> list[Candidate]:
        """See `Candidates`."""
        return self._undecided.all()

    def decided_offset(self, state: LoopState) -> int:
        """See `Candidates`."""
        return self._undecided.decided_offset(state)

    def prune(self, state: LoopState) -> None:
        """See `Candidates`."""
        self._undecided.prune(state)

    async def check(self) -> bool:
        """Whether the view of the candidates has caught up with its topic; for a `Dependency`."""
        return await self._view.check()

    async def run(self) -> None:
        """Dead-letter what is no candidate, until the consumer stops."""
        await self.consumer.run_each(self._require_ours)

    async def _require_ours(self, event: Event) -> None:
        if event.message.loop != self._loop:
            problem = f"loop = {event.message.loop!r}: must be {self._loop!r}, as the topic is"
            raise Invalid("WRONG_LOOP", problem)

    def _take(self, _: str, event: Event | None) -> None:
        if event is None:
            return
        is_ours = event.message.loop == self._loop and not self._check(event.message)
        candidate = candidate_of(event.message, event.traceparent) if is_ours else None
        if self._undecided.take(event.offset, candidate):
            self._on_arrival()


@dataclass(frozen=True, slots=True)
class _Taken:
    """The newest report of a gateway, and how a repeat of it, or of one before it, is known.

    Attributes:
        report: what it says.
        offset: in the topic, which has one partition.
        time: on the gateway's clock, seconds and nanoseconds.
        ids: of the gateway's newest reports.
    """

    report: ObservedGateway
    offset: int
    time: tuple[int, int]
    ids: tuple[str, ...]

    def is_repeated_by(self, event: Event) -> bool:
        """Whether a report was taken before: it is read or was sent again.

        By the offset alone a log that was made anew would be one of repeats, and by the time alone what comes of a
        clock that was set back.
        """
        return event.id in self.ids or (event.offset <= self.offset and _time_of(event.message) <= self.time)


def _time_of(report: GatewayReport) -> tuple[int, int]:
    return report.report_time.seconds, report.report_time.nanos


class KafkaGateways:
    """See `Gateways`: the compacted topic of reports; an async context manager.

    A lease begins when its report comes: no clock but this process's own decides whether a gateway is there. A report
    that is read again, or that its producer sent again, changes nothing.
    """

    def __init__(self, bootstrap: str, loop: str) -> None:
        self._loop = loop
        self._taken: dict[str, _Taken] = {}
        name = topic(loop, "models.gateway-reports")
        recent = Start(max_age_s=FORGET_S)
        self._view = View(bootstrap, name, _REPORTS, on_change=self._take, start=recent, holds_events=False)

    async def __aenter__(self) -> Self:
        """Read the newest report of every gateway."""
        await self._view.__aenter__()
        await self._view.ready()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop following."""
        await self._view.__aexit__(kind, error, trace)

    def reports(self) -> list[ObservedGateway]:
        """See `Gateways`."""
        return [each.report for each in self._taken.values()]

    async def check(self) -> bool:
        """Whether the view of the gateways' reports has caught up with its topic; for a `Dependency`."""
        return await self._view.check()

    def _take(self, key: str, event: Event | None) -> None:
        before = self._taken.get(key)
        if event is None:
            self._taken.pop(key, None)
        elif event.message.loop == self._loop and not (before and before.is_repeated_by(event)):
            report = report_of(event.message, time=time.monotonic())
            ids = (event.id, *(before.ids if before else ()))[:_MAX_IDS]
            self._taken[key] = _Taken(report, event.offset, _time_of(event.message), ids)
            self._forget_gone(report.time)

    def _forget_gone(self, now: float) -> None:
        """Forget gateways that were replaced long ago: each process reports under a name of its own."""
        known = {key: each.report for key, each in self._taken.items()}
        gone = [key for key, each in known.items() if each.time + each.lease_s + FORGET_S < now]
        for key in gone:
            del self._taken[key]


def own_projection(bootstrap: str, loop: str, on_epoch: Callable[[int], None]) -> View:
    """Follow the projection that this deployer alone should write: an epoch that it did not write is a twin's."""

    def take(_: str, event: Event | None) -> None:
        if event is not None:
            on_epoch(event.message.epoch)

    return View(bootstrap, topic(loop, "models.rollouts"), _VIEWS, on_change=take)
