"""Follows the rollout state of every loop, so that the service knows which versions are loaded."""

from __future__ import annotations

import asyncio

from gyre.events.v1.models_pb2 import RolloutView
from gyre_core.topics import topic
from gyre_runtime.events import Event, message_types
from gyre_runtime.kafka import View
from gyre_runtime.series import VersionSeries

from gyre_inference.domain import Catalogue

TYPES = message_types(RolloutView)


class RolloutViews:
    """Keeps a catalogue at the newest rollout state of each loop."""

    def __init__(self, bootstrap: str, catalogue: Catalogue) -> None:
        self._bootstrap = bootstrap
        self._catalogue = catalogue
        self._behind = set(catalogue.loops)
        self._series = {loop: VersionSeries(loop) for loop in catalogue.loops}
        self._ready = asyncio.Event()

    async def is_ready(self) -> bool:
        """Whether every loop's state has been read."""
        return self._ready.is_set()

    async def ready(self) -> None:
        """Wait until every loop's state has been read."""
        await self._ready.wait()

    async def follow(self) -> None:
        """Follow until cancelled; waits for Kafka and its topics."""
        async with asyncio.TaskGroup() as group:
            for loop in self._catalogue.loops:
                group.create_task(self._follow(loop), name=f"rollouts of {loop}")

    async def _follow(self, loop: str) -> None:
        async with View(self._bootstrap, topic(loop, "models.rollouts"), TYPES, on_change=self._adopt) as view:
            await view.ready()
            self._behind.discard(loop)
            if not self._behind:
                self._ready.set()
            await view.wait_for(lambda _: False)

    def _adopt(self, _: str, event: Event | None) -> None:
        if event is not None:
            self._catalogue.adopt(event.message.loop, event.message.loaded_versions)
            self._series[event.message.loop].note_used(event.message.loaded_versions)
