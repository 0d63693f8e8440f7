"""The parity check on a real store and a real warehouse: reads between batches, and everything that may befall both."""

import asyncio
import os
import random
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from gyre.events.v1 import behavior_pb2 as behavior
from gyre.events.v1 import features_pb2 as events_pb2
from gyre.features.v1 import parity_pb2 as pb
from gyre.features.v1.parity_pb2_grpc import ParityServiceStub
from gyre_core.features import Layout, Reader, RequestContext, State, state
from gyre_core.keys import pattern as store_keys
from gyre_core.spec import LoopSpec
from gyre_core.topics import topic
from gyre_features.online.store import OnlineStore
from gyre_features.parity.log import Settled, read_log
from gyre_features.parity.loop import REBUILT, LoopReport, check_loop
from gyre_features.parity.served import CheckWindow
from gyre_features.privacy.erasure import erase_user
from gyre_features.processes.check import check
from gyre_features.settings import FeaturesSettings
from gyre_features.stream.loop_stream import LoopStream
from gyre_features.warehouse.archive import Archive
from gyre_local.reserve import free_ports
from gyre_local.testing import eventually
from gyre_runtime import Lifespan, NotFound, ServiceSettings, channel
from gyre_runtime.events import Event
from gyre_warehouse.tables import (
    APPLIED,
    IMPRESSIONS,
    INTERACTIONS,
    TABLE_OF,
    append,
    arrow_schema,
    checkpoints_of,
    ensure_table,
    open_catalog,
)
from gyre_warehouse.tables import ITEMS as CATALOGUE
from redis.asyncio import Redis

BEGIN = 1_370_000_000.0
ITEMS = [f"i{number}" for number in range(12)]
DUPLICATES_S = 300
SUFFIX_OF = {name: suffix for suffix, name in TABLE_OF.items()}


@dataclass
class Loop:
    """A loop in operation, without its processes: the stream's work, the archive's, and reads that are logged.

    Attributes:
        lost: numbers of batches that the log does not get.
    """

    spec: LoopSpec
    redis: Redis
    warehouse: Path
    lost: set[int] = field(default_factory=set)
    offsets: dict[str, int] = field(default_factory=dict)
    reads: int = 0

    def __post_init__(self) -> None:
        self.layout = Layout.compile(self.spec)
        self.store = OnlineStore(self.redis, self.spec, self.layout, duplicates_s=DUPLICATES_S)
        self.catalog = open_catalog(FeaturesSettings(warehouse=str(self.warehouse)))
        self.archive = Archive(self.catalog, rows=100_000, seconds=60, payload_bytes=10**9)
        self.stream = LoopStream(self.store, on_batch=self.note, max_events=40)

    async def assign(self) -> None:
        """Begin where the store stands."""
        self.stream = LoopStream(self.store, on_batch=self.note, max_events=40)
        await self.stream.assigned(
            [(topic(self.spec.loop, each), 0) for each in ("catalog.items", "behavior.interactions")]
        )

    def event(self, suffix: str, message: Any, at: float, *, id: str | None = None) -> Event:  # noqa: A002
        """The next record of a topic's one partition."""
        offset = self.offsets[suffix] = self.offsets.get(suffix, -1) + 1
        name = id or f"{suffix}-{offset}"
        return Event(name, "test", "", at, message, None, topic(self.spec.loop, suffix), 0, offset, "k", time.time())

    async def feed(self, events: Sequence[Event]) -> None:
        """Events through the stream and into the archive."""
        await self.archive.add(events)
        await self.stream.apply(events)

    async def note(self, batch: events_pb2.BatchApplied, _events: Sequence[Event]) -> None:
        """Log a batch as the stream's process does."""
        if batch.batch not in self.lost:
            await self.archive.add([self.event("features.applied", batch, batch.applied_time.ToNanoseconds() / 1e9)])

    async def read(self, user_id: str, now: float, *, wrong: float = 0.0, age_s: float = 0.0) -> None:
        """Read features as they are served, and log the impression; `wrong` is added to the first number."""
        values = await self.store.read(user_id, ITEMS)
        reader = Reader(self.layout)
        matrix, age = reader.matrix(values.user, values.everyone, values.items, ITEMS, RequestContext(now))
        matrix[0, 0] += wrong
        order = random.Random(self.reads).sample(range(len(ITEMS)), len(ITEMS))
        self.reads += 1
        message = behavior.Impression(
            request_id=f"r{self.reads}", user_id=user_id, item_ids=[ITEMS[each] for each in order], shown=5, rest=7,
            positions=order, item_batches=[int(age.item_batches[each]) for each in order],
            user_batch=age.user_batch, global_batch=age.global_batch,
        )  # fmt: skip
        block = message.features
        block.layout, block.rows, block.columns = self.layout.hash, len(ITEMS), len(self.layout.columns)
        block.values = matrix[order].astype("<f4").tobytes()
        event = self.event("behavior.impressions", message, now)
        await self.feed([event._replace(arrival_time=time.time() - age_s)])

    async def check(self, *, most: int = 10_000) -> LoopReport:
        """Everything into the warehouse, then the check."""
        await self.archive.flush()
        return check_loop(self.catalog, self.spec, window=CheckWindow(most, 0.0), duplicates_s=DUPLICATES_S)


