"""A gateway that reports to the deployer what a test tells it to have seen."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Self

from gyre.events.v1.models_pb2 import GatewayReport, RolloutView
from gyre_core.topics import topic
from gyre_runtime.events import Event, message_types
from gyre_runtime.kafka import Producer, View

BOUNDS_S = (0.005, 0.01, 0.1, 0.5)


@dataclass
class Gateway:
    """Follows the rollout state and reports to it as a gateway does, with traffic as the test wants it.

    Attributes:
        requests: in each round, shared out by the arms.
        lags: stay at the epoch that it has.
        failing: versions of which every request fails.
        slow: versions of which every request takes half a second.
        tripped: versions that it keeps requests from.
        unread: versions the features of whose layout it cannot read.
        brief: versions all of whose callers leave too little time.
    """

    kafka: str
    loop: str
    instance: str = "gateway-1"
    requests: int = 100
    lags: bool = False
    failing: set[str] = field(default_factory=set)
    slow: set[str] = field(default_factory=set)
    tripped: set[str] = field(default_factory=set)
    unread: set[str] = field(default_factory=set)
    brief: set[str] = field(default_factory=set)
    left_out: Counter[str] = field(default_factory=Counter)
    without_features: Counter[str] = field(default_factory=Counter)
    view: RolloutView = field(default_factory=RolloutView)
    counts: dict[str, list[int]] = field(default_factory=dict)

    @asynccontextmanager
    async def reporting(self) -> AsyncIterator[Self]:
        """Report ten times a second while the block runs; then leave."""
        types = message_types(RolloutView)
        async with (
            Producer(self.kafka, source="tests") as producer,
            View(self.kafka, topic(self.loop, "models.rollouts"), types, on_change=self._adopt) as view,
        ):
            await view.ready()
            task = asyncio.create_task(self._report(producer))
            try:
                yield self
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                await self._send(producer, leaving=True)

    def _adopt(self, _: str, event: Event | None) -> None:
        if event is None or self.lags:
            return
        self.view = event.message
        in_use = {arm.version for arm in self.view.arms} | {self.view.last_good_version}
        self.counts = {version: each for version, each in self.counts.items() if version in in_use}

    async def _report(self, producer: Producer) -> None:
        while True:
            for arm in self.view.arms:
                self._serve(arm.version, round(self.requests * arm.share))
            await self._send(producer)
            await asyncio.sleep(0.1)  # the pace of a gateway, not a wait for a condition

    def _serve(self, version: str, requests: int) -> None:
        counts = self.counts.setdefault(version, [0] * (len(BOUNDS_S) + 3))
        if version in self.unread | self.brief:
            self.left_out[version] += requests
            self.without_features[version] += requests if version in self.unread else 0
            return
        counts[0] += requests
        if version in self.failing:
            counts[1] += requests
        else:
            counts[2 + (3 if version in self.slow else 0)] += requests

    async def _send(self, producer: Producer, *, leaving: bool = False) -> None:
        report = GatewayReport(
            loop=self.loop, instance=self.instance, epoch=self.view.epoch, lease_s=2.0, leaving=leaving
        )
        report.report_time.GetCurrentTime()
        for version, (requests, failures, *latencies) in self.counts.items():
            report.versions.add(
                version=version,
                requests=requests,
                failures=failures,
                latency_bounds_s=BOUNDS_S,
                latency_counts=latencies,
                tripped=version in self.tripped,
                left_out=self.left_out[version],
                without_features=self.without_features[version],
            )
        await producer.send(topic(self.loop, "models.gateway-reports"), report, key=self.instance)
