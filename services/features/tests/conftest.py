"""A small loop, its events, and the processes of the service under test."""

import json
import os
import random
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from gyre.events.v1 import behavior_pb2 as behavior
from gyre_core.features import Layout
from gyre_core.spec import LoopSpec, parse_loop
from gyre_core.topics import topic
from gyre_local.components import redis as redis_component
from gyre_local.process import Process, running
from gyre_local.reserve import free_ports
from gyre_runtime import ServiceSettings
from gyre_runtime.events import Event
from gyre_runtime.kafka import Producer
from gyre_runtime.telemetry import Telemetry, setup_telemetry
from redis.asyncio import Redis

BEGIN = 1_370_000_000.0
_FORMER_TTL_S = 10_000

SPEC = """
version: 1
loop: {loop}
clock: replay
events:
  interactions:
    rating: {{value: {{min: 0, max: 10}}}}
items:
  fields:
    genres: {{kind: categories, values: [action, drama, comedy]}}
    price: {{kind: number}}
features:
  - {{name: popular, kind: decayed_count, scope: item, events: [rating], half_lives: [1d, 7d]}}
  - {{name: taste, kind: affinity, scope: user, field: genres, events: [rating], half_lives: [30d]}}
  - {{name: seen, kind: history, scope: user, events: [rating], length: 5}}
training:
  label: {{events: [rating], attribution_window: 30m}}
serving: {{fallback_feature: popular_7d, recommend: {{genre_field: genres}}}}
shards: {{kafka_partitions: 2, online_shards: {shards}}}
"""


OF_USERS = """users:
  fields:
    member: {kind: boolean}
    likes: {kind: vector, length: 2}
features:
  - {name: member, kind: field, scope: user, field: member}
  - {name: likes, kind: vector, scope: user, field: likes}
"""


def spec_of(loop: str, *, shards: int = 1, users: bool = False) -> LoopSpec:
    """The test loop under a name, where asked for with fields of users."""
    return parse_loop(text_of(loop, shards=shards, users=users), source="test")


def text_of(loop: str, *, shards: int = 1, users: bool = False) -> str:
    """Its gyre.yaml."""
    text = SPEC.format(loop=loop, shards=shards)
    return text.replace("features:\n", OF_USERS, 1) if users else text


@pytest.fixture
def sharded(loop_name: str) -> Callable[[int], LoopSpec]:
    """The test's loop with a number of virtual shards."""
    return lambda shards: spec_of(loop_name, shards=shards)


@pytest.fixture
def with_users(loop_name: str) -> Callable[[int], LoopSpec]:
    """The test's loop with fields of users, and a number of virtual shards."""
    return lambda shards: spec_of(loop_name, shards=shards, users=True)


@pytest.fixture
def counting_shown(loop_name: str) -> LoopSpec:
    """The test's loop with a feature that counts what was shown."""
    shown = "  - {name: shown, kind: decayed_count, scope: item, events: [impression], half_lives: [365d]}\n"
    text = text_of(loop_name[:31].strip("-")).replace("features:\n", f"features:\n{shown}", 1)
    return parse_loop(text, source="test")


@pytest.fixture
def spec(loop_name: str, request: pytest.FixtureRequest) -> LoopSpec:
    """A loop that no other test uses; with the parameter `users`, it has fields of users."""
    return spec_of(loop_name, users=getattr(request, "param", "") == "users")


@pytest.fixture
def layout(spec: LoopSpec) -> Layout:
    """Its layout."""
    return Layout.compile(spec)


@pytest.fixture(scope="session")
def privacy_key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The key file of the processes under test."""
    path = tmp_path_factory.mktemp("privacy") / "keys.json"
    path.write_text(json.dumps({"stable": "cd" * 32}))
    return path


class Started(subprocess.Popen[bytes]):
    """A process of the service under test, and the file with what it logs."""

    def __init__(self, name: str, env: dict[str, str], log: Path) -> None:
        self.log = log
        with log.open("wb") as output:
            super().__init__([sys.executable, "-m", "gyre_features", name], env=env, stdout=output, stderr=output)


Start = Callable[..., Started]


@pytest.fixture
def loop_file(tmp_path: Path, spec: LoopSpec) -> Path:
    """The loop's gyre.yaml."""
    path = tmp_path / "gyre.yaml"
    path.write_text(text_of(spec.loop, shards=spec.shards.online_shards, users=bool(spec.users.fields)))
    return path


@pytest.fixture
def start_process(
    tmp_path: Path, loop_file: Path, kafka: str, redis_url: str, privacy_key_file: Path
) -> Iterator[Start]:
    """Start a process of the service on the session's Kafka and Redis; it is ended with the test.

    A variable that is None is left out.
    """
    started: list[Started] = []

    def start(name: str, **env: str | None) -> Started:
        settings = {
            "GYRE_LOOPS": str(loop_file),
            "GYRE_KAFKA": kafka,
            "GYRE_REDIS": redis_url,
            "GYRE_WAREHOUSE": str(tmp_path / "warehouse"),
            "GYRE_STATE_DIR": str(tmp_path / "state"),
            "GYRE_LISTEN": "127.0.0.1:0",
            "GYRE_METRICS_LISTEN": "127.0.0.1:0",
            "GYRE_PRIVACY_KEY_FILE": str(privacy_key_file),
        }
        clean = {key: value for key, value in os.environ.items() if not key.startswith("GYRE_")}
        own = {key: value for key, value in {**settings, **env}.items() if value is not None}
        process = Started(name, {**clean, **own}, tmp_path / f"{name}-{len(started)}.log")
        started.append(process)
        return process

    yield start
    for process in started:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture(scope="session")
