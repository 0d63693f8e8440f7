"""Personal data of direct producers: masked before store, warehouse and log, and forgotten by the raw id as well."""

import json
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from gyre.events.v1 import behavior_pb2 as behavior
from gyre.features.v1 import features_pb2 as pb
from gyre.features.v1.features_pb2_grpc import FeaturesServiceStub
from gyre_core.features import Layout
from gyre_core.keyring import Keyring
from gyre_core.keys import pattern as store_keys
from gyre_core.spec import LoopSpec
from gyre_core.topics import declared
from gyre_features.processes.serve import serve
from gyre_features.settings import FeaturesSettings
from gyre_local.testing import eventually
from gyre_runtime import Lifespan, ServiceSettings, channel
from gyre_runtime.events import Event
from gyre_runtime.kafka import create_topics
from gyre_warehouse.tables import IMPRESSIONS, INTERACTIONS, ITEMS, USERS, ensure_table, open_catalog
from redis.asyncio import Redis

Start = Callable[..., Any]
Produce = Callable[..., Awaitable[None]]
RULES = """
privacy:
  user_id: hmac
  fields:
    items.price: {action: drop}
    labels.note: {action: redact}
"""
PEOPLE = [f"person-of-flesh-{number}" for number in range(5)]
MAIL = "jane.doe@example.com"


@pytest.fixture
def key_file(tmp_path: Path, loop_file: Path) -> Path:
    """A key file, for the test's loop which masks."""
    loop_file.write_text(loop_file.read_text() + RULES)
    path = tmp_path / "keys.json"
    path.write_text(json.dumps({"stable": "ab" * 32}))
    return path


def _events(history: Any) -> list[Event]:
    catalogue = history.catalogue()
    acts, shows = [], []
    for number in range(40):
        user, item = PEOPLE[number % 5], f"i{number % 12}"
        rating = behavior.Interaction(user_id=user, item_id=item, type="rating", value=7)
        shown = behavior.Impression(
            request_id=f"r{number}",
            user_id=user,
            item_ids=[item],
            shown=1,
            labels={"note": f"from {MAIL}"},
            method=behavior.IMPRESSION_METHOD_RANK,
        )
        acts.append(history.event("behavior.interactions", rating, number))
        shows.append(history.event("behavior.impressions", shown, number))
    people = [history.event("catalog.users", history.person(user, 1), number) for number, user in enumerate(PEOPLE)]
    return [*catalogue, *people, *acts, *shows]


def _count(warehouse: Path, spec: LoopSpec, table: str) -> int:
    catalog = open_catalog(FeaturesSettings(warehouse=str(warehouse)))
    return int(ensure_table(catalog, spec.loop, table).scan().to_arrow().num_rows)


def _contents(folder: Path) -> Iterator[tuple[Path, str]]:
    """Everything that files hold: their bytes, and of Parquet what its compression hides."""
    for path in folder.rglob("*"):
        if path.is_file():
            yield path, path.read_bytes().decode("latin-1")
            if path.suffix == ".parquet":
                yield path, str(pq.read_table(path).to_pylist())


