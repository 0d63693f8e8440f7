"""Health as `grpc.health.v1` reports it: ready (SERVING) only while every required dependency's last check passed.

That is readiness, under the empty name and those of the services. Liveness has the name `liveness`: SERVING from the
first moment until the process ends, so that nobody restarts a process because something that it needs is away.

Whether a process takes calls has the name `accepting`: SERVING from the first time that it is ready until half of its
drain delay is over, whatever dependency goes away meanwhile. Callers that may choose between processes follow it
(`gyre_runtime.channel`).

A process that works for several loops is ready while any of them gets on; the name `<service>/<loop>` is of one.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gyre_runtime.metrics import instrument

LIVENESS = "liveness"
ACCEPTING = "accepting"
_LOG = logging.getLogger(__name__)
_POLL_S = 2.0
_POLL_UNTIL_SERVING_S = 0.2


@dataclass(frozen=True, slots=True)
class Dependency:
    """Something that a process needs; it counts as down until its first check has passed.

    Attributes:
        name: such as `kafka`, unique in the process; also the label of `gyre_dependency_up`.
        check: raises, or returns False, when the dependency cannot be used; any other answer means that it can. Polled
            every 2 s, every 0.2 s until the process and its loops are SERVING.
        required: False for what the process can do without in a degraded way: it is checked, and does not count for
            SERVING, except for its `loop`'s own.
        required_s: it counts for SERVING only in the first so many seconds after `Health.start`, and never again; None
            for always.
        timeout_s: seconds after which a check is cancelled and has failed.
        loop: the one loop that needs it; empty for what the whole process needs.
    """

    name: str
    check: Callable[[], Awaitable[object]]
    required: bool = True
    required_s: float | None = None
    timeout_s: float = 2.0
    loop: str = ""


class HealthServicer(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # grpc_health has no types
    """Answers `grpc.health.v1`; each watch is sent every change, until the watches are ended."""

    def __init__(self) -> None:
        self._statuses: dict[str, health_pb2.HealthCheckResponse.ServingStatus.ValueType] = {}
        self._changed = asyncio.Condition()
        self._ended = False

    async def set(self, service: str, status: health_pb2.HealthCheckResponse.ServingStatus.ValueType) -> None:
        """Set the status of a service, known before or not, and send it to the watches of that service."""
        async with self._changed:
            self._statuses[service] = status
            self._changed.notify_all()

    async def end_watches(self) -> None:
        """End every watch, and each one to come: a server that stops would wait for them."""
        async with self._changed:
            self._ended = True
            self._changed.notify_all()

    async def Check(  # noqa: N802 - the protocol's name
        self, request: health_pb2.HealthCheckRequest, context: Any
    ) -> health_pb2.HealthCheckResponse:
        """Answer the status; NOT_FOUND for a service that is not known."""
        status = self._statuses.get(request.service)
        if status is None:
            await context.abort(grpc.StatusCode.NOT_FOUND)
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(  # noqa: N802 - the protocol's name
        self, request: health_pb2.HealthCheckRequest, _context: object
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """Yield the status now and after each change, SERVICE_UNKNOWN for an unknown service, until `end_watches`."""
        said: list[int] = []

        def is_news() -> bool:
            return self._ended or said[-1:] != [self._status(request.service)]

        while True:
            async with self._changed:
                await self._changed.wait_for(is_news)
                if self._ended:
                    return
                said = [status := self._status(request.service)]
            yield health_pb2.HealthCheckResponse(status=status)

    def _status(self, service: str) -> health_pb2.HealthCheckResponse.ServingStatus.ValueType:
        return self._statuses.get(service, health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)


class Health:
    """Whether a process is ready, by its dependencies, and the `grpc.health.v1` servicer that answers so.

    It is NOT_SERVING until `start`, and again after `drain`. `watch` has to run beside it: nothing else checks.

    Args:
        service: the process's name, such as `features-stream`, which the health of its loops is reported under.
        accepts_once_ready: calls are accepted from the first time on that the process is ready, rather than at once.

    Attributes:
        has_callers: whether a server of the process answers more than its health.
        servicer: answers the health service; set by `Health` alone.
    """

    def __init__(self, service: str = "", *, accepts_once_ready: bool = False) -> None:
        self._service = service
        self._accepts = not accepts_once_ready
        self.servicer = HealthServicer()
        self.has_callers = False
        self._dependencies: list[Dependency] = []
        self._services: list[str] = [""]
        self._up: dict[str, bool] = {}
        self._started_at: float | None = None
        self._draining = False
        self._looking = asyncio.Event()
        self._changed = asyncio.Event()

    @property
    def serving(self) -> bool:
        """Whether the process answers SERVING: started, not draining, and what it needs was up at the last check.

        Needed is each required dependency of the whole process, within its `required_s`, and where loops have required
        dependencies, all that at least one such loop depends on. Reads what is known; checks nothing.
        """
        loops = {each.loop for each in self._dependencies if each.loop and each.required}
        return self._has("") and (not loops or any(map(self.serves, loops)))

    def serves(self, loop: str) -> bool:
        """Whether the process answers SERVING for a loop: what all loops need is up, and all dependencies of this one.

        Those with `required=False` count, too. A loop without dependencies of its own, or unknown, needs nothing more.
        """
        return self._has("") and self._has(loop)

    def _has(self, loop: str) -> bool:
        """Whether all that a loop needs is there, or for an empty name, all that every loop does."""
        if self._started_at is None or self._draining:
            return False
        since_s = time.monotonic() - self._started_at
        own = (each for each in self._dependencies if each.loop == loop)
        return all(self._up.get(each.name, False) for each in own if loop or _is_required(each, since_s))

    def look(self) -> None:
        """Let `watch` check the dependencies at once rather than at its next turn; returns before they are checked."""
        self._looking.set()

    def add(self, dependency: Dependency) -> None:
        """Add a dependency, which `watch` polls from its next turn on and which is down until then."""
        self._dependencies.append(dependency)

    def add_service(self, name: str) -> None:
        """Give a gRPC service, by its full name, the status of the process, from the next change or check on."""
        self._services.append(name)

    async def start(self) -> None:
        """Say that the process is set up: from now on the last checks decide whether it is SERVING, see `serving`."""
        self._started_at = time.monotonic()
        await self._publish()

    async def listen(self) -> None:
        """Set `liveness` to SERVING, for good; a server calls it before it listens, and opens no port by it."""
        await self.servicer.set(LIVENESS, health_pb2.HealthCheckResponse.SERVING)
        await self._publish()

    async def drain(self) -> None:
        """Answer NOT_SERVING from now on, for good, whatever the dependencies do; calls are accepted still."""
        self._draining = True
        await self._publish()

    async def stop_accepting(self) -> None:
        """Set `accepting` to NOT_SERVING, so that callers that follow it leave; calls that still come are answered."""
        self._accepts = False
        await self._publish()

    async def watch(self) -> None:
        """Poll the dependencies, all at once, until cancelled; whatever a check raises is logged, and means down."""
        while True:
            await asyncio.gather(*(self._check(each) for each in tuple(self._dependencies)))
            await self._publish()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._looking.wait(), _POLL_S if self._all_up else _POLL_UNTIL_SERVING_S)
            self._looking.clear()

    @property
    def _all_up(self) -> bool:
        return self.serving and all(self._up.get(each.name, False) for each in self._dependencies if each.loop)

    async def wait_serving(self, timeout_s: float) -> None:
        """Wait until the process serves.

        Raises:
            TimeoutError: it does not within `timeout_s`.
        """
        async with asyncio.timeout(timeout_s):
            while not self.serving:
                self._changed.clear()
                await self._changed.wait()

    async def _check(self, dependency: Dependency) -> None:
        try:
            async with asyncio.timeout(dependency.timeout_s):
                up = await dependency.check() is not False
            problem = "the check said no"
        except Exception as error:  # noqa: BLE001 - whatever a check raises means that the dependency is down
            up, problem = False, f"{type(error).__name__}: {error}"
        if up != self._up.get(dependency.name):
            facts = {"dependency": dependency.name, "required": dependency.required}
            if up:
                _LOG.info("dependency is up", extra=facts)
            else:
                _LOG.warning("dependency is down", extra={**facts, "problem": problem})
        self._up[dependency.name] = up
        instrument("gyre_dependency_up").set(float(up), dependency=dependency.name)

    async def _publish(self) -> None:
        self._accepts = self._accepts or self.serving
        await self.servicer.set(ACCEPTING, _status(self._accepts))
        for service in self._services:
            await self.servicer.set(service, _status(self.serving))
        for loop in {each.loop for each in self._dependencies if each.loop}:
            await self.servicer.set(f"{self._service}/{loop}", _status(self.serves(loop)))
        self._changed.set()


def _is_required(dependency: Dependency, since_s: float) -> bool:
    """Whether a process is not ready without a dependency, so many seconds after its start."""
    return dependency.required and (dependency.required_s is None or since_s < dependency.required_s)


def _status(serving: bool) -> health_pb2.HealthCheckResponse.ServingStatus.ValueType:
    return health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
