"""A small loop, candidates with a known answer, gateways that report, and the deployer in and out of process."""

import asyncio
import contextlib
import hashlib
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from gyre.deployer.v1 import deployer_pb2 as pb
from gyre.deployer.v1.deployer_pb2_grpc import DeployerServiceStub
from gyre.events.v1.models_pb2 import (
    CandidateRegistered,
    RolloutEvent,
    RolloutEventKind,
)
from gyre_core.features import Layout
from gyre_core.models import GOLDEN_FILE, MANIFEST_FILE, MODEL_FILE, triton_model
from gyre_core.spec import LoopSpec, load_loop
from gyre_core.topics import declared, topic
from gyre_deployer.bootstrap import RunningDeployer, bootstrap
from gyre_deployer.settings import DeployerSettings
from gyre_local.testing import TritonServer, eventually
from gyre_local.timeouts import scaled
from gyre_runtime import Channel, GyreError, Lifespan, ServiceSettings, channel, setup_telemetry, start_span
from gyre_runtime.events import message_types
from gyre_runtime.kafka import Producer, create_topics, read_log
from gyre_runtime.telemetry import Telemetry
from onnx import TensorProto, helper
from tritonclient.grpc.aio import InferenceServerClient

from .fakes import World
from .told_gateway import Gateway

LOOP = """
version: 1
loop: {loop}
events: {{interactions: {{click: {{}}}}}}
features:
  - {{name: clicks, kind: decayed_count, scope: item, events: [click], half_lives: [1d, 7d, 30d]}}
rollout:
  steps:
    - {{share: 0.1, hold: 300ms, min_requests: 20}}
    - {{share: 0.5, hold: 300ms, min_requests: 40}}
    - {{share: 1.0}}
  guardrails: {{max_error_rate: 0.01, max_latency_ratio: 2.0, max_latency_p99: 100ms}}
serving: {{deadline: 200ms}}
"""
WEIGHTS = (1.0, 2.0, 3.0)


@pytest.fixture(scope="session")
def telemetry() -> Telemetry:
    """The process's telemetry: OpenTelemetry can be set up once only."""
    return setup_telemetry("tests", ServiceSettings(trace_ratio=0.0))


@pytest.fixture
def loop(loop_name: str) -> str:
    """A loop that no other test uses."""
    return f"loop-{loop_name[-8:]}"


@pytest.fixture
def loop_file(loop: str, tmp_path: Path) -> Path:
    """The gyre.yaml of that loop."""
    path = tmp_path / "gyre.yaml"
    path.write_text(LOOP.format(loop=loop))
    return path


@pytest.fixture
def spec(loop_file: Path) -> LoopSpec:
    """The loop's spec."""
    return load_loop(loop_file)


@pytest.fixture
def world(spec: LoopSpec) -> World:
    """An empty world."""
    return World(spec)


@pytest.fixture
async def topics(kafka: str, spec: LoopSpec) -> None:
    """The loop's topics."""
    await create_topics(kafka, declared(spec))


def weighted_sum(weights: tuple[float, ...], *, additions: int = 0) -> bytes:
    """A graph that scores a row with its weighted sum; it loads the more slowly the more next to nothing it adds."""
    columns, steps = len(weights), [f"sum-{step}" for step in range(additions)]
    sums = [*steps, "scores"]
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["features", "weights"], sums[:1]),
            *(helper.make_node("Add", [sums[step], "nothing"], [sums[step + 1]]) for step in range(additions)),
        ],
        "weighted-sum",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["rows", columns])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["rows", 1])],
        [
            helper.make_tensor("weights", TensorProto.FLOAT, [columns, 1], weights),
            helper.make_tensor("nothing", TensorProto.FLOAT, [1], [1e-30]),
        ],
    )
    model: onnx.ModelProto = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    return bytes(model.SerializeToString())


