"""Topics as they are declared: what a broker has of it, and what consumers see of it."""

from pathlib import Path

import pytest
from gyre.events.v1.behavior_pb2 import Interaction
from gyre_runtime import ServiceSettings, load_loops
from gyre_runtime.events import decode, message_types
from gyre_runtime.kafka import Producer, ensure_topics, read_records

pytestmark = [pytest.mark.adapter, pytest.mark.timeout(60)]

SETTINGS = {"loops": (Path(__file__).parent / "data" / "minimal.yaml",)}
TYPES = message_types(Interaction)


async def test_a_record_of_behaviour_carries_the_time_of_its_append(kafka: str) -> None:
    """Of declared topics of behaviour a consumer learns when the broker took a record, and that it was the broker."""
    settings = ServiceSettings(kafka=kafka, **SETTINGS)
    await ensure_topics(settings, load_loops(settings).values())
    async with Producer(kafka, source="test") as producer:
        await producer.send("tiny.behavior.interactions", Interaction(user_id="u", item_id="i", type="click"), key="u")
    (record,) = [each async for each in read_records(kafka, "tiny.behavior.interactions")]
    event = decode(record, TYPES)
    assert event.has_append_time
    assert event.arrival_time == record.timestamp / 1000
