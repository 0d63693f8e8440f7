"""Measures `GetFeatures` beside Feast's Python feature server: a table, and `var/bench/features.json`.

Both servers are one process, on the same Redis, with the same values of the same users and items; Feast 0.67 lives in a
throw-away environment. Rounds of both alternate, so that a busy machine slows both. What Feast answers was written
ready; Gyre decays, counts overlaps and ranks the candidates on the way. Each answer is decoded to a float matrix.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path

import aiohttp
import grpc
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from bench_events import ends, until_applied
from bench_mesh import ITEMS, USERS, Mesh, fill, infrastructure, item, user
from bench_report import Row, show, write
from gyre.features.v1 import features_pb2 as pb
from gyre.features.v1.features_pb2_grpc import FeaturesServiceStub
from gyre_core.features import Layout
from gyre_local.reserve import free_ports
from gyre_local.testing import eventually
from redis import Redis

HERE = Path(__file__).parent
FEAST = "feast[redis]==0.67.0"
ENVIRONMENT = HERE.parents[1] / "var" / "bench" / "feast"
GYRE, OTHER = "Gyre GetFeatures", "Feast Python server"
SIZES = (1, 10, 100, 1000)
SERVICE = "ranking"  # as in feast_repository
_DATABASE = 1
_WARM_UP = 30
_CHUNK = 1000
F32 = npt.NDArray[np.float32]
Fetch = Callable[[str, list[str]], Awaitable[F32]]


def main() -> None:
    """Fill both stores, measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="of each case, alternating")
    parser.add_argument("--requests", type=int, default=100, help="in a round, divided among the callers")
    given = parser.parse_args()
    python = feast_environment()
    with infrastructure(("kafka", "redis")) as mesh, tempfile.TemporaryDirectory(prefix="gyre-feast-") as directory:
        asyncio.run(fill(mesh))
        for name in ("features-stream", "features-serve"):
            mesh.start(name)
        asyncio.run(_applied(mesh))
        asyncio.run(write_rows(mesh, Path(directory)))
        with feast_server(mesh, python, Path(directory)) as address:
            rows = asyncio.run(measured(mesh, address, given.rounds, given.requests))
    show("Reading features", rows)
    write("features", rows)


def feast_environment() -> Path:
    """The Python of an environment that holds Feast and nothing of ours; made once."""
    python = ENVIRONMENT / "bin" / "python"
    if not (ENVIRONMENT / "bin" / "feast").exists():
        uv = os.environ.get("UV") or shutil.which("uv") or "uv"
        subprocess.run([uv, "venv", "--quiet", "--clear", "--python", "3.11", str(ENVIRONMENT)], check=True)
        subprocess.run([uv, "pip", "install", "--quiet", "--python", str(python), FEAST], check=True)
    return python


async def _applied(mesh: Mesh) -> None:
    await until_applied(mesh, await ends(mesh))


async def write_rows(mesh: Mesh, directory: Path) -> None:
    """Write what Gyre serves as rows for Feast: the items' own columns, and all others as columns of a user."""
    columns = Layout.compile(mesh.spec).described
    of_item = np.array([each.scope == "item" for each in columns])
    names = np.array([each.name for each in columns])
    async with gyre(mesh) as fetch:
        found = [
            await fetch(user(0), [item(number) for number in range(first, min(first + _CHUNK, ITEMS))])
            for first in range(0, ITEMS, _CHUNK)
        ]
        of_users = np.concatenate([await fetch(user(number), [item(number)]) for number in range(USERS)])
    of_items = np.concatenate(found)
    _write(
        directory / "item.parquet",
        "item_id",
        [item(each) for each in range(ITEMS)],
        names[of_item],
        of_items[:, of_item],
    )
    _write(
        directory / "user.parquet",
        "user_id",
        [user(each) for each in range(USERS)],
        names[~of_item],
        of_users[:, ~of_item],
    )


