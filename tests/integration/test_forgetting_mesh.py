"""A person goes through the whole mesh, a model is trained on what they did, and they are forgotten everywhere.

Their id also stands in the ids of their requests and events, as producers make them.
"""

import asyncio
import json
import sys
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import grpc
import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from gyre.deployer.v1.deployer_pb2 import ROLLOUT_STATE_PROMOTED, ListRolloutsRequest
from gyre.deployer.v1.deployer_pb2_grpc import DeployerServiceStub
from gyre.events.v1.behavior_pb2 import FieldValue, Interaction, ItemChanged, UserChanged
from gyre.features.v1.features_pb2 import (
    ENTITY_KIND_USER,
    DeleteEntityRequest,
    DeleteEntityResponse,
    GetFeaturesRequest,
)
from gyre.features.v1.features_pb2_grpc import FeaturesServiceStub
from gyre.gateway.v1.gateway_pb2 import RankRequest, TrackedEvent, TrackRequest
from gyre.gateway.v1.gateway_pb2_grpc import GatewayServiceStub
from gyre.trainer.v1.trainer_pb2 import RUN_STATE_REGISTERED, GetRunRequest, Run, StartRunRequest, WatchRunRequest
from gyre.trainer.v1.trainer_pb2_grpc import TrainerServiceStub
from gyre_core.keyring import Keyring
from gyre_core.spec import load_loop
from gyre_core.topics import declared, topic
from gyre_local import operations
from gyre_local.components.services import shared_env
from gyre_local.places import StackDirectories
from gyre_local.recipe import Recipe
from gyre_local.stack import Stack, build_stack
from gyre_local.testing import eventually, free_stack_ports
from gyre_local.timeouts import scaled
from gyre_privacy.search import SearchedStores, SearchFindings, needles_of, search
from gyre_privacy.stores import STORES
from gyre_runtime.kafka import Producer
from gyre_runtime.settings import WarehouseSettings
from gyre_warehouse.tables import IMPRESSIONS, INTERACTIONS, USERS, ensure_table, open_catalog

LOOP, LOOP_FILE = "shop", Path(__file__).with_name("gyre.yaml")
MARKED, OTHER = "marked-7f3a91", "other-2c8b17"
OTHERS = (OTHER, *(f"user-{number}" for number in range(9)))
ITEMS = [f"i{number}" for number in range(6)]
GENRES = ("red", "green", "blue", "white")
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
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    """Every process of the local stack, on a broker that looks after its topics often."""
    ports = free_stack_ports(tmp_path / "ports.toml")
    made = build_stack(StackDirectories(tmp_path / "var"), ports, [LOOP_FILE])
    members = {name: replace(each, prepare=_soon(each.prepare)) for name, each in made.members.items()}
    made = replace(made, members=members)
    try:
        operations.bring_up(made, list(members.values()), lambda _name, _step: None)
        yield made
    finally:
        operations.take_down(made, lambda _name, _step: None)


def _soon(prepare: Any) -> Any:
    """Prepare a process whose rounds are short."""

    def prepared() -> Recipe:
        recipe: Recipe = prepare()
        if recipe.name == "features-archive":
            return replace(recipe, env={**recipe.env, "GYRE_FEATURES_USERS_COMPACTION_S": "0.5"})
        if recipe.name == "kafka":
            properties = recipe.directory / "server.properties"
            properties.write_text(properties.read_text() + SOON)
        return recipe

    return prepared