@pytest.fixture
def loop(spec: LoopSpec, redis: Redis, tmp_path: Path) -> Loop:
    """A loop that stands at the beginning."""
    return Loop(spec, redis, tmp_path)


def ratings(loop: Loop, count: int, *, step: int, users: int = 6) -> list[Event]:
    """The next ratings, of a few users, a little out of order, one in ten sent twice."""
    draw, made = random.Random(step), []
    for number in range(count):
        message = behavior.Interaction(
            user_id=f"u{draw.randrange(users)}", item_id=draw.choice(ITEMS), type="rating", value=draw.randrange(10)
        )
        at, name = BEGIN + 600 * step + draw.random() * 600, f"s{step}-{number}"
        made.append(loop.event("behavior.interactions", message, at, id=name))
        if draw.random() < 0.1:
            made.append(loop.event("behavior.interactions", message, at, id=name))
    return made


def catalogue(loop: Loop, step: int) -> list[Event]:
    """Every third item, with fields that change with the step."""
    genres = ("action", "drama", "comedy")
    return [
        loop.event(
            "catalog.items",
            behavior.ItemChanged(
                item_id=item,
                fields={
                    "genres": behavior.FieldValue(categories=behavior.Categories(values=[genres[(number + step) % 3]])),
                    "price": behavior.FieldValue(number=number + step),
                },
            ),
            BEGIN - 1 + 600 * step,
        )
        for number, item in enumerate(ITEMS)
        if number % 3 == step % 3
    ]


async def turn(loop: Loop, steps: range) -> None:
    """Batches of any size, changes of the catalogue, and a read after each."""
    for step in steps:
        await loop.feed([*catalogue(loop, step), *ratings(loop, 10 + 17 * (step % 4), step=step)])
        await loop.read(f"u{step % 7}", BEGIN + 600 * (step + 1))


@pytest.mark.adapter
@pytest.mark.parametrize("shards", [1, 3])
async def test_what_was_served_is_what_the_warehouse_gives(
    shards: int, sharded: Callable[[int], LoopSpec], redis: Redis, tmp_path: Path
) -> None:
    """Reads between the batches of a real store equal the replay of the archived events, in every shard."""
    loop = Loop(sharded(shards), redis, tmp_path)
    await turn(loop, range(9))
    report = await loop.check()
    found = report.found
    assert (found.impressions, found.mismatches, found.unknown, report.pending) == (9, 0, 0, 0), found.examples
    assert found.values == 9 * len(ITEMS) * len(loop.layout.columns)


