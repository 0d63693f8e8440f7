"""A process's life: the documented example as a real process, and the order in which a lifespan closes."""

import asyncio
import json
import os
import signal
import sys
import textwrap
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import grpc
import gyre_runtime
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from gyre.events.v1.behavior_pb2 import Interaction
from gyre.inference.v1.inference_pb2 import ListModelsRequest
from gyre.inference.v1.inference_pb2_grpc import InferenceServiceStub
from gyre_local.testing import eventually
from gyre_local.timeouts import scaled
from gyre_runtime import Dependency, Lifespan, ServiceSettings
from gyre_runtime.kafka import Producer
from gyre_runtime.lifecycle import serve_forever

MakeTopic = Callable[..., Awaitable[str]]


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example of the package's docstring, as a file."""
    lines = (gyre_runtime.__doc__ or "").splitlines()
    code = textwrap.dedent("\n".join(line for line in lines if line.startswith("    ") or not line))
    path = tmp_path_factory.mktemp("example") / "example.py"
    path.write_text(code)
    return path


class ExampleProcess:
    """The example service as a process, with its log lines."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[dict[str, object]] = []
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            self.lines.append(json.loads(line))

    def logged(self, message: str) -> dict[str, object] | None:
        """Return the first log line with that message."""
        return next((line for line in self.lines if line["message"] == message), None)

    async def address(self) -> str:
        """Wait until the server listens, and return where."""
        line = await eventually(lambda: self.logged("listening"))
        return str(line["address"])

    async def stop(self) -> int:
        """Send SIGTERM and return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        code = await self.process.wait()
        await self._reader
        return code


@asynccontextmanager
async def example(program: Path, **variables: str) -> AsyncIterator[ExampleProcess]:
    """Run the example; its end is the test's, or a kill."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("GYRE_")}
    command = [sys.executable, "-W", "error", str(program)]
    process = await asyncio.create_subprocess_exec(
        *command, env={**environ, "GYRE_DRAIN_DELAY_S": "0", **variables}, stderr=asyncio.subprocess.PIPE
    )
    running = ExampleProcess(process)
    try:
        yield running
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _serving(address: str) -> bool:
    async with grpc.aio.insecure_channel(address) as bare:
        answer = await health_pb2_grpc.HealthStub(bare).Check(health_pb2.HealthCheckRequest(), timeout=5)
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


async def _status(address: str) -> str:
    """What a new connection is told of the process's health; the status of the call where it is refused."""
    async with grpc.aio.insecure_channel(address) as bare:
        try:
            answer = await health_pb2_grpc.HealthStub(bare).Check(health_pb2.HealthCheckRequest(), timeout=5)
        except grpc.aio.AioRpcError as error:
            return str(error.code().name)
    return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)


async def _handled(address: str) -> list[str]:
    async with grpc.aio.insecure_channel(address) as bare:
        answer = await InferenceServiceStub(bare).ListModels(ListModelsRequest(), timeout=5)
    return [model.version for model in answer.models]


@pytest.mark.adapter
async def test_the_documented_example_serves_drains_and_catches_up(
    kafka: str, make_topic: MakeTopic, program: Path
) -> None:
    """It is SERVING once Kafka is up, handles events, exits 0 on SIGTERM, and after a restart gets the rest only."""
    topic = await make_topic()
    variables = {"GYRE_KAFKA": kafka, "GYRE_INFERENCE_TOPIC": topic}
    async with Producer(kafka, source="test") as producer:

        async def publish(number: int) -> None:
            message = Interaction(user_id="u", item_id="i", type="click")
            await producer.send(topic, message, key="u", id=f"e{number}")

        async with example(program, **variables) as first:
            address = await first.address()
            await eventually(lambda: _serving(address))
            await publish(1)
            await eventually(lambda: _handled(address))
            assert await first.stop() == 0
        await publish(2)
        async with example(program, **variables) as second:
            address = await second.address()
            assert await eventually(lambda: _handled(address)) == ["e2"]
            assert await second.stop() == 0
    assert first.logged("draining") is not None
    assert {"time", "level", "logger", "message", "service"} <= set(first.lines[0])


async def test_a_process_that_waits_for_kafka_ends_on_a_signal(unused_tcp_port: int, program: Path) -> None:
    """Without Kafka it waits, says for what, and still exits 0 on SIGTERM."""
    async with example(program, GYRE_KAFKA=f"127.0.0.1:{unused_tcp_port}") as process:
        line = await eventually(lambda: process.logged("waiting for Kafka"))
        assert line["kafka"] == f"127.0.0.1:{unused_tcp_port}"
        assert await process.stop() == 0


