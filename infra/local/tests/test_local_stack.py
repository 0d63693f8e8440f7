"""The stack's order, configuration and messages, without starting anything."""

import configparser
import json
import os
import shlex
import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import grpc
import prometheus_client
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import HealthServicer
from gyre_local import probes
from gyre_local import setup as setup_steps
from gyre_local.components import redis, services, triton
from gyre_local.components.prometheus import scrape_config
from gyre_local.failures import LocalStackError, NotReady
from gyre_local.holders import refuse_busy_ports
from gyre_local.operations import levels
from gyre_local.places import StackDirectories
from gyre_local.ports import load_ports
from gyre_local.recipe import Recipe
from gyre_local.reserve import FIRST, LAST, free_ports
from gyre_local.stack import Stack, build_stack, record_loops, recorded_loops
from gyre_local.supervisor import render, socket_path


@pytest.fixture
def stack(tmp_path: Path) -> Stack:
    """A stack of the repository's ports in a directory of its own."""
    return build_stack(
        StackDirectories(tmp_path / "var"), load_ports(offset=0), [Path("/loops/one.yaml"), Path("/loops/two.yaml")]
    )


def test_each_member_comes_after_those_it_needs(stack: Stack) -> None:
    """The start order never puts a process before one that it needs."""
    seen: set[str] = set()
    for member in stack.members.values():
        assert set(member.after) <= seen
        seen.add(member.name)
    assert [member.name for member in levels(stack.members.values())[-1]] == ["deployer", "gateway"]


def test_a_selection_keeps_the_order(stack: Stack) -> None:
    """`infra` stands for all that is not a service, and no name for everything."""
    assert [member.name for member in stack.select(["gateway", "infra"])] == [
        "mlflow", "kafka", "redis", "triton", "prometheus", "gateway",
    ]  # fmt: skip
    assert len(stack.select([])) == len(stack.members)
    with pytest.raises(LocalStackError, match="unknown: nothing"):
        stack.select(["nothing"])


def test_services_are_wired_by_variables(stack: Stack) -> None:
    """A service's environment names its own addresses, its peers, the loops and the infrastructure."""
    recipe = stack.members["gateway"].prepare()
    assert recipe.env["GYRE_LISTEN"] == "127.0.0.1:17020"
    assert recipe.env["GYRE_FEATURES"] == "127.0.0.1:17025"
    assert recipe.env["GYRE_LOOPS"] == "/loops/one.yaml:/loops/two.yaml"
    assert recipe.env["GYRE_KAFKA"] == "127.0.0.1:17000"
    monitor = stack.members["monitor"].prepare()
    assert monitor.env["GYRE_STATE_DIR"] == str(stack.places.var / "monitor")
    assert monitor.env["GYRE_OTLP_LISTEN"] == "127.0.0.1:17062"


def test_every_metrics_port_is_scraped() -> None:
    """Prometheus's configuration has a job for each process with a metrics port."""
    ports = load_ports(offset=0)
    jobs = {job["job_name"]: job for job in json.loads(scrape_config(ports))["scrape_configs"]}
    assert set(jobs) == {*services.MODULES, "triton"}
    assert jobs["gateway"]["static_configs"] == [{"targets": ["127.0.0.1:17021"]}]


def test_the_supervisor_gets_commands_and_environment_unharmed(tmp_path: Path) -> None:
    """Blanks, quotes and percent signs of a recipe survive supervisord's configuration format."""
    recipe = Recipe(
        name="odd",
        command=("/bin/echo", "two words", "100%"),
        directory=tmp_path,
        probe=lambda: None,
        env={"GYRE_ODD": "a,b=50%"},
    )
    parser = configparser.RawConfigParser()
    parser.read_string(render(StackDirectories(tmp_path), [recipe]))
    section = dict(parser["program:odd"])
    assert shlex.split(section["command"].replace("%%", "%"))[-3:] == list(recipe.command)
    assert section["environment"] == 'GYRE_ODD="a,b=50%%"'
    assert (section["autorestart"], section["autostart"]) == ("true", "false")


def test_a_deep_directory_gets_a_short_socket(tmp_path: Path) -> None:
    """The supervisor's socket fits into a unix socket address however deep the checkout lies."""
    deep = StackDirectories(tmp_path / ("deep" * 30))
    assert len(str(socket_path(deep))) < 100
    assert socket_path(deep) != socket_path(StackDirectories(tmp_path / ("deeper" * 30)))