@pytest.mark.adapter
async def test_the_first_impression_of_a_users_request_counts(
    counting_shown: LoopSpec, redis: Redis, tmp_path: Path
) -> None:
    """Others of the same user and request, in a batch or across batches, count neither online nor in the replay."""
    loop = Loop(counting_shown, redis, tmp_path)
    await turn(loop, range(2))

    def shown(user: str, request: str) -> Event:
        message = behavior.Impression(request_id=request, user_id=user, item_ids=["i0", "i1"], shown=2)
        return loop.event("behavior.impressions", message, BEGIN + 1200)

    async def count() -> float:
        values = await loop.store.read("u1", ["i0"])
        matrix, _ = Reader(loop.layout).matrix(
            values.user, values.everyone, values.items, ["i0"], RequestContext(BEGIN + 1200)
        )
        return float(matrix[0, loop.layout.index["shown_365d"]])

    before = await count()
    await loop.feed([shown("u1", "r"), shown("u1", "r"), shown("u2", "r")])
    await loop.feed([shown("u2", "r"), shown("u1", "r"), shown("u1", "s")])
    assert await count() == pytest.approx(before + 3, rel=1e-5)
    await turn(loop, range(2, 5))
    found = (await loop.check()).found
    assert (found.impressions, found.mismatches, found.unknown) == (5, 0, 0), found.examples


@pytest.mark.adapter
async def test_a_row_that_nobody_can_read_fails_no_check(loop: Loop) -> None:
    """Another message's fields in the catalogue are set aside; all that was served is compared, and equal."""
    await turn(loop, range(3))
    await loop.archive.flush()
    table = ensure_table(loop.catalog, loop.spec.loop, CATALOGUE)
    (row,) = table.scan().to_arrow().slice(0, 1).to_pylist()
    end = checkpoints_of(table)[0]
    strange = {"event_id": "strange", "kafka_offset": end.offset, "fields": '{"userId": "u", "type": "rating"}'}
    append(table, pa.Table.from_pylist([row | strange], arrow_schema(CATALOGUE)), {0: end.at(end.offset + 1)})
    loop.offsets["catalog.items"] += 1
    await turn(loop, range(3, 6))
    report = await loop.check()
    found = report.found
    assert (found.impressions, found.mismatches, found.unknown, report.pending) == (6, 0, 0, 0), found.examples


def put_strange(loop: Loop, name: str, **strange: Any) -> None:
    """Append a copy of a table's first row with other values, at the next offset."""
    table = ensure_table(loop.catalog, loop.spec.loop, name)
    (row,) = table.scan().to_arrow().slice(0, 1).to_pylist()
    end = checkpoints_of(table)[0]
    row |= {"event_id": f"strange-{end.offset}", "kafka_offset": end.offset, **strange}
    append(table, pa.Table.from_pylist([row], arrow_schema(name)), {0: end.at(end.offset + 1)})
    loop.offsets[SUFFIX_OF[name]] += 1


async def with_strange_rows(loop: Loop) -> None:
    """Six reads, and among the rows of each table that a check reads one that nobody can read."""
    await turn(loop, range(3))
    await loop.archive.flush()
    put_strange(loop, CATALOGUE, fields='{"userId": "u", "type": "rating"}')
    put_strange(loop, INTERACTIONS, user_id=None)
    put_strange(loop, IMPRESSIONS, request_id="r-strange", item_ids=None)
    put_strange(loop, APPLIED, range_ends=None, batch=10**6)
    await turn(loop, range(3, 6))
    await loop.archive.flush()


@asynccontextmanager
async def parity_stub(loop: Loop, loop_file: Path, kafka: str) -> AsyncIterator[tuple[str, ParityServiceStub]]:
    """The process that checks, on a loop's warehouse: its address, and a stub."""
    settings = FeaturesSettings(loops=(loop_file,), kafka=kafka, warehouse=str(loop.warehouse))
    async with Lifespan(drain_s=1) as lifespan:
        server = await check(lifespan, settings)
        async with channel(server.address, ServiceSettings(), name="features-check") as opened:
            yield server.address, ParityServiceStub(opened)


