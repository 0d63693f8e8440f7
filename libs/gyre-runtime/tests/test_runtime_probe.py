"""The probe that health checks of containers run, against real servers."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import gyre_runtime.probe
import pytest
from gyre_local.reserve import free_ports
from gyre_runtime import Dependency, Health, Server, ServiceSettings
from gyre_runtime.telemetry import Telemetry
from prometheus_client import start_http_server

ServerAt = Callable[..., Server]
BY_PATH = (sys.executable, "-P", str(gyre_runtime.probe.__file__))
AS_MODULE = (sys.executable, "-m", "gyre_runtime.probe")


async def _probe(*arguments: str, program: tuple[str, ...] = BY_PATH, **env: str) -> tuple[int | None, str]:
    process = await asyncio.create_subprocess_exec(
        *program, *arguments, env={**os.environ, **env}, stderr=asyncio.subprocess.PIPE
    )
    _, problem = await process.communicate()
    return process.returncode, problem.decode()


@pytest.fixture
async def health() -> AsyncIterator[Health]:
    """The health of a process whose set-up is over, watched."""
    health = Health()
    await health.start()
    watch = asyncio.create_task(health.watch())
    yield health
    watch.cancel()
    await asyncio.gather(watch, return_exceptions=True)


@pytest.mark.parametrize("program", [AS_MODULE, BY_PATH], ids=["module", "path"])
async def test_a_serving_process_is_healthy(program: tuple[str, ...], health: Health, server_of: ServerAt) -> None:
    """The probe exits 0 for a server that is SERVING, run as a module and by path."""
    async with server_of(health) as server:
        assert await _probe(server.address, program=program) == (0, "")


async def test_a_process_whose_dependency_is_down_is_not(health: Health, server_of: ServerAt) -> None:
    """The probe exits 1 and says what health says while a required dependency is down."""

    async def down() -> bool:
        return False

    health.add(Dependency("kafka", down))
    await health.start()
    async with server_of(health) as server:
        code, problem = await _probe(server.address)
    assert code == 1
    assert "health is NOT_SERVING" in problem


async def test_an_absent_process_is_not_healthy() -> None:
    """The probe exits 1 and names the address where nothing listens, within its timeout."""
    (port,) = free_ports(1)
    for arguments in ([f"127.0.0.1:{port}"], ["--metrics", f"127.0.0.1:{port}"]):
        code, problem = await _probe(*arguments, "--timeout", "1")
        assert code == 1
        assert f"127.0.0.1:{port}" in problem


async def test_a_process_without_grpc_is_asked_for_its_metrics(telemetry: Telemetry) -> None:
    """A metrics page alone is enough where it is what the probe is given; a page with an error is not."""
    server, thread = start_http_server(0, addr="127.0.0.1", registry=telemetry.registry)
    try:
        assert await _probe("--metrics", f"127.0.0.1:{server.server_port}") == (0, "")
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


async def test_what_to_probe_must_be_named() -> None:
    """The probe refuses to call nothing healthy."""
    code, problem = await _probe()
    assert code == 2
    assert "name a gRPC server" in problem


@pytest.mark.parametrize("mutual", [False, True])
async def test_a_server_with_tls_is_probed_over_tls(
    mutual: bool, health: Health, server_of: ServerAt, certificate: tuple[Path, Path]
) -> None:
    """With the process's own TLS settings in the environment, the probe speaks TLS, mutual where that is asked for."""
    path, key = certificate
    settings = ServiceSettings(tls_cert=path, tls_key=key, tls_ca=path, tls_require_client=mutual)
    names = ("tls_cert", "tls_key", "tls_ca", "tls_require_client")
    env = {f"GYRE_{name.upper()}": str(getattr(settings, name)) for name in names}
    async with server_of(health, **settings.model_dump(include=set(names))) as server:
        code, problem = await _probe(server.address)
        assert code == 1, problem
        assert await _probe(server.address, **env) == (0, "")
