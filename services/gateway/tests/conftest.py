"""A small loop, the gateway in the test's own process on the real Kafka, and peers that do as the test says."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from gyre.events.v1 import models_pb2 as models
from gyre.features.v1 import features_pb2 as features_pb
from gyre.features.v1 import features_pb2_grpc as features_rpc
from gyre.gateway.v1 import gateway_pb2 as pb
from gyre.gateway.v1.gateway_pb2_grpc import GatewayServiceStub
from gyre.inference.v1 import inference_pb2 as inference_pb
from gyre.inference.v1 import inference_pb2_grpc as inference_rpc
from gyre_core.features import Layout
from gyre_core.spec import LoopSpec, load_loop
from gyre_core.topics import topic
from gyre_gateway.bootstrap import RunningGateway, bootstrap
from gyre_gateway.settings import GatewaySettings
from gyre_local.reserve import free_ports
from gyre_local.testing import eventually
from gyre_runtime import (
    GyreError,
    Health,
    Lifespan,
    Precondition,
    Registration,
    Server,
    ServiceSettings,
    Unavailable,
    build_server,
    channel,
    setup_telemetry,
)
from gyre_runtime.kafka import Producer
from gyre_runtime.telemetry import Telemetry

SPEC = """
version: 1
loop: {loop}
clock: {clock}
events:
  history_sources: [{history}]
  interactions:
    click: {{}}
    rating: {{value: {{min: 0, max: 10}}}}
items:
  fields:
    genres: {{kind: categories, values: [action, drama]}}
    year: {{kind: number}}
features:
  - {{name: popular, kind: decayed_count, scope: item, events: [click], half_lives: [1d, 7d]}}
  - {{name: device, kind: context, field: device}}
experiment: {{exploration: {exploration}, salt: salt}}
serving:
  deadline: {deadline}
  feature_timeout: 200ms
  inference_timeout: 250ms
  max_candidates: 200
  logged_rest: 3
  fallback_feature: popular_7d
  recommend: {{popular: 20, genre_field: genres}}
"""


def popularity_of(item_id: str) -> float:
    """What the told features say of an item: the number in its name."""
    return float(item_id.rpartition("-")[2])


@dataclass
class ToldFeatures(features_rpc.FeaturesServiceServicer):
    """Gives each item its own number as popularity; fails, hangs or refuses as the test says."""

    layout: Layout
    error: GyreError | None = None
    hangs: bool = False
    delay_s: float = 0.0
    refused_layouts: set[str] = field(default_factory=set)
    hanging_layouts: set[str] = field(default_factory=set)
    popular: list[str] = field(default_factory=list)
    own_popular: dict[str, list[str]] = field(default_factory=dict)
    popularity_column: int | None = 0
    requests: list[features_pb.GetFeaturesRequest] = field(default_factory=list)
    popular_requests: list[features_pb.ListPopularRequest] = field(default_factory=list)

    async def _behave(self) -> None:
        if self.hangs:
            await asyncio.Event().wait()
        await asyncio.sleep(self.delay_s)  # how long the peer works, not a wait for a condition
        if self.error is not None:
            raise self.error

    async def GetFeatures(  # noqa: N802
        self, request: features_pb.GetFeaturesRequest, context: object
    ) -> features_pb.GetFeaturesResponse:
        """Answer one row for each item: its popularity in every column of the layout."""
        self.requests.append(request)
        await self._behave()
        if request.layout in self.hanging_layouts:
            await asyncio.Event().wait()
        if request.layout in self.refused_layouts:
            raise Precondition("LAYOUT_NOT_SERVED", "not maintained")
        columns = len(self.layout.columns)
        matrix = np.array([[popularity_of(item)] * columns for item in request.item_ids], dtype="<f4")
        response = features_pb.GetFeaturesResponse(
            item_batches=range(len(matrix)),
            user_batch=7,
            global_batch=9,
            feature_age_s=12.5,
            popularity_column=self.popularity_column,
        )
        response.features.layout = request.layout or self.layout.hash
        response.features.rows, response.features.columns = matrix.shape
        response.features.values = matrix.tobytes()
        return response

    async def ListPopular(  # noqa: N802
        self, request: features_pb.ListPopularRequest, context: object
    ) -> features_pb.ListPopularResponse:
        """Answer the popular items that the test gave, the user's own where it gave those."""
        self.popular_requests.append(request)
        await self._behave()
        popular = self.own_popular.get(request.user_id, self.popular)
        return features_pb.ListPopularResponse(item_ids=popular[: request.limit])


@dataclass
class ToldInference(inference_rpc.InferenceServiceServicer):
    """Scores with minus the first column, so that a model's order is the reverse of popularity's."""

    errors: dict[str, GyreError] = field(default_factory=dict)
    hanging: set[str] = field(default_factory=set)
    delay_s: float = 0.0
    scores: dict[str, list[float]] = field(default_factory=dict)
    requests: list[inference_pb.PredictRequest] = field(default_factory=list)

    async def Predict(  # noqa: N802
        self, request: inference_pb.PredictRequest, context: object
    ) -> inference_pb.PredictResponse:
        """Score with the version asked for."""
        self.requests.append(request)
        if request.version in self.hanging:
            await asyncio.Event().wait()
        await asyncio.sleep(self.delay_s)  # how long the model works, not a wait for a condition
        if request.version in self.errors:
            raise self.errors[request.version]
        block = request.features
        first = np.frombuffer(block.values, "<f4").reshape(block.rows, block.columns)[:, 0]
        scores = np.array(self.scores.get(request.version, -first), dtype="<f4")
        return inference_pb.PredictResponse(scores=scores.tobytes(), version=request.version)


