"""Gateway, inference and deployer on the real Kafka and Triton: a stall of what both models share rolls none back."""

import asyncio
import hashlib
import json
import os
import random
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from gyre.deployer.v1 import deployer_pb2 as deployer_pb
from gyre.deployer.v1.deployer_pb2_grpc import DeployerServiceStub
from gyre.events.v1.models_pb2 import CandidateRegistered
from gyre.features.v1 import features_pb2 as features_pb
from gyre.features.v1 import features_pb2_grpc as features_rpc
from gyre.gateway.v1 import gateway_pb2 as gateway_pb
from gyre.gateway.v1.gateway_pb2_grpc import GatewayServiceStub
from gyre_core.features import Layout
from gyre_core.models import GOLDEN_FILE, MANIFEST_FILE, MODEL_FILE
from gyre_core.spec import load_loop
from gyre_core.topics import declared, topic
from gyre_deployer.bootstrap import bootstrap as start_deployer
from gyre_deployer.settings import DeployerSettings
from gyre_gateway.bootstrap import bootstrap as start_gateway
from gyre_gateway.settings import GatewaySettings
from gyre_local.reserve import free_ports
from gyre_local.testing import TritonServer, eventually
from gyre_runtime import Health, Lifespan, Registration, ServiceSettings, Unavailable, build_server, channel
from gyre_runtime.kafka import Producer, create_topics
from onnx import TensorProto, helper

pytestmark = [pytest.mark.adapter, pytest.mark.timeout(300)]
LOOP = """
version: 1
loop: {loop}
events: {{interactions: {{click: {{}}}}}}
features:
  - {{name: clicks, kind: decayed_count, scope: item, events: [click], half_lives: [1d, 7d, 30d]}}
rollout:
  steps: [{{share: 0.5, hold: 2s, min_requests: 60}}, {{share: 1.0}}]
  guardrails: {{max_error_rate: 0.05, max_latency_ratio: 1000, max_latency_p99: {timeout}}}
serving: {{deadline: {deadline}, feature_timeout: 500ms, inference_timeout: {timeout}}}
"""
AMPLE = {"deadline": "3s", "timeout": "1s"}
BRIEF = {"deadline": "5s", "timeout": "3s"}
"""What is left for the fallback of a request that timed out is less than the loop grants a version."""
ITEMS = ["a", "b", "c"]


class ToldFeatures(features_rpc.FeaturesServiceServicer):
    """Answers ones for every item."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    async def GetFeatures(  # noqa: N802
        self, request: features_pb.GetFeaturesRequest, context: object
    ) -> features_pb.GetFeaturesResponse:
        """Answer in the loop's layout."""
        rows, columns = len(request.item_ids), len(self._layout.columns)
        response = features_pb.GetFeaturesResponse(item_batches=[0] * rows, feature_age_s=1)
        response.features.layout, response.features.rows = self._layout.hash, rows
        response.features.columns = columns
        response.features.values = np.ones((rows, columns), "<f4").tobytes()
        return response


