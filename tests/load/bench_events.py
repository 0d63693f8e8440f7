"""Events from Kafka into Redis: the stream's speed beside a bare reader's, and how soon an event can be read.

The stream tells in `features.applied` which offsets stood in Redis at which time; that is what is measured. Run as a
program it is one of the load generators, a process of its own.
"""

import argparse
import asyncio
import json
import os
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import uvloop
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from bench_mesh import Mesh, rating, user
from gyre.events.v1 import features_pb2 as features
from gyre_core.topics import topic
from gyre_local.testing import eventually
from gyre_runtime.events import encode, message_types
from gyre_runtime.kafka import Producer, read_log

TYPES = message_types(features.BatchApplied)
_CHUNK = 2000


@dataclass(frozen=True)
class Applied:
    """Offsets of one partition that stood in Redis together."""

    partition: int
    first: int
    end: int
    time: float


async def write_backlog(mesh: Mesh, count: int) -> None:
    """Write so many ratings of the last three hours."""
    chance = random.Random(11)
    name = topic(mesh.spec.loop, "behavior.interactions")
    async with Producer(mesh.kafka, source="bench-backlog", max_queue_records=2 * _CHUNK) as producer:
        for number in range(count):
            event = rating(chance, user(number))
            producer.enqueue(name, event, key=event.user_id, time=time.time() - chance.uniform(0, 3 * 3600))
            if producer.queued[0] >= _CHUNK:
                await eventually(lambda: producer.queued[0] < _CHUNK // 2, timeout_s=30, message="Kafka takes events")


async def ends(mesh: Mesh) -> dict[int, int]:
    """The end of each partition of the interactions."""
    consumer = AIOKafkaConsumer(bootstrap_servers=mesh.kafka)
    await consumer.start()
    try:
        found = await consumer.end_offsets(_partitions(mesh))
    finally:
        await consumer.stop()
    return {place.partition: end for place, end in found.items()}


def _partitions(mesh: Mesh) -> list[TopicPartition]:
    name = topic(mesh.spec.loop, "behavior.interactions")
    return [TopicPartition(name, number) for number in range(mesh.spec.shards.kafka_partitions)]


async def applied(mesh: Mesh) -> list[Applied]:
    """What stands in Redis of the interactions, in the order of time."""
    name = topic(mesh.spec.loop, "behavior.interactions")
    found = [
        Applied(part.partition, part.first, part.end, event.message.applied_time.ToNanoseconds() / 1e9)
        async for event in read_log(mesh.kafka, topic(mesh.spec.loop, "features.applied"), TYPES)
        for part in event.message.ranges
        if part.topic == name
    ]
    return sorted(found, key=lambda each: each.time)


async def until_applied(mesh: Mesh, wanted: dict[int, int], *, timeout_s: float = 60) -> list[Applied]:
    """Wait until everything before these offsets stands in Redis."""

    async def reached() -> list[Applied] | None:
        found = await applied(mesh)
        newest = {number: max((a.end for a in found if a.partition == number), default=0) for number in wanted}
        return found if all(newest[number] >= end for number, end in wanted.items()) else None

    return await eventually(reached, timeout_s=timeout_s, message="all events are applied")


def rate(found: Sequence[Applied]) -> float:
    """Events a second from the first batch's end to the last one's."""
    begin, end = found[0].time, found[-1].time
    return sum(each.end - each.first for each in found if each.time > begin) / (end - begin)


def freshness_ms(sent: Sequence[tuple[int, int, float]], found: Sequence[Applied]) -> tuple[float, float]:
    """Median and p99 of the time from an event's sending to its readability; `sent` is (partition, offset, time)."""
    waits = []
    for partition, offset, at in sent:
        batch = next(each for each in found if each.partition == partition and each.first <= offset < each.end)
        waits.append(batch.time - at)
    half, most = np.quantile(waits, (0.5, 0.99)) * 1e3
    return float(half), float(most)


async def read_bare(kafka: str, name: str, partitions: int) -> dict[str, float]:
    """Read a topic to its present end with nothing but aiokafka."""
    consumer = AIOKafkaConsumer(bootstrap_servers=kafka, enable_auto_commit=False, auto_offset_reset="earliest")
    await consumer.start()
    try:
        places = [TopicPartition(name, number) for number in range(partitions)]
        consumer.assign(places)
        await consumer.seek_to_beginning(*places)
        total = sum((await consumer.end_offsets(places)).values())
        count, started = 0, time.perf_counter()
        while count < total:
            fetched = await consumer.getmany(timeout_ms=100)
            count += sum(len(records) for records in fetched.values())
        return {"per_s": count / (time.perf_counter() - started)}
    finally:
        await consumer.stop()


async def send_steadily(kafka: str, name: str, *, per_s: float, seconds: float) -> dict[str, object]:
    """Send ratings one by one at a steady rate; return where each went and when."""
    chance = random.Random(13)
    producer = AIOKafkaProducer(bootstrap_servers=kafka, acks="all", linger_ms=0)
    await producer.start()
    sent: list[tuple[int, int, float]] = []

    async def send(number: int) -> None:
        record = encode(rating(chance, user(number)), source="bench-fresh", key=user(number))
        at = time.time()
        stored = await producer.send_and_wait(name, record.value, key=record.key, headers=record.headers)
        sent.append((stored.partition, stored.offset, at))

    try:
        begin = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for number in range(int(per_s * seconds)):
                await asyncio.sleep(max(0.0, begin + number / per_s - time.perf_counter()))
                group.create_task(send(number))
    finally:
        await producer.stop()
    return {"sent": sent}


def main() -> None:
    """Run one generator: `read KAFKA TOPIC --partitions N`, or `send KAFKA TOPIC --per-s R --seconds S`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=("read", "send"))
    parser.add_argument("kafka")
    parser.add_argument("topic")
    parser.add_argument("--partitions", type=int, default=1)
    parser.add_argument("--per-s", type=float, default=100.0)
    parser.add_argument("--seconds", type=float, default=5.0)
    given = parser.parse_args()
    if given.kind == "read":
        outcome: object = uvloop.run(read_bare(given.kafka, given.topic, given.partitions))
    else:
        outcome = uvloop.run(send_steadily(given.kafka, given.topic, per_s=given.per_s, seconds=given.seconds))
    sys.stdout.write(json.dumps(outcome) + os.linesep)


if __name__ == "__main__":
    main()