@dataclass
class Peer:
    """A peer's server, which the test may stop and start again at the same address."""

    registration: Registration
    settings: ServiceSettings
    server: Server | None = None

    async def start(self) -> None:
        """Listen."""
        self.server = await build_server(self.settings, [self.registration], health=Health()).__aenter__()

    async def stop(self) -> None:
        """Stop listening; calls under way are cancelled."""
        if self.server is not None:
            await self.server.__aexit__(None, None, None)
            self.server = None


@dataclass
class Mesh:
    """The gateway between its peers."""

    spec: LoopSpec
    running: RunningGateway
    lifespan: Lifespan
    stub: GatewayServiceStub
    features: ToldFeatures
    inference: ToldInference
    features_peer: Peer
    inference_peer: Peer
    producer: Producer
    epochs: "itertools.count[int]" = field(default_factory=lambda: itertools.count(1))

    @property
    def loop(self) -> str:
        """The loop's name."""
        return self.spec.loop

    async def roll_out(
        self,
        *arms: tuple[str, str, float],
        layouts: dict[str, str] | None = None,
        wait: bool = True,
        **more: str,
    ) -> int:
        """Write a rollout view of (arm, version, share) with the next epoch, as the deployer does; return the epoch."""
        epoch = next(self.epochs)
        view = models.RolloutView(loop=self.loop, epoch=epoch, rollout_id="rollout-1", **more)
        for name, version, share in arms:
            view.arms.add(name=name, version=version, share=share, layout=(layouts or {}).get(version, ""))
        await self.producer.send(topic(self.loop, "models.rollouts"), view, key=self.loop)
        if wait:
            router = self.running.routers[self.loop]
            await eventually(lambda: router.epoch == epoch, message="the view is followed")
        return epoch

    async def rank(
        self,
        *item_ids: str,
        user: str = "user-1",
        timeout: float = 30.0,  # noqa: ASYNC109 - gRPC's name
        metadata: object = None,
        **more: object,
    ) -> pb.RankResponse:
        """Rank items for a user; item-1, item-2 and item-3 by default."""
        given = item_ids or ("item-1", "item-2", "item-3")
        request = pb.RankRequest(loop=self.loop, user_id=user, item_ids=given, **more)
        return await self.stub.Rank(request, timeout=timeout, metadata=metadata)


def ids(response: pb.RankResponse | pb.RecommendResponse) -> list[str]:
    """The items of an answer, in order."""
    return [item.item_id for item in response.items]


StartMesh = Callable[..., Awaitable[Mesh]]


@pytest.fixture
async def start(kafka: str, loop_name: str, tmp_path: Path) -> AsyncIterator[StartMesh]:
    """Start a gateway and its peers; `patient=False` has short limits, `history` is a source whose events may be old.

    `more` is further text of gyre.yaml.
    """
    opened: list[Lifespan] = []
    peers: list[Peer] = []

    async def start_mesh(
        *,
        clock: str = "wall",
        exploration: float = 0.0,
        patient: bool = True,
        history: str = "gyre/import",
        more: str = "",
        **settings: object,
    ) -> Mesh:
        file = tmp_path / "gyre.yaml"
        text = SPEC.format(
            loop=f"loop-{loop_name[-8:]}",
            clock=clock,
            history=history,
            exploration=exploration,
            deadline="20s" if patient else "300ms",
        )
        file.write_text((text.replace("0ms", "00ms") if patient else text) + more)
        spec = load_loop(file)
        told = ToldFeatures(Layout.compile(spec)), ToldInference()
        adders = (
            features_rpc.add_FeaturesServiceServicer_to_server,
            inference_rpc.add_InferenceServiceServicer_to_server,
        )
        ports = free_ports(2)
        own = [
            Peer(Registration(add, servicer), ServiceSettings(listen=f"127.0.0.1:{port}", drain_s=0.05))
            for add, servicer, port in zip(adders, told, ports, strict=True)
        ]
        peers.extend(own)
        for peer in own:
            await peer.start()
        lifespan = await Lifespan(drain_s=1).__aenter__()
        opened.append(lifespan)
        addresses = {"features": own[0].settings.listen, "inference": own[1].settings.listen}
        every = GatewaySettings(loops=(file,), kafka=kafka, **{"drain_s": 1, **addresses, **settings})
        running = await bootstrap(lifespan, every)
        await lifespan.health.start()
        await lifespan.health.wait_serving(30)
        connected = await lifespan.enter(channel(running.server.address, ServiceSettings(), name="gateway"))
        producer = await lifespan.enter(Producer(kafka, source="tests"))
        return Mesh(spec, running, lifespan, GatewayServiceStub(connected), *told, *own, producer)

    yield start_mesh
    for lifespan in opened:
        await lifespan.__aexit__(None, None, None)
    for peer in peers:
        await peer.stop()


@pytest.fixture(scope="session")
def telemetry() -> Telemetry:
    """The process's telemetry, without which nothing is counted."""
    return setup_telemetry("tests", ServiceSettings(trace_ratio=0.0))


@pytest.fixture
async def mesh(start: StartMesh) -> Mesh:
    """A gateway on the wall clock, without exploration, before its first model."""
    return await start()


@pytest.fixture
def down() -> Unavailable:
    """What a peer answers when what it needs is down."""
    return Unavailable("STORE_UNAVAILABLE", "down")
