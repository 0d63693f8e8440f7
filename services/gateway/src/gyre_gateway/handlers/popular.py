"""The loop's own popular items in memory, for when the features service does not answer."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import replace

from gyre_runtime import GyreError
from gyre_runtime.context import CURRENT_CALL

from gyre_gateway.domain.requests import Request
from gyre_gateway.ports import FeatureStore

_REFRESH_S = 10.0
_LOG = logging.getLogger(__name__)


class LoopPopular:
    """Reads the list beside requests, never for one of their users, and keeps the newest.

    Attributes:
        item_ids: most popular first; empty until it was read.
    """

    def __init__(self, features: FeatureStore, *, timeout_s: float) -> None:
        self.item_ids: Sequence[str] = ()
        self._features = features
        self._timeout_s = timeout_s
        self._due = 0.0
        self._reading: asyncio.Task[None] | None = None

    def refresh(self, request: Request, *, limit: int) -> None:
        """Read the list again, at the request's time, unless it is recent; returns at once."""
        now = time.monotonic()
        if now < self._due or (self._reading is not None and not self._reading.done()):
            return
        self._due = now + _REFRESH_S
        self._reading = asyncio.create_task(self._read(replace(request, user_id=""), limit))

    async def _read(self, request: Request, limit: int) -> None:
        CURRENT_CALL.set(None)  # it outlives the request beside which it runs
        try:
            self.item_ids = await self._features.popular(request, limit=limit, timeout_s=self._timeout_s)
        except GyreError as error:
            self._due = 0.0
            _LOG.warning("popular items not read", extra={"loop": request.loop, "problem": str(error)})
        except Exception as error:  # noqa: BLE001 - nobody awaits the task: said here, read again after a while
            _LOG.error("popular items not read", exc_info=error, extra={"loop": request.loop})
