"""Topic names as metric labels, topics as declared, and the wait for a broker that is not up yet."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaConnectionError, KafkaError

_LOG = logging.getLogger(__name__)
_RETRY_S = 0.5
_TIMEOUT_MS = 15_000
_LOG_EVERY_S = 5.0
_END_S = 2.0


class DeclaredTopic(Protocol):
    """What a topic's declaration says; `gyre_core.topics.Topic` is one."""

    @property
    def name(self) -> str:
        """Full name, with the loop."""

    @property
    def partitions(self) -> int:
        """Count of partitions."""

    def config(self) -> dict[str, str]:
        """Kafka's topic configuration: retention or compaction."""


def loop_of(topic: str) -> str:
    """Return the loop that a topic belongs to."""
    return topic.partition(".")[0]


def topic_labels(topic: str) -> dict[str, str]:
    """Return the metric labels of a topic."""
    return {"loop": loop_of(topic), "topic": topic}


async def start_whole(start: Callable[[], Awaitable[object]]) -> None:
    """Start a Kafka client; where that is cancelled, let it end first, and cut it short only where that takes long.

    aiokafka 0.14 leaves its first connection open where a start is cut short, which the caller's `stop` does not know.
    """
    attempt = asyncio.ensure_future(start())
    try:
        await asyncio.shield(attempt)
    except asyncio.CancelledError:
        try:
            await asyncio.wait([attempt], timeout=_END_S)
        finally:
            attempt.cancel()
            await asyncio.gather(attempt, return_exceptions=True)
        raise


async def start_when_up(start: Callable[[], Awaitable[object]], bootstrap: str, what: str) -> None:
    """Start a Kafka client, again and again until the broker is there; cancel it to give up."""
    logged = -_LOG_EVERY_S
    while True:
        try:
            await start_whole(start)
        except (KafkaConnectionError, KafkaError, OSError) as error:
            if isinstance(error, KafkaError) and not (isinstance(error, KafkaConnectionError) or error.retriable):
                raise
            if time.monotonic() - logged >= _LOG_EVERY_S:
                logged = time.monotonic()
                _LOG.warning("waiting for Kafka", extra={"kafka": bootstrap, "for": what, "problem": str(error)[:200]})
            await asyncio.sleep(_RETRY_S)
        else:
            return


async def started_admin(bootstrap: str) -> AIOKafkaAdminClient:
    """Return a started admin client, waiting for the broker."""
    made: list[AIOKafkaAdminClient] = []

    async def start() -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap, request_timeout_ms=_TIMEOUT_MS)
        try:
            await admin.start()
        except BaseException:  # raised again: a start that is cancelled, too, leaves no connection open
            await admin.close()
            raise
        made.append(admin)

    try:
        await start_when_up(start, bootstrap, "topics")
    except BaseException:
        for admin in made:
            await admin.close()
        raise
    return made[0]