@dataclass(frozen=True)
class Models:
    """Makes artefact folders and registers them."""

    layout: Layout
    folder: Path
    kafka: str

    def make(
        self,
        version: str,
        *,
        weights: tuple[float, ...] = WEIGHTS,
        golden_weights: tuple[float, ...] | None = None,
        graph: bytes | None = None,
        manifest: dict[str, Any] | None = None,
        **changes: Any,
    ) -> CandidateRegistered:
        """Write the artefact of a version, and return its announcement, in which `changes` replace fields."""
        place = self.folder / self.layout.loop / version
        place.mkdir(parents=True)
        graph = graph or weighted_sum(weights)
        features = np.arange(8 * len(weights), dtype=np.float32).reshape(8, len(weights)) / 10
        np.savez(place / GOLDEN_FILE, features=features, scores=features @ np.float32(golden_weights or weights))
        (place / MODEL_FILE).write_bytes(graph)
        announced = CandidateRegistered(
            loop=self.layout.loop,
            version=version,
            run_id=f"run-{version}",
            layout=self.layout.hash,
            columns=self.layout.columns,
            artifact_uri=str(place),
            sha256=hashlib.sha256(graph).hexdigest(),
            trigger_id="trigger-1",
            snapshots={"behavior_impressions": 7},
        )
        told = {"loop": announced.loop, "version": version, "layout": announced.layout, "sha256": announced.sha256}
        (place / MANIFEST_FILE).write_text(json.dumps(told | (manifest or {})))
        if "columns" in changes:
            del announced.columns[:]
        announced.MergeFrom(CandidateRegistered(**changes))
        return announced

    async def register(self, version: str, **changes: Any) -> CandidateRegistered:
        """Make a version and announce it as the trainer does."""
        return await self.announce(self.make(version, **changes))

    async def announce(self, candidate: CandidateRegistered) -> CandidateRegistered:
        """Send a candidate in a span, so that it carries a trace context."""
        async with Producer(self.kafka, source="tests") as producer:
            with start_span("training run", flow="model"):
                await producer.send(topic(self.layout.loop, "models.candidates"), candidate, key=self.layout.loop)
        return candidate


@pytest.fixture
def models(spec: LoopSpec, tmp_path: Path, kafka: str, topics: None) -> Models:
    """Makes the loop's candidates."""
    return Models(Layout.compile(spec), tmp_path / "artifacts", kafka)


@pytest.fixture
def new_gateway(kafka: str, loop: str, topics: None) -> Callable[..., Gateway]:
    """Make a gateway."""
    return lambda **traits: Gateway(kafka, loop, **traits)


@pytest.fixture
async def gateway(new_gateway: Callable[..., Gateway]) -> AsyncIterator[Gateway]:
    """A gateway that reports."""
    async with new_gateway().reporting() as reporting:
        yield reporting


@dataclass(frozen=True)
class Place:
    """Where a deployer of the test works."""

    kafka: str
    loop: str
    loop_file: Path
    triton: TritonServer

    def settings(self, **changes: Any) -> DeployerSettings:
        """Settings for a quick deployer."""
        quick: dict[str, Any] = {
            "loops": (self.loop_file,),
            "kafka": self.kafka,
            "triton": self.triton.grpc,
            "triton_repository": self.triton.repository,
            "drain_s": 2,
            "deployer_tick_s": 0.05,
            "deployer_warmup_requests": 3,
        }
        return DeployerSettings(**quick | changes)

    def environ(self) -> dict[str, str]:
        """The same for a process."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("GYRE_")}
        return inherited | {
            "GYRE_LOOPS": str(self.loop_file),
            "GYRE_KAFKA": self.kafka,
            "GYRE_TRITON": self.triton.grpc,
            "GYRE_TRITON_REPOSITORY": str(self.triton.repository),
            "GYRE_DEPLOYER_TICK_S": "0.05",
            "GYRE_DEPLOYER_WARMUP_REQUESTS": "3",
            "GYRE_DRAIN_S": "2",
        }

    async def log(self) -> list[RolloutEvent]:
        """The log in Kafka."""
        name = topic(self.loop, "models.rollout-events")
        return [event.message async for event in read_log(self.kafka, name, message_types(RolloutEvent))]

    async def is_logged(self, kind: str, version: str) -> bool:
        """Whether the log holds a change of a version."""
        return (f"ROLLOUT_EVENT_KIND_{kind}", version) in [
            (RolloutEventKind.Name(each.kind), each.version) for each in await self.log()
        ]

    async def is_served(self, version: str) -> bool:
        """Whether Triton has the version loaded."""
        async with InferenceServerClient(self.triton.grpc) as client:
            return bool(await client.is_model_ready(triton_model(self.loop, version)))

    def holds(self, version: str) -> bool:
        """Whether the version lies in Triton's repository."""
        return (self.triton.repository / triton_model(self.loop, version)).exists()

    def leftovers(self) -> list[str]:
        """Half-written folders of the loop in the repository."""
        return [each.name for each in self.triton.repository.glob(f".{self.loop}--*")]