async def test_a_bad_setting_ends_the_process_with_its_message(program: Path) -> None:
    """A wrong variable ends the process at once with one line that names it."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(program),
        env={**os.environ, "GYRE_LISTEN": "nowhere"},
        stderr=asyncio.subprocess.PIPE,
    )
    _, stderr = await process.communicate()
    assert process.returncode == 1
    rule = "must be host:port with a port from 0 to 65535, an IP version 6 address in brackets"
    assert stderr.decode() == f"GYRE_LISTEN='nowhere': {rule}\n"


@pytest.mark.parametrize(
    ("variable", "text"),
    [("GYRE_TOKEN_FILE", " \n"), ("GYRE_TOKEN_FILE", None), ("GYRE_TLS_CA", "no certificate")],
)
async def test_security_that_cannot_be_used_ends_the_process(
    variable: str, text: str | None, program: Path, tmp_path: Path
) -> None:
    """A process whose token or certificate says nothing ends at once, naming the setting, and never listens."""
    path = tmp_path / "file"
    if text is not None:
        path.write_text(text)
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(program), env={**os.environ, variable: str(path)}, stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr is not None
    lines: list[str] = []
    async for line in process.stderr:
        lines.append(line.decode())
        if "waiting for Kafka" in lines[-1]:
            process.kill()  # it went on with its start
    assert await process.wait() == 1
    assert variable in "".join(lines)


@pytest.mark.parametrize("variable", ["GYRE_TOKEN", "gyre_token_file"])
async def test_a_token_under_another_name_ends_the_process(variable: str, program: Path) -> None:
    """A process whose token is set as the client's, or in lower case, ends and names the setting that it wants."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(program), env={**os.environ, variable: "s3cret"}, stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr is not None
    lines: list[str] = []
    async for line in process.stderr:
        lines.append(line.decode())
        if "waiting for Kafka" in lines[-1]:
            process.kill()  # it went on with its start
    assert await process.wait() == 1
    assert "GYRE_TOKEN_FILE" in "".join(lines)


@pytest.mark.adapter
async def test_calls_are_taken_for_the_drain_delay(kafka: str, make_topic: MakeTopic, program: Path) -> None:
    """After SIGTERM the process says NOT_SERVING and answers new connections; a second signal ends the delay."""
    variables = {"GYRE_KAFKA": kafka, "GYRE_INFERENCE_TOPIC": await make_topic(), "GYRE_DRAIN_DELAY_S": "600"}
    async with example(program, **variables) as process:
        address = await process.address()
        await eventually(lambda: _serving(address))
        process.process.send_signal(signal.SIGTERM)
        await eventually(lambda: process.logged("draining"))
        assert await _status(address) == "NOT_SERVING"
        assert await _handled(address) == []
        assert await process.stop() == 0


class Recorded:
    """A resource that notes when it is closed."""

    def __init__(self, name: str, order: list[str]) -> None:
        self._name, self._order = name, order

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._order.append(self._name)


async def test_draining_goes_in_order() -> None:
    """Not ready first, then consuming stops, then what was entered last closes first."""
    order: list[str] = []
    stopped = asyncio.Event()
    async with Lifespan(drain_s=5) as lifespan:
        await lifespan.enter(Recorded("producer", order))
        await lifespan.enter(Recorded("server", order))

        def stop() -> None:
            order.append("stop" if not lifespan.health.serving else "still serving")
            stopped.set()

        async def consume() -> None:
            await stopped.wait()
            order.append("consumed")

        lifespan.background("events", consume(), stop=stop)
        await lifespan.health.start()
        assert lifespan.health.serving
    assert order == ["stop", "consumed", "server", "producer"]


async def test_a_dead_background_task_ends_the_process_with_1() -> None:
    """When a background task raises, the process drains and its exit code is 1."""
    order: list[str] = []

    async def die() -> None:
        raise KeyError("bug")

    async def main(lifespan: Lifespan) -> None:
        await lifespan.enter(Recorded("server", order))
        lifespan.background("dies", die())

    assert await serve_forever(main, ServiceSettings()) == 1
    assert order == ["server"]


async def _return() -> None:
    pass


async def _cancel_itself() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.Event().wait()


@pytest.mark.parametrize("work", [_return, _cancel_itself])
async def test_a_background_task_that_ends_early_ends_the_process_with_1(
    work: Callable[[], Coroutine[Any, Any, None]],
) -> None:
    """A background task that returns or is cancelled while the process serves is as dead as one that raises."""
    order: list[str] = []

    async def main(lifespan: Lifespan) -> None:
        await lifespan.enter(Recorded("server", order))
        lifespan.background("ends early", work())

    async with asyncio.timeout(scaled(20)):
        serving = asyncio.create_task(serve_forever(main, ServiceSettings()))
        await asyncio.wait([serving], timeout=10)
        if not serving.done():
            serving.cancel()
            pytest.fail("the process serves on without its background task")
    assert (serving.result(), order) == (1, ["server"])


async def test_a_background_task_with_an_end_may_reach_it() -> None:
    """Work that is declared to have an end leaves the process alive when it is done."""
    async with Lifespan() as lifespan:
        task = lifespan.background("once", _return(), may_return=True)
        await eventually(task.done)
        assert not lifespan.failed


async def test_a_background_task_that_does_not_stop_is_cancelled() -> None:
    """After `drain_s` a background task that ignores its stop is cancelled."""
    cancelled = asyncio.Event()

    async def stubborn() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async with Lifespan(drain_s=0.05) as lifespan:
        task = lifespan.background("stubborn", stubborn(), stop=lambda: None)
        await eventually(lambda: task.get_coro() is not None)
    assert cancelled.is_set() or task.cancelled()
    assert not lifespan.failed


async def test_a_failing_set_up_closes_what_was_opened() -> None:
    """When the set-up raises, what it had entered is closed and the error goes on."""
    order: list[str] = []

    async def main(lifespan: Lifespan) -> None:
        await lifespan.enter(Recorded("producer", order))
        raise ValueError("bad")

    with pytest.raises(ValueError, match="bad"):
        await serve_forever(main, ServiceSettings())
    assert order == ["producer"]


async def test_a_slow_check_counts_as_down() -> None:
    """A dependency whose check hangs does not keep the process SERVING."""

    async def hang() -> None:
        await asyncio.Event().wait()

    async with Lifespan() as lifespan:
        lifespan.depends_on(Dependency("store", hang, timeout_s=0.01))
        await lifespan.health.start()
        with pytest.raises(TimeoutError):
            await lifespan.health.wait_serving(0.1)
