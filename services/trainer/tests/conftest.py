"""A small loop with a known hidden preference, its history as warehouse rows, and the trainer itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from gyre.trainer.v1.trainer_pb2_grpc import TrainerServiceStub
from gyre_core.features import Layout
from gyre_core.spec import LoopSpec, parse_loop
from gyre_core.topics import declared
from gyre_local.components import mlflow as mlflow_component
from gyre_local.process import running
from gyre_local.reserve import free_ports
from gyre_local.testing import eventually
from gyre_runtime import Channel, Lifespan, ServiceSettings, channel, setup_telemetry
from gyre_runtime.checkpoints import Checkpoint
from gyre_runtime.kafka import create_topics
from gyre_runtime.settings import WarehouseSettings
from gyre_trainer.bootstrap import RunningTrainer, bootstrap
from gyre_trainer.settings import TrainerSettings
from gyre_trainer.training_set import Tables
from gyre_warehouse.tables import (
    IMPRESSIONS,
    INTERACTIONS,
    ITEMS,
    USERS,
    append,
    ensure_table,
    open_catalog,
    schema_of,
)

SPEC = """
version: 1
loop: {loop}
clock: replay
events: {{interactions: {{click: {{}}, buy: {{}}}}}}
{users}items: {{fields: {{genre: {{kind: category, values: [action, drama, comedy, horror]}}}}}}
features:
  - {{name: popular, kind: decayed_count, scope: item, events: [click], half_lives: [1d, 7d]}}
  - {{name: taste, kind: affinity, scope: user, field: genre, events: [click], half_lives: [30d]}}
  - {{name: last, kind: age, scope: item, of: last_event, events: [click], default: 30}}
model: {{hidden: [16], parameters: {{epochs: {epochs}, learning_rate: 0.01, batch_impressions: 32}}}}
training:
  label: {{events: [click, buy], attribution_window: 30m, weights: {{click: 1.0, buy: 3.0}}}}
  history: {{impressions: {history}}}
  gate: {{min_impressions: {least}, max_missing_share: 0.2}}
  evaluation: {{holdout: 0.2}}
