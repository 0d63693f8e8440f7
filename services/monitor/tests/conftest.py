"""A small loop, events as Kafka would give them, a real database file, and the service in the test's own process."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from google.protobuf.message import Message
from gyre.events.v1 import behavior_pb2 as behavior
from gyre.events.v1 import models_pb2 as models
from gyre.monitor.v1.monitor_pb2_grpc import MonitorServiceStub
from gyre_core.features import Layout
from gyre_core.keyring import Keyring
from gyre_core.spec import LoopSpec, parse_loop
from gyre_core.topics import declared, topic
from gyre_local.reserve import free_ports
from gyre_local.timeouts import scaled
from gyre_monitor.bootstrap import RunningMonitor, bootstrap
from gyre_monitor.settings import MonitorSettings
from gyre_monitor.store import reports
from gyre_monitor.store.database import Database
from gyre_monitor.store.projection import Projection
from gyre_runtime import Channel, Lifespan, ServiceSettings, channel
from gyre_runtime.events import Event, MessageTypes, decode, message_types
from gyre_runtime.kafka import Producer, create_topics

BEGIN = 1_700_000_000.0
KEYS = Keyring(b"k" * 32)
SPEC = """
version: 1
loop: {loop}
clock: {clock}
events:
  max_lateness: 52w
  interactions:
    click: {{}}
    buy: {{value: {{min: 0, max: 1000}}}}
    view: {{}}
features:
  - {{name: clicks, kind: decayed_count, scope: item, events: [click], half_lives: [1d]}}
training:
  label: {{events: [click], attribution_window: 30m}}
  triggers: {triggers}
experiment: {{clicks: [click], conversions: [buy]}}
shards: {{kafka_partitions: 2}}
"""


def spec_text(loop: str, *, triggers: str = "{volume: {events: 10}}", clock: str = "replay") -> str:
    """The gyre.yaml of the test loop under a name."""
    return SPEC.format(loop=loop, triggers=triggers, clock=clock)


def spec_of(loop: str, **changes: str) -> LoopSpec:
    """The test loop under a name."""
    return parse_loop(spec_text(loop, **changes), source="test")


@pytest.fixture
def loop(loop_name: str) -> str:
    """A loop that no other test uses."""
    return f"loop-{loop_name[-8:]}"


@pytest.fixture
def spec(loop: str) -> LoopSpec:
    """Its spec."""
    return spec_of(loop)


def impression(request_id: str, user: str = "u1", *, items: tuple[str, ...] = ("a", "b"), **changes: Any) -> Message:
    """An answer of version v1 in the live arm that showed items."""
    given = {"model_version": "v1", "arm": "live", "epoch": 5, "shown": len(items), "latency_s": 0.01, **changes}
    method = behavior.IMPRESSION_METHOD_RANK
    return behavior.Impression(request_id=request_id, user_id=user, item_ids=items, **{"method": method, **given})


def interaction(user: str = "u1", item: str = "a", kind: str = "click", **changes: Any) -> Message:
    """A click by default."""
    return behavior.Interaction(user_id=user, item_id=item, type=kind, **changes)


def candidate(loop: str, version: str, *, trigger_id: str = "t1", layout: str = "") -> models.CandidateRegistered:
    """A candidate of the run `run-<version>`, by default of the loop's own layout."""
    return models.CandidateRegistered(
        loop=loop,
        version=version,
        run_id=f"run-{version}",
        layout=layout or Layout.compile(spec_of(loop)).hash,
        columns=["clicks_1d"],
        artifact_uri="/tmp/none",
        sha256="0" * 64,
        trigger_id=trigger_id,
        snapshots={"behavior_impressions": 11, "behavior_interactions": 12},
    )


def rollout(loop: str, rollout_id: str, kind: str, *, epoch: int, **changes: Any) -> models.RolloutEvent:
    """An event of a rollout of v1 by default."""
    given = {"version": "v1", **changes}
    number = models.RolloutEventKind.Value(f"ROLLOUT_EVENT_KIND_{kind}")
    return models.RolloutEvent(loop=loop, rollout_id=rollout_id, kind=number, epoch=epoch, **given)


