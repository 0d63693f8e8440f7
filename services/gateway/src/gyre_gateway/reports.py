"""Tells the mesh once a second, and at once on a new epoch, which epoch this gateway uses and what it saw."""

import asyncio
import logging
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from gyre_core.topics import topic
from gyre_runtime import Unavailable
from gyre_runtime.kafka import Producer

from gyre_gateway.routing import Router

_LEASES = 5.0
_LOG = logging.getLogger(__name__)


class Reporter:
    """Sends the reports of all loops; on exit a last one that says so."""

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
        """Say that this gateway takes no more requests."""
        await self._send(leaving=True)

    async def run(self) -> None:
        """Report until cancelled."""
        while True:
            await self._send(leaving=False)
            try:
                async with asyncio.timeout(self._every_s):
                    await self._changed.wait()
            except TimeoutError:
                continue
            self._changed.clear()

    async def _send(self, *, leaving: bool) -> None:
        for loop, router in self._routers.items():
            report = router.report(self._instance, lease_s=_LEASES * self._every_s, leaving=leaving)
            try:
                await self._producer.send(topic(loop, "models.gateway-reports"), report, key=self._instance)
            except Unavailable as error:
                _LOG.warning("report not sent: the next one covers it", extra={"loop": loop, "problem": str(error)})
