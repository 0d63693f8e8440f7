"""The reports on the raw stream and on training snapshots over gRPC."""

import asyncio
from collections.abc import Mapping

from gyre.events.v1 import features_pb2 as events
from gyre.features.v1 import data_quality_pb2 as pb
from gyre.features.v1 import data_quality_pb2_grpc as rpc
from gyre_core.spec import LoopSpec
from gyre_runtime import NotFound, unknown_loop

from gyre_features.quality.findings import live_report
from gyre_features.quality.report import QualityWindows
from gyre_features.quality.snapshots import SnapshotReports

_DEFAULT_WINDOWS = 10


class DataQualityServicer(rpc.DataQualityServiceServicer):
    """Answers from the windows of the raw stream and the live features, and from what runs found in their snapshots.

    Args:
        windows: of the raw stream.
        snapshots: the reports of training runs.
        live: the newest judgement of each loop's live features, by loop.
        loops: by name.
    """

    def __init__(
        self,
        windows: QualityWindows,
        snapshots: SnapshotReports,
        live: Mapping[str, events.LiveQuality],
        loops: Mapping[str, LoopSpec],
    ) -> None:
        self._windows, self._live = windows, live
        self._snapshots = snapshots
        self._loops = loops

    async def GetReport(self, request: pb.GetReportRequest, context: object) -> pb.GetReportResponse:
        """Answer the newest windows of each topic, 10 by default, and of live features.

        Or a run's or snapshot's report.

        Raises:
            NotFound: the loop is not served (UNKNOWN_LOOP), or there is no such report (UNKNOWN_REPORT).
        """
        if request.loop not in self._loops:
            raise unknown_loop(request.loop)
        if request.run_id or request.snapshot_id:
            return pb.GetReportResponse(snapshot=await self._snapshot(request))
        windows = self._windows.newest(request.loop, request.windows or _DEFAULT_WINDOWS)
        judged = self._live.get(request.loop)
        return pb.GetReportResponse(windows=windows, live=None if judged is None else live_report(judged))

    async def _snapshot(self, request: pb.GetReportRequest) -> pb.SnapshotReport:
        run_id, snapshot_id = request.run_id, request.snapshot_id
        found = await asyncio.to_thread(self._snapshots.find, request.loop, run_id=run_id, snapshot_id=snapshot_id)
        if found is None:
            asked = f"run_id = {run_id!r}" if run_id else f"snapshot_id = {snapshot_id}"
            raise NotFound("UNKNOWN_REPORT", f"{asked}: must be of a training run that checked its data")
        return found
