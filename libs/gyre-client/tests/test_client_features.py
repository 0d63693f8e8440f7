"""`gyre features check` against a real server that answers as told."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from gyre.features.v1 import parity_pb2 as pb
from gyre.features.v1 import parity_pb2_grpc as rpc
from gyre_runtime import Health, NotFound, Registration, ServiceSettings, build_server
from typer.testing import Result


class ToldChecks(rpc.ParityServiceServicer):
    """Finds as many mismatches as the test wants, of two layouts, and knows no earlier report."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.newest = pb.ParityReport(loop="shop", layout="new", impressions=3, values=99)
        self.report = pb.ParityReport(loop="shop", layout="abc", impressions=12, values=3456, unknown={"a hole": 2})

    async def CheckParity(self, request: Any, context: Any) -> pb.CheckParityResponse:  # noqa: N802
        """The report."""
        self.asked.append(request)
        return pb.CheckParityResponse(report=self.newest, reports=[self.newest, self.report])

    async def GetParity(self, request: Any, context: Any) -> pb.GetParityResponse:  # noqa: N802
        """Nothing yet."""
        raise NotFound("NO_REPORT", f"loop = {request.loop!r}: was not checked yet")


@pytest.fixture
def told() -> ToldChecks:
    """The servicer that the test instructs."""
    return ToldChecks()


@pytest.fixture
async def run(told: ToldChecks, gyre: Callable[..., Result]) -> AsyncIterator[Callable[..., Any]]:
    """Run a command against the told service."""
    services = [Registration(rpc.add_ParityServiceServicer_to_server, told)]
    async with build_server(ServiceSettings(drain_s=1), services, health=Health()) as server:

        async def command(*words: str) -> Result:
            return await asyncio.to_thread(gyre, *words, features_check=server.address)

        yield command


async def test_a_check_without_mismatches_ends_well(run: Callable[..., Any], told: ToldChecks) -> None:
    """The command prints how much was compared of each layout and what could not be, and ends with 0."""
    done = await run("features", "check", "shop", "--impressions", "50")
    assert done.exit_code == 0
    assert "parity: 12 impressions, 3,456 values, 0 mismatches, 2 unknown" in done.output
    assert "unknown: 2: a hole" in done.output
    assert done.output.index("layout new") < done.output.index("layout abc")
    assert told.asked[0].impressions == 50


async def test_mismatches_end_with_a_code_and_their_places(run: Callable[..., Any], told: ToldChecks) -> None:
    """Where a number of any layout differs the command names its place and both numbers, and ends with 1."""
    told.report.mismatches = 1
    told.report.examples.add(request_id="r9", item_id="i4", column="popular_7d", served=1.5, replayed=2.25)
    done = await run("features", "check", "shop")
    assert done.exit_code == 1
    assert ["r9", "i4", "popular_7d", "1.5", "2.25"] in [line.split() for line in done.output.splitlines()]
    printed = await run("features", "check", "shop", "--json")
    assert [each["mismatches"] for each in json.loads(printed.output)["reports"]] == ["0", "1"]


async def test_without_an_earlier_check_there_is_no_last_report(run: Callable[..., Any]) -> None:
    """`--last` starts no check, and says so in one line where there was none."""
    done = await run("features", "check", "shop", "--last")
    assert (done.exit_code, done.output.strip()) == (1, "NO_REPORT: loop = 'shop': was not checked yet")