@dataclass(frozen=True)
class Deployer:
    """A running deployer as its callers see it."""

    loop: str
    stub: DeployerServiceStub
    lifespan: Lifespan
    running: RunningDeployer

    async def rollouts(self) -> list[pb.Rollout]:
        """All rollouts, newest first."""
        return list((await self.listed()).rollouts)

    async def listed(self) -> pb.ListRolloutsResponse:
        """All rollouts and the view."""
        answer: pb.ListRolloutsResponse = await self.stub.ListRollouts(
            pb.ListRolloutsRequest(loop=self.loop), timeout=30
        )
        return answer

    async def answers(self) -> bool:
        """Whether it knows the loop's rollouts."""
        try:
            await self.listed()
        except GyreError:
            return False
        return True

    async def rollout(self, version: str) -> pb.Rollout | None:
        """The rollout of a version."""
        return next((each for each in await self.rollouts() if each.version == version), None)

    async def reaches(self, version: str, state: str, *, timeout_s: float = 20) -> pb.Rollout:
        """Wait until the rollout of a version is in a state."""
        wanted = pb.RolloutState.Value(f"ROLLOUT_STATE_{state}")

        async def reached() -> pb.Rollout | None:
            rollout = await self.rollout(version)
            assert rollout is not None, f"{version} has no rollout"
            assert rollout.state == wanted, f"{pb.RolloutState.Name(rollout.state)}: {rollout.reason}"
            return rollout

        return await eventually(reached, timeout_s=timeout_s, message=f"{version} reaches {state}")


@pytest.fixture
def place(kafka: str, loop: str, loop_file: Path, triton: TritonServer, topics: None) -> Iterator[Place]:
    """The loop's place on the real Kafka and Triton."""
    return Place(kafka, loop, loop_file, triton)


Start = Callable[..., Awaitable[Deployer]]


@asynccontextmanager
async def deployer_at(place: Place, **changes: Any) -> AsyncIterator[Deployer]:
    """A deployer in the test's own process, which ends with the block."""
    async with Lifespan(drain_s=2) as lifespan:
        running = await bootstrap(lifespan, place.settings(**changes))
        await lifespan.health.start()
        async with _connected(running.server.address) as connected:
            deployer = Deployer(place.loop, DeployerServiceStub(connected), lifespan, running)
            await eventually(deployer.answers, timeout_s=60, message="the deployer answers for the loop")
            yield deployer


@pytest.fixture
def running(place: Place) -> Callable[..., AbstractAsyncContextManager[Deployer]]:
    """Run deployers, each for the length of a block."""
    return lambda **changes: deployer_at(place, **changes)


@pytest.fixture
async def start(place: Place) -> AsyncIterator[Start]:
    """Start deployers in the test's own process; they end with the test."""
    async with AsyncExitStack() as stack:

        async def at(**changes: Any) -> Deployer:
            lifespan = await stack.enter_async_context(Lifespan(drain_s=2))
            running = await bootstrap(lifespan, place.settings(**changes))
            await lifespan.health.start()
            await lifespan.health.wait_serving(30)
            connected = await stack.enter_async_context(_connected(running.server.address))
            return Deployer(place.loop, DeployerServiceStub(connected), lifespan, running)

        yield at


@asynccontextmanager
async def _connected(address: str) -> AsyncIterator[Channel]:
    async with channel(address, ServiceSettings(), name="deployer") as connected:
        yield connected


class Program:
    """The deployer as a process of its own, with its log lines."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[dict[str, Any]] = []
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            self.lines.append(json.loads(line))

    def logged(self, message: str) -> dict[str, Any] | None:
        """The first log line with that message."""
        return next((line for line in self.lines if line["message"] == message), None)

    async def address(self) -> str:
        """Wait until the server listens, and return where."""
        line = await eventually(lambda: self.logged("listening"), timeout_s=30)
        return str(line["address"])

    async def is_ready(self) -> None:
        """Wait until it serves: it holds its rollout log, and has fenced whoever held that before."""
        async with _connected(await self.address()) as connected:

            async def serves() -> bool:
                health = await HealthStub(connected).Check(HealthCheckRequest(), timeout=10)
                return bool(health.status == HealthCheckResponse.SERVING)

            await eventually(serves, timeout_s=30, message="the deployer serves")

    async def ended(self, timeout_s: float = 20) -> int:
        """Wait for the end, and return the exit code."""
        async with asyncio.timeout(scaled(timeout_s)):
            code = await self.process.wait()
            await self._reader
        return code

    async def kill(self) -> None:
        """End it at once, as a crash would."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        await self.ended()


@pytest.fixture
async def spawn(place: Place) -> AsyncIterator[Callable[[], Awaitable[Program]]]:
    """Start deployers as processes; none outlives the test."""
    programs: list[Program] = []

    async def started() -> Program:
        command = [sys.executable, "-W", "error", "-m", "gyre_deployer"]
        process = await asyncio.create_subprocess_exec(*command, env=place.environ(), stderr=asyncio.subprocess.PIPE)
        programs.append(Program(process))
        return programs[-1]

    yield started
    for program in programs:
        if program.process.returncode is None:
            await program.kill()