@dataclass
class Log:
    """Numbers events as Kafka does, without one: each topic has one partition."""

    loop: str
    ends: dict[str, int] = field(default_factory=dict)

    def add(self, suffix: str, message: Message, *, at: float = BEGIN, **changes: Any) -> Event:
        """The next event of a topic."""
        name = topic(self.loop, suffix)
        offset = self.ends[name] = self.ends.get(name, -1) + 1
        event = Event(f"{suffix}-{offset}", "test", "", at, message, None, name, 0, offset)
        return event._replace(**changes)

    def shown(self, message: Message, **changes: Any) -> Event:
        """An impression."""
        return self.add("behavior.impressions", message, **changes)

    def acted(self, message: Message, **changes: Any) -> Event:
        """An interaction."""
        return self.add("behavior.interactions", message, **changes)


@pytest.fixture
def log(loop: str) -> Log:
    """The loop's topics."""
    return Log(loop)


class Fold:
    """Folds batches of a loop of their own into one database, from a test that is not async, as property tests are."""

    def __init__(self, run: Callable[..., Any], database: Database, loop: str) -> None:
        self._run, self._database, self._loop = run, database, loop
        self._numbers = count()

    def new_log(self) -> Log:
        """The topics of a loop that nobody has used."""
        return Log(f"{self._loop}-{next(self._numbers)}")

    def __call__(self, loop: str, batches: list[list[Event]]) -> Any:
        """The loop's totals after the batches."""

        async def folded() -> Any:
            projection = Projection(self._database, {loop: spec_of(loop)}, keyring=KEYS, timeout_s=600)
            await projection.prepare()
            for batch in batches:
                await projection.apply(batch)
            return await self._database.read(reports.experiment, loop, "")

        return self._run(folded())


@pytest.fixture
def fold(tmp_path: Path, loop: str) -> Iterator[Fold]:
    """Fold batches into a database."""
    with asyncio.Runner() as runner:
        database = Database(f"sqlite:///{tmp_path / 'fold.db'}")
        runner.run(database.__aenter__())
        yield Fold(runner.run, database, loop)
        runner.run(database.__aexit__(None, None, None))


@dataclass
class Wall:
    """A clock that a test moves."""

    now: float = BEGIN

    def __call__(self) -> float:
        """Unix seconds."""
        return self.now


@pytest.fixture
def wall() -> Wall:
    """A clock that a test moves."""
    return Wall()


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    """A database in a real file."""
    async with Database(f"sqlite:///{tmp_path / 'monitor.db'}") as opened:
        yield opened


Project = Callable[..., Any]


@pytest.fixture
async def project(database: Database, loop: str, wall: Wall) -> Project:
    """Build a projection of the loop, with changes to its spec, that may decide."""

    async def make(**changes: str) -> Projection:
        made = Projection(database, {loop: spec_of(loop, **changes)}, keyring=KEYS, timeout_s=600, wall=wall)
        await made.prepare()
        made.decides.add(loop)
        return made

    return make


@pytest.fixture
async def projection(project: Project) -> Projection:
    """A projection of the loop into the database, that may decide."""
    return await project()


@dataclass(frozen=True)
class Service:
    """The running service, and a producer beside it."""

    running: RunningMonitor
    channel: Channel
    lifespan: Lifespan
    producer: Producer
    loop: str

    @property
    def stub(self) -> MonitorServiceStub:
        """The service's methods."""
        return MonitorServiceStub(self.channel)

    async def send(self, suffix: str, message: Message, *, key: str = "k", at: float = BEGIN, **more: Any) -> None:
        """Send an event to a topic of the loop."""
        await self.producer.send(topic(self.loop, suffix), message, key=key, time=at, **more)