@dataclass
class Shop:
    """The running mesh, and what users do there."""

    stack: Stack
    gateway: GatewayServiceStub
    features: FeaturesServiceStub
    trainer: TrainerServiceStub
    deployer: DeployerServiceStub
    number: Iterator[int]

    @property
    def kafka(self) -> str:
        """The broker's address."""
        return self.stack.ports.address("kafka", "broker")

    async def visit(self, user: str, *clicked: str, items: list[str] = ITEMS) -> None:
        """A user, in a sampled trace, is shown items and clicks some; ids are made from the user's."""
        number = next(self.number)
        trace = (("traceparent", f"00-{number + 1:032x}-{number + 1:016x}-01"),)
        request = RankRequest(loop=LOOP, user_id=user, item_ids=items, request_id=f"{user}-request-{number}")
        answer = await self.gateway.Rank(request, timeout=30, metadata=trace)
        clicks = [
            TrackedEvent(
                event_id=f"{user}-click-{number}-{each}",
                interaction=Interaction(
                    user_id=user, item_id=each, type="click", request_id=answer.provenance.request_id
                ),
            )
            for each in clicked
        ]
        await self.gateway.Track(TrackRequest(loop=LOOP, events=clicks), timeout=30, metadata=trace)

    async def looked(self) -> SearchFindings:
        """Where a search finds the person."""
        keyring = Keyring.from_file(self.stack.places.state("privacy") / "keys.json")
        redis = f"redis://{self.stack.ports.address('redis', 'server')}/0"
        places = SearchedStores(self.kafka, redis, [self.stack.places.var])
        return await search(places, needles_of([MARKED], keyring, loop=LOOP))

    async def gyre(self, *words: str) -> str:
        """What the command line prints."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", "from gyre_client.cli import main; main()", *words,
            env=shared_env(self.stack.ports, self.stack.places, self.stack.loops) | {"COLUMNS": "400"},
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        output, _ = await process.communicate()
        assert process.returncode == 0, output.decode()
        return output.decode()


@pytest.fixture
async def shop(stack: Stack) -> AsyncIterator[Shop]:
    """The mesh with open channels."""
    async with AsyncExitStack() as opened:

        async def at(name: str) -> Any:
            return await opened.enter_async_context(grpc.aio.insecure_channel(stack.ports.address(name, "grpc")))

        yield Shop(
            stack,
            GatewayServiceStub(await at("gateway")),
            FeaturesServiceStub(await at("features-serve")),
            TrainerServiceStub(await at("trainer")),
            DeployerServiceStub(await at("deployer")),
            count(),
        )


def _stores(finding: SearchFindings, *needles: str) -> dict[str, list[str]]:
    """The declared stores that hold the person, each with the places; a place of no declared store fails."""
    found: dict[str, list[str]] = {}
    for place, names in finding.hits.items():
        store = finding.stores()[place]
        assert store is not None, f"{place} is of no declared store"
        if names & set(needles):
            found.setdefault(store.name, []).append(place)
    return found


async def _behave(shop: Shop) -> None:
    """Users are shown items and click, also on what is unknown or not shown, have fields, send what is refused."""
    items = [
        TrackedEvent(
            item_changed=ItemChanged(
                item_id=each,
                fields={"genre": FieldValue(text=GENRES[number % 4]), "price": FieldValue(number=number)},
            )
        )
        for number, each in enumerate(ITEMS)
    ]
    await shop.gateway.Track(TrackRequest(loop=LOOP, events=items), timeout=30)

    async def are_known() -> bool:
        request = GetFeaturesRequest(loop=LOOP, user_id=OTHER, item_ids=ITEMS)
        try:
            found = await shop.features.GetFeatures(request, timeout=30)
        except grpc.aio.AioRpcError as error:
            raise AssertionError(error.details()) from error
        return all(each >= 0 for each in found.item_batches)

    await eventually(are_known, timeout_s=PATIENCE_S, message="the items' features are served")
    for user in (MARKED, *OTHERS) * 3:
        await shop.visit(user, ITEMS[hash(user) % 4])
    for user in (MARKED, OTHER):
        await shop.visit(user, "never-shown", "new-1", items=[*ITEMS, "new-1"])
    async with Producer(shop.kafka, source="test") as producer:
        for user in (MARKED, OTHER):
            refused = Interaction(user_id=user, item_id="i1", type="no-such-type")
            known = UserChanged(user_id=user, fields={"nickname": FieldValue(text=f"{user} the first")})
            await producer.send(topic(LOOP, "behavior.interactions"), refused, key=user)
            await producer.send(topic(LOOP, "catalog.users"), known, key=user)


async def _ended_run(shop: Shop) -> Run:
    """A training run from its start to its end."""
    request = StartRunRequest(loop=LOOP, request_id=f"request-{next(shop.number)}")
    started = (await shop.trainer.StartRun(request, timeout=30)).run
    watched = shop.trainer.WatchRun(WatchRunRequest(run_id=started.run_id), timeout=scaled(PATIENCE_S))
    ended: Run = [answer.run async for answer in watched][-1]
    return ended


async def _train(shop: Shop) -> Run:
    """A model of what they did, which serves; it is refused until the windows of the labels have closed."""

    async def registered() -> Run:
        ended = await _ended_run(shop)
        assert ended.state == RUN_STATE_REGISTERED, ended.reason
        return ended

    run = await eventually(registered, timeout_s=PATIENCE_S, message="a model is trained")

    async def is_live() -> bool:
        await shop.visit(OTHER, ITEMS[0])
        rollouts = (await shop.deployer.ListRollouts(ListRolloutsRequest(loop=LOOP), timeout=30)).rollouts
        return any((each.version, each.state) == (run.version, ROLLOUT_STATE_PROMOTED) for each in rollouts)

    await eventually(is_live, timeout_s=PATIENCE_S, message="the model is live")
    return run


async def _forget(shop: Shop) -> DeleteEntityResponse:
    request = DeleteEntityRequest(loop=LOOP, kind=ENTITY_KIND_USER, id=MARKED)
    answer: DeleteEntityResponse = await shop.features.DeleteEntity(request, timeout=60)
    return answer


async def _end_retention(shop: Shop) -> None:
    """Let the retention of all topics that a user may be in be over."""
    parts = ("behavior", "catalog.users", "privacy")
    of_users = [each for each in declared(load_loop(LOOP_FILE)) if any(part in each.name for part in parts)]
    resources = [
        ConfigResource(ConfigResourceType.TOPIC, each.name, configs={**each.config(), **EXPIRED}) for each in of_users
    ]
    admin = AIOKafkaAdminClient(bootstrap_servers=shop.kafka)
    await admin.start()
    try:
        await admin.alter_configs(resources)
    finally:
        await admin.close()


def _snapshots(shop: Shop, table: str) -> set[int]:
    catalog = open_catalog(WarehouseSettings(warehouse=str(shop.stack.places.state("warehouse"))))
    return {each.snapshot_id for each in ensure_table(catalog, LOOP, table).snapshots()}


def _tags(shop: Shop, run: Run) -> dict[str, str]:
    """The tags of a run's record in MLflow."""
    address = f"http://{shop.stack.ports.address('mlflow', 'http')}/api/2.0/mlflow"
    with urllib.request.urlopen(f"{address}/experiments/get-by-name?experiment_name=gyre/{LOOP}") as answer:
        experiment = json.load(answer)["experiment"]["experiment_id"]
    body = {"experiment_ids": [experiment], "filter": f"tags.`gyre.run_id` = '{run.run_id}'"}
    request = urllib.request.Request(
        f"{address}/runs/search", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as answer:
        (record,) = json.load(answer)["runs"]
    return {each["key"]: each["value"] for each in record["data"]["tags"]}


async def _is_not_repeatable(shop: Shop, run: Run) -> bool:
    """The live model's run says in every view that it cannot be repeated, for what it pinned is gone."""
    for table in (IMPRESSIONS, INTERACTIONS, USERS):
        assert run.snapshots[table] not in _snapshots(shop, table), table
    known = (await shop.trainer.GetRun(GetRunRequest(run_id=run.run_id), timeout=30)).run
    assert known.HasField("erased_time")
    assert "gyre.rows_erased" in _tags(shop, run)
    line = next(line for line in (await shop.gyre("runs", LOOP)).splitlines() if run.run_id in line)
    assert "rows erased" in line
    return True


async def test_a_forgotten_person_is_nowhere(shop: Shop) -> None:
    """Found in every declared store before; at once after it only in Kafka's topics; after their retention nowhere."""
    await _behave(shop)
    run = await _train(shop)
    # Tombstones come with the erasure, and a run of so few rows needs no temporary files.
    everywhere = {each.name for each in STORES} - {"tombstones", "temporary files of training runs"}

    async def is_everywhere() -> bool:
        assert set(_stores(await shop.looked(), "id", "hash")) == everywhere
        return True

    await eventually(is_everywhere, timeout_s=PATIENCE_S, message="the person is found in every declared store")
    answer = await _forget(shop)
    assert answer.warehouse_erased

    async def is_left_to_retention() -> bool:
        finding = await shop.looked()
        assert not finding.unread
        assert set(left := _stores(finding, "id")) == BY_RETENTION, left
        assert set(_stores(finding, "hash")) <= {"tombstones", "Kafka's segments"}
        return True

    await eventually(is_left_to_retention, timeout_s=PATIENCE_S, message="the person is left in Kafka's topics alone")
    await eventually(
        lambda: _is_not_repeatable(shop, run), timeout_s=PATIENCE_S, message="the live model's run is not repeatable"
    )
    await _end_retention(shop)

    async def is_nowhere() -> bool:
        assert _stores(await shop.looked(), "id", "hash") == {}
        return True

    await eventually(is_nowhere, timeout_s=PATIENCE_S, message="the person is nowhere")