def telemetry() -> Telemetry:
    """The process's telemetry, without which nothing is counted."""
    return setup_telemetry("tests", ServiceSettings(trace_ratio=0.0))


GENRES = ("action", "drama", "comedy")


@dataclass(frozen=True)
class History:
    """Makes events of a loop: a catalogue of 12 films and the ratings of 9 people, a second apart."""

    spec: LoopSpec

    def catalogue(self, items: int = 12) -> list[Event]:
        """One change of each item, a second before the ratings begin."""
        return [
            self.event(
                "catalog.items",
                behavior.ItemChanged(
                    item_id=f"i{number}",
                    fields={
                        "genres": behavior.FieldValue(categories=behavior.Categories(values=[GENRES[number % 3]])),
                        "price": behavior.FieldValue(number=number),
                    },
                ),
                number,
                time=BEGIN - 1,
            )
            for number in range(items)
        ]

    def people(self, count: int, *, seed: int = 2) -> list[Event]:
        """Changes of what is known of the people, a second apart, drawn from a seed."""
        draw = random.Random(seed)
        return [
            self.event("catalog.users", self.person(f"u{draw.randrange(9)}", number), number) for number in range(count)
        ]

    def person(self, user_id: str, number: int) -> behavior.UserChanged:
        """The number-th version of what is known of a user."""
        likes = behavior.Vector(values=[number, number + 0.5])
        fields = {"member": behavior.FieldValue(boolean=number % 2 == 1), "likes": behavior.FieldValue(vector=likes)}
        return behavior.UserChanged(user_id=user_id, fields=fields)

    def ratings(self, count: int, *, seed: int = 1) -> list[Event]:
        """Ratings of one partition, drawn from a seed."""
        draw = random.Random(seed)
        return [
            self.event("behavior.interactions", self.rating(draw.randrange(9), draw.randrange(12)), number)
            for number in range(count)
        ]

    def rating(self, user: int, item: int) -> behavior.Interaction:
        """One rating."""
        return behavior.Interaction(user_id=f"u{user}", item_id=f"i{item}", type="rating", value=7)

    def event(self, suffix: str, message: Any, offset: int, *, time: float | None = None) -> Event:
        """A decoded event, by default `offset` seconds after the beginning."""
        at = BEGIN + offset if time is None else time
        name = topic(self.spec.loop, suffix)
        return Event(f"{suffix}-{offset}", "test", "", at, message, None, name, 0, offset, "k", at)


@pytest.fixture
def history(spec: LoopSpec) -> History:
    """Events of the test's loop."""
    return History(spec)


@pytest.fixture
def history_of() -> Callable[[LoopSpec], History]:
    """Events of a loop."""
    return History


Produce = Callable[..., Awaitable[None]]


@pytest.fixture
def produce(kafka: str) -> Produce:
    """Send events to Kafka: with their message's own key, so over all partitions, each key's in order."""

    async def send(events: Sequence[Event]) -> None:
        async with Producer(kafka, source="test") as producer:
            for event in events:
                key = (
                    event.message.item_id if isinstance(event.message, behavior.ItemChanged) else event.message.user_id
                )
                sent = producer.enqueue(
                    event.topic, event.message, key=key, source=event.source, id=event.id, time=event.time
                )
                assert sent

    return send


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    """A client of the session's Redis."""
    async with Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
async def former_store(redis: Redis, spec: LoopSpec, layout: Layout) -> dict[str, bytes]:
    """What a store of format 1 leaves of the test's loop: values with float32 sums, and fences behind all events."""
    entities = {"item:i0": (1e9, 1e9, 1.0, 0.0, 0.0), "user:u1": (1e9, 1e9, 1e9)}
    prefix = f"gyre:{spec.loop}:{layout.hash}:{{0}}:"
    found = {f"{prefix}batch": b"7"}
    for suffix in ("catalog.items", "behavior.interactions", "behavior.impressions", "catalog.users"):
        for partition in range(spec.shards.kafka_partitions):
            found[f"{prefix}fence:{topic(spec.loop, suffix)}:{partition}"] = b"1000"
    for name, floats in entities.items():
        times = (BEGIN,) if name.startswith("item") else ()
        pad = "4x" if len(floats) % 2 else ""
        history = struct.pack("<Q", 0) if name.startswith("user") else b""
        fixed = struct.pack(f"<dQ{len(times)}d{len(floats)}f{pad}", BEGIN, 7, *times, *floats)
        found[f"{prefix}{name}"] = fixed + history
    for name, value in found.items():
        await redis.set(name, value, ex=_FORMER_TTL_S)
    return found


@pytest.fixture
async def own_redis(tmp_path: Path) -> AsyncIterator[Process]:
    """A Redis for one test alone, which may stop it; its file survives that."""
    (port,) = free_ports(1)
    recipe = redis_component.prepare(tmp_path / "redis", host="127.0.0.1", port=port)
    with running(recipe, log=tmp_path / "redis.log") as process:
        yield process
