"""Compares the configuration of existing topics with their declarations, and mends it when asked to."""

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import for_code

from gyre_runtime.errors import Precondition, Unavailable
from gyre_runtime.kafka._names import DeclaredTopic, started_admin, topic_labels
from gyre_runtime.metrics import instrument

_LOG = logging.getLogger(__name__)
_SET_ON_THE_TOPIC = 1
"""Kafka's ConfigSource DYNAMIC_TOPIC_CONFIG."""
_VISIBLE_S = 15.0


@dataclass(frozen=True, slots=True)
class ConfigDifference:
    """A setting of a topic that is not as declared.

    Attributes:
        topic: full name.
        setting: Kafka's name of it, such as `max.message.bytes`.
        declared: its value by the declaration.
        actual: its value in Kafka.
    """

    topic: str
    setting: str
    declared: str
    actual: str

    def __str__(self) -> str:
        """Name the topic, the setting, its value and what is declared."""
        return f"{self.topic}: {self.setting} = {self.actual}: must be {self.declared}"


async def config_differences(bootstrap: str, topics: Iterable[DeclaredTopic]) -> list[ConfigDifference]:
    """What is not as declared of those topics that exist and may be described, ordered by topic; changes nothing.

    Settings that are not declared are not compared, nor are counts of partitions. The broker is waited for.

    Raises:
        KafkaError: Kafka does not answer.
    """
    declared = {topic.name: topic.config() for topic in topics}
    admin = await started_admin(bootstrap)
    try:
        actual = await _described(admin, declared)
    finally:
        await admin.close()
    return [each for name, settings in sorted(actual.items()) for each in _compare(name, declared[name], settings)]


async def mend_configs(bootstrap: str, topics: Iterable[DeclaredTopic]) -> list[ConfigDifference]:
    """Set, in Kafka, the settings that are not as declared; return what they were, [] where nothing was to be done.

    Settings that are not declared, topics that do not exist and counts of partitions stay as they are.

    Raises:
        KafkaError: Kafka does not answer.
        Precondition: Kafka refuses a setting (TOPIC_REFUSED).
        Unavailable: Kafka took the settings but does not show them.
    """
    declared = {topic.name: topic.config() for topic in topics}
    admin = await started_admin(bootstrap)
    try:
        actual = await _described(admin, declared)
        mended = [each for name in sorted(actual) for each in _compare(name, declared[name], actual[name])]
        # AlterConfigs replaces every override of a topic, so the others are written back.
        resources = [
            ConfigResource(ConfigResourceType.TOPIC, name, {**_overrides(actual[name]), **declared[name]})
            for name in sorted({each.topic for each in mended})
        ]
        if resources:
            for response in await admin.alter_configs(resources):
                _require_altered(response.resources)
            await _wait_altered(admin, {each.name: declared[each.name] for each in resources})
    finally:
        await admin.close()
    return mended


async def log_differences(bootstrap: str, topics: Iterable[DeclaredTopic]) -> list[ConfigDifference]:
    """Return, log, and set to 1 in `gyre_topic_config_differs`, what is not as declared; mends nothing.

    The metric of a topic that is as declared is not set. Raises as `config_differences`.
    """
    found = await config_differences(bootstrap, topics)
    by_topic: dict[str, list[ConfigDifference]] = {}
    for each in found:
        by_topic.setdefault(each.topic, []).append(each)
    for name, differences in by_topic.items():
        instrument("gyre_topic_config_differs").set(1, **topic_labels(name))
        differs = {each.setting: f"{each.actual}, declared {each.declared}" for each in differences}
        facts = {"topic": name, "differs": differs, "mend_with": "gyre topics GYRE_YAML --apply"}
        _LOG.warning("a topic is not as it is declared", extra=facts)
    return found


async def _described(admin: AIOKafkaAdminClient, names: Iterable[str]) -> dict[str, dict[str, tuple[str, int]]]:
    """Value and source of every setting of the topics that exist."""
    existing = set(await admin.list_topics())
    resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in names if name in existing]
    found: dict[str, dict[str, tuple[str, int]]] = {}
    for response in await admin.describe_configs(resources) if resources else ():
        for code, _message, _type, name, entries in response.resources:
            if code:
                problem = for_code(code).__name__
                _LOG.warning("a topic cannot be compared", extra={"topic": name, "problem": problem})
                continue
            found[name] = {entry[0]: (entry[1] or "", int(entry[3])) for entry in entries}
    return found


def _compare(
    name: str, declared: Mapping[str, str], actual: Mapping[str, tuple[str, int]]
) -> Sequence[ConfigDifference]:
    pairs = ((setting, wanted, actual.get(setting, ("", 0))[0]) for setting, wanted in declared.items())
    return [
        ConfigDifference(name, setting, wanted, found)
        for setting, wanted, found in pairs
        if set(wanted.split(",")) != set(found.replace(" ", "").split(","))
    ]


def _overrides(actual: Mapping[str, tuple[str, int]]) -> dict[str, str]:
    return {setting: value for setting, (value, source) in actual.items() if source == _SET_ON_THE_TOPIC}


def _require_altered(resources: Iterable[Any]) -> None:
    for code, message, _type, name in resources:
        if code:
            raise Precondition("TOPIC_REFUSED", f"Kafka refuses the topic {name}: {message or for_code(code).__name__}")


async def _wait_altered(admin: AIOKafkaAdminClient, declared: Mapping[str, Mapping[str, str]]) -> None:
    """Wait until the broker shows the settings, which lags their change by some milliseconds."""
    try:
        async with asyncio.timeout(_VISIBLE_S):
            while any(  # noqa: ASYNC110 - a broker has no event for it
                _compare(name, declared[name], actual) for name, actual in (await _described(admin, declared)).items()
            ):
                await asyncio.sleep(0.02)
    except TimeoutError as error:
        raise Unavailable("TOPICS_NOT_VISIBLE", "Kafka took the topics' settings but does not show them") from error
