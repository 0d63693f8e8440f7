"""Attempts to load versions, each written down before it begins."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from gyre_core.models import SEPARATOR, triton_model

from gyre_deployer.domain.loading import LoadRecord, closed, next_attempt
from gyre_deployer.ports import CandidateRefused, ModelRepository, ModelServer

_LOG = logging.getLogger(__name__)
T = TypeVar("T")


class Postponed(Exception):  # noqa: N818 - a signal, not an error
    """A version is not to be loaded yet; the message says why, and until when."""


class LoadAttempts:
    """The attempts to load the versions of one loop.

    Args:
        loop: whose versions.
        server: that loads them.
        repository: keeps the records.
        first_backoff_s: pause after the first failed attempt, seconds; it doubles with each further one.
        now: the wall clock, unix seconds.
    """

    def __init__(
        self,
        loop: str,
        server: ModelServer,
        repository: ModelRepository,
        *,
        first_backoff_s: float,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._loop = loop
        self._server = server
        self._repository = repository
        self._first_backoff_s = first_backoff_s
        self._now = now
        self._records: dict[str, LoadRecord] | None = None

    async def run(self, version: str, work: Callable[[], Awaitable[T]]) -> T:
        """Do what loads a version and asks it for the first time, and return its result.

        Raises:
            Postponed: it is too early after a failed attempt, or the version ended a server that serves others now.
            CandidateRefused: the server said that it cannot.
            Unavailable: the server is away, or went away meanwhile: `close` finds out what that means.
        """
        record = (await self._read()).get(version)
        ready = await self._server.ready_models()
        if record is not None:
            self._require_due(version, record, ready)
        attempt = next_attempt(record, now=self._now(), ready=ready)
        await self._write(version, attempt)
        try:
            result = await work()
        except CandidateRefused as error:
            await self._write(version, attempt.failed(str(error)))
            raise
        await self.forget(version)
        return result

    def _require_due(self, version: str, record: LoadRecord, ready: frozenset[str]) -> None:
        others = ready - {triton_model(self._loop, version)}
        if record.ended_server and others:
            raise Postponed(f"{version} ended the model server: it is not loaded beside {len(others)} other model(s)")
        left_s = record.retry_time(self._first_backoff_s) - self._now()
        if left_s > 0:
            raise Postponed(
                f"{version} is loaded again in {left_s:.1f} s, after attempt {record.attempts}: {record.problem}"
            )

    async def close(self) -> None:
        """Find out how attempts ended whose calls broke off.

        Raises:
            Unavailable: the server is still away.
        """
        still_open = {version: record for version, record in (await self._read()).items() if record.is_open}
        if not still_open:
            return
        ready = await self._server.ready_models()
        for version, record in still_open.items():
            name = triton_model(self._loop, version)
            ended = closed(record, own_prefix=f"{self._loop}{SEPARATOR}", name=name, ready=ready)
            _LOG.error("a load broke off", extra={"loop": self._loop, "version": version, "problem": ended.problem})
            await self._write(version, ended)

    async def hopeless(self) -> dict[str, LoadRecord]:
        """The versions that count as unloadable, with the records of their attempts."""
        return {version: record for version, record in (await self._read()).items() if record.is_hopeless}

    async def forget(self, version: str) -> None:
        """Remove the record of a version, if there is one."""
        if version in await self._read():
            await self._write(version, None)

    async def _read(self) -> dict[str, LoadRecord]:
        if self._records is None:
            self._records = await self._repository.load_records(self._loop)
        return self._records

    async def _write(self, version: str, record: LoadRecord | None) -> None:
        records = await self._read()
        await self._repository.write_load_record(self._loop, version, record)
        if record is None:
            records.pop(version, None)
        else:
            records[version] = record
