"""Readiness probes in the protocol of each component, over plain sockets and without its client library.

Each asks once: it returns where the component is ready and raises `NotReady` with the reason otherwise, within seconds.
"""

import http.client
import socket
import struct
from typing import cast

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gyre_local.failures import NotReady

PROBE_TIMEOUT_S = 2.0
_KAFKA_METADATA = 3
_KAFKA_METADATA_VERSION = 4


def _read_exactly(connection: socket.socket, count: int) -> bytes:
    parts = bytearray()
    while len(parts) < count:
        part = connection.recv(count - len(parts))
        if not part:
            raise NotReady("the connection was closed")
        parts += part
    return bytes(parts)


def kafka(host: str, port: int) -> None:
    """Ask for the cluster's metadata: ready once a broker has registered itself (Kafka protocol, Metadata v4)."""
    # Header v1: key, version, correlation id, no client id; body: no topics, do not create any.
    request = struct.pack(">hhihib", _KAFKA_METADATA, _KAFKA_METADATA_VERSION, 1, -1, 0, 0)
    try:
        with socket.create_connection((host, port), PROBE_TIMEOUT_S) as connection:
            connection.sendall(struct.pack(">i", len(request)) + request)
            (size,) = struct.unpack(">i", _read_exactly(connection, 4))
            _correlation, _throttle_ms, brokers = struct.unpack(">iii", _read_exactly(connection, size)[:12])
    except OSError as error:
        raise NotReady(f"kafka at {host}:{port}: {error}") from error
    if brokers < 1:
        raise NotReady(f"kafka at {host}:{port}: no broker has registered yet")


def redis(host: str, port: int) -> None:
    """PING: ready with PONG, which a Redis that still loads its data does not give."""
    try:
        with socket.create_connection((host, port), PROBE_TIMEOUT_S) as connection:
            connection.sendall(b"PING\r\n")
            answer = connection.recv(128)
    except OSError as error:
        raise NotReady(f"redis at {host}:{port}: {error}") from error
    if not answer.startswith(b"+PONG"):
        raise NotReady(f"redis at {host}:{port}: {answer.decode(errors='replace').strip()}")


def http_ok(host: str, port: int, path: str) -> None:
    """GET `path`: ready with status 200."""
    connection = http.client.HTTPConnection(host, port, timeout=PROBE_TIMEOUT_S)
    try:
        connection.request("GET", path)
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        raise NotReady(f"http://{host}:{port}{path}: {error!r}") from error
    finally:
        connection.close()
    if status != http.client.OK:
        raise NotReady(f"http://{host}:{port}{path}: status {status}")


def grpc_serving(host: str, port: int) -> None:
    """Ask the standard health service (grpc.health.v1): ready where the whole server is SERVING."""
    with grpc.insecure_channel(f"{host}:{port}") as channel:
        try:
            stub = health_pb2_grpc.HealthStub(channel)
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=PROBE_TIMEOUT_S)
        except grpc.RpcError as error:
            code = cast("grpc.Call", error).code()  # every error of a call is the call as well
            raise NotReady(f"grpc at {host}:{port}: {code.name}") from error
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        state = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
        raise NotReady(f"grpc at {host}:{port}: health is {state}")


def worker(host: str, *, grpc_port: int, metrics_port: int) -> None:
    """Check a process that consumes: its metrics page answers, and its gRPC health is SERVING where it has any."""
    http_ok(host, metrics_port, "/metrics")
    with socket.socket() as probe:
        probe.settimeout(PROBE_TIMEOUT_S)
        serves_grpc = probe.connect_ex((host, grpc_port)) == 0
    if serves_grpc:
        grpc_serving(host, grpc_port)
