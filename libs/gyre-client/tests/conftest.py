"""A gateway that does as told on a real gRPC server, a small loop, and the command line."""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from gyre.gateway.v1 import gateway_pb2 as pb
from gyre.gateway.v1 import gateway_pb2_grpc as rpc
from gyre_client import ClientSettings
from gyre_client.cli import app
from gyre_core.spec import LoopSpec, load_loop
from gyre_runtime import Health, Registration, ServiceSettings, build_server
from typer.testing import CliRunner, Result

LOOP = """
version: 1
loop: {loop}
clock: replay
events:
  interactions:
    click: {{}}
    rating: {{value: {{min: 0, max: 10}}}}
items:
  fields:
    price: {{kind: number}}
    tags: {{kind: categories, values: [old, new]}}
features:
  - {{name: clicks, kind: decayed_count, scope: item, events: [click], half_lives: [1d]}}
"""


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
    """That loop."""
    return load_loop(loop_file)


@dataclass
class ToldGateway(rpc.GatewayServiceServicer):
    """Keeps what it is asked and how; raises what the test puts into `errors`, first come first served."""

    requests: list[Any] = field(default_factory=list)
    metadata: list[dict[str, str]] = field(default_factory=list)
    errors: list[Exception] = field(default_factory=list)
    wait: Callable[[], Awaitable[object]] | None = None

    async def _note(self, request: Any, context: Any) -> None:
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        if self.errors:
            raise self.errors.pop(0)
        if self.wait:
            await self.wait()

    async def Rank(self, request: pb.RankRequest, context: Any) -> pb.RankResponse:  # noqa: N802
        """Answer the candidates in reverse."""
        await self._note(request, context)
        items = [pb.RankedItem(item_id=item, score=place) for place, item in enumerate(reversed(request.item_ids))]
        how = pb.Provenance(request_id=request.request_id or "made", model_version="v1", arm="live")
        return pb.RankResponse(items=items, provenance=how)

    async def Recommend(self, request: pb.RecommendRequest, context: Any) -> pb.RecommendResponse:  # noqa: N802
        """Answer as many items as wanted."""
        await self._note(request, context)
        return pb.RecommendResponse(items=[pb.RankedItem(item_id=f"i{place}") for place in range(request.limit)])

    async def Track(self, request: pb.TrackRequest, context: Any) -> pb.TrackResponse:  # noqa: N802
        """Answer the events' ids."""
        await self._note(request, context)
        return pb.TrackResponse(event_ids=[event.event_id for event in request.events])


@pytest.fixture
def gateway() -> ToldGateway:
    """The servicer that the test instructs."""
    return ToldGateway()


ServeGateway = Callable[..., Awaitable[ClientSettings]]


@pytest.fixture
async def serve(gateway: ToldGateway) -> AsyncIterator[ServeGateway]:
    """Start the told gateway with given settings, and answer a client's settings for it."""
    servers = []

    async def start(**settings: Any) -> ClientSettings:
        services = [Registration(rpc.add_GatewayServiceServicer_to_server, gateway)]
        server = build_server(ServiceSettings(drain_s=1, **settings), services, health=Health())
        servers.append(await server.__aenter__())
        return ClientSettings(gateway=server.address)

    yield start
    for each in servers:
        await each.__aexit__(None, None, None)


@pytest.fixture
def gyre(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run the command line with words and GYRE_ variables; call it in a thread where the test serves meanwhile."""

    def run(*words: str, **environment: str) -> Result:
        monkeypatch.setenv("COLUMNS", "200")
        variables = {f"GYRE_{name.upper()}": value for name, value in environment.items()}
        return CliRunner().invoke(app, list(words), env=variables)

    return run
