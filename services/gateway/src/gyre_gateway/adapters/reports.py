"""Tells the mesh once a second, and at once on a new epoch, which epoch this gateway uses and what it saw."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from gyre.events.v1 import models_pb2 as models
from gyre_core.topics import topic
from gyre_runtime import Unavailable
from gyre_runtime.kafka import Producer

from gyre_gateway.domain.routing import LATENCY_BOUNDS_S, Router

_LEASES = 5.0
_LEAVING_S = 3.0
_LOG = logging.getLogger(__name__)


class Reporter:
    """Sends the reports of all loops; on exit a last one that says so.

    A report is built from the router's state when it is sent, so an epoch that it acknowledges is one that every
    request since uses.
    """

    def __init__(self, routers: Mapping[str, Router], producer: Producer, *, instance: str, every_s: float) -> None:
        self._routers = routers
        self._producer = producer
        self._instance = instance
        self._every_s = every_s
        self._changed = asyncio.Event()

    def changed(self) -> None:
        """Report at once: an epoch was adopted."""
        self._changed.set()

    async def __aenter__(self) -> Self:
        """Begin."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Say that this gateway takes no more requests; the lease says it otherwise."""
        try:
            async with asyncio.timeout(_LEAVING_S):
                await self._send_all(leaving=True)
        except TimeoutError:
            _LOG.warning("the last report was not sent in time: the lease runs out instead")

    async def run(self) -> None:
        """Report until cancelled."""
        while True:
            self._changed.clear()
            await self._send_all(leaving=False)
            try:
                async with asyncio.timeout(self._every_s):
                    await self._changed.wait()
            except TimeoutError:
                continue

    async def _send_all(self, *, leaving: bool) -> None:
        await asyncio.gather(*(self._send(router, leaving=leaving) for router in self._routers.values()))

    async def _send(self, router: Router, *, leaving: bool) -> None:
        report = report_of(router, self._instance, lease_s=_LEASES * self._every_s, leaving=leaving)
        try:
            await self._producer.send(topic(router.loop, "models.gateway-reports"), report, key=self._instance)
        except Unavailable as error:
            facts = {"loop": router.loop, "problem": str(error)}
            _LOG.warning("report not sent: the next one covers it", extra=facts)


def report_of(router: Router, instance: str, *, lease_s: float, leaving: bool) -> models.GatewayReport:
    """The acknowledgement of the router's epoch with all its counts."""
    report = models.GatewayReport(
        loop=router.loop, instance=instance, epoch=router.epoch, lease_s=lease_s, leaving=leaving
    )
    report.report_time.GetCurrentTime()
    for version, counts in router.counts.items():
        report.versions.add(
            version=version,
            requests=counts.requests,
            failures=counts.failures,
            left_out=counts.left_out,
            without_features=counts.without_features,
            paced_requests=counts.paced,
            stalled_requests=counts.stalled,
            latency_bounds_s=LATENCY_BOUNDS_S,
            latency_counts=counts.latency_counts,
            tripped=router.is_tripped(version),
        )
    return report