@dataclass
class Mesh:
    """The three services, with inference as a process that can be stopped."""

    loop: str
    layout: Layout
    folder: Path
    producer: Producer
    gateway: GatewayServiceStub
    deployer: DeployerServiceStub
    inference: asyncio.subprocess.Process

    async def register(self, version: str) -> None:
        """Announce a model that sums a row up."""
        place, columns = self.folder / version, len(self.layout.columns)
        place.mkdir(parents=True)
        graph = _sum_of_rows(columns)
        features = np.arange(8 * columns, dtype=np.float32).reshape(8, columns)
        np.savez(place / GOLDEN_FILE, features=features, scores=features.sum(axis=1))
        (place / MODEL_FILE).write_bytes(graph)
        told = {"loop": self.loop, "version": version, "layout": self.layout.hash}
        told["sha256"] = hashlib.sha256(graph).hexdigest()
        (place / MANIFEST_FILE).write_text(json.dumps(told))
        candidate = CandidateRegistered(
            **told, run_id=f"run-{version}", columns=self.layout.columns, artifact_uri=str(place)
        )
        await self.producer.send(topic(self.loop, "models.candidates"), candidate, key=self.loop)

    async def rollout(self, version: str) -> deployer_pb.Rollout:
        """The rollout of a version, empty before there is one."""
        request = deployer_pb.ListRolloutsRequest(loop=self.loop)
        try:
            answer = await self.deployer.ListRollouts(request, timeout=30)
        except Unavailable:
            return deployer_pb.Rollout()  # it is still reading its log
        return next((each for each in answer.rollouts if each.version == version), deployer_pb.Rollout())

    async def reaches(self, version: str, state: int) -> deployer_pb.Rollout:
        """Wait until the rollout of a version is in a state, or has ended in another."""
        ended = {deployer_pb.ROLLOUT_STATE_ROLLED_BACK, deployer_pb.ROLLOUT_STATE_REFUSED, state}

        async def reached() -> deployer_pb.Rollout | None:
            rollout = await self.rollout(version)
            return rollout if rollout.state in ended else None

        return await eventually(reached, timeout_s=120, message=f"{version} gets on")

    async def rank(self, user_id: str) -> tuple[str, str]:
        """Rank for a user; the answer's arm and why it was degraded."""
        request = gateway_pb.RankRequest(loop=self.loop, user_id=user_id, item_ids=ITEMS)
        answer = (await self.gateway.Rank(request, timeout=60)).provenance
        return answer.arm, answer.degraded_reason

    async def user_with(self, outcome: tuple[str, str]) -> str:
        """Wait for a user with this arm and this reason; each is asked for once."""
        users: list[str] = []

        async def found() -> str | None:
            users.append(f"u{len(users)}")
            return users[-1] if await self.rank(users[-1]) == outcome else None

        return await eventually(found, timeout_s=60, message=f"a user gets {outcome}")

    async def ask(self, outcomes: list[tuple[str, str]]) -> None:
        """Rank for one user after another until cancelled; note each answer's arm and why it was degraded."""
        while True:
            outcomes.append(await self.rank(f"u{random.randrange(10_000)}"))
            await asyncio.sleep(0.02)  # the pace of a caller, not a wait for a condition


def _sum_of_rows(columns: int) -> bytes:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["features", "weights"], ["scores"])],
        "sum",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["rows", columns])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["rows", 1])],
        [helper.make_tensor("weights", TensorProto.FLOAT, [columns, 1], [1.0] * columns)],
    )
    model: onnx.ModelProto = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    return bytes(model.SerializeToString())


@pytest.fixture
async def mesh(
    kafka: str, triton: TritonServer, loop_name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> AsyncIterator[Mesh]:
    """The services before the first model, of a loop with the times of the test's parameter."""
    file = tmp_path / "gyre.yaml"
    file.write_text(LOOP.format(loop=f"loop-{loop_name[-8:]}", **request.param))
    spec = load_loop(file)
    layout = Layout.compile(spec)
    await create_topics(kafka, declared(spec))
    ports = free_ports(2)
    places = {"features": f"127.0.0.1:{ports[0]}", "inference": f"127.0.0.1:{ports[1]}"}
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GYRE_")}
    environ = {"GYRE_LOOPS": str(file), "GYRE_KAFKA": kafka, "GYRE_TRITON": triton.grpc, "GYRE_DRAIN_S": "1"}
    environ |= {"GYRE_LISTEN": places["inference"], "GYRE_METRICS_LISTEN": "127.0.0.1:0"}
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "gyre_inference", env=clean | environ)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(_end, process)
        adder = features_rpc.add_FeaturesServiceServicer_to_server
        told = Registration(adder, ToldFeatures(layout))
        own = ServiceSettings(listen=places["features"], drain_s=0.1)
        await stack.enter_async_context(build_server(own, [told], health=Health()))
        lifespan = await stack.enter_async_context(Lifespan(drain_s=2))
        common = {"loops": (file,), "kafka": kafka, "drain_s": 2}
        gateway = await start_gateway(lifespan, GatewaySettings(**common, **places))
        deploying = DeployerSettings(
            **common, triton=triton.grpc, triton_repository=triton.repository, deployer_tick_s=0.1
        )
        deployer = await start_deployer(lifespan, deploying)
        await lifespan.health.start()
        stubs = [
            await lifespan.enter(channel(each.server.address, ServiceSettings(), name="test"))
            for each in (gateway, deployer)
        ]
        producer = await lifespan.enter(Producer(kafka, source="tests"))
        made = GatewayServiceStub(stubs[0]), DeployerServiceStub(stubs[1])
        yield Mesh(spec.loop, layout, tmp_path / "models", producer, *made, process)


