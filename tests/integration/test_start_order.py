"""Every process starts with nothing there, says what it can answer, and works once what it needs comes."""

import asyncio
import re
import signal
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from gyre.deployer.v1.deployer_pb2 import ListRolloutsRequest
from gyre.deployer.v1.deployer_pb2_grpc import DeployerServiceStub
from gyre.events.v1.behavior_pb2 import Impression, Interaction
from gyre.features.v1.features_pb2 import GetFeaturesRequest
from gyre.features.v1.features_pb2_grpc import FeaturesServiceStub
from gyre.gateway.v1.gateway_pb2 import RankRequest, TrackedEvent, TrackRequest
from gyre.gateway.v1.gateway_pb2_grpc import GatewayServiceStub
from gyre.monitor.v1.monitor_pb2 import GetLoopStatusRequest
from gyre.monitor.v1.monitor_pb2_grpc import MonitorServiceStub
from gyre.trainer.v1.trainer_pb2 import ListRunsRequest
from gyre.trainer.v1.trainer_pb2_grpc import TrainerServiceStub
from gyre_local.components.services import MODULES
from gyre_local.places import StackDirectories
from gyre_local.process import Process
from gyre_local.stack import Stack, build_stack
from gyre_local.testing import eventually, free_stack_ports
from gyre_runtime.events import message_types
from gyre_runtime.kafka import read_log

LOOP, LOOP_FILE = "shop", Path(__file__).parents[1] / "e2e" / "gyre.yaml"
WITH_GRPC = tuple(name for name in MODULES if name != "features-quality")
NEEDS = {
    "features-serve": {"redis"},
    "features-stream": {"redis", "kafka"},
    "features-archive": {"kafka"},
    "inference": {"triton"},
    "deployer": {"kafka"},
}
"""What a process is not ready without; the others answer what they can."""
QUEUE = 3
PATIENCE_S = 90
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(420)]


@dataclass
class World:
    """A stack of which each process is started and stopped by hand."""

    stack: Stack
    running: dict[str, Process] = field(default_factory=dict)

    def start(self, name: str) -> None:
        """Start a process: one of ours without waiting, a component until it answers."""
        recipe = self.stack.members[name].prepare()
        env = {**recipe.env, "GYRE_GATEWAY_ROLLOUTS_WAIT_S": "1", "GYRE_GATEWAY_QUEUE_RECORDS": str(QUEUE)}
        recipe = recipe if name not in MODULES else type(recipe)(**{**vars(recipe), "env": env})
        process = self.running[name] = Process(recipe, log=self.stack.places.logs / f"{name}.log")
        if name in MODULES:
            process.launch()
        else:
            process.start()

    def address(self, name: str) -> str:
        """Where a process answers."""
        return self.stack.ports.address(name, "grpc")

    def metric(self, process: str, name: str) -> float:
        """The sum of a metric of a process."""
        url = f"http://{self.stack.ports.address(process, 'metrics')}/metrics"
        with urllib.request.urlopen(url, timeout=30) as page:
            text = page.read().decode()
        return sum(float(value) for value in re.findall(rf"^{name}(?:\{{.*\}})? (\S+)$", text, re.MULTILINE))

    async def health(self, name: str, service: str = "") -> str:
        """What a process says of itself."""
        async with grpc.aio.insecure_channel(self.address(name)) as bare:
            request = health_pb2.HealthCheckRequest(service=service)
            try:
                answer = await health_pb2_grpc.HealthStub(bare).Check(request, timeout=30)
            except grpc.aio.AioRpcError as error:
                return error.code().name
        return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)

    async def comes_to(self, name: str, status: str, service: str = "") -> None:
        """Wait until a process says `status`, which it must live for."""

        async def said() -> None:
            assert self.running[name].launched.poll() is None, f"{name} ended"
            assert await self.health(name, service) == status

        await eventually(lambda: _true(said()), timeout_s=PATIENCE_S, message=f"{name} comes to {status}")

    async def expect(self, there: set[str]) -> None:
        """Check that exactly the processes that have what they need are ready."""
        for name in WITH_GRPC:
            ready = NEEDS.get(name, set()) <= there
            await self.comes_to(name, "SERVING" if ready else "NOT_SERVING")


async def _true(condition: "asyncio.Future[None] | object") -> bool:
    await condition  # type: ignore[misc]
    return True


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """The stack, of which nothing runs yet."""
    ports = free_stack_ports(tmp_path / "ports.toml")
    made = World(build_stack(StackDirectories(tmp_path / "var"), ports, [LOOP_FILE]))
    yield made
    for process in reversed(made.running.values()):
        process.stop()


async def _code(call: object) -> grpc.StatusCode:
    """How a call ends."""
    code: grpc.StatusCode = await call.code()  # type: ignore[attr-defined]
    return code


