"""Health as `grpc.health.v1` tells it: SERVING only while every required dependency's last check passed."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from grpc_health.v1 import health, health_pb2

from gyre_runtime.metrics import instrument

_LOG = logging.getLogger(__name__)
_POLL_S = 2.0
_POLL_UNTIL_SERVING_S = 0.2


@dataclass(frozen=True, slots=True)
class Dependency:
    """Something that a process needs.

    Attributes:
        name: such as `kafka`.
        check: raises, or returns False, when the dependency cannot be used.
        required: False for what the process can do without in a degraded way.
        timeout_s: after which the check has failed.
    """

    name: str
    check: Callable[[], Awaitable[object]]
    required: bool = True
    timeout_s: float = 2.0


class Health:
    """Polls dependencies and tells the health service; starts NOT_SERVING.

    Attributes:
        has_callers: whether a server of the process answers more than its health.
    """

    def __init__(self) -> None:
        self.servicer = health.aio.HealthServicer()
        self.has_callers = False
        self._dependencies: list[Dependency] = []
        self._services: list[str] = [""]
        self._up: dict[str, bool] = {}
        self._started = False
        self._draining = False
        self._changed = asyncio.Event()

    @property
    def serving(self) -> bool:
        """Whether the process would answer SERVING now."""
        required = (self._up.get(each.name, False) for each in self._dependencies if each.required)
        return self._started and not self._draining and all(required)

    def add(self, dependency: Dependency) -> None:
        """Watch a dependency."""
        self._dependencies.append(dependency)

    def add_service(self, name: str) -> None:
        """Answer for a gRPC service by its full name, too."""
        self._services.append(name)

    async def start(self) -> None:
        """Say that the process is set up; from now on the dependencies decide."""
        self._started = True
        await self._tell()

    async def drain(self) -> None:
        """Answer NOT_SERVING from now on."""
        self._draining = True
        await self._tell()

    async def watch(self) -> None:
        """Poll the dependencies until cancelled."""
        while True:
            await asyncio.gather(*(self._check(each) for each in tuple(self._dependencies)))
            await self._tell()
            await asyncio.sleep(_POLL_S if self.serving else _POLL_UNTIL_SERVING_S)

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

    async def _tell(self) -> None:
        status = health_pb2.HealthCheckResponse.SERVING if self.serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for service in self._services:
            await self.servicer.set(service, status)
        self._changed.set()
