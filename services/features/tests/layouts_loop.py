"""A loop whose gyre.yaml is edited while stream, archive and serve run, for the tests of layouts side by side."""

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.timestamp_pb2 import Timestamp
from grpc_health.v1 import health_pb2, health_pb2_grpc
from gyre.events.v1 import behavior_pb2 as behavior
from gyre.events.v1 import features_pb2 as events_pb2
from gyre.events.v1 import models_pb2 as models
from gyre.features.v1 import features_pb2 as pb
from gyre.features.v1.features_pb2_grpc import FeaturesServiceStub
from gyre_core.features import Layout, Replay, RequestContext
from gyre_core.layouts import KnownLayout, LayoutDefinition, LayoutState
from gyre_core.spec import LoopSpec, load_loop
from gyre_core.topics import declared, topic
from gyre_features.stream.loop_stream import feature_event
from gyre_local.reserve import free_ports
from gyre_local.testing import eventually
from gyre_local.timeouts import scaled
from gyre_runtime import GyreError, ServiceSettings, channel
from gyre_runtime.events import Event, message_types
from gyre_runtime.kafka import Producer, create_topics, read_compacted
from gyre_runtime.layouts import layout_message

ITEMS = [f"i{number}" for number in range(12)]
AFTER_S = 3600.0
FAST = {"GYRE_FEATURES_ARCHIVE_S": "0.2", "GYRE_FEATURES_LAYOUT_GRACE_S": "1"}
DAY = ("half_lives: [1d, 7d]", "half_lives: [2d, 7d]")
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@dataclass
class Loop:
    """A loop whose gyre.yaml is edited, and its processes."""

    path: Path
    kafka: str
    start: Callable[..., Any]
    features: FeaturesServiceStub
    ports: dict[str, int]
    running: dict[str, Any]

    @property
    def spec(self) -> LoopSpec:
        """As gyre.yaml has it now."""
        return load_loop(self.path)

    def edit(self, *edits: tuple[str, str]) -> LoopSpec:
        """Replace parts of gyre.yaml."""
        text = self.path.read_text()
        for old, new in edits:
            assert old in text
            text = text.replace(old, new)
        self.path.write_text(text)
        return self.spec

    async def stop(self, name: str) -> None:
        """End a process, where it runs."""
        before = self.running.pop(name, None)
        if before is not None:
            before.terminate()
            assert await asyncio.to_thread(before.wait, scaled(20)) == 0, before.log.read_text()

    async def restart(self, name: str, **env: str) -> Any:
        """Start a process anew, as an operator would after an edit."""
        await self.stop(name)
        settings = {"GYRE_LISTEN": f"127.0.0.1:{self.ports[name]}"}
        self.running[name] = self.start(name, **{**FAST, **settings, **env})
        return self.running[name]

    async def health(self, name: str, of: str = "") -> int:
        """What a process says of its health, or of a loop's in it; UNKNOWN while it does not listen."""
        async with channel(f"127.0.0.1:{self.ports[name]}", ServiceSettings(), name=name) as connected:
            request = health_pb2.HealthCheckRequest(service=of)
            try:
                return int((await health_pb2_grpc.HealthStub(connected).Check(request, timeout=5)).status)
            except GyreError:
                return health_pb2.HealthCheckResponse.UNKNOWN

    async def until_health(self, name: str, status: int, of: str = "") -> None:
        """Wait until a process says so of its health."""

        async def said() -> bool:
            return await self.health(name, of) == status

        word = health_pb2.HealthCheckResponse.ServingStatus.Name(status)
        await eventually(said, timeout_s=60, message=f"{name} says {word} of {of or 'itself'}")

    async def validate(self) -> tuple[int, str]:
        """Exit code and output of the command line's check of the file beside the mesh."""
        command = [Path(sys.executable).with_name("gyre"), "validate", self.path, "--mesh"]
        process = await asyncio.create_subprocess_exec(
            *command,
            env={**os.environ, "GYRE_KAFKA": self.kafka},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate()
        return process.returncode or 0, output.decode()

    async def name_models(self, *named: tuple[str, int, str], epoch: int = 1) -> None:
        """Say which models are named: version, role and layout."""
        view = models.RolloutView(loop=self.spec.loop, epoch=epoch)
        for version, role, layout in named:
            view.models.add(version=version, role=role, layout=layout)
        async with Producer(self.kafka, source="test") as producer:
            await producer.send(topic(view.loop, "models.rollouts"), view, key=view.loop)

    async def layouts(self) -> dict[str, events_pb2.FeatureLayout]:
        """The layouts of the topic by hash."""
        types = message_types(events_pb2.FeatureLayout)
        found = await read_compacted(self.kafka, topic(self.spec.loop, "features.layouts"), types)
        return {key: event.message for key, event in found.items()}

    async def publish(self, spec: LoopSpec, state: LayoutState, *, ago_s: float) -> str:
        """Say of a layout that it was declared, and came into a state, some time ago; its hash."""
        layout, then = Layout.compile(spec), time.time() - ago_s
        wanted_by = () if state is LayoutState.RETIRED else ("gyre.yaml",)
        known = KnownLayout(layout.hash, LayoutDefinition.of(spec), state, then - 1, then, wanted_by=wanted_by)
        async with Producer(self.kafka, source="test") as producer:
            message = layout_message(spec.loop, known)
            await producer.send(topic(spec.loop, "features.layouts"), message, key=layout.hash)
        return layout.hash

    async def until(self, layout: str, state: int) -> None:
        """Wait until a layout is in a state."""

        async def reached() -> bool:
            found = (await self.layouts()).get(layout)
            return found is not None and found.state == state

        await eventually(reached, timeout_s=90, message=f"layout {layout} is in state {state}")

    async def read(self, at: float, layout: str = "", *, user: str = "u1") -> pb.GetFeaturesResponse:
        """What is answered of all items at a time."""
        moment = Timestamp()
        moment.FromNanoseconds(int(at * 1e9))
        request = pb.GetFeaturesRequest(
            loop=self.spec.loop, user_id=user, item_ids=ITEMS, layout=layout, request_time=moment
        )
        answer: pb.GetFeaturesResponse = await self.features.GetFeatures(request, timeout=10)
        assert layout in ("", answer.features.layout)
        return answer

    async def matrix(self, at: float, layout: str = "", *, user: str = "u1") -> np.ndarray:
        """What is served of all items at a time."""
        return values_of((await self.read(at, layout, user=user)).features)

    async def show(self, request_id: str, at: float, layout: str, *, wrong: float = 0.0) -> None:
        """Read a layout and log the impression as the gateway does; `wrong` is added to its first number."""
        answer = await self.read(at, layout)
        matrix = values_of(answer.features).copy()
        matrix[0, 0] += wrong
        answer.features.values = matrix.tobytes()
        message = behavior.Impression(
            request_id=request_id, user_id="u1", item_ids=ITEMS, shown=len(ITEMS), features=answer.features,
            method=behavior.IMPRESSION_METHOD_RANK, user_batch=answer.user_batch, global_batch=answer.global_batch,
            item_batches=answer.item_batches,
        )  # fmt: skip
        async with Producer(self.kafka, source="test") as producer:
            await producer.send(topic(self.spec.loop, "behavior.impressions"), message, key="u1", time=at)

    async def parity(self) -> tuple[int, str]:
        """Exit code and output of a check of all layouts."""
        process = self.start("check-once")
        code = await asyncio.to_thread(process.wait, scaled(60))
        return code, process.log.read_text()


@asynccontextmanager
async def opened(path: Path, kafka: str, start: Callable[..., Any]) -> AsyncIterator[Loop]:
    """The loop of a file, with stream, archive and serve running."""
    await create_topics(kafka, declared(load_loop(path)))
    names = ("archive", "stream", "serve")
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    connected = channel(f"127.0.0.1:{ports['serve']}", ServiceSettings(), name="features")
    made = Loop(path, kafka, start, FeaturesServiceStub(connected), ports, {})
    for name in names:
        await made.restart(name)
    # What is started before an edit has read the file as it was.
    await made.until_health("archive", SERVING, f"features-archive/{made.spec.loop}")
    yield made
    await connected.close()


def values_of(block: behavior.FeatureBlock) -> np.ndarray:
    """The numbers of a read, by item and column."""
    return np.frombuffer(block.values, "<f4").reshape(block.rows, block.columns)


def replayed(spec: LoopSpec, events: Sequence[Event], *, user: str = "u1") -> np.ndarray:
    """What a layout gives for all items an hour after the newest event."""
    replay = Replay(Layout.compile(spec))
    replay.apply(feature_event(event) for event in events)
    matrix, _ = replay.matrix(user, ITEMS, RequestContext(moment_of(events)))
    return matrix


def moment_of(events: Sequence[Event]) -> float:
    """An hour after the newest event."""
    return max(event.time for event in events) + AFTER_S


async def until_served(loop: Loop, spec: LoopSpec, events: Sequence[Event]) -> None:
    """Wait until a spec's layout is served with all events in it."""
    hash_, wanted = Layout.compile(spec).hash, replayed(spec, events)

    async def served() -> bool:
        try:
            found = await loop.matrix(moment_of(events), hash_)
        except GyreError:
            return False
        return np.allclose(found, wanted, rtol=1e-5)

    await eventually(served, timeout_s=90, message=f"layout {hash_} is served")


def later(history: Any, *, after_s: float, seed: int, count: int = 50) -> list[Event]:
    """More ratings, some seconds after the first ones."""
    return [
        event._replace(
            id=f"{seed}-{event.offset}", time=event.time + after_s, arrival_time=event.arrival_time + after_s
        )
        for event in history.ratings(count, seed=seed)
    ]