def _write(path: Path, key: str, ids: Sequence[str], names: Sequence[str], values: F32) -> None:
    now = pa.array([time.time_ns() // 1000] * len(ids), pa.timestamp("us", tz="UTC"))
    columns = {str(name): pa.array(values[:, place]) for place, name in enumerate(names)}
    pq.write_table(pa.table({key: pa.array(ids), **columns, "event_timestamp": now}), path)


@contextlib.contextmanager
def feast_server(mesh: Mesh, python: Path, directory: Path) -> Iterator[str]:
    """Feast's server with one worker, on a database of its own on the same Redis; gives its address."""
    redis = mesh.address("redis", "server")
    (port,) = free_ports(1)
    (directory / "feature_store.yaml").write_text(
        f"project: bench\nprovider: local\nregistry: {directory}/registry.db\nentity_key_serialization_version: 3\n"
        f"online_store: {{type: redis, connection_string: '{redis},db={_DATABASE}'}}\noffline_store: {{type: file}}\n",
        encoding="utf-8",
    )
    quiet = {**os.environ, "FEAST_USAGE": "False", "PYTHONWARNINGS": "ignore"}
    load = [str(python), str(HERE / "feast_repository.py"), str(directory)]
    subprocess.run(load, check=True, env=quiet, stdout=subprocess.DEVNULL)
    command = [str(python.parent / "feast"), "--chdir", str(directory), "serve", "--port", str(port)]
    command += ["--no-access-log", "--max-requests", "10000000", "--registry_ttl_sec", "3600"]
    with (
        (directory / "feast.log").open("wb") as log,
        subprocess.Popen(command, env=quiet, stdout=log, stderr=log) as server,
    ):
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()


@contextlib.asynccontextmanager
async def gyre(mesh: Mesh) -> AsyncIterator[Fetch]:
    """Reads through gRPC."""
    async with grpc.aio.insecure_channel(mesh.address("features-serve")) as channel:
        stub = FeaturesServiceStub(channel)

        async def fetch(user_id: str, item_ids: list[str]) -> F32:
            request = pb.GetFeaturesRequest(loop=mesh.spec.loop, user_id=user_id, item_ids=item_ids)
            features = (await stub.GetFeatures(request, timeout=10)).features
            return np.frombuffer(features.values, dtype="<f4").reshape(features.rows, features.columns)

        yield fetch


@contextlib.asynccontextmanager
async def feast(address: str, names: Sequence[str]) -> AsyncIterator[Fetch]:
    """Reads through Feast's HTTP interface, over one connection that is kept open for each caller."""
    async with aiohttp.ClientSession(address) as session:

        async def fetch(user_id: str, item_ids: list[str]) -> F32:
            entities = {"item_id": item_ids, "user_id": [user_id] * len(item_ids)}
            asked = {"feature_service": SERVICE, "entities": entities}
            async with session.post("/get-online-features", json=asked) as response:
                response.raise_for_status()
                answer = await response.json()
            # Its columns come in any order.
            found = dict(zip(answer["metadata"]["feature_names"], answer["results"], strict=True))
            return np.array([found[name]["values"] for name in names], dtype=np.float32).T

        async def answers() -> bool:
            with contextlib.suppress(aiohttp.ClientError):
                return bool(len(await fetch(user(0), [item(0)])))
            return False

        await eventually(answers, timeout_s=120, message="Feast answers")
        yield fetch


async def measured(mesh: Mesh, address: str, rounds: int, requests: int) -> list[Row]:
    """Every case, with the rounds of both systems in turn."""
    rows: list[Row] = []
    names = Layout.compile(mesh.spec).columns
    async with gyre(mesh) as ours, feast(address, names) as theirs:
        await _check_equal(mesh, ours, theirs)
        systems = {GYRE: ours, OTHER: theirs}
        for size in SIZES:
            for callers in (1, 8) if size == 100 else (1,):
                rows += await _case(mesh, systems, size, callers, rounds, requests)
    return rows


async def _check_equal(mesh: Mesh, ours: Fetch, theirs: Fetch) -> None:
    """Both answer as many numbers, and the fields of items, which time does not change, are the same."""
    ids = [item(number) for number in range(100)]
    mine, other = await ours(user(3), ids), await theirs(user(3), ids)
    fixed = [each.kind == "field" for each in Layout.compile(mesh.spec).described]
    if mine.shape != other.shape or not np.array_equal(mine[:, fixed], other[:, fixed]):
        raise SystemExit(f"the systems answer differently: {mine.shape} and {other.shape}")


async def _case(
    mesh: Mesh, systems: dict[str, Fetch], size: int, callers: int, rounds: int, requests: int
) -> list[Row]:
    took: dict[str, list[float]] = {name: [] for name in systems}
    spent, calls = dict.fromkeys(systems, 0.0), {}
    for name, fetch in systems.items():
        await _round(fetch, size, callers, _WARM_UP)
        calls[name] = await _redis_calls(mesh, fetch, size)
    for _ in range(rounds):
        for name, fetch in systems.items():
            started = time.perf_counter()
            took[name] += await _round(fetch, size, callers, requests)
            spent[name] += time.perf_counter() - started
    case = f"{size} entities, {callers} caller{'s' if callers > 1 else ''}"
    half, most, per_s = {}, {}, {}
    rows: list[Row] = []
    for name in systems:
        half[name], most[name] = np.quantile(took[name], (0.5, 0.99)) * 1e3
        per_s[name] = len(took[name]) / spent[name]
        rows += [
            Row(name, case, "p50", half[name], "ms"),
            Row(name, case, "p99", most[name], "ms"),
            Row(name, case, "throughput", per_s[name], "1/s"),
            Row(name, case, "Redis commands a request", calls[name], "1"),
        ]
    return [
        *rows,
        Row("Feast / Gyre", case, "p50", half[OTHER] / half[GYRE], "x"),
        Row("Feast / Gyre", case, "p99", most[OTHER] / most[GYRE], "x"),
        Row("Gyre / Feast", case, "throughput", per_s[GYRE] / per_s[OTHER], "x"),
    ]


async def _round(fetch: Fetch, size: int, callers: int, requests: int) -> list[float]:
    """Latencies of requests, seconds, of callers that each ask again when they are answered."""
    numbers = iter(range(requests))
    took: list[float] = []

    async def caller() -> None:
        for number in numbers:
            ids = [item(number * 37 + place * 29) for place in range(size)]
            started = time.perf_counter()
            await fetch(user(number), ids)
            took.append(time.perf_counter() - started)

    await asyncio.gather(*(caller() for _ in range(callers)))
    return took


async def _redis_calls(mesh: Mesh, fetch: Fetch, size: int) -> float:
    """Commands that Redis ran for one request, on average."""
    with Redis.from_url(f"redis://{mesh.address('redis', 'server')}/0") as redis:
        redis.config_resetstat()
        await _round(fetch, size, 1, 10)
        ran = redis.info("commandstats")
    ours = {"cmdstat_info", "cmdstat_config|resetstat"}
    return sum(each["calls"] for name, each in ran.items() if name not in ours) / 10


if __name__ == "__main__":
    main()