@pytest.mark.adapter
async def test_the_report_says_what_was_set_aside(loop: Loop, loop_file: Path, kafka: str) -> None:
    """Rows that nobody can read, of any table, fail no check: the answer and the command say how many of how many."""
    await with_strange_rows(loop)
    async with parity_stub(loop, loop_file, kafka) as (address, stub):
        found = await stub.CheckParity(pb.CheckParityRequest(loop=loop.spec.loop), timeout=60)
        words = ("features", "check", loop.spec.loop, "--last")
        command = [str(Path(sys.executable).parent / "gyre"), *words]
        env = {**os.environ, "GYRE_FEATURES_CHECK": address, "COLUMNS": "120"}
        printed = await asyncio.to_thread(
            subprocess.run, command, env=env, capture_output=True, text=True, check=False, timeout=60
        )
    (report,) = found.reports
    assert (report.impressions, report.mismatches, report.pending) == (6, 0, 0), report.examples
    assert dict(report.unknown) == {"its row cannot be read": 1}
    assert dict(report.unreadable_rows) == dict.fromkeys((CATALOGUE, INTERACTIONS, IMPRESSIONS, APPLIED), 1)
    assert (report.rows[CATALOGUE], report.rows[IMPRESSIONS]) == (25, 7)
    assert printed.returncode == 0, printed.stderr
    assert f"set aside: 1 of 25 rows of {CATALOGUE} cannot be read" in printed.stdout


@pytest.mark.adapter
async def test_features_that_name_no_batches_are_unknown(loop: Loop, loop_file: Path, kafka: str) -> None:
    """A producer's own impression with features, which need not say of which batches, is neither wrong nor an error."""
    await turn(loop, range(3))
    block = {"layout": loop.layout.hash, "rows": 1, "columns": len(loop.layout.columns)}
    features = behavior.FeatureBlock(values=bytes(4 * block["columns"]), **block)
    own = behavior.Impression(request_id="own", user_id="u1", item_ids=["i0"], shown=1, features=features)
    await loop.feed([loop.event("behavior.impressions", own, BEGIN + 4000)])
    await loop.archive.flush()
    async with parity_stub(loop, loop_file, kafka) as (_, stub):
        (report,) = (await stub.CheckParity(pb.CheckParityRequest(loop=loop.spec.loop), timeout=60)).reports
    assert (report.impressions, report.mismatches) == (3, 0)
    assert dict(report.unknown) == {"it does not name the batches that it was made from": 1}


@pytest.mark.adapter
@pytest.mark.parametrize("shards", [1, 3])
async def test_what_is_known_of_users_is_checked(
    shards: int, with_users: Callable[[int], LoopSpec], redis: Redis, tmp_path: Path
) -> None:
    """Fields of users, changed between the reads, are served and replayed alike."""
    loop = Loop(with_users(shards), redis, tmp_path)
    served = set()
    for step in range(8):
        known = {
            "member": behavior.FieldValue(boolean=step % 2 == 0),
            "likes": behavior.FieldValue(vector=behavior.Vector(values=[step, -step])),
        }
        changed = behavior.UserChanged(user_id=f"u{step % 3}", fields=known)
        at = BEGIN + 600 * step
        await loop.feed(
            [*catalogue(loop, step), *ratings(loop, 9, step=step), loop.event("catalog.users", changed, at)]
        )
        await loop.read(f"u{step % 4}", at + 600)
        values = await loop.store.read(f"u{step % 4}", ITEMS)
        matrix, _ = Reader(loop.layout).matrix(
            values.user, values.everyone, values.items, ITEMS, RequestContext(at + 600)
        )
        served.add(tuple(matrix[0, [loop.layout.index[name] for name in ("member", "likes_1")]].tolist()))
    found = (await loop.check()).found
    assert (found.impressions, found.mismatches, found.unknown) == (8, 0, 0), found.examples
    assert {(1.0, 0.0), (0.0, -1.0), (0.0, -5.0)} < served


@pytest.mark.adapter
@pytest.mark.parametrize("shards", [1, 3])
async def test_fields_that_came_late_are_made_up_for_alike(
    shards: int, sharded: Callable[[int], LoopSpec], redis: Redis, tmp_path: Path
) -> None:
    """Where ratings came before their item, or before the fields that held at their time, reads equal the replay."""
    loop = Loop(sharded(shards), redis, tmp_path)
    draw = random.Random(11)
    for step in range(12):
        now = BEGIN + 40 * step
        made = ratings(loop, 15, step=0)
        await loop.feed([each._replace(id=f"{step}-{each.id}", time=now + draw.random() * 40) for each in made])
        await loop.read(f"u{step % 6}", now + 40)
        changes = catalogue(loop, step)
        await loop.feed([each._replace(time=now - draw.random() * 30) for each in changes])
        await loop.read(f"u{step % 6}", now + 40)
    found = (await loop.check()).found
    assert (found.impressions, found.mismatches, found.unknown) == (24, 0, 0), found.examples


