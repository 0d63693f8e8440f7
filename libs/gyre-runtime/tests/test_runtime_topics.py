"""Topics as they are declared: what a broker has of it, and what consumers see of it."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from gyre.events.v1.behavior_pb2 import Interaction
from gyre_core.topics import declared
from gyre_local.testing import eventually
from gyre_runtime import load_loops
from gyre_runtime.events import decode, message_types
from gyre_runtime.kafka import Producer, config_differences, create_topics, ensure_topics, mend_configs, read_records
from gyre_runtime.settings import KafkaSettings, LoopSettings

pytestmark = [pytest.mark.adapter, pytest.mark.timeout(60)]

SPECS = load_loops(LoopSettings(loops=(Path(__file__).parent / "data" / "minimal.yaml",)))
TYPES = message_types(Interaction)


async def test_a_record_of_behaviour_carries_the_time_of_its_append(kafka: str) -> None:
    """Of declared topics of behaviour a consumer learns when the broker took a record, and that it was the broker."""
    await ensure_topics(KafkaSettings(kafka=kafka), SPECS.values())
    async with Producer(kafka, source="test") as producer:
        await producer.send("tiny.behavior.interactions", Interaction(user_id="u", item_id="i", type="click"), key="u")
    *_, record = [each async for each in read_records(kafka, "tiny.behavior.interactions")]
    event = decode(record, TYPES)
    assert event.has_append_time
    assert event.arrival_time == record.timestamp / 1000


@pytest.fixture
async def foreign_topic(kafka: str) -> str:
    """A topic of behaviour that exists already, as somebody else made it, with an override of their own."""
    await create_topics(kafka, [Foreign("foreign.behavior.interactions")])
    return "foreign.behavior.interactions"


@dataclass(frozen=True)
class Foreign:
    """A topic as Gyre would not declare it."""

    name: str
    partitions: int = 1

    def config(self) -> dict[str, str]:
        """Less than declared, and something that is not declared at all."""
        return {"max.message.bytes": "100000", "message.timestamp.type": "CreateTime", "min.insync.replicas": "1"}


async def test_a_topic_that_is_not_as_declared_is_said_and_mended(
    kafka: str, foreign_topic: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The start says what differs; mending sets that alone, and an override of somebody else stays."""
    spec = SPECS["tiny"].model_copy(update={"loop": "foreign"})
    await ensure_topics(KafkaSettings(kafka=kafka), [spec])
    said = [record for record in caplog.records if getattr(record, "topic", None) == foreign_topic]
    differing = [set(record.differs) for record in said if hasattr(record, "differs")]
    assert len(differing) == 1
    assert differing[0] >= {"max.message.bytes", "message.timestamp.type"}
    assert {each.topic for each in await mend_configs(kafka, declared(spec))} == {foreign_topic}

    async def as_declared() -> bool:
        return await config_differences(kafka, declared(spec)) == []

    await eventually(as_declared, timeout_s=20, message="the broker applies what was altered")
    kept = await config_differences(kafka, [Foreign(foreign_topic)])
    assert {each.setting for each in kept} == {"max.message.bytes", "message.timestamp.type"}
