"""The part of the mesh that answers `Rank`, as processes on free ports, with items, users and a small model."""

import asyncio
import contextlib
import itertools
import random
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from gyre.events.v1 import behavior_pb2 as behavior
from gyre.events.v1 import models_pb2 as models
from gyre.gateway.v1 import gateway_pb2 as pb
from gyre.gateway.v1.gateway_pb2_grpc import GatewayServiceStub
from gyre_core.features import Layout
from gyre_core.models import INPUT, LAYOUT_PARAMETER, MODEL_FILE, OUTPUT, triton_model
from gyre_core.spec import LoopSpec, load_loop
from gyre_core.topics import declared, topic
from gyre_local.places import StackDirectories
from gyre_local.ports import PORTS_FILE, Ports, load_ports
from gyre_local.process import Process
from gyre_local.reserve import free_ports
from gyre_local.stack import Stack, build_stack
from gyre_local.testing import eventually
from gyre_runtime import ServiceSettings, Unavailable, channel
from gyre_runtime.kafka import Producer, create_topics
from onnx import TensorProto, helper
from tritonclient.grpc.aio import InferenceServerClient

LOOP_FILE = Path(__file__).with_name("gyre.yaml")
ITEMS, USERS, HISTORY = 3000, 500, 12_000
CANDIDATES = 100
VERSION = "bench-1"
INFRASTRUCTURE = ("kafka", "redis", "triton")
SERVICES = ("features-stream", "features-serve", "inference", "gateway")
_HIDDEN = (64, 32)
_CONFIG = """
backend: "onnxruntime"
max_batch_size: 4096
input [ {{ name: "{input}" data_type: TYPE_FP32 dims: [ {columns} ] }} ]
output [ {{ name: "{output}" data_type: TYPE_FP32 dims: [ 1 ] }} ]
parameters {{ key: "{parameter}" value {{ string_value: "{layout}" }} }}
dynamic_batching {{ }}
"""


@dataclass(frozen=True)
class Mesh:
    """The running processes."""

    stack: Stack
    spec: LoopSpec
    processes: dict[str, Process]

    def address(self, name: str, meaning: str = "grpc") -> str:
        """Where a process listens."""
        return self.stack.ports.address(name, meaning)

    @property
    def kafka(self) -> str:
        """Kafka's address."""
        return self.address("kafka", "broker")

    def start(self, name: str) -> None:
        """Start a process and wait until it is ready."""
        recipe = self.stack.members[name].prepare()
        process = Process(recipe, log=self.stack.places.logs / f"{name}.log")
        process.start()
        self.processes[name] = process

    def stop(self, name: str) -> None:
        """Stop a process."""
        self.processes.pop(name).stop()


@contextlib.contextmanager
def infrastructure(names: Sequence[str] = INFRASTRUCTURE) -> Iterator[Mesh]:
    """Kafka, Redis and Triton in a directory of their own; whatever runs at the end is stopped."""
    with tempfile.TemporaryDirectory(prefix="gyre-bench-") as directory:
        stack = build_stack(StackDirectories(Path(directory)), _free_ports(), [LOOP_FILE])
        mesh = Mesh(stack, load_loop(LOOP_FILE), {})
        try:
            for name in names:
                mesh.start(name)
            yield mesh
        finally:
            for name in reversed(tuple(mesh.processes)):
                mesh.stop(name)


def _free_ports() -> Ports:
    declared_ports = load_ports(PORTS_FILE, offset=0)
    free = iter(free_ports(sum(len(ports) for ports in declared_ports.processes.values())))
    processes = {name: {meaning: next(free) for meaning in own} for name, own in declared_ports.processes.items()}
    return Ports(declared_ports.host, processes)


def item(number: int) -> str:
    """Id of an item; `number` may go round."""
    return f"item-{number % ITEMS:05d}"


def user(number: int) -> str:
    """Id of a user; `number` may go round."""
    return f"user-{number % USERS:05d}"


