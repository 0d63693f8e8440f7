"""Parity checks over gRPC."""

from gyre.features.v1 import parity_pb2 as pb
from gyre.features.v1 import parity_pb2_grpc as rpc
from gyre_runtime import NotFound, unknown_loop

from gyre_features.parity.checks import Checks
from gyre_features.parity.loop import LoopReport


class ParityServicer(rpc.ParityServiceServicer):
    """Parity checks of loops over gRPC: made when asked for, or what the last ones found."""

    def __init__(self, checks: Checks) -> None:
        self._checks = checks

    async def CheckParity(self, request: pb.CheckParityRequest, context: object) -> pb.CheckParityResponse:
        """Check a loop now, and answer its reports, gyre.yaml's layout first; a check under way is waited for first.

        Mismatches are in the reports and are no error.

        Raises:
            NotFound: the loop is not served.
            Unavailable: the warehouse, or the definitions of the layouts, cannot be read (CHECK_FAILED).
        """
        self._require(request.loop)
        reports = [
            _report(each)
            for each in await self._checks.check(request.loop, max_impressions=request.impressions or None)
        ]
        return pb.CheckParityResponse(report=reports[0], reports=reports)

    async def GetParity(self, request: pb.GetParityRequest, context: object) -> pb.GetParityResponse:
        """Answer what the last successful check of a loop found, without checking it now.

        Raises:
            NotFound: the loop is not served, or was not checked yet (NO_REPORT).
        """
        self._require(request.loop)
        reports = [_report(each) for each in self._checks.last.get(request.loop, ())]
        if not reports:
            raise NotFound("NO_REPORT", f"loop = {request.loop!r}: was not checked since this process started")
        return pb.GetParityResponse(report=reports[0], reports=reports)

    def _require(self, loop: str) -> None:
        if loop not in self._checks.loops:
            raise unknown_loop(loop)


def _report(report: LoopReport) -> pb.ParityReport:
    found = report.found
    message = pb.ParityReport(
        loop=report.loop,
        layout=report.layout,
        seconds=report.seconds,
        impressions=found.impressions,
        values=found.values,
        mismatches=found.mismatches,
        unknown=found.reasons,
        pending=report.pending,
        batches=report.batches,
        events=report.events,
        rows=report.rows.read,
        unreadable_rows=report.rows.unreadable,
    )
    message.check_time.FromNanoseconds(int(report.check_time * 1e9))
    for each in found.examples:
        message.examples.add(
            request_id=each.request_id,
            item_id=each.item_id,
            column=each.column,
            served=each.served,
            replayed=each.replayed,
        )
    return message
