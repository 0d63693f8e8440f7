"""A pytest plugin: the real Kafka, Redis and Triton, started once a session on free ports, and condition polling.

The fixtures start the same recipes as the local stack, in a temporary directory, only when a test asks for them, and
end them with the session. Sessions that run at the same time do not meet. `loop_name` gives each test a name of its
own, so that topics, keys and models of two tests never collide on the shared servers.
"""

import asyncio
import inspect
import json
import os
import re
import threading
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast

import pytest
import pytest_timeout

from gyre_local.components import kafka as kafka_component
from gyre_local.components import redis as redis_component
from gyre_local.components import triton as triton_component
from gyre_local.ports import PORTS_FILE, Ports, load_ports
from gyre_local.process import Process, running
from gyre_local.reserve import free_ports
from gyre_local.timeouts import Deadline, scaled

HOST = "127.0.0.1"
POLL_S = 0.02
DATA = Path(os.environ.get("GYRE_DATA", Path(__file__).parents[5] / "shared" / "data"))
"""Where the public data sets lie."""
T = TypeVar("T")


@dataclass(frozen=True)
class TritonServer:
    """A running Triton in explicit model control mode.

    Attributes:
        grpc: host:port of its gRPC API.
        http: host:port of its HTTP API.
        metrics: host:port of its Prometheus metrics.
        repository: the model repository, where a test puts `<model>/config.pbtxt` and `<model>/1/model.onnx`.
        process: to stop and start it in the middle of a test.
    """

    grpc: str
    http: str
    metrics: str
    repository: Path
    process: Process


async def eventually(
    condition: Callable[[], T | Awaitable[T]], *, timeout_s: float = 10.0, message: str = "the condition"
) -> T:
    """Poll `condition`, plain or async, until it returns something true, and return that.

    An AssertionError that the condition raises counts as "not yet"; the last one is shown when the time is over.

    Raises:
        AssertionError: it did not hold within `timeout_s`, scaled to the machine (see `gyre_local.timeouts`).
    """
    deadline = Deadline(timeout_s)
    while True:
        last: object = None
        try:
            outcome = condition()
            last = await outcome if inspect.isawaitable(outcome) else outcome
        except AssertionError as error:
            last = error
        else:
            if last:
                return cast("T", last)
        if deadline.passed:
            raise AssertionError(f"{message} did not hold within {deadline.limit_s:.3g} s, last: {last!r}")
        await asyncio.sleep(POLL_S)


def eventually_sync(condition: Callable[[], T], *, timeout_s: float = 10.0, message: str = "the condition") -> T:
    """Do what `eventually` does, from a test that is not async."""
    deadline = Deadline(timeout_s)
    while True:
        last: object = None
        try:
            outcome = condition()
        except AssertionError as error:
            last = error
        else:
            if outcome:
                return outcome
            last = outcome
        if deadline.passed:
            raise AssertionError(f"{message} did not hold within {deadline.limit_s:.3g} s, last: {last!r}")
        time.sleep(POLL_S)


