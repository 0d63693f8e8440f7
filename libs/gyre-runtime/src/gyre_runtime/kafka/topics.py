"""Creates the topics that `gyre_core.topics` declares, so that services may start in any order."""

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import dataclass

from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic
from aiokafka.errors import InvalidPartitionsError, for_code
from gyre_core.spec import LoopSpec
from gyre_core.topics import declared, max_record_bytes

from gyre_runtime.errors import Precondition, Unavailable
from gyre_runtime.kafka._names import DeclaredTopic, started_admin
from gyre_runtime.kafka.topic_configs import ConfigDifference, log_differences
from gyre_runtime.retrying import retry_transient
from gyre_runtime.settings import KafkaSettings

_LOG = logging.getLogger(__name__)
_TIMEOUT_MS = 15_000
_MAX_BACKOFF_S = 1.0
_ALREADY_EXISTS = 36


@dataclass(frozen=True, slots=True)
class DeadLetterTopic:
    """A dead-letter topic for a topic that declares none; a declaration, which `create_topics` takes."""

    name: str
    partitions: int = 1

    def config(self) -> dict[str, str]:
        """Kafka's topic configuration: dead letters are retained for 30 days, and may be larger than their records."""
        return {
            "cleanup.policy": "delete",
            "retention.ms": str(30 * 86_400_000),
            "max.message.bytes": str(max_record_bytes(self.name)),
        }


async def ensure_topics(settings: KafkaSettings, loops: Iterable[LoopSpec]) -> list[ConfigDifference]:
    """Create every declared topic of the loops that is not there, and more partitions where fewer are than declared.

    Kafka is waited for without limit, but what it refuses is raised: Precondition (TOPIC_REFUSED).

    Settings of topics that are there stay as they are; what differs from their declarations is logged and returned.
    """
    topics = [topic for spec in loops for topic in declared(spec)]

    async def attempt() -> list[ConfigDifference]:
        await create_topics(settings.kafka, topics, replication=settings.kafka_replication)
        return await log_differences(settings.kafka, topics)

    return await retry_transient(attempt, what="topics", max_backoff_s=_MAX_BACKOFF_S)


async def create_topics(bootstrap: str, topics: Iterable[DeclaredTopic], *, replication: int = 1) -> list[str]:
    """Create topics; those that exist stay as they are, but get more partitions where more are declared.

    Args:
        bootstrap: Kafka's host:port list; it is waited for without limit.
        topics: their declarations.
        replication: copies of each partition.

    Returns:
        The names of those that were created.

    Raises:
        Precondition: Kafka refuses a declaration (TOPIC_REFUSED).
        Unavailable: Kafka does not show what it created within 15 s.
    """
    wanted = {topic.name: topic for topic in topics}
    admin = await started_admin(bootstrap)
    try:
        created = await _create_missing(admin, wanted, replication)
        await _wait_visible(admin, wanted)
        await _grow(admin, wanted)
    finally:
        await admin.close()
    if created:
        _LOG.info("topics created", extra={"topics": created})
    return created


async def existing_topics(bootstrap: str, names: Iterable[str]) -> frozenset[str]:
    """Which of some topics exist, by full name; creates none, and waits for Kafka without limit."""
    admin = await started_admin(bootstrap)
    try:
        return frozenset(names) & frozenset(await admin.list_topics())
    finally:
        await admin.close()


async def _create_missing(admin: AIOKafkaAdminClient, wanted: dict[str, DeclaredTopic], replication: int) -> list[str]:
    existing = set(await admin.list_topics())
    missing = [topic for name, topic in wanted.items() if name not in existing]
    if not missing:
        return []
    new = [NewTopic(topic.name, topic.partitions, replication, topic_configs=topic.config()) for topic in missing]
    answer = await admin.create_topics(new, timeout_ms=_TIMEOUT_MS)
    created = []
    for name, code, *message in answer.topic_errors:
        if code == 0:
            created.append(name)
        elif code != _ALREADY_EXISTS:
            detail = (message[0] if message else None) or for_code(code).__name__
            raise Precondition("TOPIC_REFUSED", f"Kafka refuses the topic {name}: {detail}")
    return created


async def _described(admin: AIOKafkaAdminClient, names: Iterable[str]) -> dict[str, int]:
    return {
        each["topic"]: len(each["partitions"])
        for each in await admin.describe_topics(list(names))
        if each["error_code"] == 0
    }


async def _wait_visible(admin: AIOKafkaAdminClient, wanted: dict[str, DeclaredTopic]) -> None:
    """Wait until the broker's metadata shows the topics, which lags their creation by some milliseconds."""
    try:
        async with asyncio.timeout(_TIMEOUT_MS / 1000):
            while len(await _described(admin, wanted)) < len(wanted):  # noqa: ASYNC110 - a broker has no event for it
                await asyncio.sleep(0.02)
    except TimeoutError as error:
        raise Unavailable("TOPICS_NOT_VISIBLE", "Kafka created topics but does not show them") from error


async def _grow(admin: AIOKafkaAdminClient, wanted: dict[str, DeclaredTopic]) -> None:
    counts = await _described(admin, wanted)
    for name, topic in sorted(wanted.items()):
        if topic.partitions > counts[name]:
            try:
                await admin.create_partitions(
                    {name: NewPartitions(total_count=topic.partitions)}, timeout_ms=_TIMEOUT_MS
                )
            except InvalidPartitionsError:
                continue  # another process was faster; the broker's metadata lags
            _LOG.info("a topic has more partitions", extra={"topic": name, "partitions": topic.partitions})