@pytest.mark.adapter
@pytest.mark.parametrize("shards", [1, 3])
async def test_a_fast_clock_keeps_no_late_field_from_the_others_in_the_replay_either(
    shards: int, sharded: Callable[[int], LoopSpec], redis: Redis, tmp_path: Path
) -> None:
    """Where one user's events, each a batch, say times of minutes after they arrived, reads equal the replay."""
    loop = Loop(sharded(shards), redis, tmp_path)
    draw = random.Random(13)
    for step in range(12):
        now = BEGIN + 20 * step
        made = ratings(loop, 15, step=0)
        times = [now + (280 if each.message.user_id == "u5" else draw.random() * 20) for each in made]
        made = [
            each._replace(id=f"{step}-{each.id}", time=at, arrival_time=now + 20)
            for each, at in zip(made, times, strict=True)
        ]
        for event in made:
            await loop.feed([event])
        changes = catalogue(loop, step)
        for each in changes:
            each.message.fields["genres"].categories.values[:] = [draw.choice(["action", "drama", "comedy"])]
        await loop.feed([each._replace(time=now - draw.random() * 10, arrival_time=now + 20) for each in changes])
        await loop.read(f"u{step % 5}", now + 20)
    found = (await loop.check()).found
    assert (found.impressions, found.mismatches, found.unknown) == (12, 0, 0), found.examples


@pytest.mark.adapter
@pytest.mark.parametrize("shards", [1, 3])
async def test_what_was_applied_before_all_reads_is_replayed_at_once(
    shards: int, sharded: Callable[[int], LoopSpec], redis: Redis, tmp_path: Path
) -> None:
    """The batches before the first read are joined, and every read still equals the replay; a fault is still found."""
    loop = Loop(sharded(shards), redis, tmp_path)
    for step in range(5):
        await loop.feed([*catalogue(loop, step), *ratings(loop, 50, step=step)])
    await turn(loop, range(5, 9))
    found = (await loop.check()).found
    assert (found.impressions, found.mismatches, found.unknown) == (4, 0, 0), found.examples
    table = ensure_table(loop.catalog, loop.spec.loop, APPLIED)
    logs = read_log(table, loop.layout.hash, settled=Settled(before=time.time()))
    assert all(len(log.batches) <= 2 for log in logs.values())
    await loop.read("u1", BEGIN + 9000, wrong=0.01)
    assert (await loop.check()).found.mismatches == 1


@pytest.mark.adapter
@pytest.mark.parametrize("shards", [1, 3])
async def test_repeats_are_known_by_append_times_in_the_replay_too(
    shards: int, sharded: Callable[[int], LoopSpec], redis: Redis, tmp_path: Path
) -> None:
    """An id counts again once the log has passed a window without it, and never within one; parity is 0."""
    loop = Loop(sharded(shards), redis, tmp_path)
    message = behavior.Interaction(user_id="u1", item_id="i1", type="rating", value=7)
    begin = time.time() // DUPLICATES_S * DUPLICATES_S
    for after_s in (
        0.0,
        0.01,
        DUPLICATES_S,
        2.0 * DUPLICATES_S,
        2.01 * DUPLICATES_S,
        3600.0,
        3599.0,
        3600.0 + DUPLICATES_S,
    ):
        await loop.assign()
        event = loop.event("behavior.interactions", message, BEGIN, id="sent again")
        other = loop.event("behavior.interactions", message, BEGIN)
        await loop.feed([each._replace(arrival_time=begin + after_s) for each in (event, other)])
        await loop.read("u1", BEGIN)
    value = (await loop.store.values([("item", "i1")]))["item", "i1"]
    assert value is not None
    assert State.unpack(loop.layout.slots("item"), value).sums[0] == pytest.approx(8 + 3)
    found = (await loop.check()).found
    assert (found.impressions, found.mismatches, found.unknown) == (8, 0, 0), found.examples


