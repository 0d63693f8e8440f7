"""Which of several processes is called: none that was never ready, and none that drains, so that no call is lost."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from gyre.inference.v1 import inference_pb2 as pb
from gyre.inference.v1 import inference_pb2_grpc as rpc
from gyre_local.reserve import free_ports
from gyre_local.testing import eventually
from gyre_runtime import Dependency, GyreError, Lifespan, Registration, ServiceSettings, build_server, channel

DELAY_S = 1.0
"""How long a draining process takes calls; half of it is longer than a channel needs to notice."""


class Named(rpc.InferenceServiceServicer):
    """Answers its name."""

    def __init__(self, name: str) -> None:
        self.name = name

    async def ListModels(  # noqa: N802 - the protocol's name
        self, _request: pb.ListModelsRequest, _context: object
    ) -> pb.ListModelsResponse:
        """Answer."""
        return pb.ListModelsResponse(models=[pb.LoadedModel(version=self.name)])


class World:
    """Two processes' servers, a channel to both, and what callers were told."""

    def __init__(self, ports: list[int]) -> None:
        self.ports = dict(zip("ab", ports, strict=True))
        addresses = ",".join(f"127.0.0.1:{port}" for port in ports)
        opened = channel(f"ipv4:{addresses}", ServiceSettings(), name="inference", follows_health=True)
        self.stub, self.opened = rpc.InferenceServiceStub(opened), opened
        self.up = dict.fromkeys("ab", True)

    @asynccontextmanager
    async def process(self, name: str) -> AsyncIterator[Lifespan]:
        """One of them, which is ready while `up` says so, and takes calls for a while once it drains."""

        async def check() -> bool:
            return self.up[name]

        async with Lifespan() as lifespan:
            lifespan.depends_on(Dependency("what it needs", check))
            settings = ServiceSettings(listen=f"127.0.0.1:{self.ports[name]}")
            registration = Registration(rpc.add_InferenceServiceServicer_to_server, Named(name))
            await lifespan.serve(build_server(settings, [registration], health=lifespan.health))
            await lifespan.health.start()
            yield lifespan
            await lifespan.announce_end(DELAY_S)

    async def ask(self) -> str:
        """The name of who answers, or why nobody does."""
        try:
            return (await self.stub.ListModels(pb.ListModelsRequest(), timeout=10)).models[0].version
        except GyreError as error:
            return str(error)

    async def until(self, *names: str) -> None:
        """Wait until exactly these answer, ten calls in a row."""

        async def answered() -> bool:
            return {await self.ask() for _ in range(10)} == set(names)

        await eventually(answered, timeout_s=20, message=f"{' and '.join(names)} answer")


async def test_a_process_is_called_from_its_first_readiness_until_it_drains() -> None:
    """One that listens and is not ready yet is not called; one that was ready is, also while something is away."""
    world = World(free_ports(2))
    world.up["b"] = False
    async with world.process("a") as first, world.process("b") as second:
        await world.until("a")
        world.up["b"] = True
        await world.until("a", "b")
        world.up["b"] = False
        second.health.look()
        await eventually(lambda: not second.health.serving, message="b is not ready")
        await world.until("a", "b")
        await first.health.drain()
        await world.until("a", "b")
        await first.health.stop_accepting()
        await world.until("b")
    await world.opened.close()


async def test_no_call_is_lost_while_one_process_after_the_other_restarts() -> None:
    """Callers that never pause get an answer to every call, though both processes restart twice under them."""
    world, answers, ended = World(free_ports(2)), Counter[str](), asyncio.Event()

    async def caller() -> None:
        while not ended.is_set():
            answers[await world.ask()] += 1

    async def start(name: str) -> AsyncExitStack:
        running = AsyncExitStack()
        await running.enter_async_context(world.process(name))
        return running

    processes = {name: await start(name) for name in "ab"}
    await world.until("a", "b")
    callers = [asyncio.create_task(caller()) for _ in range(16)]
    for name in "abab":
        await processes[name].aclose()
        processes[name] = await start(name)
        await world.until("a", "b")
    ended.set()
    await asyncio.gather(*callers)
    await world.opened.close()
    for each in processes.values():
        await each.aclose()
    assert set(answers) == {"a", "b"}, answers


class Busy(rpc.InferenceServiceServicer):
    """Answers one call after the other, as a process without a free processor does."""

    def __init__(self) -> None:
        self.called = asyncio.Event()

    async def ListModels(  # noqa: N802 - the protocol's name
        self, _request: pb.ListModelsRequest, _context: object
    ) -> pb.ListModelsResponse:
        """Answer, and let nothing else happen meanwhile."""
        self.called.set()
        time.sleep(0.02)  # noqa: ASYNC251 - what keeps the process busy
        return pb.ListModelsResponse()


async def test_what_arrived_before_the_end_of_the_delay_is_answered() -> None:
    """Calls that wait in a busy process when it stops are answered rather than cancelled."""
    (port,) = free_ports(1)
    busy, settings = Busy(), ServiceSettings(listen=f"127.0.0.1:{port}", drain_delay_s=0.1)
    registration = Registration(rpc.add_InferenceServiceServicer_to_server, busy)
    async with channel(settings.listen, settings, name="inference") as opened:
        stub = rpc.InferenceServiceStub(opened)
        async with build_server(settings, [registration]):
            calls = [asyncio.ensure_future(stub.ListModels(pb.ListModelsRequest(), timeout=60)) for _ in range(50)]
            await busy.called.wait()
        answers = await asyncio.gather(*calls, return_exceptions=True)
    assert [each for each in answers if isinstance(each, BaseException)] == []
