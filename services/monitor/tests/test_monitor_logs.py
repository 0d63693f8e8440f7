"""Another log in Kafka than the one that the database holds: it is said, and read once an operator accepts it."""

import asyncio
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from gyre_core.spec import LoopSpec
from gyre_core.topics import declared, topic
from gyre_local.testing import eventually
from gyre_monitor.store import reports
from gyre_monitor.store.database import Database
from gyre_runtime.events import encode
from gyre_runtime.kafka import create_topics

pytestmark = [pytest.mark.adapter, pytest.mark.timeout(120)]
SUFFIX = "behavior.interactions"


@dataclass(frozen=True)
class Clicks:
    """Clicks in the first partition of a loop's topic, and what a monitor of the loop has stored and logged of them."""

    kafka: str
    spec: LoopSpec
    make: Any
    database: Path
    log: Path

    @property
    def topic(self) -> str:
        """Full name."""
        return topic(self.spec.loop, SUFFIX)

    async def send(self, first: int, end: int) -> None:
        """Send the clicks of some numbers, which are their ids."""
        producer = AIOKafkaProducer(bootstrap_servers=self.kafka)
        await producer.start()
        try:
            for number in range(first, end):
                click = self.make.interaction(f"u{number}")
                record = encode(click, source="shop", id=f"c{number}", time=self.make.begin + number)
                await producer.send(self.topic, record.value, headers=record.headers, partition=0)
        finally:
            await producer.stop()

    async def replace_topic(self) -> None:
        """Delete the topic, and create it again as it was declared."""
        admin = AIOKafkaAdminClient(bootstrap_servers=self.kafka)
        await admin.start()
        try:
            await admin.delete_topics([self.topic])

            async def gone() -> bool:
                return self.topic not in await admin.list_topics()

            await eventually(gone, timeout_s=20, message="the topic is deleted")
        finally:
            await admin.close()
        await create_topics(self.kafka, [each for each in declared(self.spec) if each.name == self.topic])

    def accept(self, beginning: str) -> None:
        """Run the command that the log names."""
        clean = {key: value for key, value in os.environ.items() if not key.startswith("GYRE_")}
        gyre = str(Path(sys.executable).parent / "gyre")
        command = [gyre, "log", "accept", self.spec.loop, SUFFIX, "--from", beginning]
        env = {**clean, "GYRE_KAFKA": self.kafka}
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    async def are_stored(self, count: int) -> bool:
        """Whether so many are."""
        async with Database(f"sqlite:///{self.database}") as database:
            status = await database.read(reports.status, self.spec.loop, now=0.0)
        return bool(status.stages and status.stages[0].count == count)

    def said(self) -> str:
        """What the monitors have logged."""
        return self.log.read_text()


@pytest.fixture
async def clicks(kafka, tmp_path, spec, settings, make) -> Clicks:
    """The loop's topics, empty."""
    await create_topics(kafka, declared(spec))
    return Clicks(kafka, spec, make, settings.state_dir / "monitor.db", tmp_path / "monitor.log")


async def test_a_topic_made_anew_with_more_records_is_read_once_it_is_accepted(clicks, start_process) -> None:
    """What stands below the stored offset of another log is not passed over: the loop waits until it is accepted."""
    await clicks.send(0, 20)
    first = start_process()
    await eventually(lambda: clicks.are_stored(20), timeout_s=60, message="the first log is stored")
    first.terminate()
    assert await asyncio.to_thread(first.wait, 20) == 0
    await clicks.replace_topic()
    await clicks.send(100, 160)
    second = start_process()
    await eventually(lambda: "LOG_REPLACED" in clicks.said(), timeout_s=60, message="another log is said")
    assert f"gyre log accept {clicks.spec.loop} {SUFFIX} --from" in clicks.said()
    assert "partition 0: the record at offset 19 was" in clicks.said()
    assert await clicks.are_stored(20)
    clicks.accept("start")
    await eventually(lambda: clicks.are_stored(80), timeout_s=60, message="the new log is counted beside the old one")
    second.terminate()
    assert await asyncio.to_thread(second.wait, 20) == 0
    before = len(clicks.said())
    start_process()
    await clicks.send(160, 170)
    await eventually(lambda: clicks.are_stored(90), timeout_s=60, message="the accepted log is known again")
    assert "LOG_REPLACED" not in clicks.said()[before:]


async def test_a_tail_that_is_lost_while_running_stops_the_loop(clicks, start_process) -> None:
    """A topic that becomes shorter than what is stored is not read again by a running monitor, which says so."""
    await clicks.send(0, 20)
    start_process()
    await eventually(lambda: clicks.are_stored(20), timeout_s=60, message="the log is stored")
    await clicks.replace_topic()
    await clicks.send(0, 5)
    await eventually(lambda: "LOG_REPLACED" in clicks.said(), timeout_s=60, message="another log is said")
    assert "20 records were applied, and the log ends at 5" in clicks.said()
    clicks.accept("end")
    await eventually(lambda: "a log was accepted" in clicks.said(), timeout_s=30, message="it is accepted")
    await clicks.send(20, 30)
    await eventually(lambda: clicks.are_stored(30), timeout_s=60, message="what comes after counts")
