"""Measures the request and event paths beside bare baselines in the same run: a table, and `var/bench/path.json`.

`Rank` with 100 candidates through gateway, features, Redis, inference and Triton, beside a bare `grpc.aio` echo of
messages of the same size; events from Kafka to Redis beside a bare aiokafka reader; the freshness of features. Every
load generator is a process of its own. It takes less than two minutes.
"""

import argparse
import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
from bench_events import ends, freshness_ms, rate, until_applied, write_backlog
from bench_mesh import CANDIDATES, SERVICES, Mesh, deploy, fill, infrastructure, request, until_whole
from bench_report import Row, show, write
from gyre_core.topics import topic
from gyre_local.reserve import free_ports
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
CALLERS = (1, 16)
WARM_UP = ("--callers", "16", "--seconds", "4")
"""Before anything is measured: Kafka's JVM compiles itself for seconds."""
BACKLOG = 40_000
FRESH_PER_S = 100
RANK = f"Rank, {CANDIDATES} candidates"


def main() -> int:
    """Run everything, print the table, write the JSON; 1 when an answer of `Rank` was degraded."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    seconds = parser.parse_args().seconds
    with _progress() as progress, infrastructure() as mesh:
        step = progress.add_task("items, users, history", total=None)
        asyncio.run(fill(mesh))
        asyncio.run(deploy(mesh))
        progress.update(step, description="events: Kafka to Redis")
        rows = events(mesh, seconds)
        progress.update(step, description="requests: Rank and echo")
        for name in SERVICES:
            if name not in mesh.processes:
                mesh.start(name)
        requests, degraded = asyncio.run(_measured(mesh, seconds))
        rows += requests
    show("The paths of requests and events", rows)
    write("path", rows)
    if degraded:
        Console(stderr=True).print(f"degraded answers: {degraded}")
    return 1 if degraded else 0


def _progress() -> Progress:
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    return Progress(*columns, console=Console(stderr=True), transient=True)


def events(mesh: Mesh, seconds: float) -> list[Row]:
    """Events a second to Redis and to a bare reader, and freshness."""
    name = topic(mesh.spec.loop, "behavior.interactions")
    asyncio.run(write_backlog(mesh, BACKLOG))
    wanted = asyncio.run(ends(mesh))
    partitions = str(mesh.spec.shards.kafka_partitions)
    bare = _generate("bench_events.py", "read", mesh.kafka, name, "--partitions", partitions)["per_s"]
    mesh.start("features-stream")
    stream = rate(asyncio.run(until_applied(mesh, wanted)))
    pace = ("--per-s", str(FRESH_PER_S), "--seconds", str(seconds))
    sent = _generate("bench_events.py", "send", mesh.kafka, name, *pace)["sent"]
    found = asyncio.run(until_applied(mesh, asyncio.run(ends(mesh))))
    half, most = freshness_ms(sent, found)
    steady = f"{FRESH_PER_S} events/s"
    return [
        Row("Kafka to Redis", f"{BACKLOG} ratings", "throughput", stream, "1/s"),
        Row("bare aiokafka reader", f"{BACKLOG} ratings", "throughput", bare, "1/s"),
        Row("Kafka to Redis", steady, "freshness p50", half, "ms"),
        Row("Kafka to Redis", steady, "freshness p99", most, "ms"),
    ]


async def _measured(mesh: Mesh, seconds: float) -> tuple[list[Row], dict[str, int]]:
    """`Rank` beside the echo, and the CPU time that a request costs each process."""
    answer = await until_whole(mesh)
    sizes = request(mesh.spec.loop, 1).ByteSize(), answer.ByteSize()
    rows: list[Row] = []
    degraded: dict[str, int] = {}
    _generate("bench_load.py", "call-rank", mesh.address("gateway"), "--loop", mesh.spec.loop, *WARM_UP)
    with _echo(sizes[1]) as echo:
        async with grpc.aio.insecure_channel(echo) as channel:
            await asyncio.wait_for(channel.channel_ready(), 10)
        for callers in CALLERS:
            case = f"{callers} caller{'s' if callers > 1 else ''}"
            how = ("--callers", str(callers), "--seconds", str(seconds))
            bare = _generate("bench_load.py", "call-echo", echo, *how)
            before = _cpu_s(mesh)
            ranked = _generate("bench_load.py", "call-rank", mesh.address("gateway"), "--loop", mesh.spec.loop, *how)
            rows += _request_rows("grpc.aio echo", case, bare)
            rows += _request_rows(RANK, case, ranked)
            rows.append(Row("Rank / echo", case, "p50", ranked["p50_ms"] / bare["p50_ms"], "x"))
            rows.append(Row("Rank / echo", case, "throughput", bare["per_s"] / ranked["per_s"], "x"))
            used = {name: spent - before[name] for name, spent in _cpu_s(mesh).items()}
            rows += [
                Row(name, case, "CPU per Rank", spent / ranked["calls"] * 1e3, "ms") for name, spent in used.items()
            ]
            for reason, count in ranked["degraded"].items():
                degraded[reason] = degraded.get(reason, 0) + count
    return rows, degraded


def _request_rows(system: str, case: str, figures: dict[str, Any]) -> list[Row]:
    return [
        Row(system, case, "throughput", figures["per_s"], "1/s"),
        Row(system, case, "p50", figures["p50_ms"], "ms"),
        Row(system, case, "p99", figures["p99_ms"], "ms"),
    ]


@contextlib.contextmanager
def _echo(reply_bytes: int) -> Iterator[str]:
    """The address of an echo server."""
    (port,) = free_ports(1)
    address = f"127.0.0.1:{port}"
    command = [sys.executable, str(HERE / "bench_load.py"), "echo", address, "--bytes", str(reply_bytes)]
    with subprocess.Popen(command) as server:
        try:
            yield address
        finally:
            server.terminate()


def _generate(program: str, *arguments: str) -> dict[str, Any]:
    """Run a load generator to its end and return what it found."""
    command = [sys.executable, str(HERE / program), *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=120)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _cpu_s(mesh: Mesh) -> dict[str, float]:
    """CPU seconds that each process has used with its children; each leads a session of its own (proc(5))."""
    leaders = {process.pid: name for name, process in mesh.processes.items()}
    used = dict.fromkeys(mesh.processes, 0.0)
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            name = leaders.get(int(fields[3]))
            if name is not None:
                used[name] += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return used


if __name__ == "__main__":
    sys.exit(main())
