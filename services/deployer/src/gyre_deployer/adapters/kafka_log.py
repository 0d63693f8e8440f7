"""The log of one loop on Kafka: changes and projection in one transaction, whose id fences a twin."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from gyre.events.v1.models_pb2 import RolloutEvent
from gyre_core.topics import topic
from gyre_runtime import Unavailable
from gyre_runtime.events import message_types
from gyre_runtime.kafka import Fenced, TransactionalProducer, read_log

from gyre_deployer.domain.rollouts import Change, LoopState
from gyre_deployer.ports import FencedByPeer
from gyre_deployer.wire import change_message, change_of, view_message

SOURCE = "gyre/deployer"
_TYPES = message_types(RolloutEvent)
_CLOSE_S = 5.0
_LOG = logging.getLogger(__name__)


class KafkaRolloutLog:
    """See `RolloutLog`; an async context manager that fences every older deployer of the loop when it is entered.

    Read only after entering: what a twin was writing is then either there or never will be.
    """

    def __init__(self, bootstrap: str, loop: str) -> None:
        self._bootstrap = bootstrap
        self._loop = loop
        self._producer: TransactionalProducer | None = None

    async def __aenter__(self) -> Self:
        """Connect, waiting for the broker as long as it takes."""
        producer = TransactionalProducer(self._bootstrap, f"deployer-{self._loop}", source=SOURCE)
        self._producer = await producer.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Disconnect."""
        producer, self._producer = self._producer, None
        if producer is None:
            return
        try:
            async with asyncio.timeout(_CLOSE_S):
                await producer.__aexit__(None, None, None)
        except TimeoutError:
            _LOG.warning("the producer was left behind: Kafka does not answer", extra={"loop": self._loop})

    async def read(self) -> list[Change]:
        """See `RolloutLog`."""
        name = topic(self._loop, "models.rollout-events")
        log = read_log(self._bootstrap, name, _TYPES)
        return [change_of(event.message, event.traceparent) async for event in log]

    async def append(self, changes: Sequence[Change], state: LoopState) -> None:
        """See `RolloutLog`."""
        if self._producer is None:
            raise Unavailable("LOG_CLOSED", "the deployer's log is not open")
        events, views = topic(self._loop, "models.rollout-events"), topic(self._loop, "models.rollouts")
        try:
            async with self._producer.transaction() as transaction:
                for change in changes:
                    await transaction.send(events, change_message(self._loop, change), key=self._loop, time=change.time)
                await transaction.send(views, view_message(state), key=self._loop, time=state.change_time)
        except Fenced as error:
            raise FencedByPeer(f"another deployer took over the loop {self._loop}") from error

    async def reopen(self) -> None:
        """See `RolloutLog`."""
        await self.__aexit__(None, None, None)
        await self.__aenter__()
