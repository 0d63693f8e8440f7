"""What a demo waits for: the feature store and the warehouse holding all events, runs and rollouts coming to an end."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from gyre.deployer.v1 import deployer_pb2 as deployer
from gyre.trainer.v1 import trainer_pb2 as trainer
from gyre_client import ClientSettings, Mesh, Unavailable, call
from gyre_core.features import Layout
from gyre_core.spec import LoopSpec
from gyre_core.topics import stream_group, topic
from gyre_warehouse.tables import TRAINING_TABLE_OF, ensure_table, offsets_of, open_catalog

T = TypeVar("T")
POLL_S = 0.3
TIMEOUT_S = 5.0
RUN_ENDS = {trainer.RUN_STATE_REGISTERED, trainer.RUN_STATE_REFUSED, trainer.RUN_STATE_FAILED}
ROLLOUT_ENDS = {deployer.ROLLOUT_STATE_PROMOTED, deployer.ROLLOUT_STATE_ROLLED_BACK, deployer.ROLLOUT_STATE_REFUSED}


class NotInTime(Exception):  # noqa: N818 (reads as what it says)
    """Something that a stage waits for did not happen within its time."""


async def until(look: Callable[[], Awaitable[T | None]], *, what: str, timeout_s: float) -> T:
    """Look until there is something; a service that is away for a moment is looked for again.

    Raises:
        NotInTime: names what was waited for.
    """
    last = ""
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                try:
                    found = await look()
                except Unavailable as error:
                    found, last = None, f" (last: {error})"
                if found is not None:
                    return found
                await asyncio.sleep(POLL_S)
    except TimeoutError as error:
        raise NotInTime(f"{what} did not happen within {timeout_s:.0f} s{last}") from error


class Backlog:
    """How many records of a loop the feature store and the warehouse have still to take in."""

    def __init__(self, settings: ClientSettings, spec: LoopSpec) -> None:
        self._settings, self._loop = settings, spec.loop
        self._group = stream_group(spec.loop, Layout.compile(spec).hash)
        self._topics = {topic(spec.loop, suffix): table for suffix, table in TRAINING_TABLE_OF.items()}

    async def of_features(self) -> int:
        """Records behind the position that the stream of the layout of `gyre.yaml` has committed."""
        ends = await self._ends()
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self._settings.kafka, group_id=self._group, enable_auto_commit=False
        )
        await consumer.start()
        try:
            return sum([max(end - (await consumer.committed(each) or 0), 0) for each, end in ends.items()])
        finally:
            await consumer.stop()

    async def of_warehouse(self) -> int:
        """Records behind the offsets that the tables hold."""
        ends = await self._ends()
        stored = await asyncio.to_thread(self._stored)
        return sum(max(end - stored[each.topic].get(each.partition, 0), 0) for each, end in ends.items())

    def _stored(self) -> dict[str, dict[int, int]]:
        catalog = open_catalog(self._settings)
        tables = {name: ensure_table(catalog, self._loop, table) for name, table in self._topics.items()}
        return {name: offsets_of(table) for name, table in tables.items()}

    async def _ends(self) -> dict[TopicPartition, int]:
        admin = AIOKafkaAdminClient(bootstrap_servers=self._settings.kafka)
        consumer = AIOKafkaConsumer(bootstrap_servers=self._settings.kafka)
        await admin.start()
        await consumer.start()
        try:
            described = await admin.describe_topics(list(self._topics))
            partitions = [
                TopicPartition(each["topic"], part["partition"]) for each in described for part in each["partitions"]
            ]
            ends: dict[TopicPartition, int] = await consumer.end_offsets(partitions)
            return ends
        finally:
            await consumer.stop()
            await admin.close()


async def runs_of(mesh: Mesh, loop: str) -> list[trainer.Run]:
    """The runs of a loop, newest first."""
    request = trainer.ListRunsRequest(loop=loop)
    return list((await call(mesh.trainer.ListRuns, request, timeout_s=TIMEOUT_S)).runs)


async def rollouts_of(mesh: Mesh, loop: str) -> list[deployer.Rollout]:
    """The rollouts of a loop, newest first."""
    request = deployer.ListRolloutsRequest(loop=loop)
    return list((await call(mesh.deployer.ListRollouts, request, timeout_s=TIMEOUT_S)).rollouts)


async def run_ended(
    mesh: Mesh,
    loop: str,
    find: Callable[[list[trainer.Run]], trainer.Run | None],
    *,
    note: Callable[[trainer.Run], object],
) -> trainer.Run | None:
    """The run that `find` picks, once it has ended; `note` is told how far it is."""
    run = find(await runs_of(mesh, loop))
    if run is None:
        return None
    note(run)
    return run if run.state in RUN_ENDS else None


async def rollout_ended(
    mesh: Mesh, loop: str, version: str, *, note: Callable[[deployer.Rollout], object]
) -> deployer.Rollout | None:
    """The rollout of a version, once it has ended; `note` is told how far it is."""
    for rollout in await rollouts_of(mesh, loop):
        if rollout.version == version:
            note(rollout)
            return rollout if rollout.state in ROLLOUT_ENDS else None
    return None
