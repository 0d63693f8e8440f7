"""The whole mesh under its real supervisor, on free ports and in a directory of its own, and users that click."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from random import Random
from uuid import uuid4

import pytest
from gyre.deployer.v1.deployer_pb2_grpc import DeployerServiceStub
from gyre.events.v1.behavior_pb2 import FieldValue, Interaction, ItemChanged, Vector
from gyre.features.v1.features_pb2_grpc import FeaturesServiceStub
from gyre.features.v1.parity_pb2_grpc import ParityServiceStub
from gyre.gateway.v1.gateway_pb2 import RankRequest, RankResponse, RequestContext, TrackedEvent, TrackRequest
from gyre.gateway.v1.gateway_pb2_grpc import GatewayServiceStub
from gyre.monitor.v1.monitor_pb2_grpc import MonitorServiceStub
from gyre.trainer.v1.trainer_pb2_grpc import TrainerServiceStub
from gyre_core.spec import LoopSpec, load_loop
from gyre_local import operations
from gyre_local.components import services
from gyre_local.places import StackDirectories
from gyre_local.ports import Ports
from gyre_local.recipe import Recipe
from gyre_local.stack import NEEDS, Member, Stack, build_stack
from gyre_local.supervisor import Supervisor
from gyre_local.testing import free_stack_ports
from gyre_runtime import Channel, ServiceSettings, channel

from .open_load import OpenLoad, connected

LOOP_FILE = Path(__file__).parent / "gyre.yaml"
GENRES = ("red", "green", "blue", "white")
ITEMS = 40
USERS = 60
Trace = tuple[tuple[str, str], ...]


@dataclass
class Mesh:
    """The running stack with a channel to each service, and a world of users that like one genre each."""

    stack: Stack
    spec: LoopSpec
    channels: dict[str, Channel] = field(default_factory=dict)
    random: Random = field(default_factory=lambda: Random(7))

    @property
    def ports(self) -> Ports:
        """Every port of the stack."""
        return self.stack.ports

    @property
    def loop(self) -> str:
        """The loop's name."""
        return self.spec.loop

    @property
    def kafka(self) -> str:
        """The broker's address."""
        return self.ports.address("kafka", "broker")

    @property
    def gateway(self) -> GatewayServiceStub:
        """The door."""
        return GatewayServiceStub(self.channels["gateway"])

    @property
    def features(self) -> FeaturesServiceStub:
        """The read side of features."""
        return FeaturesServiceStub(self.channels["features-serve"])

    @property
    def parity(self) -> ParityServiceStub:
        """The check of the features."""
        return ParityServiceStub(self.channels["features-check"])

    @property
    def trainer(self) -> TrainerServiceStub:
        """Training runs."""
        return TrainerServiceStub(self.channels["trainer"])

    @property
    def deployer(self) -> DeployerServiceStub:
        """Rollouts."""
        return DeployerServiceStub(self.channels["deployer"])

    @property
    def monitor(self) -> MonitorServiceStub:
        """Status and lineage."""
        return MonitorServiceStub(self.channels["monitor"])

    @property
    def loop_file(self) -> Path:
        """The gyre.yaml that every process reads."""
        return Path(self.stack.loops[0])

    def edit(self, *edits: tuple[str, str]) -> LoopSpec:
        """Replace parts of gyre.yaml; what runs does not see it before its restart."""
        text = self.loop_file.read_text()
        for old, new in edits:
            assert old in text
            text = text.replace(old, new)
        self.loop_file.write_text(text)
        self.spec = load_loop(self.loop_file)
        return self.spec

    async def restart(self, *groups: Sequence[str]) -> None:
        """Restart groups of members one after the other, each once the one before is healthy."""

        def work(names: Sequence[str]) -> None:
            Supervisor(self.stack.places).stop(names)
            operations.bring_up(self.stack, self.stack.select(names), lambda *_: None)

        for names in groups:
            await asyncio.to_thread(work, names)

    @asynccontextmanager
    async def open_load(self) -> AsyncIterator[OpenLoad]:
        """A load of the users of this world on both gateways."""
        addresses = [f"{self.ports.host}:{self.stack.members[name].ports['grpc']}" for name in ("gateway", "gateway-2")]
        liked = [
            [f"i{item}" for item in range(ITEMS) if item % len(GENRES) == user % len(GENRES)] for user in range(USERS)
        ]
        async with connected(addresses) as stubs:
            yield OpenLoad(self.loop, [f"i{number}" for number in range(ITEMS)], liked, stubs)

    def pid(self, name: str) -> int:
        """The process id of a member, as the supervisor knows it."""
        return Supervisor(self.stack.places).states()[name].pid

    def is_healthy(self, name: str) -> bool:
        """Whether a member runs and its probe passes."""
        (line,) = operations.look(self.stack, self.stack.select([name]))
        return line.is_healthy

    async def track_items(self) -> None:
        """Tell the catalogue."""
        events = [
            TrackedEvent(
                event_id=f"item-{number}",
                item_changed=ItemChanged(
                    item_id=f"i{number}",
                    fields={
                        "genre": FieldValue(text=GENRES[number % len(GENRES)]),
                        "price": FieldValue(number=float(number)),
                        "shape": FieldValue(vector=Vector(values=[number, -number, 0.5])),
                    },
                ),
            )
            for number in range(ITEMS)
        ]
        await self.gateway.Track(TrackRequest(loop=self.loop, events=events), timeout=30)

    async def rank(self, user: int, *, trace: Trace = ()) -> RankResponse:
        """Rank all items for a user."""
        items = [f"i{number}" for number in range(ITEMS)]
        self.random.shuffle(items)
        context = RequestContext(labels={"device": self.random.choice(("phone", "desktop", "television"))})
        request = RankRequest(
            loop=self.loop, user_id=f"u{user}", item_ids=items, request_id=uuid4().hex, context=context
        )
        answer: RankResponse = await self.gateway.Rank(request, timeout=30, metadata=trace)
        return answer

    def liked(self, user: int) -> str:
        """An item of the one genre that the user likes."""
        return f"i{self.random.randrange(ITEMS // len(GENRES)) * len(GENRES) + user % len(GENRES)}"

    async def visit(self, user: int) -> RankResponse:
        """A user looks at a ranking and clicks an item of the genre that they like, in a sampled trace."""
        trace = (("traceparent", f"00-{self.random.getrandbits(128):032x}-{self.random.getrandbits(64):016x}-01"),)
        answer = await self.rank(user, trace=trace)
        click = Interaction(
            user_id=f"u{user}", item_id=self.liked(user), type="click", request_id=answer.provenance.request_id
        )
        events = [TrackedEvent(event_id=uuid4().hex, interaction=click)]
        await self.gateway.Track(TrackRequest(loop=self.loop, events=events), timeout=30, metadata=trace)
        return answer

    async def visits(self, count: int, *, at_once: int = 4) -> list[RankResponse]:
        """Many visits, a few at a time."""
        gate = asyncio.Semaphore(at_once)

        async def one() -> RankResponse:
            async with gate:
                return await self.visit(self.random.randrange(USERS))

        return list(await asyncio.gather(*(one() for _ in range(count))))


