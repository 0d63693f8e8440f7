"""What Redis refuses because of its own state is said and tried again; once the state is mended every event counts."""

from typing import Any

import pytest
from gyre_core.features import Layout, Reader, Replay, RequestContext
from gyre_core.spec import LoopSpec
from gyre_core.topics import dead_letter_topic, declared, topic
from gyre_features.online.store import OnlineStore
from gyre_features.stream.loop_stream import feature_event
from gyre_local.process import Process
from gyre_local.testing import eventually
from gyre_runtime.kafka import create_topics, read_records
from redis.asyncio import Redis

pytestmark = [pytest.mark.adapter, pytest.mark.timeout(300)]
STATES = {
    "OutOfMemoryError: command not allowed": ("CONFIG SET maxmemory 1", "CONFIG SET maxmemory 0"),
    "ResponseError: NOREPLICAS Not enough": (
        "CONFIG SET min-replicas-to-write 1",
        "CONFIG SET min-replicas-to-write 0",
    ),
    "ReadOnlyError: You can't write": ("REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE"),
    "NoPermissionError: this user": ("ACL SETUSER default -evalsha", "ACL SETUSER default +evalsha"),
    "NoPermissionError: ZADD is not allowed": ("ACL SETUSER default -zadd", "ACL SETUSER default +zadd"),
    "AuthenticationError: ": (
        "CONFIG SET requirepass other,CLIENT KILL TYPE normal SKIPME yes",
        "CONFIG SET requirepass ''",
    ),
}
"""What the log shows of Redis' reply, the commands that bring such a state about, and those that mend it."""


async def _execute(redis: Redis, commands: str) -> None:
    """Execute commands, between which stand commas."""
    for command in commands.split(","):
        await redis.execute_command(*(word.strip("'") for word in command.split()))


async def test_what_an_operator_mends_costs_no_event(  # noqa: PLR0917 - fixtures
    kafka: str, own_redis: Process, spec: LoopSpec, layout: Layout, history: Any, produce: Any, start_process: Any
) -> None:
    """Out of memory, without replicas, read-only, without a right or a password: each is said and changes nothing."""
    await create_topics(kafka, declared(spec))
    url = f"redis://127.0.0.1:{own_redis.recipe.ports['server']}/0"
    stream, ratings = start_process("stream", GYRE_REDIS=url), history.ratings(len(STATES) + 1)
    name = topic(spec.loop, "behavior.interactions")
    async with Redis.from_url(url, single_connection_client=True) as redis:
        store = OnlineStore(redis, spec, layout)

        async def reaches(count: int) -> bool:
            places = [(name, each) for each in range(spec.shards.kafka_partitions)]
            (offsets,) = await store.applied_offsets(places)
            letters = [dict(each.headers) async for each in read_records(kafka, dead_letter_topic(name))]
            assert (sum(offsets.values()), [each["gyre_error"] for each in letters]) == (count, [])
            return True

        await produce(ratings[:1])
        await eventually(lambda: reaches(1), timeout_s=60, message="the stream works")
        for count, (said, (breaks, mends)) in enumerate(STATES.items(), start=1):
            await _execute(redis, breaks)
            await produce(ratings[count : count + 1])

            def is_said(said: str = said) -> bool:
                return any(said in line and "trying again" in line for line in stream.log.read_text().splitlines())

            await eventually(is_said, timeout_s=40, message=f"{said} is logged")
            await _execute(redis, mends)
            await eventually(lambda count=count: reaches(count + 1), timeout_s=60, message=f"all count after {said}")
        replay, now = Replay(layout), RequestContext(ratings[-1].time + 1)
        items = [f"i{number}" for number in range(12)]
        replay.apply(map(feature_event, ratings))
        for user in {each.message.user_id for each in ratings}:
            values = await store.read(user, items)
            matrix, _ = Reader(layout).matrix(values.user, values.everyone, values.items, items, now)
            assert matrix == pytest.approx(replay.matrix(user, items, now)[0], rel=1e-5)
