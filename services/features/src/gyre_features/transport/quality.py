"""The report on the raw stream over gRPC."""

from collections.abc import Mapping

from gyre.features.v1 import data_quality_pb2 as pb
from gyre.features.v1 import data_quality_pb2_grpc as rpc
from gyre_core.spec import LoopSpec

from gyre_features.quality.report import QualityWindows
from gyre_features.transport.features import unknown_loop

_DEFAULT_WINDOWS = 10


class DataQualityServicer(rpc.DataQualityServiceServicer):
    """Answers from the windows of the raw stream."""

    def __init__(self, windows: QualityWindows, loops: Mapping[str, LoopSpec]) -> None:
        self._windows = windows
        self._loops = loops

    async def GetReport(self, request: pb.GetReportRequest, context: object) -> pb.GetReportResponse:
        """Answer the newest windows of each topic.

        Raises:
            NotFound: the loop is not served.
        """
        if request.loop not in self._loops:
            raise unknown_loop(request.loop)
        return pb.GetReportResponse(windows=self._windows.newest(request.loop, request.windows or _DEFAULT_WINDOWS))