async def _end(process: asyncio.subprocess.Process) -> None:
    """End it, also where it stands still."""
    process.kill()
    await process.wait()


@pytest.mark.parametrize("mesh", [AMPLE], indirect=True, ids=["ample"])
async def test_a_stopped_inference_takes_no_candidate_back(mesh: Mesh) -> None:
    """While the shared inference process stands still both arms fail; woken, the candidate goes on and is promoted."""
    await mesh.register("v1")
    await mesh.reaches("v1", deployer_pb.ROLLOUT_STATE_PROMOTED)
    outcomes: list[tuple[str, str]] = []
    callers = [asyncio.create_task(mesh.ask(outcomes)) for _ in range(8)]
    try:
        await eventually(lambda: ("live", "") in outcomes, timeout_s=60, message="the live model answers")
        await mesh.register("v2")
        await mesh.reaches("v2", deployer_pb.ROLLOUT_STATE_CANARY)
        await eventually(lambda: ("candidate", "") in outcomes, timeout_s=60, message="the candidate answers")
        mesh.inference.send_signal(signal.SIGSTOP)
        stalled = [(arm, "INFERENCE_TIMEOUT") for arm in ("live", "candidate")]
        await eventually(lambda: min(map(outcomes.count, stalled)) >= 5, timeout_s=60, message="both arms feel it")
        mesh.inference.send_signal(signal.SIGCONT)
        rollout = await mesh.reaches("v2", deployer_pb.ROLLOUT_STATE_PROMOTED)
    finally:
        for caller in callers:
            caller.cancel()
        await asyncio.gather(*callers, return_exceptions=True)
    assert rollout.state == deployer_pb.ROLLOUT_STATE_PROMOTED, rollout.reason
    assert "spoiled" in " ".join(each.reason for each in rollout.events)


@pytest.mark.parametrize("mesh", [BRIEF], indirect=True, ids=["brief"])
async def test_a_stall_that_live_feels_as_fallback_alone_takes_no_candidate_back(mesh: Mesh) -> None:
    """A few requests of the candidate's users time out, and their short fallbacks to live: the candidate goes on."""
    await mesh.register("v1")
    await mesh.reaches("v1", deployer_pb.ROLLOUT_STATE_PROMOTED)
    for _ in range(10):
        await mesh.user_with(("live", ""))
    await mesh.register("v2")
    await mesh.reaches("v2", deployer_pb.ROLLOUT_STATE_CANARY)
    user_id = await mesh.user_with(("candidate", ""))
    mesh.inference.send_signal(signal.SIGSTOP)
    stalled = [await mesh.rank(user_id) for _ in range(4)]
    mesh.inference.send_signal(signal.SIGCONT)
    assert stalled == [("candidate", "INFERENCE_TIMEOUT")] * 4
    callers = [asyncio.create_task(mesh.ask([])) for _ in range(8)]
    try:
        rollout = await mesh.reaches("v2", deployer_pb.ROLLOUT_STATE_PROMOTED)
    finally:
        for caller in callers:
            caller.cancel()
        await asyncio.gather(*callers, return_exceptions=True)
    assert rollout.state == deployer_pb.ROLLOUT_STATE_PROMOTED, rollout.reason
    assert "spoiled" in " ".join(each.reason for each in rollout.events)
