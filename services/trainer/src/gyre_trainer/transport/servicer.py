"""Decodes calls, hands them to the handlers, encodes the answers."""

from __future__ import annotations

from collections.abc import AsyncIterator

from google.protobuf.timestamp_pb2 import Timestamp
from gyre.trainer.v1 import trainer_pb2 as pb
from gyre.trainer.v1 import trainer_pb2_grpc as rpc
from opentelemetry import trace

from gyre_trainer.domain import Run, RunState
from gyre_trainer.handlers import RunRegistry, start_run
from gyre_trainer.ports import Announcer
from gyre_trainer.wire import measurements

_DEFAULT_LIMIT = 100


class TrainerServicer(rpc.TrainerServiceServicer):
    """`gyre.trainer.v1.TrainerService`."""

    def __init__(self, runs: RunRegistry, announcer: Announcer) -> None:
        self._runs = runs
        self._announcer = announcer

    async def StartRun(self, request: pb.StartRunRequest, context: object) -> pb.StartRunResponse:
        """Queue a run."""
        run = await start_run(self._runs, self._announcer, request.loop, request.request_id)
        trace.get_current_span().set_attributes({"gyre.loop": run.loop, "gyre.run_id": run.run_id})
        return pb.StartRunResponse(run=encode(run))

    async def GetRun(self, request: pb.GetRunRequest, context: object) -> pb.GetRunResponse:
        """Return one run."""
        return pb.GetRunResponse(run=encode(self._runs.get(request.run_id)))

    async def ListRuns(self, request: pb.ListRunsRequest, context: object) -> pb.ListRunsResponse:
        """List the runs of a loop, newest first."""
        found = self._runs.newest(request.loop, request.limit or _DEFAULT_LIMIT)
        return pb.ListRunsResponse(runs=[encode(run) for run in found])

    async def WatchRun(self, request: pb.WatchRunRequest, context: object) -> AsyncIterator[pb.WatchRunResponse]:
        """Stream a run at each change, then end."""
        async for run in self._runs.watch(request.run_id):
            yield pb.WatchRunResponse(run=encode(run))


def encode(run: Run) -> pb.Run:
    """A run as a message."""
    return pb.Run(
        erased_time=None if run.erased_time is None else _timestamp(run.erased_time),
        removed_time=None if run.removed_time is None else _timestamp(run.removed_time),
        run_id=run.run_id,
        loop=run.loop,
        state=pb.RunState.Value(f"RUN_STATE_{run.state.value}"),
        version=run.version if run.state is RunState.REGISTERED else "",
        trigger_id=run.trigger_id,
        reason=run.reason,
        create_time=_timestamp(run.create_time),
        update_time=_timestamp(run.update_time),
        measurements=measurements(run.measurements),
        snapshots=run.pins.snapshots if run.pins else {},
        mlflow_run_id=run.mlflow_run_id,
        progress=run.progress,
    )


def _timestamp(unix_s: float) -> Timestamp:
    made = Timestamp()
    made.FromMicroseconds(round(unix_s * 1e6))
    return made