class RunningTest:
    """Names the test that runs every ten seconds, so that a log shows where a long run is."""

    INTERVAL_S = 10.0

    def __init__(self, config: pytest.Config) -> None:
        self._writer = config.get_terminal_writer()
        self._test, self._since = "", time.monotonic()
        self._ended = threading.Event()
        threading.Thread(target=self._print, name="running-test", daemon=True).start()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Note the test that starts as the one that runs."""
        self._test, self._since = nodeid, time.monotonic()

    def pytest_unconfigure(self) -> None:
        """End the lines: the session ends."""
        self._ended.set()

    def _print(self) -> None:
        while not self._ended.wait(self.INTERVAL_S):
            took_s = time.monotonic() - self._since
            if self._test and took_s >= self.INTERVAL_S:
                self._writer.write(f"\n  [{took_s:.0f} s] {self._test}\n", flush=True)


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Print where a long run is, where no person watches a terminal."""
    if not config.get_terminal_writer().hasmarkup and not hasattr(config, "workerinput"):
        config.pluginmanager.register(RunningTest(config), "gyre-running-test")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that take longest first, so that no worker ends with one while the others have nothing to do."""
    rank = dict[Path, int]()
    for item in items:
        own = 0 if item.get_closest_marker("e2e") else 1 if item.get_closest_marker("adapter") else 2
        rank[item.path] = min(own, rank.get(item.path, own))
    items.sort(key=lambda item: rank[item.path])


@pytest.hookimpl(tryfirst=True, optionalhook=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: pytest_timeout.Settings) -> bool:
    """The timeout of a test grows with the machine, as the limits within it do; 0 stays none."""
    return bool(pytest_timeout.pytest_timeout_set_timer(item, settings._replace(timeout=scaled(settings.timeout))))


def free_stack_ports(path: Path) -> Ports:
    """Write a ports file like the repository's, with free ports, to `path`, and return what it says."""
    ports = load_ports(PORTS_FILE, offset=0)
    fresh = iter(free_ports(sum(len(meanings) for meanings in ports.processes.values())))
    lines = [f'host = "{ports.host}"']
    for name, meanings in ports.processes.items():
        lines.append(f"[{json.dumps(name)}]")
        lines.extend(f"{meaning} = {next(fresh)}" for meaning in meanings)
    path.write_text("\n".join(lines))
    return load_ports(path, offset=0)


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of the public data sets; skips where it is absent."""
    if not DATA.is_dir():
        pytest.skip(f"no data sets at {DATA}: set GYRE_DATA")
    return DATA


@pytest.fixture
def loop_name(request: pytest.FixtureRequest) -> str:
    """A loop name that no other test uses: lower-case letters, digits and hyphens, at most the 31 that a loop may have.

    Nobody may shorten it: its end is what makes it the test's own.
    """
    words = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower()).strip("-")
    return f"{words.removeprefix('test-')[:22].strip('-')}-{uuid.uuid4().hex[:8]}"


@pytest.fixture(scope="session")
def kafka_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """The session's Kafka broker as a process, for tests that stop and start it."""
    broker, controller = free_ports(2)
    directory = tmp_path_factory.mktemp("kafka")
    address = kafka_component.BrokerAddress(HOST, broker=broker, controller=controller)
    recipe = kafka_component.prepare(directory, address, quick_start=True)
    with running(recipe, log=directory / "kafka.log") as process:
        yield process


@pytest.fixture(scope="session")
def kafka(kafka_process: Process) -> str:
    """The bootstrap address of a real Kafka, the session's own; topics are not created by themselves."""
    return f"{HOST}:{kafka_process.recipe.ports['broker']}"


@pytest.fixture(scope="session")
def redis_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """The session's Redis as a process, for tests that stop and start it."""
    (port,) = free_ports(1)
    directory = tmp_path_factory.mktemp("redis")
    recipe = redis_component.prepare(directory, host=HOST, port=port, durable=False)
    with running(recipe, log=directory / "redis.log") as process:
        yield process


@pytest.fixture(scope="session")
def redis_url(redis_process: Process) -> str:
    """The address of a real Redis, the session's own, as a URL."""
    return f"redis://{HOST}:{redis_process.recipe.ports['server']}/0"


@pytest.fixture(scope="session")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A real Triton, the session's own, with an empty model repository."""
    http, grpc_port, metrics = free_ports(3)
    directory = tmp_path_factory.mktemp("triton")
    address = triton_component.TritonAddress(HOST, http=http, grpc=grpc_port, metrics=metrics)
    recipe = triton_component.prepare(directory, address)
    with running(recipe, log=directory / "triton.log") as process:
        yield TritonServer(
            grpc=f"{HOST}:{grpc_port}",
            http=f"{HOST}:{http}",
            metrics=f"{HOST}:{metrics}",
            repository=directory / "models",
            process=process,
        )