def replicated(stack: Stack, ports: Ports) -> Stack:
    """A stack with a second `features-serve` and a second gateway, which answer while the first ones restart.

    Args:
        stack: with one of each.
        ports: of the second ones.
    """
    members = dict(stack.members)
    for name in ("features-serve", "gateway"):
        own = replace(stack.ports, processes={**stack.ports.processes, name: ports.of(name)})
        prepare = partial(_prepare_second, name, stack, own)
        second = f"{name}-2"
        members[second] = Member(
            second, prepare=prepare, probe=services.probe(name, ports), ports=ports.of(name), after=NEEDS[name]
        )
        # For half of the delay callers of the one connect to the other, which they try every two seconds at least.
        for each in (name, second):
            members[each] = _with_env(members[each], GYRE_DRAIN_DELAY_S="5")
    both = ",".join(each.address("features-serve", "grpc") for each in (stack.ports, ports))
    for name in ("gateway", "gateway-2"):
        members[name] = _with_env(members[name], GYRE_FEATURES=f"ipv4:{both}")
    members["features-stream"] = _with_env(members["features-stream"], GYRE_FEATURES_LAYOUT_GRACE_S="1")
    return replace(stack, members=members)


def _prepare_second(name: str, stack: Stack, ports: Ports) -> Recipe:
    return replace(services.prepare(name, stack.places, ports, loops=stack.loops), name=f"{name}-2")


def _with_env(member: Member, **env: str) -> Member:
    def prepare() -> Recipe:
        recipe = member.prepare()
        return replace(recipe, env={**recipe.env, **env})

    return replace(member, prepare=prepare)


def _up(stack: Stack) -> Iterator[Stack]:
    try:
        operations.bring_up(stack, list(stack.members.values()), lambda _name, _step: None)
        yield stack
    finally:
        operations.take_down(stack, lambda _name, _step: None)


def _made(directory: Path) -> Stack:
    """A stack in a directory, with a copy of gyre.yaml that a test may edit."""
    loop_file = Path(shutil.copy(LOOP_FILE, directory))
    return build_stack(StackDirectories(directory / "var"), free_stack_ports(directory / "ports.toml"), [loop_file])


async def _opened(stack: Stack) -> AsyncIterator[Mesh]:
    made = Mesh(stack, load_loop(Path(stack.loops[0])))
    for name in ("gateway", "features-serve", "features-check", "trainer", "deployer", "monitor"):
        made.channels[name] = channel(stack.ports.address(name, "grpc"), ServiceSettings(), name=name)
    await made.track_items()
    yield made
    for opened in made.channels.values():
        await opened.close()


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Every process of the local stack, healthy."""
    yield from _up(_made(tmp_path_factory.mktemp("mesh")))


@pytest.fixture(scope="session")
async def mesh(stack: Stack) -> AsyncIterator[Mesh]:
    """The stack with open channels and a known catalogue."""
    async for each in _opened(stack):
        yield each


@pytest.fixture(scope="session")
def replicated_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The stack with two of each process that answers requests, healthy."""
    directory = tmp_path_factory.mktemp("replicated")
    yield from _up(replicated(_made(directory), free_stack_ports(directory / "second.toml")))


@pytest.fixture(scope="session")
async def replicated_mesh(replicated_stack: Stack) -> AsyncIterator[Mesh]:
    """That stack with open channels and a known catalogue."""
    async for each in _opened(replicated_stack):
        yield each