@pytest.fixture
def settings(tmp_path: Path, loop: str, kafka: str) -> MonitorSettings:
    """Settings of a monitor of the loop, whose trainer does not answer."""
    file = tmp_path / "gyre.yaml"
    file.write_text(spec_text(loop))
    (trainer,) = free_ports(1)
    return MonitorSettings(
        loops=(file,),
        kafka=kafka,
        state_dir=tmp_path / "state",
        otlp_listen="127.0.0.1:0",
        trainer=f"127.0.0.1:{trainer}",
        drain_s=20,
    )


@pytest.fixture
async def start(settings: MonitorSettings, spec: LoopSpec) -> AsyncIterator[Callable[..., Any]]:
    """Start the service in this process, with changes to its settings."""
    opened: list[Lifespan] = []

    async def begin(**changes: Any) -> Service:
        own = settings.model_copy(update=changes)
        await create_topics(own.kafka, declared(spec))
        lifespan = await Lifespan(drain_s=20).__aenter__()
        opened.append(lifespan)
        running = await bootstrap(lifespan, own)
        await lifespan.health.start()
        producer = await lifespan.enter(Producer(own.kafka, source="tests"))
        connected = await lifespan.enter(channel(running.server.address, ServiceSettings(), name="monitor"))
        async with asyncio.timeout(scaled(20)):
            await lifespan.health.wait_serving(20)
        return Service(running, connected, lifespan, producer, spec.loop)

    yield begin
    for lifespan in opened:
        await lifespan.__aexit__(None, None, None)


@pytest.fixture
def start_process(settings: MonitorSettings, tmp_path: Path) -> Iterator[Callable[..., "subprocess.Popen[bytes]"]]:
    """Start the monitor as a process of its own; it is ended with the test."""
    started: list[subprocess.Popen[bytes]] = []

    def begin(**env: str) -> "subprocess.Popen[bytes]":
        given = {
            "GYRE_LOOPS": str(settings.loops[0]),
            "GYRE_KAFKA": settings.kafka,
            "GYRE_STATE_DIR": str(settings.state_dir),
            "GYRE_OTLP_LISTEN": "127.0.0.1:0",
            "GYRE_TRAINER": settings.trainer,
        }
        clean = {key: value for key, value in os.environ.items() if not key.startswith("GYRE_")}
        with (tmp_path / "monitor.log").open("ab") as log_file:
            process = subprocess.Popen(
                [sys.executable, "-m", "gyre_monitor"],
                env={**clean, **given, **env},
                stdout=log_file,
                stderr=log_file,
            )
        started.append(process)
        return process

    yield begin
    for process in started:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Tail:
    """Reads a topic to its present end, again and again, over one connection."""

    def __init__(self, consumer: AIOKafkaConsumer, types: MessageTypes) -> None:
        self._consumer, self._types = consumer, types
        self._events: list[Event] = []

    async def __call__(self) -> list[Event]:
        """Every event so far."""
        fetched = await self._consumer.getmany(timeout_ms=200)
        self._events += [decode(record, self._types) for records in fetched.values() for record in records]
        return list(self._events)


@pytest.fixture
async def tail(kafka: str, loop: str, spec: LoopSpec) -> AsyncIterator[Callable[..., Any]]:
    """Follow a topic of the loop, which has one partition."""
    await create_topics(kafka, declared(spec))
    opened: list[AIOKafkaConsumer] = []

    async def follow(suffix: str, kind: type[Message]) -> Tail:
        consumer = AIOKafkaConsumer(bootstrap_servers=kafka, auto_offset_reset="earliest", enable_auto_commit=False)
        opened.append(consumer)
        await consumer.start()
        consumer.assign([TopicPartition(f"{loop}.{suffix}", 0)])
        return Tail(consumer, message_types(kind))

    yield follow
    for consumer in opened:
        await consumer.stop()


@dataclass(frozen=True)
class Making:
    """Messages as the tests write them; test files cannot import this one."""

    impression: Callable[..., Message] = impression
    interaction: Callable[..., Message] = interaction
    candidate: Callable[..., models.CandidateRegistered] = candidate
    rollout: Callable[..., models.RolloutEvent] = rollout
    begin: float = BEGIN


@pytest.fixture
def make() -> Making:
    """Messages of the mesh."""
    return Making()