serving: {{fallback_feature: popular_7d}}
shards: {{kafka_partitions: 2}}
"""
OF_USERS = "users: {fields: {member: {kind: boolean}}}\n"
MEMBER = "  - {name: member, kind: field, scope: user, field: member}\n"
BEGIN = 1_370_000_000
GENRES = ("action", "drama", "comedy", "horror")
Row = dict[str, Any]


def spec_text(loop: str = "shop", *, epochs: int = 8, history: int = 1000, least: int = 20, users: bool = False) -> str:
    """The gyre.yaml of the test loop, where asked for with a field of users that is a feature, too."""
    text = SPEC.format(loop=loop, epochs=epochs, history=history, least=least, users=OF_USERS if users else "")
    return text.replace("features:\n", f"features:\n{MEMBER}", 1) if users else text


def spec_of(loop: str = "shop", **changes: int) -> LoopSpec:
    """The test loop."""
    return parse_loop(spec_text(loop, **changes), source="test")


@dataclass
class History:
    """Rows of the tables, with places on one Kafka partition each."""

    impressions: list[Row] = field(default_factory=list)
    interactions: list[Row] = field(default_factory=list)
    items: list[Row] = field(default_factory=list)
    users: list[Row] = field(default_factory=list)

    def item(self, item_id: str, *, time: float, genre: str) -> None:
        """An item of a genre appears."""
        fields = {"itemId": item_id, "fields": {"genre": {"text": genre}}}
        self.items.append({**_origin(len(self.items), time), "item_id": item_id, "fields": json.dumps(fields)})

    def user(self, user_id: str, *, time: float, member: bool) -> None:
        """A user becomes a member, or is none."""
        fields = {"userId": user_id, "fields": {"member": {"boolean": member}}}
        self.users.append({**_origin(len(self.users), time), "user_id": user_id, "fields": json.dumps(fields)})

    def show(self, user_id: str, item_ids: list[str], *, time: float, request_id: str = "", **changes: Any) -> None:
        """Items are shown to a user; without served features."""
        number = len(self.impressions)
        row = {
            **_origin(number, time),
            "request_id": request_id or f"r{number}",
            "user_id": user_id,
            "item_ids": item_ids,
            "shown": len(item_ids),
            "layout": "",
            "features": b"",
            "item_batches": [],
        }
        self.impressions.append({**row, **changes})

    def act(self, user_id: str, item_id: str, *, time: float, kind: str = "click", **changes: Any) -> None:
        """A user does something."""
        row = {**_origin(len(self.interactions), time), "user_id": user_id, "item_id": item_id, "type": kind}
        self.interactions.append({**row, "request_id": "", "simulated": False, **changes})

    def tables(self) -> Tables:
        """The rows as the trainer reads them."""
        return Tables(
            impressions=_table(IMPRESSIONS, self.impressions),
            interactions=_table(INTERACTIONS, self.interactions),
            items=_table(ITEMS, self.items),
            users=_table(USERS, self.users),
        )

    def archive(self, warehouse: Path, loop: str) -> None:
        """Append the rows to the warehouse, with the offsets behind them."""
        catalog = open_catalog(WarehouseSettings(warehouse=str(warehouse)))
        for name, rows in ((IMPRESSIONS, self.impressions), (INTERACTIONS, self.interactions), (ITEMS, self.items)):
            table = ensure_table(catalog, loop, name)
            append(table, pa.Table.from_pylist(rows, table.schema().as_arrow()), {0: Checkpoint(len(rows))})


def _origin(number: int, time: float) -> Row:
    moment = datetime.fromtimestamp(time, UTC)
    place = {"kafka_partition": 0, "kafka_offset": number, "ingest_time": moment}
    return {"event_id": f"e{number}", "source": "test", "event_time": moment, **place}


def _table(name: str, rows: list[Row]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema_of(name).as_arrow())


def preferences(*, impressions: int = 300, seed: int = 3) -> History:
    """Every user likes one genre and picks within it nine times of ten; popularity says nothing of that."""
    rng = np.random.default_rng(seed)
    history = History()
    items = [f"i{each}" for each in range(60)]
    for number, item_id in enumerate(items):
        history.item(item_id, time=BEGIN - 1000, genre=GENRES[number % 4])
    for number in range(impressions):
        user, time = int(rng.integers(40)), BEGIN + 600 * number
        shown = rng.choice(60, size=20, replace=False)
        liked = [each for each in shown if each % 4 == user % 4]
        picked = rng.choice(liked) if liked and rng.random() < 0.9 else rng.choice(shown)
        history.show(f"u{user}", [items[each] for each in shown], time=time)
        history.act(f"u{user}", items[picked], time=time + 60)
    history.show("u0", items[:2], time=BEGIN + 600 * impressions + 3600)
    return history


@pytest.fixture(scope="session")
def make_spec() -> Callable[..., LoopSpec]:
    """Parse the test loop, with other numbers where given."""
    return spec_of


@pytest.fixture(scope="session")
def new_history() -> type[History]:
    """Begin an empty history."""
    return History


@pytest.fixture(scope="session")
def learnt() -> History:
    """A history with a preference to learn, made once."""
    return preferences()


@pytest.fixture
def loop(loop_name: str) -> str:
    """A loop that no other test uses."""
    return f"loop-{loop_name[-8:]}"


@pytest.fixture
def spec() -> LoopSpec:
    """The test loop."""
    return spec_of()


@pytest.fixture
def layout(spec: LoopSpec) -> Layout:
    """Its layout."""
    return Layout.compile(spec)


@dataclass(frozen=True)
class Stack:
    """Where a trainer under test finds its loop, Kafka, the warehouse and its state."""

    loop: str
    folder: Path
    kafka: str

    def settings(self, **changes: Any) -> TrainerSettings:
        """The settings of a trainer; no MLflow listens."""
        known = {
            "loops": (self.folder / "gyre.yaml",),
            "kafka": self.kafka,
            "warehouse": str(self.folder / "warehouse"),
            "artifacts": self.folder / "artifacts",
            "state_dir": self.folder / "state",
            "drain_s": 2,
            "mlflow": "http://127.0.0.1:9",
            "trainer_mlflow_wait_s": 0.1,
            "trainer_archive_wait_s": 5,
            "metrics_listen": "",
        }
        return TrainerSettings.model_validate({**known, **changes})

    def env(self, listen: str) -> dict[str, str]:
        """The same as the environment of a process."""
        settings = self.settings(listen=listen)
        names = ("kafka", "warehouse", "artifacts", "state_dir", "drain_s", "mlflow", "listen", "metrics_listen")
        own = ("trainer_mlflow_wait_s", "trainer_archive_wait_s")
        given = {f"GYRE_{name.upper()}": str(getattr(settings, name)) for name in (*names, *own)}
        clean = {name: value for name, value in os.environ.items() if not name.startswith("GYRE_")}
        return {**clean, **given, "GYRE_LOOPS": str(self.folder / "gyre.yaml")}


@pytest.fixture
async def stack(loop: str, tmp_path: Path, kafka: str) -> Stack:
    """A loop with its topics, without a history."""
    (tmp_path / "gyre.yaml").write_text(spec_text(loop))
    await create_topics(kafka, declared(spec_of(loop)))
    return Stack(loop, tmp_path, kafka)


@dataclass(frozen=True)
class Service:
    """A trainer in the test's own process."""

    running: RunningTrainer
    stub: TrainerServiceStub
    lifespan: Lifespan


