"""The processes that check parity, over gRPC, the command line and the metrics page."""

import asyncio
import os
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from gyre.events.v1 import behavior_pb2 as behavior
from gyre.events.v1 import privacy_pb2 as privacy
from gyre.features.v1 import parity_pb2 as pb
from gyre.features.v1.parity_pb2_grpc import ParityServiceStub
from gyre_core.spec import LoopSpec
from gyre_core.topics import topic
from gyre_features.processes.check import check
from gyre_features.settings import FeaturesSettings
from gyre_local.reserve import free_ports
from gyre_local.testing import eventually
from gyre_privacy.pseudonyms import record_key
from gyre_runtime import Lifespan, NotFound, ServiceSettings, channel
from gyre_runtime.kafka import Producer
from gyre_warehouse.tables import (
    APPLIED,
    IMPRESSIONS,
    INTERACTIONS,
)
from gyre_warehouse.tables import ITEMS as CATALOGUE
from redis.asyncio import Redis

from .parity_loop import BEGIN, Loop, put_strange, turn


@pytest.fixture
def loop(spec: LoopSpec, redis: Redis, tmp_path: Path) -> Loop:
    """A loop that stands at the beginning."""
    return Loop(spec, redis, tmp_path)


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
async def test_a_report_names_no_request_of_who_was_forgotten(loop: Loop, loop_file: Path, kafka: str) -> None:
    """Once a user was erased the last report gives counts without examples, whose requests may be the user's."""
    await turn(loop, range(3))
    await loop.read("u1", BEGIN + 3000, wrong=0.01)
    await loop.archive.flush()
    async with parity_stub(loop, loop_file, kafka) as (_, stub):
        (report,) = (await stub.CheckParity(pb.CheckParityRequest(loop=loop.spec.loop), timeout=60)).reports
        assert [each.request_id for each in report.examples] == ["r4"]
        erased = privacy.UserErased(user_hash=b"h" * 16)
        erased.forgotten_time.GetCurrentTime()
        async with Producer(kafka, source="test") as producer:
            await producer.send(topic(loop.spec.loop, "privacy.erasures"), erased, key=record_key(erased))

        async def last() -> pb.ParityReport:
            (found,) = (await stub.GetParity(pb.GetParityRequest(loop=loop.spec.loop), timeout=5)).reports
            assert not found.examples
            return found

        assert (await eventually(last, timeout_s=30, message="the report has no examples")).mismatches == 1


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
