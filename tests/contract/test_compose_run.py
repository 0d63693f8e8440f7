"""The compose stack, built and run for real where a container engine is there."""

import json
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc
from gyre.gateway.v1 import gateway_pb2, gateway_pb2_grpc
from gyre.monitor.v1 import monitor_pb2, monitor_pb2_grpc

ROOT = Path(__file__).resolve().parents[2]
GATEWAY, MONITOR = "127.0.0.1:7000", "127.0.0.1:7060"
SERVICES = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
COMPOSE = ("docker", "compose", "-p", "gyre-test", "-f", str(ROOT / "docker-compose.yml"))
BUILD_AND_START_S = 1800

pytestmark = [pytest.mark.slow, pytest.mark.e2e, pytest.mark.timeout(BUILD_AND_START_S + 300)]


def _unusable() -> str:
    if shutil.which("docker") is None:
        return "docker is not installed"
    if subprocess.run(["docker", "info"], capture_output=True, check=False).returncode != 0:
        return "no container engine answers `docker info`"
    with socket.socket() as probe:
        host, _, port = GATEWAY.rpartition(":")
        return f"{GATEWAY} is in use" if probe.connect_ex((host, int(port))) == 0 else ""


@pytest.fixture(scope="module")
def stack() -> Iterator[None]:
    """The whole stack but the observability profile, with volumes of its own."""
    if reason := _unusable():
        pytest.skip(reason)
    try:
        up = [*COMPOSE, "up", "-d", "--build", "--wait"]
        done = subprocess.run(up, capture_output=True, text=True, check=False, timeout=BUILD_AND_START_S, cwd=ROOT)
        assert done.returncode == 0, done.stderr[-4000:]
        yield
    finally:
        subprocess.run([*COMPOSE, "down", "-v"], capture_output=True, check=True, timeout=300, cwd=ROOT)


@pytest.mark.usefixtures("stack")
def test_the_gateway_answers_through_its_published_port() -> None:
    """A fresh stack has no model yet: Rank answers every candidate, degraded, and says why."""
    with grpc.insecure_channel(GATEWAY) as channel:
        request = gateway_pb2.RankRequest(loop="movies", user_id="1", item_ids=["1074638", "1853728", "0111161"])
        request.context.request_time.FromJsonString("2013-07-10T12:00:00Z")  # the loop lives on the replay clock
        answer = gateway_pb2_grpc.GatewayServiceStub(channel).Rank(request, timeout=10)
    assert {item.item_id for item in answer.items} == set(request.item_ids)
    assert answer.provenance.degraded
    assert answer.provenance.degraded_reason


@pytest.mark.usefixtures("stack")
def test_the_monitor_knows_the_loop() -> None:
    """The monitor is SERVING on its published port and answers for the loop."""
    with grpc.insecure_channel(MONITOR) as channel:
        health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
        assert health.status == health_pb2.HealthCheckResponse.SERVING
        stub = monitor_pb2_grpc.MonitorServiceStub(channel)
        assert stub.GetLoopStatus(monitor_pb2.GetLoopStatusRequest(loop="movies"), timeout=10).ListFields()


@pytest.mark.usefixtures("stack")
def test_prometheus_reaches_every_process() -> None:
    """Each process of the stack answers Prometheus, and no rule is broken."""
    targets = _prometheus("/api/v1/targets")["activeTargets"]
    images = {name for name, each in SERVICES.items() if each.get("image", "").startswith("gyre/")} - {"mlflow"}
    served = {name for name in images if "profiles" not in SERVICES[name]}
    assert {target["labels"]["job"] for target in targets} >= served
    assert {target["labels"]["job"] for target in targets if target["health"] != "up"} == set()
    rules = [rule for group in _prometheus("/api/v1/rules")["groups"] for rule in group["rules"]]
    assert rules
    assert {rule["name"] for rule in rules if rule["health"] == "err"} == set()


@pytest.mark.usefixtures("stack")
def test_features_are_checked_and_the_warehouse_is_maintained() -> None:
    """The nightly job ends well beside the running archive, and what was served is what a replay gives."""
    job = [*COMPOSE, "--profile", "jobs", "run", "--rm", "features-maintain"]
    done = subprocess.run(job, capture_output=True, text=True, check=False, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-4000:]
    check = [*COMPOSE, "exec", "-T", "features-check", "python", "-m", "gyre_features", "check-once"]
    done = subprocess.run(check, capture_output=True, text=True, check=False, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.startswith("movies: parity: ")
    assert "0 mismatches, 0 unknown" in done.stdout


def _prometheus(path: str) -> dict[str, Any]:
    container = [*COMPOSE, "exec", "-T", "gateway", "python", "-c"]
    script = f"import urllib.request as r; print(r.urlopen('http://prometheus:9090{path}', timeout=5).read().decode())"
    done = subprocess.run([*container, script], capture_output=True, text=True, check=True, timeout=60, cwd=ROOT)
    data: dict[str, Any] = json.loads(done.stdout)["data"]
    return data