StartService = Callable[..., Awaitable[Service]]


@pytest.fixture
async def start(stack: Stack) -> AsyncIterator[StartService]:
    """Start a trainer in the test's own process."""
    setup_telemetry("trainer", ServiceSettings(metrics_listen=""))
    opened: list[Lifespan] = []

    async def at(**changes: Any) -> Service:
        settings = stack.settings(**changes)
        lifespan = await Lifespan(drain_s=2).__aenter__()
        opened.append(lifespan)
        running = await bootstrap(lifespan, settings)
        await lifespan.health.start()
        connected: Channel = await lifespan.enter(channel(running.server.address, ServiceSettings(), name="trainer"))
        return Service(running, TrainerServiceStub(connected), lifespan)

    yield at
    for lifespan in opened:
        await lifespan.__aexit__(None, None, None)


@dataclass(frozen=True)
class TrainerProcess:
    """A trainer in a process of its own, and its methods."""

    popen: subprocess.Popen[bytes]
    stub: TrainerServiceStub


StartProcess = Callable[[], Awaitable[TrainerProcess]]


def _popen(env: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as output:
        return subprocess.Popen([sys.executable, "-m", "gyre_trainer"], env=env, stdout=output, stderr=output)


@pytest.fixture
async def start_process(stack: Stack) -> AsyncIterator[StartProcess]:
    """Start a trainer in a process of its own; it is ended with the test."""
    started: list[subprocess.Popen[bytes]] = []
    channels: list[Channel] = []

    async def at() -> TrainerProcess:
        (port,) = free_ports(1)
        address = f"127.0.0.1:{port}"
        log = stack.folder / "trainer.log"
        popen = _popen(stack.env(address), log)
        started.append(popen)
        connected = await channel(address, ServiceSettings(), name="trainer").__aenter__()
        channels.append(connected)
        own = f'"{address}"'.encode()
        await eventually(lambda: own in log.read_bytes(), timeout_s=90, message="the trainer listens")
        return TrainerProcess(popen, TrainerServiceStub(connected))

    yield at
    for each in channels:
        await each.__aexit__(None, None, None)
    for popen in started:
        popen.terminate()
        try:
            popen.wait(15)
        except subprocess.TimeoutExpired:
            popen.kill()
            popen.wait()


@pytest.fixture(scope="session")
def mlflow_uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real MLflow server."""
    (port,) = free_ports(1)
    directory = tmp_path_factory.mktemp("mlflow")
    recipe = mlflow_component.prepare(directory, host="127.0.0.1", port=port)
    with running(recipe, log=directory / "mlflow.log"):
        yield f"http://127.0.0.1:{port}"
