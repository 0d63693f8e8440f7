"""Attempts to load versions, each written down before the server is asked, and one at a time on each model server."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from functools import partial
from typing import TypeVar

from gyre_core.models import split_model
from gyre_runtime import Unavailable

from gyre_deployer.domain.loading import (
    FORGOTTEN_AFTER_S,
    MAX_FAILURES,
    MAX_MARKS,
    CallEnd,
    Evidence,
    LoadRecord,
    ModelState,
    concluded,
    next_attempt,
)
from gyre_deployer.handlers.clock import SYSTEM_CLOCK, Ages, Clock
from gyre_deployer.ports import REPOSITORY_UNAVAILABLE, TRITON_TIMED_OUT, CandidateRefused, ModelRepository, ModelServer

_LOG = logging.getLogger(__name__)
T = TypeVar("T")


class Postponed(Exception):  # noqa: N818 - a signal, not an error
    """A version is not to be loaded yet; the message says why, and until when."""


async def _nothing() -> None:
    """Prepares nothing."""


class LoadAttempts:
    """The attempts to load versions of all loops on one model server; where it ends, one load alone is suspected.

    They are made by one process: it alone writes the records, and reads them when it starts.

    Args:
        server: that loads them.
        repository: keeps the records.
        first_backoff_s: pause after the first failed attempt, seconds; it doubles with each further one.
        timeout_s: the time that the server has for an answer, seconds.
        on_trial: names of the models, of any loop, that have traffic and are observed: their requests may end the
            server, too.
        clock: of the process.
    """

    def __init__(
        self,
        server: ModelServer,
        repository: ModelRepository,
        *,
        first_backoff_s: float,
        timeout_s: float,
        on_trial: Callable[[], Collection[str]],
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._server = server
        self._repository = repository
        self._first_backoff_s = first_backoff_s
        self._timeout_s = timeout_s
        self._on_trial = on_trial
        self._clock, self._ages = clock, Ages(clock)
        self._records: dict[str, LoadRecord] | None = None
        self._running = ""
        self._call = CallEnd.UNSEEN
        self._is_only_suspect = True
        self._closing, self._files = asyncio.Lock(), asyncio.Lock()

    async def run(
        self,
        model: str,
        work: Callable[[], Awaitable[T]],
        *,
        prepare: Callable[[], Awaitable[object]] = _nothing,
        keeps_losses: bool = False,
        has_served: bool = False,
    ) -> T:
        """Do what loads a model or asks it for the first time, and return its result.

        Args:
            model: name on the server.
            work: asks the server.
            prepare: comes before it and does not ask the server to load.
            keeps_losses: whether a success says nothing of how the server ended during earlier attempts.
            has_served: whether the version was loaded and had users before: that the server ends may then as well be
                the doing of those that serve meanwhile, so that once is no proof.

        Raises:
            Postponed: another load has not ended, also only on the server; it is too early after a failed attempt; or
                the version ended a server that serves others now.
            CandidateRefused: the server said that it cannot.
            Unavailable: the server is away, or went away meanwhile: `close` finds out what that means.
        """
        records = await self._read()
        record = records.get(model)
        self._require_turn(records)
        if record is not None:
            self._require_due(model, record)
        self._running, self._call = model, CallEnd.UNSEEN
        try:
            attempt, loading = await self._begun(model, record)
            asked = partial(self._asked, model, work, is_alone=not (loading or has_served))
            return await self._attempt(model, attempt, asked, prepare=prepare, keeps_losses=keeps_losses)
        finally:
            self._running = ""

    async def _begun(self, model: str, record: LoadRecord | None) -> tuple[LoadRecord, list[str]]:
        """The record of an attempt that may begin now, and what else the server still loads all the same."""
        models = await self._server.models()
        loading = [name for name, state in models.items() if state == ModelState.LOADING and name != model]
        await self._require_idle(loading)
        age_s = self._ages.of(model, record.start_time) if record is not None else 0.0
        attempt = next_attempt(record, now=self._clock.wall(), age_s=age_s, models=models)
        others = set(attempt.ready_before) - {model}
        left_s = FORGOTTEN_AFTER_S - age_s
        if attempt.ended_server and others and left_s > 0:
            problem = f"not loaded beside {len(others)} other model(s) for {left_s:.0f} s more"
            raise Postponed(f"{model} ended the model server: it is {problem}")
        self._ages.begin(model, attempt.start_time)
        return attempt, loading

    async def _require_idle(self, loading: Sequence[str]) -> None:
        """A load goes on upon the server after its call has timed out: wait for it as long as it may be tried."""
        records = await self._read()
        for name in loading:
            record = records.get(name)
            if record is None or record.is_hopeless:
                continue
            if self._ages.of(name, record.start_time) <= MAX_FAILURES * self._timeout_s:
                raise Postponed(f"the load of {name} must end first: the model server has not finished it")

    async def _attempt(
        self,
        model: str,
        attempt: LoadRecord,
        work: Callable[[], Awaitable[T]],
        *,
        prepare: Callable[[], Awaitable[object]],
        keeps_losses: bool,
    ) -> T:
        try:
            await prepare()
            await self._write(model, attempt)
            result = await work()
        except CandidateRefused as error:
            await self._write(model, attempt.refused(str(error)))
            raise
        await self._write(model, attempt.succeeded() if keeps_losses else None)
        return result

    async def _asked(self, model: str, work: Callable[[], Awaitable[T]], *, is_alone: bool) -> T:
        """Do the work, and note how it ends where it has no answer, and whether nothing else can be the cause."""
        others = set(self._on_trial()) - {model}
        try:
            return await work()
        except Unavailable as error:
            self._call = CallEnd.TIMED_OUT if error.reason == TRITON_TIMED_OUT else CallEnd.BROKEN
            self._is_only_suspect = is_alone and not others | (set(self._on_trial()) - {model})
            raise

    def _require_turn(self, records: Mapping[str, LoadRecord]) -> None:
        waits_for = self._running or next((model for model, record in records.items() if record.is_open), "")
        if waits_for:
            raise Postponed(f"the load of {waits_for} must end first")

    def _require_due(self, model: str, record: LoadRecord) -> None:
        left_s = record.pause_s(self._first_backoff_s) - self._ages.of(model, record.start_time)
        if left_s > 0:
            raise Postponed(
                f"{model} is loaded again in {left_s:.1f} s, after {record.failures} failure(s): {record.problem}"
            )

    async def close(self) -> None:
        """Find out how attempts ended whose calls had no answer, of any loop, also those of an earlier process.

        Raises:
            Unavailable: the server is still away.
        """
        async with self._closing:
            records = await self._read()
            still_open = {name: each for name, each in records.items() if each.is_open and name != self._running}
            if not still_open:
                return
            try:
                models = await self._server.models()
            except Unavailable as error:
                if error.reason == REPOSITORY_UNAVAILABLE:
                    return
                self._call = CallEnd.BROKEN if self._call == CallEnd.TIMED_OUT else self._call
                raise
            for model, record in still_open.items():
                is_overdue = self._ages.of(model, record.start_time) > self._timeout_s
                is_only_suspect = self._is_only_suspect and len(still_open) == 1
                evidence = Evidence(models, self._call, is_only_suspect, self._timeout_s, is_overdue)
                await self._conclude(model, record, concluded(record, model, evidence))

    async def _conclude(self, model: str, before: LoadRecord, after: LoadRecord | None) -> None:
        if after == before:
            return
        if after is not None and after.losses > before.losses:
            await self._acquit_others()
        await self._write(model, after)
        loop, version = split_model(model) or ("", model)
        problem = after.problem if after is not None else "none: it is loaded"
        _LOG.warning("a load had no answer", extra={"loop": loop, "version": version, "problem": problem})

    async def _acquit_others(self) -> None:
        for model, record in (await self._read()).items():
            if not record.is_open and record.acquitted() != record:
                await self._write(model, record.acquitted())

    async def hopeless(self, loop: str) -> dict[str, LoadRecord]:
        """The versions of a loop that count as unloadable, with the records of their attempts."""
        records = await self._read()
        parts = [(split_model(model), record) for model, record in records.items() if record.is_hopeless]
        return {name[1]: record for name, record in parts if name is not None and name[0] == loop}

    async def recorded(self, loop: str) -> list[str]:
        """The versions of a loop with a record of attempts."""
        names = [split_model(model) for model in await self._read()]
        return [name[1] for name in names if name is not None and name[0] == loop]

    async def losses(self, model: str) -> int:
        """During how many attempts to load a model the server ended, without it being certain that it was its doing."""
        record = (await self._read()).get(model)
        return record.losses if record is not None else 0

    async def forget(self, *models: str) -> None:
        """Remove the records of models that are not needed any more.

        That a version ended the server stays known, of so many as `MAX_MARKS`: whoever offers it again must learn it.
        """
        records = await self._read()
        marked = [each for each in models if each in records and records[each].ended_server]
        oldest = sorted(marked, key=lambda each: records[each].start_time)[:-MAX_MARKS]
        for model in models:
            if model not in marked or model in oldest:
                await self._write(model, None)

    async def _read(self) -> dict[str, LoadRecord]:
        async with self._files:
            return await self._known()

    async def _known(self) -> dict[str, LoadRecord]:
        if self._records is None:
            self._records = await self._repository.load_records()
        return self._records

    async def _write(self, model: str, record: LoadRecord | None) -> None:
        """Write a record; after a failure nobody knows what is there, which is then read again."""
        async with self._files:
            records = await self._known()
            if record is None and model not in records:
                return
            self._records = None
            await self._repository.write_load_record(model, record)
            others = {name: each for name, each in records.items() if name != model}
            self._records = others if record is None else {**others, model: record}
            if record is None:
                self._ages.forget(model)
