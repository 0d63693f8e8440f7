"""The log of one loop on Kafka: changes, projection and snapshot in one transaction, whose id fences a twin."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from google.protobuf.message import Message
from gyre.events.v1.models_pb2 import RolloutEvent, RolloutSnapshot
from gyre_core.topics import topic
from gyre_runtime import Precondition, Unavailable
from gyre_runtime.events import message_types
from gyre_runtime.kafka import Fenced, Transaction, TransactionalProducer, read_log, read_newest

from gyre_deployer.domain.rollouts import Candidate, Change, LoopState, apply
from gyre_deployer.ports import FencedByPeer
from gyre_deployer.wire import change_message, change_of, snapshot_message, state_of, view_message

SOURCE = "gyre/deployer"
_EVENTS, _SNAPSHOTS = message_types(RolloutEvent), message_types(RolloutSnapshot)
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
        self._log_offset = 0

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

    async def read(self) -> tuple[LoopState, int]:
        """See `RolloutLog`."""
        event = await read_newest(self._bootstrap, topic(self._loop, "models.rollout-snapshots"), _SNAPSHOTS)
        state = LoopState(self._loop) if event is None else state_of(event.message)
        start = 0 if event is None else event.message.log_offset
        snapshot_epoch, self._log_offset = state.epoch, start
        log = read_log(self._bootstrap, topic(self._loop, "models.rollout-events"), _EVENTS, start=start)
        async for each in log:
            if each.message.epoch > state.epoch:
                state = self._followed(state, change_of(each.message, each.traceparent))
            self._log_offset = each.offset + 1
        return state, snapshot_epoch

    def _followed(self, state: LoopState, change: Change) -> LoopState:
        if change.epoch != state.epoch + 1:
            problem = f"the rollout log of {self._loop} goes from epoch {state.epoch} to {change.epoch}"
            raise Precondition("LOG_CUT", f"{problem}: what lay between is gone, and no snapshot holds it")
        return apply(state, change)

    async def append(
        self, changes: Sequence[Change], state: LoopState, *, waiting: Sequence[Candidate], is_snapshot: bool
    ) -> None:
        """See `RolloutLog`."""
        if self._producer is None:
            raise Unavailable("LOG_CLOSED", "the deployer's log is not open")
        try:
            async with self._producer.transaction() as transaction:
                for change in changes:
                    self._log_offset = 1 + await self._send(
                        transaction, "models.rollout-events", change_message(self._loop, change), change.time
                    )
                await self._send(transaction, "models.rollouts", view_message(state, waiting), state.change_time)
                if is_snapshot:
                    snapshot = snapshot_message(state, self._log_offset)
                    await self._send(transaction, "models.rollout-snapshots", snapshot, state.change_time)
        except Fenced as error:
            raise FencedByPeer(f"another deployer took over the loop {self._loop}") from error

    async def _send(self, transaction: Transaction, suffix: str, message: Message, time: float) -> int:
        return await transaction.send(topic(self._loop, suffix), message, key=self._loop, time=time)

    async def reopen(self) -> None:
        """See `RolloutLog`."""
        await self.__aexit__(None, None, None)
        await self.__aenter__()
