"""`gyre quality` against a real server that answers as told."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from gyre.features.v1 import data_quality_pb2 as pb
from gyre.features.v1 import data_quality_pb2_grpc as rpc
from gyre_runtime import Health, NotFound, Registration, ServiceSettings, build_server
from typer.testing import Result


class ToldReports(rpc.DataQualityServiceServicer):
    """A window, a judgement of live features where `judged`, and the report of one run."""

    def __init__(self, *, judged: bool) -> None:
        self.judged = judged

    async def GetReport(self, request: Any, context: Any) -> pb.GetReportResponse:  # noqa: N802
        """The report."""
        good = pb.QualityCheck(name="drift.kl", column="a", value=0.5, threshold=1, passed=True)
        bad = pb.QualityCheck(name="drift.psi", column="b", value=2, threshold=1, action=pb.QUALITY_ACTION_BLOCK)
        if request.run_id:
            if request.run_id != "run-1":
                raise NotFound("UNKNOWN_REPORT", "must be of a training run that checked its data")
            report = pb.SnapshotReport(run_id="run-1", version="v2", blocks=True, checks=[good, bad])
            report.quarantined["interactions"] = 1234
            return pb.GetReportResponse(snapshot=report)
        answer = pb.GetReportResponse()
        answer.windows.add(topic="shop.behavior.interactions", events=4321)
        if self.judged:
            answer.live.CopyFrom(pb.LiveReport(version="v1", rows=9876, checks=[good, bad]))
        return answer


async def _run(gyre: Callable[..., Result], told: ToldReports, *words: str) -> Result:
    services = [Registration(rpc.add_DataQualityServiceServicer_to_server, told)]
    async with build_server(ServiceSettings(drain_s=1), services, health=Health()) as server:
        return await asyncio.to_thread(gyre, "quality", *words, features=server.address)


async def test_live_findings_are_shown_failed_first(gyre: Callable[..., Result]) -> None:
    """Window, items and version are named, and what fails stands before what passed, with what follows."""
    output = (await _run(gyre, ToldReports(judged=True), "shop")).output
    assert "4,321" in output
    assert "9,876 items beside the training set of v1" in output
    assert output.index("drift.psi") < output.index("drift.kl")
    assert "block" in output


async def test_before_a_judgement_it_says_so(gyre: Callable[..., Result]) -> None:
    """Without a model, or with too few impressions, there is no judgement yet."""
    assert "not judged yet" in (await _run(gyre, ToldReports(judged=False), "shop")).output


@pytest.mark.parametrize(("run", "code"), [("run-1", 0), ("run-9", 1)])
async def test_the_gate_of_a_run(gyre: Callable[..., Result], run: str, code: int) -> None:
    """`--run` shows what its gate found and left out; a run without a report is an error by name."""
    result = await _run(gyre, ToldReports(judged=True), "shop", "--run", run)
    assert result.exit_code == code
    found = "run run-1, v2: training forbidden, 1,234 interactions left out"
    assert (found if code == 0 else "UNKNOWN_REPORT") in result.output