async def test_processes_start_before_what_they_need(world: World) -> None:
    """With nothing there all listen and live, each answers what it can, and all work once Redis, Triton, Kafka come."""
    for name in MODULES:
        world.start(name)
    for name in WITH_GRPC:
        await world.comes_to(name, "SERVING", service="liveness")
    await world.expect(set())
    async with grpc.aio.insecure_channel(world.address("gateway")) as bare:
        gateway = GatewayServiceStub(bare)
        for number in range(QUEUE + 2):
            request = RankRequest(loop=LOOP, user_id="u1", item_ids=["a", "b"], request_id=f"early-{number}")
            assert len((await gateway.Rank(request, timeout=30)).items) == 2
        click = TrackedEvent(event_id="c1", interaction=Interaction(user_id="u1", item_id="a", type="click"))
        assert await _code(gateway.Track(TrackRequest(loop=LOOP, events=[click]), timeout=30)) == UNAVAILABLE
        await eventually(lambda: world.metric("gateway", "gyre_gateway_impressions_dropped_total") == 2)
        await _what_needs_nothing_is_answered(world)

        world.start("redis")
        await world.expect({"redis"})
        world.start("triton")
        await world.expect({"redis", "triton"})
        world.start("kafka")
        await world.expect({"redis", "triton", "kafka"})
        await eventually(lambda: gateway.Track(TrackRequest(loop=LOOP, events=[click]), timeout=30))
    await eventually(lambda: _is_applied(world), timeout_s=PATIENCE_S, message="the click is a feature")
    kafka, types = world.stack.ports.address("kafka", "broker"), message_types(Impression)
    logged = [event.message.request_id async for event in read_log(kafka, f"{LOOP}.behavior.impressions", types)]
    assert sorted(logged) == [f"early-{number}" for number in range(QUEUE)]
    # Kafka, and the log of the loop.
    await eventually(lambda: world.metric("features-quality", "gyre_dependency_up") == 2)
    assert _open_doors(world) == []
    await _redis_goes_and_comes(world)
    for name in MODULES:
        world.running[name].launched.send_signal(signal.SIGTERM)
    ends = {name: await asyncio.to_thread(world.running[name].launched.wait, PATIENCE_S) for name in MODULES}
    assert set(ends.values()) == {0}, ends


def _open_doors(world: World) -> list[str]:
    """The listening sockets of the stack that another machine could reach, as address:port in the kernel's hex."""
    ports = {port for meanings in world.stack.ports.processes.values() for port in meanings.values()}
    loopback = ("0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000")
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    sockets = [local.split(":") for _, local, _, state, *_ in rows if state == "0A"]
    listening = [(address, port) for address, port in sockets if int(port, 16) in ports]
    assert len(listening) > 2 * len(WITH_GRPC)
    return [f"{address}:{port}" for address, port in listening if address not in loopback]


async def _what_needs_nothing_is_answered(world: World) -> None:
    """The trainer and the monitor answer from what they store; deployer and features say that they cannot yet."""
    async with (
        grpc.aio.insecure_channel(world.address("trainer")) as trainer,
        grpc.aio.insecure_channel(world.address("monitor")) as monitor,
        grpc.aio.insecure_channel(world.address("deployer")) as deployer,
        grpc.aio.insecure_channel(world.address("features-serve")) as features,
    ):
        assert not (await TrainerServiceStub(trainer).ListRuns(ListRunsRequest(loop=LOOP), timeout=30)).runs
        await MonitorServiceStub(monitor).GetLoopStatus(GetLoopStatusRequest(loop=LOOP), timeout=30)
        rollouts = DeployerServiceStub(deployer).ListRollouts(ListRolloutsRequest(loop=LOOP), timeout=30)
        assert await _code(rollouts) == UNAVAILABLE
        request = GetFeaturesRequest(loop=LOOP, user_id="u1", item_ids=["a"])
        assert await _code(FeaturesServiceStub(features).GetFeatures(request, timeout=30)) == UNAVAILABLE


async def _is_applied(world: World) -> bool:
    """Whether the click on `a` is read as a feature."""
    async with grpc.aio.insecure_channel(world.address("features-serve")) as bare:
        request = GetFeaturesRequest(loop=LOOP, user_id="u1", item_ids=["a"])
        call = FeaturesServiceStub(bare).GetFeatures(request, timeout=30)
        if await _code(call) is not grpc.StatusCode.OK:  # which layouts there are is read from Kafka first
            return False
        return bool((await call).item_batches[0] > 0)


async def _redis_goes_and_comes(world: World) -> None:
    """A stream that starts beside Kafka without Redis waits for it, without being restarted."""
    world.running["features-stream"].stop()
    world.running["redis"].stop()
    world.start("features-stream")
    await world.comes_to("features-stream", "SERVING", service="liveness")
    await world.expect({"triton", "kafka"})
    world.start("redis")
    await world.expect({"redis", "triton", "kafka"})
