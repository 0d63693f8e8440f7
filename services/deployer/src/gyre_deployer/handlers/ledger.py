"""The state of one loop in memory, and the only way to change it: through the log."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Self

from gyre_runtime import Unavailable, instrument
from gyre_runtime.series import VersionSeries

from gyre_deployer.domain.decisions import pending
from gyre_deployer.domain.projection import arms
from gyre_deployer.domain.rollouts import WITHOUT_STEP, Candidate, Change, Kind, LoopState, apply, trimmed
from gyre_deployer.ports import Candidates, FencedByPeer, RolloutLog

_SNAPSHOT_AFTER_S = 3600.0
_SNAPSHOT_AFTER_CHANGES = 50
_LOG = logging.getLogger(__name__)


class ConcurrentChange(Exception):  # noqa: N818 - a signal, not an error
    """The state changed since the caller decided: decide again."""


class RolloutLedger:
    """Holds the state that the log says; an async context manager.

    Args:
        loop: whose rollouts.
        log: keeps them.
        max_ended: how many ended rollouts are remembered, beside those whose versions are in use.
        now: the wall clock, unix seconds.

    Attributes:
        state: now.
        waiting_for: what keeps the rollout from its next step, in words for a person; empty for nothing.
        candidates: what may be rolled out next; None before it is known.
    """

    def __init__(
        self, loop: str, log: RolloutLog, *, max_ended: int = 100, now: Callable[[], float] = time.time
    ) -> None:
        self.state = LoopState(loop)
        self.candidates: Candidates | None = None
        self._max_ended = max_ended
        self._snapshot_epoch = 0
        self.waiting_for = ""
        self._log = log
        self._now = now
        self._lock = asyncio.Lock()
        self._is_uncertain = True
        self._replaced: FencedByPeer | None = None
        self._changed = asyncio.Event()
        self._series = VersionSeries(loop)
        self._shares: dict[tuple[str, str], float] = {}

    async def __aenter__(self) -> Self:
        """Fold the log; nothing is written before that."""
        await self.sync()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish what is being written."""
        async with self._lock:
            pass

    async def sync(self) -> None:
        """Read the log where it is not known what it holds.

        Raises:
            FencedByPeer: another deployer took over.
            Unavailable: Kafka went away.
            ValueError: the log contradicts itself.
        """
        if self._replaced is not None:
            raise self._replaced
        async with self._lock:
            if not self._is_uncertain:
                return
            state, self._snapshot_epoch = await self._log.read()
            self._adopt(state)
            self._is_uncertain = False

    async def reconnect(self) -> None:
        """Connect to the log anew where the last write may or may not have happened."""
        async with self._lock:
            if self._is_uncertain:
                await self._log.reopen()

    async def append(self, basis: LoopState, changes: Sequence[Change]) -> LoopState:
        """Write changes that were decided upon `basis`, and return the state after them.

        A caller that is cancelled does not cut a write in two.

        Raises:
            ConcurrentChange: the state is another by now; nothing was written.
            FencedByPeer: another deployer took over; nothing was written.
            Unavailable: Kafka did not answer.
        """
        return await asyncio.shield(asyncio.ensure_future(self._append(basis, changes)))

    async def _append(self, basis: LoopState, changes: Sequence[Change]) -> LoopState:
        self._require_certain()
        async with self._lock:
            self._require_certain()
            if self.state is not basis:
                raise ConcurrentChange
            now = self._now()  # also where the change before was written by a clock that was ahead
            numbered = [replace(each, epoch=basis.epoch + 1 + n, time=now) for n, each in enumerate(changes)]
            told = state = self._settled(_after(basis, numbered))
            waiting = pending(self.candidates.all(), told) if self.candidates is not None else []
            is_snapshot = self._is_snapshot_due(state, numbered)
            if is_snapshot:
                state = trimmed(state, self._max_ended)
            await self._write(numbered, state, waiting, is_snapshot=is_snapshot)
            self._adopt(state, untrimmed=told)
        for change in numbered:
            self._tell(change, told)
        return state

    def _settled(self, state: LoopState) -> LoopState:
        if self.candidates is None:
            return state
        return replace(state, candidates_offset=self.candidates.decided_offset(state))

    def _is_snapshot_due(self, state: LoopState, changes: Sequence[Change]) -> bool:
        """After each rollout; while one is under way only where many changes, or an old one, are in no snapshot."""
        newer = state.epoch - self._snapshot_epoch
        is_old = newer > 0 and abs(self._now() - state.change_time) > _SNAPSHOT_AFTER_S
        return self.candidates is not None and (
            newer > _SNAPSHOT_AFTER_CHANGES or is_old or (bool(changes) and state.under_way is None)
        )

    async def snapshot(self) -> None:
        """Write a snapshot, if one is due; raises what `append` raises."""
        if self._is_snapshot_due(self.state, ()):
            await self.append(self.state, [])

    def _require_certain(self) -> None:
        if self._is_uncertain:
            raise Unavailable("LOG_UNAVAILABLE", "the rollout log cannot be written at the moment", retry_after_s=1)

    async def _write(
        self, changes: Sequence[Change], state: LoopState, waiting: Sequence[Candidate], *, is_snapshot: bool
    ) -> None:
        try:
            await self._log.append(changes, state, waiting=waiting, is_snapshot=is_snapshot)
        except FencedByPeer as error:
            self._replaced = error
            self._wake()
            raise
        except BaseException:
            self._is_uncertain = True
            raise
        if is_snapshot:
            self._snapshot_epoch = state.epoch

    def note_epoch(self, epoch: int) -> None:
        """Take note of an epoch in the projection: one that is neither written nor being written here is a twin's."""
        if epoch > self.state.epoch and not self._lock.locked() and not self._is_uncertain:
            self._replaced = FencedByPeer(f"another deployer wrote epoch {epoch} of the loop {self.state.loop}")
            self._wake()

    def _adopt(self, state: LoopState, *, untrimmed: LoopState | None = None) -> None:
        """Take over a state that the log holds; `untrimmed` also has the rollouts that its snapshot left out."""
        self.state = state
        if self.candidates is not None:
            self.candidates.prune(untrimmed or state)
        self._show_shares(state)
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def states(self) -> AsyncIterator[LoopState]:
        """The state now, and again after each change."""
        while True:
            changed = self._changed
            yield self.state
            await changed.wait()

    def _show_shares(self, state: LoopState) -> None:
        shares = {(arm.candidate.version, arm.name): arm.share for arm in arms(state)}
        for version, arm in self._shares.keys() | shares.keys():
            share = shares.get((version, arm), 0.0)
            instrument("gyre_deployer_share").set(share, loop=state.loop, version=version, arm=arm)
        self._shares = shares
        self._series.note_used(state.named)

    @staticmethod
    def _tell(change: Change, state: LoopState) -> None:
        facts = {
            "loop": state.loop,
            "rollout_id": change.rollout_id,
            "version": change.version,
            "epoch": change.epoch,
            "share": change.share,
        }
        _LOG.info("rollout %s: %s", change.kind.lower(), change.reason, extra=facts)
        if change.kind not in WITHOUT_STEP | {Kind.RESUMED}:
            reached = state.rollouts[change.rollout_id].state
            instrument("gyre_deployer_rollouts_total").add(loop=state.loop, state=reached.lower())


def _after(state: LoopState, changes: Sequence[Change]) -> LoopState:
    for change in changes:
        state = apply(state, change)
    return state
