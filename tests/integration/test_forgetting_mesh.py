"""A person goes through the mesh and is forgotten: a search finds them in every store before, and nowhere after."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from gyre.events.v1.behavior_pb2 import FieldValue, Interaction, ItemChanged, UserChanged
from gyre.features.v1.features_pb2 import ENTITY_KIND_USER, DeleteEntityRequest, DeleteEntityResponse
from gyre.features.v1.features_pb2_grpc import FeaturesServiceStub
from gyre.gateway.v1.gateway_pb2 import RankRequest, TrackedEvent, TrackRequest
from gyre.gateway.v1.gateway_pb2_grpc import GatewayServiceStub
from gyre_core.keyring import Keyring
from gyre_core.spec import load_loop
from gyre_core.topics import declared, topic
from gyre_local.places import StackDirectories
from gyre_local.process import Process
from gyre_local.stack import Stack, build_stack
from gyre_local.testing import eventually, free_stack_ports
from gyre_privacy.search import SearchedStores, SearchHit, needles_of, search
from gyre_privacy.stores import STORES
from gyre_runtime.kafka import Producer

LOOP, LOOP_FILE = "shop", Path(__file__).parents[1] / "e2e" / "gyre.yaml"
MARKED, OTHER = "marked-7f3a91", "other-2c8b17"
STARTED = ("redis", "kafka", "features-serve", "features-stream", "features-archive", "monitor", "gateway")
SOON = """
log.initial.task.delay.ms=200
log.retention.check.interval.ms=500
log.segment.delete.delay.ms=1
log.cleaner.backoff.ms=200
"""
"""Of the broker: it looks after topics every half second."""
EXPIRED = {
    "retention.ms": "1",
    "segment.ms": "1",
    "max.compaction.lag.ms": "1",
    "delete.retention.ms": "1",
    "min.cleanable.dirty.ratio": "0.0001",
}
"""Of a topic whose retention is over."""
BY_RETENTION = {"behaviour topics", "dead letters", "users' topic", "Kafka's segments"}
"""Stores that hold the id until Kafka drops it."""
PATIENCE_S = 120
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(420)]


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    """The parts of the mesh that take a person in, on a broker that looks after its topics often."""
    ports = free_stack_ports(tmp_path / "ports.toml")
    stack = build_stack(StackDirectories(tmp_path / "var"), ports, [LOOP_FILE])
    running = []
    for name in STARTED:
        recipe = stack.members[name].prepare()
        if name == "features-archive":
            recipe = replace(recipe, env={**recipe.env, "GYRE_FEATURES_USERS_COMPACTION_S": "0.5"})
        if name == "kafka":
            properties = recipe.directory / "server.properties"
            properties.write_text(properties.read_text() + SOON)
        process = Process(recipe, log=stack.places.logs / f"{name}.log")
        running.append(process)
        process.start()
    yield stack
    for process in reversed(running):
        process.stop()


async def _looked(stack: Stack) -> SearchHit:
    keyring = Keyring.from_file(stack.places.state("privacy") / "keys.json")
    redis = f"redis://{stack.ports.address('redis', 'server')}/0"
    places = SearchedStores(stack.ports.address("kafka", "broker"), redis, [stack.places.var])
    return await search(places, needles_of([MARKED], keyring, loop=LOOP))


def _stores(finding: SearchHit, *needles: str) -> set[str]:
    """The declared stores that hold the person; a place of no declared store fails."""
    found = set()
    for place, names in finding.hits.items():
        store = finding.stores()[place]
        assert store is not None, f"{place} is of no declared store"
        if names & set(needles):
            found.add(store.name)
    return found


async def _behave(stack: Stack) -> None:
    """Two users are asked for, click on known and on unknown items, have fields, and send what is refused."""
    item = ItemChanged(item_id="i1", fields={"genre": FieldValue(text="red"), "price": FieldValue(number=1)})
    async with grpc.aio.insecure_channel(stack.ports.address("gateway", "grpc")) as bare:
        gateway = GatewayServiceStub(bare)
        await gateway.Track(TrackRequest(loop=LOOP, events=[TrackedEvent(item_changed=item)]), timeout=20)
        for user in (MARKED, OTHER):
            answer = await gateway.Rank(RankRequest(loop=LOOP, user_id=user, item_ids=["i1", "new-1"]), timeout=20)
            clicks = [
                TrackedEvent(
                    interaction=Interaction(
                        user_id=user, item_id=each, type="click", request_id=answer.provenance.request_id
                    )
                )
                for each in ("i1", "new-1")
            ]
            await gateway.Track(TrackRequest(loop=LOOP, events=clicks), timeout=20)
    async with Producer(stack.ports.address("kafka", "broker"), source="test") as producer:
        for user in (MARKED, OTHER):
            refused = Interaction(user_id=user, item_id="i1", type="no-such-type")
            await producer.send(topic(LOOP, "behavior.interactions"), refused, key=user)
            await producer.send(topic(LOOP, "catalog.users"), UserChanged(user_id=user), key=user)


async def _forget(stack: Stack) -> DeleteEntityResponse:
    request = DeleteEntityRequest(loop=LOOP, kind=ENTITY_KIND_USER, id=MARKED)
    async with grpc.aio.insecure_channel(stack.ports.address("features-serve", "grpc")) as bare:
        answer: DeleteEntityResponse = await FeaturesServiceStub(bare).DeleteEntity(request, timeout=60)
    return answer


async def _end_retention(stack: Stack) -> None:
    """Let the retention of all topics that a user may be in be over."""
    parts = ("behavior", "catalog.users", "privacy")
    of_users = [each for each in declared(load_loop(LOOP_FILE)) if any(part in each.name for part in parts)]
    resources = [
        ConfigResource(ConfigResourceType.TOPIC, each.name, configs={**each.config(), **EXPIRED}) for each in of_users
    ]
    admin = AIOKafkaAdminClient(bootstrap_servers=stack.ports.address("kafka", "broker"))
    await admin.start()
    try:
        await admin.alter_configs(resources)
    finally:
        await admin.close()


async def test_a_forgotten_person_is_nowhere(stack: Stack) -> None:
    """Found in every declared store before; at once after it only in Kafka's topics; after their retention nowhere."""
    await _behave(stack)
    everywhere = {each.name for each in STORES} - {"tombstones"}

    async def is_everywhere() -> bool:
        assert _stores(await _looked(stack), "id", "hash") == everywhere
        return True

    await eventually(is_everywhere, timeout_s=PATIENCE_S, message="the person is found in every declared store")
    answer = await _forget(stack)
    assert answer.warehouse_erased

    async def is_left_to_retention() -> bool:
        finding = await _looked(stack)
        assert not finding.unread
        assert _stores(finding, "id") == BY_RETENTION
        assert _stores(finding, "hash") <= {"tombstones", "Kafka's segments"}
        return True

    await eventually(is_left_to_retention, timeout_s=PATIENCE_S, message="the person is left in Kafka's topics alone")
    await _end_retention(stack)

    async def is_nowhere() -> bool:
        assert _stores(await _looked(stack), "id", "hash") == set()
        return True

    await eventually(is_nowhere, timeout_s=PATIENCE_S, message="the person is nowhere")