@pytest.mark.adapter
async def test_a_changed_value_is_found(loop: Loop) -> None:
    """One number that was served otherwise than the store held it is one mismatch, with request, item and column."""
    await turn(loop, range(4))
    await loop.read("u1", BEGIN + 3000, wrong=0.01)
    report = await loop.check()
    assert (report.found.impressions, report.found.mismatches) == (5, 1)
    (example,) = report.found.examples
    assert (example.request_id, example.item_id, example.column) == ("r5", ITEMS[0], loop.layout.columns[0])


@pytest.mark.adapter
async def test_a_changed_algebra_is_found(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the replay decays late events otherwise than the stream did, the check says so."""
    await turn(loop, range(4))
    monkeypatch.setattr(state.State, "_fold_late", lambda self, plan, time, value, categories: None)
    assert (await loop.check()).found.mismatches > 0


@pytest.mark.adapter
async def test_the_newest_reads_are_checked(loop: Loop) -> None:
    """A bound on the impressions keeps the newest, and still replays the whole log behind them."""
    await turn(loop, range(5))
    report = await loop.check(most=2)
    assert (report.found.impressions, report.found.mismatches) == (2, 0)
    assert report.events > 100


@pytest.mark.adapter
async def test_a_read_ahead_of_the_warehouse_waits(loop: Loop) -> None:
    """Batches that are not archived yet make their readers pending, neither unknown nor wrong."""
    await turn(loop, range(3))
    await loop.archive.flush()
    behind, loop.archive = loop.archive, Archive(loop.catalog, rows=10**6, seconds=60, payload_bytes=10**9)
    loop.archive.add = lambda events: behind.add([each for each in events if "interactions" not in each.topic])
    loop.archive.flush = behind.flush
    await turn(loop, range(3, 5))
    report = await loop.check()
    assert (report.found.impressions, report.found.mismatches, report.found.unknown) == (3, 0, 0)
    assert report.pending == 2


@pytest.mark.adapter
async def test_a_hole_in_the_log_is_no_mismatch(loop: Loop) -> None:
    """Reads of a batch that the log lacks, or of values that it may have changed, are unknown; the rest is checked."""
    loop.lost = {3}  # the second turn's ratings
    await turn(loop, range(6))
    found = (await loop.check()).found
    assert found.mismatches == 0
    assert found.impressions >= 1
    assert found.unknown >= 1
    assert found.impressions + found.unknown == 6


@pytest.mark.adapter
async def test_a_lost_store_that_was_rebuilt_is_no_mismatch(loop: Loop) -> None:
    """After Redis was lost and read everything again, older reads are unknown and newer ones are checked."""
    history: list[Event] = []
    add = loop.archive.add
    loop.archive.add = lambda events: (history.extend(events), add(events))[1]
    await turn(loop, range(4))
    for each in [key async for key in loop.redis.scan_iter(store_keys(loop.spec.loop))]:
        await loop.redis.delete(each)
    await loop.assign()
    await loop.stream.apply([each for each in history if not each.topic.endswith("applied")])
    await loop.read("u1", BEGIN + 9000, age_s=-120)
    report = await loop.check()
    assert (report.found.impressions, report.found.mismatches) == (1, 0), report.found.examples
    assert report.found.reasons == {REBUILT: 4}


@pytest.mark.adapter
async def test_a_batch_that_is_logged_twice_counts_once(loop: Loop) -> None:
    """A description that is sent again, since nobody acknowledged it, changes nothing."""
    sent: list[Event] = []
    add = loop.archive.add
    loop.archive.add = lambda events: (sent.extend(events), add(events))[1]
    await turn(loop, range(3))
    again = [each for each in sent if each.topic.endswith("applied")]
    await turn(loop, range(3, 5))
    for each in again:
        await add([loop.event("features.applied", each.message, each.time)])
    found = (await loop.check()).found
    assert (found.impressions, found.mismatches, found.unknown) == (5, 0, 0)


@pytest.mark.adapter
async def test_an_erased_user_is_no_mismatch(loop: Loop) -> None:
    """Where a forgotten user's events are gone, what they had changed is unknown; what they had not stays checked."""
    await turn(loop, range(3))
    await loop.archive.flush()
    erase_user(ensure_table(loop.catalog, loop.spec.loop, INTERACTIONS), "u2".__eq__, since_ms=0)
    found = (await loop.check()).found
    assert found.mismatches == 0
    assert found.impressions + found.unknown == 3
    assert found.unknown >= 1


@pytest.mark.adapter
async def test_a_loop_is_checked_when_somebody_asks(loop: Loop, loop_file: Path, kafka: str) -> None:
    """The process answers a new check with its examples, and afterwards the last one; unknown loops are refused."""
    await turn(loop, range(3))
    await loop.read("u1", BEGIN + 3000, wrong=0.01)
    await loop.archive.flush()
    async with parity_stub(loop, loop_file, kafka) as (_, stub):
        with pytest.raises(NotFound) as caught:
            await stub.GetParity(pb.GetParityRequest(loop=loop.spec.loop), timeout=5)
        assert caught.value.reason == "NO_REPORT"
        found = await stub.CheckParity(pb.CheckParityRequest(loop=loop.spec.loop), timeout=60)
        (report,) = found.reports
        assert (report.impressions, report.mismatches, dict(report.unknown), report.pending) == (4, 1, {}, 0)
        assert [each.request_id for each in report.examples] == ["r4"]
        last = await stub.GetParity(pb.GetParityRequest(loop=loop.spec.loop), timeout=5)
        assert [*last.reports] == [last.report] == [found.report] == [report]
        with pytest.raises(NotFound) as caught:
            await stub.CheckParity(pb.CheckParityRequest(loop="nowhere"), timeout=5)
        assert caught.value.reason == "UNKNOWN_LOOP"


@pytest.mark.adapter
async def test_a_scheduled_check_is_a_metric(
    spec: LoopSpec, redis: Redis, tmp_path: Path, start_process: Callable[..., Any]
) -> None:
    """The process checks by itself each interval, and its metrics page holds what was found, and what was set aside."""
    loop = Loop(spec, redis, tmp_path / "warehouse")
    await turn(loop, range(3))
    await loop.read("u1", BEGIN + 3000, wrong=0.01)
    await loop.archive.flush()
    put_strange(loop, INTERACTIONS, user_id=None)
    await turn(loop, range(3, 4))
    await loop.archive.flush()
    (port,) = free_ports(1)
    start_process("check", GYRE_FEATURES_CHECK_INTERVAL_S="0.2", GYRE_METRICS_LISTEN=f"127.0.0.1:{port}")
    labels = f'layout="{loop.layout.hash}",loop="{spec.loop}"'
    wanted = [
        f"gyre_features_parity_mismatches{{{labels}}} 1.0",
        f'gyre_features_parity_unreadable_rows{{{labels},table="{INTERACTIONS}"}} 1.0',
        f'gyre_features_parity_unreadable_rows{{{labels},table="{CATALOGUE}"}} 0.0',
    ]

    async def published() -> bool:
        try:
            page = await asyncio.to_thread(urllib.request.urlopen, f"http://127.0.0.1:{port}/metrics", timeout=2)
        except OSError:
            return False
        with page:
            lines = page.read().decode().splitlines()
            return all(each in lines for each in wanted)

    await eventually(published, timeout_s=40, message="the mismatch is on the metrics page")


@pytest.mark.adapter
async def test_one_check_ends_with_a_code(
    spec: LoopSpec, redis: Redis, tmp_path: Path, start_process: Callable[..., Any]
) -> None:
    """`check-once` prints what it found of each loop and ends with 0, or with 1 where something mismatches."""
    loop = Loop(spec, redis, tmp_path / "warehouse")
    await turn(loop, range(3))
    await loop.archive.flush()
    process = start_process("check-once")
    assert await asyncio.to_thread(process.wait, 30) == 0, process.log.read_text()
    columns = len(loop.layout.columns)
    assert f"parity: 3 impressions, {3 * 12 * columns} values, 0 mismatches, 0 unknown" in process.log.read_text()
    await loop.read("u1", BEGIN + 3000, wrong=0.01)
    await loop.archive.flush()
    process = start_process("check-once")
    assert await asyncio.to_thread(process.wait, 30) == 1
    assert "r4" in process.log.read_text()
