"""Waiting for records without asking again and again: the broker and the client answer as soon as there are some."""

import asyncio
from typing import Any

from aiokafka import AIOKafkaConsumer

FETCH_MAX_WAIT_MS = 500
"""How long the broker holds a fetch without data, as Kafka's own clients ask; other requests wait behind it."""
CLIENT_MAX_WAIT_MS = 10_000
"""How long aiokafka's fetcher waits before it looks at its partitions again; what changes them wakes it."""
_POLL_MS = 1000
"""How long a poll lasts: positions move past what holds no record without waking anybody."""


class LongPoll:
    """Waits for the next records of one consumer, until there are some, a second is over or `interrupt` is called."""

    def __init__(self) -> None:
        self._waiting: asyncio.Future[Any] | None = None
        self._interrupted = False

    async def records(self, kafka: AIOKafkaConsumer, *, max_records: int | None = None) -> dict[Any, list[Any]]:
        """Return records by partition; nothing after an interruption, or where none came.

        Raises:
            KafkaError: as aiokafka's `getmany`.
        """
        fetched: dict[Any, list[Any]] = await kafka.getmany(timeout_ms=0, max_records=max_records)
        if fetched or self._interrupted:
            self._interrupted = False
            return fetched
        waiting = asyncio.ensure_future(kafka.getmany(timeout_ms=_POLL_MS, max_records=max_records))
        self._waiting = waiting
        try:
            await asyncio.wait({waiting})
        finally:
            self._waiting, self._interrupted = None, False
            waiting.cancel()
        return {} if waiting.cancelled() else waiting.result()

    def interrupt(self) -> None:
        """Let `records` return at once, or if it does not wait now, the next time."""
        self._interrupted = True
        if self._waiting is not None:
            self._waiting.cancel()
