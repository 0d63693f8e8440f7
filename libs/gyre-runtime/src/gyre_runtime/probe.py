"""Asks a process for its health and exits 0 or 1: `python -m gyre_runtime.probe HOST:PORT [--metrics HOST:PORT]`.

Container health checks run it every few seconds, so it imports nothing of the chassis; run by path
(`python -P …/gyre_runtime/probe.py`), as the images do, it does not load the package either: 0.1 s in place of 0.5 s.
"""

import argparse
import http.client
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc


class NotHealthyError(Exception):
    """The process answers no, or not at all."""


def check_grpc(address: str, *, timeout_s: float, server_name: str = "") -> None:
    """Ask the standard health service (grpc.health.v1) whether the whole server is SERVING.

    Args:
        address: host:port. TLS where `GYRE_TLS_CA` names an authority, with the certificate of `GYRE_TLS_CERT` and
            `GYRE_TLS_KEY` where `GYRE_TLS_REQUIRE_CLIENT` asks for one.
        timeout_s: the longest wait for the answer.
        server_name: the name in the server's certificate, where it is not the host.

    Raises:
        NotHealthyError: the server is not SERVING, or does not answer.
    """
    with _channel(address, server_name) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=timeout_s)
        except grpc.RpcError as error:
            raise NotHealthyError(f"grpc at {address}: {error.code().name}: {error.details()}") from None
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        status = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
        raise NotHealthyError(f"grpc at {address}: health is {status}")


def check_metrics(address: str, *, timeout_s: float) -> None:
    """GET the metrics page, which is all that a process without a gRPC server can be asked for.

    Raises:
        NotHealthyError: the page does not answer with 200.
    """
    connection = http.client.HTTPConnection(address, timeout=timeout_s)
    try:
        connection.request("GET", "/metrics")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        raise NotHealthyError(f"http://{address}/metrics: {error!r}") from None
    finally:
        connection.close()
    if status != http.client.OK:
        raise NotHealthyError(f"http://{address}/metrics: status {status}")


def _channel(address: str, server_name: str) -> grpc.Channel:
    options: list[tuple[str, object]] = [("grpc.enable_http_proxy", 0)]
    if server_name:
        options.append(("grpc.ssl_target_name_override", server_name))
    authority = os.environ.get("GYRE_TLS_CA")
    if not authority:
        return grpc.insecure_channel(address, options=options)
    own = os.environ.get("GYRE_TLS_REQUIRE_CLIENT", "").lower() in {"1", "true", "yes", "on"}
    credentials = grpc.ssl_channel_credentials(
        root_certificates=Path(authority).read_bytes(),
        private_key=Path(os.environ["GYRE_TLS_KEY"]).read_bytes() if own else None,
        certificate_chain=Path(os.environ["GYRE_TLS_CERT"]).read_bytes() if own else None,
    )
    return grpc.secure_channel(address, credentials, options=options)


def main(arguments: Sequence[str] | None = None) -> None:
    """Check what the command line names, once; return where all of it is healthy.

    Raises:
        SystemExit: with 1 and the reason when something named is not healthy; with 2 where nothing is named.
    """
    parser = argparse.ArgumentParser(prog="gyre_runtime.probe", description="Exit 0 when the process is healthy.")
    parser.add_argument("grpc", nargs="?", metavar="HOST:PORT", help="the server to ask for its gRPC health")
    parser.add_argument("--metrics", metavar="HOST:PORT", help="the metrics page to ask for")
    parser.add_argument("--server-name", default="", help="the name in the server's certificate")
    parser.add_argument("--timeout", type=float, default=3.0, metavar="SECONDS", help="the longest wait for each")
    given = parser.parse_args(arguments)
    if not given.grpc and not given.metrics:
        parser.error("name a gRPC server, a metrics page, or both")
    try:
        if given.grpc:
            check_grpc(given.grpc, timeout_s=given.timeout, server_name=given.server_name)
        if given.metrics:
            check_metrics(given.metrics, timeout_s=given.timeout)
    except NotHealthyError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