async def fill(mesh: Mesh) -> None:
    """Write the catalogue and the users' history to Kafka."""
    await create_topics(mesh.kafka, declared(mesh.spec))
    genres = mesh.spec.fields("item")["genres"].values
    chance = random.Random(7)
    async with Producer(mesh.kafka, source="bench", max_queue_records=ITEMS + HISTORY) as producer:
        for number in range(ITEMS):
            chosen = behavior.Categories(values=chance.sample(genres, 3))
            fields = {
                "year": behavior.FieldValue(number=1950 + number % 70),
                "genres": behavior.FieldValue(categories=chosen),
            }
            change = behavior.ItemChanged(item_id=item(number), fields=fields)
            producer.enqueue(topic(mesh.spec.loop, "catalog.items"), change, key=change.item_id)
        for number in range(HISTORY):
            producer.enqueue(
                topic(mesh.spec.loop, "behavior.interactions"),
                rating(chance, user(number)),
                key=user(number),
                time=time.time() - chance.uniform(0, 3 * 3600),
            )
            if number % 1000 == 0:
                await asyncio.sleep(0)


def rating(chance: random.Random, user_id: str) -> behavior.Interaction:
    """A rating of an item; a few items have most of them."""
    chosen = item(int(ITEMS * chance.random() ** 3))
    return behavior.Interaction(user_id=user_id, item_id=chosen, type="rating", value=chance.randint(1, 10))


async def deploy(mesh: Mesh) -> None:
    """Put a small network on Triton and all users on it."""
    layout = Layout.compile(mesh.spec)
    name = triton_model(mesh.spec.loop, VERSION)
    directory = mesh.stack.places.state("triton") / "models" / name
    (directory / "1").mkdir(parents=True)
    columns = len(layout.columns)
    (directory / "config.pbtxt").write_text(
        _CONFIG.format(input=INPUT, output=OUTPUT, columns=columns, parameter=LAYOUT_PARAMETER, layout=layout.hash)
    )
    onnx.save(_network(columns), directory / "1" / MODEL_FILE)
    async with InferenceServerClient(mesh.address("triton")) as client:
        await client.load_model(name)
    view = models.RolloutView(loop=mesh.spec.loop, epoch=1, last_good_version=VERSION, loaded_versions=[VERSION])
    view.arms.add(name="live", version=VERSION, share=1.0, layout=layout.hash)
    async with Producer(mesh.kafka, source="bench") as producer:
        await producer.send(topic(mesh.spec.loop, "models.rollouts"), view, key=mesh.spec.loop)


def _network(columns: int) -> onnx.ModelProto:
    """A multilayer perceptron of the size of the built-in ranker's."""
    chance = np.random.default_rng(7)
    sizes = (columns, *_HIDDEN, 1)
    nodes, weights, value = [], [], INPUT
    for layer, (rows, cols) in enumerate(itertools.pairwise(sizes)):
        matrix = chance.normal(0, 0.1, (rows, cols)).astype(np.float32)
        weights.append(helper.make_tensor(f"w{layer}", TensorProto.FLOAT, matrix.shape, matrix.ravel()))
        last = layer == len(_HIDDEN)
        nodes.append(helper.make_node("MatMul", [value, f"w{layer}"], [OUTPUT if last else f"m{layer}"]))
        if not last:
            nodes.append(helper.make_node("Relu", [f"m{layer}"], [f"r{layer}"]))
            value = f"r{layer}"
    graph = helper.make_graph(
        nodes,
        "ranker",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["rows", columns])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["rows", 1])],
        weights,
    )
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 17)])


def request(loop: str, number: int, *, candidates: int = CANDIDATES) -> pb.RankRequest:
    """The n-th request: a user and candidates that differ from the last one's."""
    chosen = [item(number * 37 + place * 29) for place in range(candidates)]
    return pb.RankRequest(loop=loop, user_id=user(number), item_ids=chosen)


@contextlib.asynccontextmanager
async def gateway(mesh: Mesh) -> AsyncIterator[GatewayServiceStub]:
    """A stub of the gateway."""
    async with channel(mesh.address("gateway"), ServiceSettings(), name="gateway") as connected:
        yield GatewayServiceStub(connected)


async def until_whole(mesh: Mesh) -> pb.RankResponse:
    """Wait until `Rank` is answered by the model from features; return such an answer."""
    async with gateway(mesh) as stub:

        async def whole() -> pb.RankResponse | None:
            try:
                answer = await stub.Rank(request(mesh.spec.loop, 1), timeout=5)
            except Unavailable:
                return None
            served = answer.provenance.feature_age_s >= 0 and not answer.provenance.degraded
            return answer if served else None

        return await eventually(whole, timeout_s=60, message="Rank is answered by the model")
