"""A small loop, models with a known answer on a real Triton, and the service in the test's own process."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from gyre.events.v1.behavior_pb2 import FeatureBlock
from gyre.inference.v1.inference_pb2 import PredictRequest
from gyre.inference.v1.inference_pb2_grpc import InferenceServiceStub
from gyre_core.models import LAYOUT_PARAMETER, triton_model
from gyre_inference.bootstrap import bootstrap
from gyre_inference.settings import InferenceSettings
from gyre_local.testing import TritonServer
from gyre_local.timeouts import scaled
from gyre_runtime import Channel, Lifespan, ServiceSettings, channel
from onnx import TensorProto, helper
from tritonclient.grpc.aio import InferenceServerClient

LOOP = """
version: 1
loop: {loop}
events: {{interactions: {{click: {{}}}}}}
features:
  - {{name: clicks, kind: decayed_count, scope: item, events: [click], half_lives: [1d, 7d, 30d]}}
"""
LAYOUT = "0123456789abcdef"
CONFIG = f"""
backend: "onnxruntime"
max_batch_size: 64
input [ {{ name: "features" data_type: TYPE_FP32 dims: [ 3 ] }} ]
output [ {{ name: "scores" data_type: TYPE_FP32 dims: [ 1 ] }} ]
parameters {{ key: "{LAYOUT_PARAMETER}" value {{ string_value: "{LAYOUT}" }} }}
dynamic_batching {{ }}
"""


@dataclass(frozen=True)
class Models:
    """Puts versions on Triton that score a row of three features with its weighted sum."""

    server: TritonServer
    loop: str

    async def load(self, version: str, *, weights: tuple[float, float, float] = (1.0, 2.0, 3.0)) -> None:
        """Write a version and have Triton load it."""
        self._write(triton_model(self.loop, version), weights)
        async with InferenceServerClient(self.server.grpc) as client:
            await client.load_model(triton_model(self.loop, version))

    async def unload(self, version: str) -> None:
        """Have Triton unload a version."""
        async with InferenceServerClient(self.server.grpc) as client:
            await client.unload_model(triton_model(self.loop, version))

    def _write(self, name: str, weights: tuple[float, float, float]) -> None:
        graph = helper.make_graph(
            [helper.make_node("MatMul", ["features", "weights"], ["scores"])],
            "weighted-sum",
            [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["rows", 3])],
            [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["rows", 1])],
            [helper.make_tensor("weights", TensorProto.FLOAT, [3, 1], weights)],
        )
        directory = self.server.repository / name
        (directory / "1").mkdir(parents=True)
        (directory / "config.pbtxt").write_text(CONFIG)
        model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 17)])
        onnx.save(model, directory / "1" / "model.onnx")


@dataclass(frozen=True)
class Service:
    """The running service: its channel and what health says."""

    channel: Channel
    lifespan: Lifespan

    @property
    def stub(self) -> InferenceServiceStub:
        """The service's methods."""
        return InferenceServiceStub(self.channel)


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
def models(triton: TritonServer, loop: str) -> Models:
    """The loop's models on the real Triton."""
    return Models(triton, loop)


@pytest.fixture
async def start(loop_file: Path, kafka: str) -> AsyncIterator[Callable[[str], object]]:
    """Start the service against a Triton at an address."""
    opened: list[Lifespan] = []

    async def at(triton_address: str) -> Service:
        settings = InferenceSettings(loops=(loop_file,), kafka=kafka, triton=triton_address, drain_s=1)
        lifespan = await Lifespan(drain_s=1).__aenter__()
        opened.append(lifespan)
        running = await bootstrap(lifespan, settings)
        await lifespan.health.start()
        async with asyncio.timeout(scaled(20)):
            await running.views.ready()
        connected = await lifespan.enter(channel(running.server.address, ServiceSettings(), name="inference"))
        return Service(connected, lifespan)

    yield at
    for lifespan in opened:
        await lifespan.__aexit__(None, None, None)


@pytest.fixture
def rows() -> np.ndarray:
    """Twenty rows of three features."""
    return np.arange(60, dtype=np.float32).reshape(20, 3)


def request(loop: str, version: str, matrix: np.ndarray, **changes: object) -> PredictRequest:
    """A request to score a matrix."""
    block = {"layout": LAYOUT, "rows": len(matrix), "columns": matrix.shape[1], "values": matrix.tobytes(), **changes}
    return PredictRequest(loop=loop, version=version, epoch=1, features=FeatureBlock(**block))


@pytest.fixture
def ask() -> Callable[..., PredictRequest]:
    """Build a request to score a matrix."""
    return request