@pytest.mark.adapter
@pytest.mark.parametrize("spec", ["users"], indirect=True)
async def test_raw_values_reach_no_store_and_no_log(  # noqa: PLR0917 (fixtures)
    tmp_path: Path,
    spec: LoopSpec,
    history: Any,
    kafka: str,
    redis: Redis,
    redis_url: str,
    loop_file: Path,
    key_file: Path,
    start_process: Start,
    produce: Produce,
) -> None:
    """No raw id, address or dropped field stands in any file, log or key; joins hold; forgetting takes the raw id."""
    await create_topics(kafka, declared(spec))
    await produce(_events(history))
    env = {"GYRE_PRIVACY_KEY_FILE": str(key_file), "GYRE_LOG_LEVEL": "DEBUG"}
    processes = [start_process("stream", **env), start_process("archive", GYRE_FEATURES_ARCHIVE_S="0.2", **env)]
    processes.append(start_process("quality", GYRE_FEATURES_QUALITY_IDLE_S="1", **env))
    warehouse = tmp_path / "warehouse"
    for table, count in ((INTERACTIONS, 40), (IMPRESSIONS, 40), (ITEMS, 12), (USERS, 5)):
        await eventually(
            lambda table=table, count=count: _count(warehouse, spec, table) == count,
            timeout_s=60,
            message=f"{table} holds {count} rows",
        )
    tokens = {Keyring.from_file(key_file).token(user, domain="user") for user in PEOPLE}

    async def online() -> bool:
        keys = [key.decode() async for key in redis.scan_iter(store_keys(spec.loop)) if b":user:" in key]
        return {key.rpartition(":")[2] for key in keys} == tokens

    await eventually(online, timeout_s=60, message="the users are known by their tokens")
    catalog = open_catalog(FeaturesSettings(warehouse=str(warehouse)))
    acted, shown, items, people = (
        ensure_table(catalog, spec.loop, table).scan().to_arrow() for table in (INTERACTIONS, IMPRESSIONS, ITEMS, USERS)
    )
    for rows in (acted, shown, people):
        assert set(rows["user_id"].to_pylist()) == tokens
    assert set(map(str, shown["labels"].to_pylist())) == {"[('note', 'from <EMAIL_ADDRESS>')]"}
    assert not any("price" in each for each in items["fields"].to_pylist())
    _hold_nothing(warehouse, [process.log for process in processes])

    settings = FeaturesSettings(
        loops=(loop_file,),
        kafka=kafka,
        redis=redis_url,
        drain_s=1,
        features_forget_wait_s=25,
        privacy_key_file=key_file,
    )
    async with Lifespan(drain_s=1) as lifespan:
        running = await serve(lifespan, settings)
        stub = FeaturesServiceStub(await lifespan.enter(channel(running.server.address, ServiceSettings(), name="f")))
        history_request = pb.GetHistoryRequest(loop=spec.loop, user_id=PEOPLE[0])
        assert len((await stub.GetHistory(history_request, timeout=10)).entries) == 5
        features = pb.GetFeaturesRequest(loop=spec.loop, user_id=PEOPLE[0], item_ids=["i1"])
        features.request_time.FromSeconds(1_370_000_100)
        assert await _member(stub, features, spec) == 1.0
        request = pb.DeleteEntityRequest(loop=spec.loop, kind=pb.ENTITY_KIND_USER, id=PEOPLE[0])
        answer = await stub.DeleteEntity(request, timeout=40)
        assert (answer.deleted_keys, answer.found_keys, answer.found_rows) == (1, 0, 0)
        assert dict(answer.erased_rows) == {INTERACTIONS: 8, IMPRESSIONS: 8, USERS: 1}
        assert not (await stub.GetHistory(history_request, timeout=10)).entries
        assert await _member(stub, features, spec) == 0.0
    gone = Keyring.from_file(key_file).token(PEOPLE[0], domain="user")
    assert not [path for path, text in _contents(warehouse / "data") if gone in text]


async def _member(stub: FeaturesServiceStub, request: pb.GetFeaturesRequest, spec: LoopSpec) -> float:
    answer = await stub.GetFeatures(request, timeout=10)
    matrix = np.frombuffer(answer.features.values, dtype="<f4").reshape(answer.features.rows, answer.features.columns)
    return float(matrix[0, Layout.compile(spec).index["member"]])


def _hold_nothing(warehouse: Path, logs: list[Path]) -> None:
    files = [*_contents(warehouse), *((log, log.read_text()) for log in logs)]
    assert len(files) > 10
    for path, text in files:
        assert "person-of-flesh" not in text, path
        assert MAIL not in text, path


@pytest.mark.adapter
def test_no_process_starts_without_the_key(key_file: Path, start_process: Start) -> None:
    """Each process that takes in events ends at once, and its log names the setting and the loop."""
    key_file.unlink()
    for name in ("serve", "stream", "archive", "quality"):
        process = start_process(name, GYRE_PRIVACY_KEY_FILE=None)
        try:
            assert process.wait(30) == 1
        except subprocess.TimeoutExpired:
            pytest.fail(f"{name} runs without the key")
        assert "GYRE_PRIVACY_KEY_FILE is not set: the loop" in process.log.read_text()
