"""Layouts side by side, through Kafka and gRPC: a changed gyre.yaml takes no layout away that a model names."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from gyre.events.v1 import behavior_pb2 as behavior
from gyre.events.v1 import features_pb2 as events_pb2
from gyre.events.v1 import models_pb2 as models
from gyre.features.v1 import features_pb2 as pb
from gyre.features.v1.features_pb2_grpc import FeaturesServiceStub
from gyre_core.features import Layout, Replay, RequestContext
from gyre_core.spec import LoopSpec, load_loop
from gyre_core.topics import declared, topic
from gyre_features.stream.loop_stream import feature_event
from gyre_local.reserve import free_ports
from gyre_local.testing import eventually
from gyre_local.timeouts import scaled
from gyre_runtime import GyreError, ServiceSettings, channel
from gyre_runtime.events import Event, message_types
from gyre_runtime.kafka import Producer, create_topics, read_compacted

pytestmark = [pytest.mark.adapter, pytest.mark.timeout(400)]
ITEMS = [f"i{number}" for number in range(12)]
AFTER_S = 3600.0
FAST = {"GYRE_FEATURES_ARCHIVE_S": "0.2", "GYRE_FEATURES_LAYOUT_GRACE_S": "1"}
DAY = ("half_lives: [1d, 7d]", "half_lives: [2d, 7d]")


@dataclass
class Loop:
    """A loop whose gyre.yaml is edited, and its processes."""

    path: Path
    kafka: str
    start: Callable[..., Any]
    features: FeaturesServiceStub
    serve_port: int
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

    async def restart(self, name: str, **env: str) -> Any:
        """Start a process anew, as an operator would after an edit."""
        before = self.running.get(name)
        if before is not None:
            before.terminate()
            assert await asyncio.to_thread(before.wait, 20) == 0, before.log.read_text()
        settings = {"GYRE_LISTEN": f"127.0.0.1:{self.serve_port}"} if name == "serve" else {}
        self.running[name] = self.start(name, **{**FAST, **settings, **env})
        return self.running[name]

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


@pytest.fixture
async def loop(loop_file: Path, kafka: str, start_process: Callable[..., Any], spec: LoopSpec) -> AsyncIterator[Loop]:
    """The loop, with stream, archive and serve running."""
    await create_topics(kafka, declared(spec))
    (port,) = free_ports(1)
    opened = channel(f"127.0.0.1:{port}", ServiceSettings(), name="features")
    made = Loop(loop_file, kafka, start_process, FeaturesServiceStub(opened), port, {})
    for name in ("archive", "stream", "serve"):
        await made.restart(name)
    yield made
    await opened.close()


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


async def until_checked(loop: Loop, mismatches: dict[str, int], *, at: float) -> None:
    """Log two reads of each layout, one of them with so many wrong numbers, and wait until a check says so of each."""
    for layout, count in mismatches.items():
        await loop.show(f"right-{layout}", at, layout)
        await loop.show(f"checked-{layout}", at, layout, wrong=0.01 * count)

    async def checked() -> bool:
        code, found = await loop.parity()
        values = 2 * len(ITEMS) * len(Layout.compile(loop.spec).columns)
        said = [
            f"parity: 2 impressions, {values} values, {count} mismatches, 0 unknown, 0 pending\n  layout {layout}:"
            in found
            for layout, count in mismatches.items()
        ]
        return all(said) and code == (1 if any(mismatches.values()) else 0)

    await eventually(checked, timeout_s=60, message="each layout is checked with its own definition")


async def test_a_changed_file_takes_no_layout_away_that_a_model_names(loop: Loop, history: Any, produce: Any) -> None:
    """Beside a new layout that of the live model is served and kept up, until no model names it any more."""
    events = [*history.catalogue(), *history.ratings(300)]
    await produce(events)
    old = loop.spec
    await until_served(loop, old, events)
    before, after = Layout.compile(old).hash, Layout.compile(loop.edit(DAY)).hash
    await loop.name_models(("v1", models.MODEL_ROLE_LIVE, before))
    await loop.restart("stream")
    await loop.restart("serve")
    await until_served(loop, loop.spec, events)
    await until_served(loop, old, events)
    more = [event._replace(id=f"more-{event.offset}", time=event.time + 400) for event in history.ratings(200, seed=5)]
    await produce(more)
    await until_served(loop, loop.spec, [*events, *more])
    await until_served(loop, old, [*events, *more])
    states = {key: (each.state, list(each.wanted_by)) for key, each in (await loop.layouts()).items()}
    ready = events_pb2.LAYOUT_STATE_READY
    assert states == {before: (ready, ["live v1"]), after: (ready, ["gyre.yaml"])}
    await until_checked(loop, {before: 1, after: 0}, at=moment_of(more) - AFTER_S + 60)
    await loop.name_models(("v2", models.MODEL_ROLE_LIVE, after), epoch=2)
    await loop.until(before, events_pb2.LAYOUT_STATE_RETIRED)
    with pytest.raises(GyreError, match="is not maintained any more") as refused:
        await loop.matrix(moment_of(events), before)
    assert refused.value.reason == "LAYOUT_NOT_SERVED"
