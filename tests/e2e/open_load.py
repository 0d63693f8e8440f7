"""An open load on the gateways: requests arrive at a fixed rate, however long the answers take, over 16 connections."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from random import Random
from typing import NamedTuple
from uuid import uuid4

import grpc
from gyre.events.v1.behavior_pb2 import Interaction
from gyre.gateway.v1.gateway_pb2 import RankRequest, RequestContext, TrackedEvent, TrackRequest
from gyre.gateway.v1.gateway_pb2_grpc import GatewayServiceStub
from gyre_runtime import ServiceSettings
from gyre_runtime.client import channel_options

CONNECTIONS = 16
_TIMEOUT_S = 30.0


class Answer(NamedTuple):
    """What came of one request: when it was answered, after how long, by which version, and why it is degraded."""

    time: float
    seconds: float
    version: str
    arm: str
    degraded_reason: str


@dataclass
class OpenLoad:
    """Users who look at a ranking and click something in it.

    Attributes:
        loop: its name.
        items: ids of all items, of which each request ranks all.
        liked: by number of the user, the items that the user clicks.
        stubs: of the gateways, one for each connection.
        answers: so far.
        failures: calls that failed, by method, status and details.
    """

    loop: str
    items: Sequence[str]
    liked: Sequence[Sequence[str]]
    stubs: Sequence[GatewayServiceStub]
    answers: list[Answer] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    _random: Random = field(default_factory=lambda: Random(11))

    async def visit(self, stub: GatewayServiceStub) -> None:
        """One request, and the click that follows; nothing is tried again."""
        user = self._random.randrange(len(self.liked))
        items = self._random.sample(self.items, len(self.items))
        context = RequestContext(labels={"device": self._random.choice(("phone", "desktop", "television"))})
        wanted = RankRequest(
            loop=self.loop, user_id=f"u{user}", item_ids=items, request_id=uuid4().hex, context=context
        )
        started, method = time.perf_counter(), "Rank"
        try:
            answer = await stub.Rank(wanted, timeout=_TIMEOUT_S)
            source = answer.provenance
            self.answers.append(
                Answer(
                    time.time(),
                    time.perf_counter() - started,
                    source.model_version,
                    source.arm,
                    source.degraded_reason,
                )
            )
            method = "Track"
            click = Interaction(
                user_id=f"u{user}",
                item_id=self._random.choice(self.liked[user]),
                type="click",
                request_id=source.request_id,
            )
            events = [TrackedEvent(event_id=uuid4().hex, interaction=click)]
            await stub.Track(TrackRequest(loop=self.loop, events=events), timeout=_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            self.failures[f"{method}: {error.code().name}: {error.details()}"] += 1

    async def capacity(self, seconds: float) -> float:
        """How many visits a second one caller on each connection gets through, each as fast as it can."""
        before, end = len(self.answers), time.monotonic() + seconds

        async def caller(stub: GatewayServiceStub) -> None:
            while time.monotonic() < end:
                await self.visit(stub)

        await asyncio.gather(*(caller(stub) for stub in self.stubs))
        return (len(self.answers) - before) / seconds

    @asynccontextmanager
    async def at(self, rate: float) -> AsyncIterator[None]:
        """So many visits arrive each second while the block runs; those under way at its end are waited for."""
        ended = asyncio.Event()
        arrivals = asyncio.create_task(self._arrive(rate, ended))
        try:
            yield
        finally:
            ended.set()
            await arrivals

    async def _arrive(self, rate: float, ended: asyncio.Event) -> None:
        begun = time.monotonic()
        async with asyncio.TaskGroup() as visits:
            for number, stub in enumerate(itertools.cycle(self.stubs)):
                await asyncio.sleep(max(0.0, begun + number / rate - time.monotonic()))
                if ended.is_set():
                    return
                visits.create_task(self.visit(stub))

    @property
    def degraded(self) -> Counter[str]:
        """Reasons of the answers that are degraded."""
        return Counter(each.degraded_reason for each in self.answers if each.degraded_reason)


@asynccontextmanager
async def connected(addresses: Sequence[str]) -> AsyncIterator[list[GatewayServiceStub]]:
    """Stubs of the gateways on connections of their own, each of which goes on at another gateway where one ends."""
    options = [*channel_options(ServiceSettings(), follows_health=True), ("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.aio.insecure_channel(f"ipv4:{','.join(addresses)}", options=options) for _ in range(CONNECTIONS)]
    try:
        await asyncio.gather(*(each.channel_ready() for each in channels))
        yield [GatewayServiceStub(each) for each in channels]
    finally:
        await asyncio.gather(*(each.close() for each in channels))