def test_a_busy_port_is_named_with_its_holder_and_remedy(stack: Stack) -> None:
    """A port that another process holds stops the start with a message that says who and what to do."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        member = build_member(stack, port)
        with pytest.raises(LocalStackError) as refusal:
            refuse_busy_ports("127.0.0.1", [member], ["GYRE_VAR=var/demo make down"])
    assert f"port {port} (redis server) is taken by process" in str(refusal.value)
    assert f"process {os.getpid()} (" in str(refusal.value)
    assert "Remedy: stop that process (" in str(refusal.value)
    assert "`GYRE_VAR=var/demo make down`" in str(refusal.value)
    refuse_busy_ports("127.0.0.1", [member])


def build_member(stack: Stack, port: int):
    """The stack's Redis on another port."""
    return replace(stack.members["redis"], ports={"server": port})


def test_a_missing_program_names_the_command(monkeypatch: pytest.MonkeyPatch, stack: Stack) -> None:
    """Without redis-server or prometheus the message says how to install it."""
    monkeypatch.setenv("PATH", "/nonexistent")
    for name, package in (("redis", "redis-server"), ("prometheus", "prometheus")):
        with pytest.raises(LocalStackError, match=f"sudo apt-get install -y {package}"):
            stack.members[name].prepare()
    with pytest.raises(LocalStackError, match=r"sudo apt-get install -y .*redis-server"):
        setup_steps.install_packages(setup_steps.missing_packages())


def test_a_missing_uv_or_libpython_names_the_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What Triton's environment needs and is not there is named with its remedy."""
    monkeypatch.delenv("UV", raising=False)
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(LocalStackError, match="make setup"):
        triton.find_uv()
    with pytest.raises(LocalStackError, match=r"apt-get install -y libpython3\.11"):
        triton.find_libpython(tmp_path)


def test_loops_are_remembered(tmp_path: Path) -> None:
    """The commands after `up` serve the loops that it was given; a loop that does not exist is refused."""
    places, loop = StackDirectories(tmp_path / "var"), tmp_path / "gyre.yaml"
    assert recorded_loops(places)[0].name == "gyre.yaml"
    with pytest.raises(LocalStackError, match="there is no such loop"):
        record_loops(places, [loop])
    loop.touch()
    record_loops(places, [loop])
    assert recorded_loops(places) == [loop]


def test_probes_say_what_they_wait_for() -> None:
    """Where nobody listens every probe answers `NotReady` with the address."""
    (port,) = free_ports(1)
    for probe in (probes.kafka, probes.redis, probes.grpc_serving):
        with pytest.raises(NotReady, match=f"127.0.0.1:{port}"):
            probe("127.0.0.1", port)
    with pytest.raises(NotReady, match=f"http://127.0.0.1:{port}/health"):
        probes.http_ok("127.0.0.1", port, "/health")


def test_reserved_ports_differ() -> None:
    """Ports handed out to one session are distinct and outside of the range that the kernel hands out."""
    ports = free_ports(50)
    assert len(set(ports)) == 50
    assert all(FIRST <= port <= LAST for port in ports)


def test_a_durable_redis_keeps_an_append_only_file(tmp_path: Path) -> None:
    """The stack's Redis is durable and a test's is not."""
    redis.prepare(tmp_path / "kept", host="127.0.0.1", port=1)
    redis.prepare(tmp_path / "lost", host="127.0.0.1", port=1, durable=False)
    assert "appendonly yes" in (tmp_path / "kept" / "redis.conf").read_text()
    assert "appendonly no" in (tmp_path / "lost" / "redis.conf").read_text()


def test_a_worker_is_healthy_by_its_metrics_page_and_its_grpc_health() -> None:
    """Without gRPC the metrics page of a worker is enough; with gRPC it must say SERVING."""
    (grpc_port,) = free_ports(1)
    page, thread = prometheus_client.start_http_server(0, addr="127.0.0.1")
    health = HealthServicer()
    server = grpc.server(ThreadPoolExecutor(max_workers=2))
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    probe = partial(probes.worker, "127.0.0.1", grpc_port=grpc_port, metrics_port=page.server_port)
    try:
        probe()
        server.add_insecure_port(f"127.0.0.1:{grpc_port}")
        server.start()
        health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        with pytest.raises(NotReady, match="health is NOT_SERVING"):
            probe()
        health.set("", health_pb2.HealthCheckResponse.SERVING)
        probe()
    finally:
        server.stop(grace=0).wait()
        page.shutdown()
        page.server_close()
        thread.join()
    with pytest.raises(NotReady, match="/metrics"):
        probe()
