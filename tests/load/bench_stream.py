"""Measures one stream worker, Kafka to Redis, beside a bare aiokafka reader: a table, and `var/bench/stream.json`.

For several batch sizes: events a second, and the CPU time that an event costs the worker and Redis, which says more
than the clock on a machine that others use too. Then freshness under a steady load. Every case begins with an
empty Redis.
"""

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaProducer
from bench_events import Applied, applied, ends, freshness_ms, rate, read_bare
from bench_mesh import Mesh, fill, infrastructure, rating
from bench_report import Row, show, write
from gyre_core.topics import topic
from gyre_local.process import Process
from gyre_local.testing import eventually
from gyre_runtime.events import encode
from redis import Redis

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
WORKER = "features-stream"
USERS = 20_000
SIZES = (500, 1000, 2000)
_CHUNK = 5000
_POLL_S = 0.5


def main() -> None:
    """Run every case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=200_000, help="in the backlog")
    parser.add_argument("--per-s", type=float, default=500.0, help="events a second of the steady load")
    parser.add_argument("--seconds", type=float, default=15.0, help="of the steady load")
    given = parser.parse_args()
    with infrastructure(("kafka", "redis")) as mesh:
        asyncio.run(fill(mesh))
        asyncio.run(write_backlog(mesh, given.events))
        name, partitions = topic(mesh.spec.loop, "behavior.interactions"), mesh.spec.shards.kafka_partitions
        case = f"{given.events} ratings"
        bare = asyncio.run(read_bare(mesh.kafka, name, partitions))
        rows = [Row("bare aiokafka getmany", case, "throughput", bare["per_s"], "1/s")]
        for size in SIZES:
            rows += backlog(mesh, size, given.events)
        rows += steady(mesh, name, given.per_s, given.seconds)
    show("The stream", rows)
    write("stream", rows)


async def write_backlog(mesh: Mesh, count: int) -> None:
    """Write ratings of many users within the last three hours, as fast as Kafka takes them."""
    chance = random.Random(11)
    name = topic(mesh.spec.loop, "behavior.interactions")
    producer = AIOKafkaProducer(bootstrap_servers=mesh.kafka, linger_ms=20, max_batch_size=512 * 1024)
    await producer.start()
    try:
        begin = time.time() - 3 * 3600
        for first in range(0, count, _CHUNK):
            sent = []
            for number in range(first, min(first + _CHUNK, count)):
                event = rating(chance, f"user-{chance.randrange(USERS):05d}")
                at = begin + 3 * 3600 * number / count
                record = encode(event, source="bench-backlog", key=event.user_id, time=at)
                sent.append(await producer.send(name, record.value, key=record.key, headers=record.headers))
            await asyncio.gather(*sent)
    finally:
        await producer.stop()


def backlog(mesh: Mesh, size: int, count: int) -> list[Row]:
    """Let one worker apply everything that is in Kafka, in batches of a size."""
    wanted = asyncio.run(ends(mesh))
    with worker(mesh, size) as process:
        before = time.time()
        redis = mesh.processes["redis"].pid
        used, spent = -cpu_s(process.pid), -cpu_s(redis)
        found = asyncio.run(until_applied(mesh, wanted, since=before))
        used, spent = used + cpu_s(process.pid), spent + cpu_s(redis)
    case, total = f"backlog, batches of {size}", sum(wanted.values())
    return [
        Row("Kafka to Redis, one worker", case, "throughput", rate(found), "1/s"),
        Row("Kafka to Redis, one worker", case, "CPU of the worker", used / total * 1e6, "us/event"),
        Row("Kafka to Redis, one worker", case, "CPU of Redis", spent / total * 1e6, "us/event"),
    ]


def steady(mesh: Mesh, name: str, per_s: float, seconds: float) -> list[Row]:
    """How soon an event can be read, from its sending on, under a steady load."""
    backlog_ends, since = asyncio.run(ends(mesh)), time.time()
    with worker(mesh, 0):
        asyncio.run(until_applied(mesh, backlog_ends, since=since))
        command = ("send", mesh.kafka, name, "--per-s", str(per_s), "--seconds", str(seconds))
        sent = generate(*command)["sent"]
        found = asyncio.run(until_applied(mesh, asyncio.run(ends(mesh)), since=since))
    half, most = freshness_ms(sent, found)
    case = f"{per_s:g} events/s"
    return [
        Row("Kafka to Redis, one worker", case, "freshness p50", half, "ms"),
        Row("Kafka to Redis, one worker", case, "freshness p99", most, "ms"),
    ]


async def until_applied(mesh: Mesh, wanted: dict[int, int], *, since: float) -> list[Applied]:
    """Wait until everything before these offsets stands in Redis; answer the batches after a wall time."""

    async def reached() -> list[Applied] | None:
        found = [each for each in await applied(mesh) if each.time > since]
        newest = {number: max((a.end for a in found if a.partition == number), default=0) for number in wanted}
        if all(newest[number] >= end for number, end in wanted.items()):
            return found
        await asyncio.sleep(_POLL_S)  # reading the log takes time from what is measured
        return None

    return await eventually(reached, timeout_s=300, message="all events are applied")


@contextmanager
def worker(mesh: Mesh, size: int) -> Iterator[Process]:
    """A stream worker on an empty Redis; a size of 0 keeps the setting's default."""
    with Redis.from_url(f"redis://{mesh.address('redis', 'server')}/0") as redis:
        redis.flushall()
    recipe = mesh.stack.members[WORKER].prepare()
    if size:
        recipe = replace(recipe, env={**recipe.env, "GYRE_FEATURES_BATCH_EVENTS": str(size)})
    process = mesh.processes[WORKER] = Process(recipe, log=mesh.stack.places.logs / f"{WORKER}-{size}.log")
    process.start()
    try:
        yield process
    finally:
        mesh.stop(WORKER)


def cpu_s(pid: int) -> float:
    """Processor seconds that a process has used (proc(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def generate(*arguments: str) -> Any:
    """Run a load generator as a process of its own; return what it prints."""
    command = [sys.executable, str(HERE / "bench_events.py"), *arguments]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, cwd=HERE).stdout)


if __name__ == "__main__":
    main()
