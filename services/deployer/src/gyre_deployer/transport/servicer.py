"""`DeployerService` over gRPC."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping

from gyre.deployer.v1 import deployer_pb2 as pb
from gyre.deployer.v1 import deployer_pb2_grpc as rpc
from gyre_runtime import Unavailable, unknown_loop

from gyre_deployer.domain.rollouts import Rollout
from gyre_deployer.handlers.commands import Commands
from gyre_deployer.wire import rollout_message, view_message


class DeployerServicer(rpc.DeployerServiceServicer):
    """The rollouts of every loop that this process serves.

    Args:
        served: the names of its loops.
        loops: what does the work, for each loop whose log is folded; it grows during the start.
    """

    def __init__(self, served: Collection[str], loops: Mapping[str, Commands]) -> None:
        self._served, self._loops = frozenset(served), loops

    def _loop(self, name: str) -> Commands:
        loop = self._loops.get(name)
        if loop is None and name in self._served:
            raise Unavailable("LOG_NOT_READ", f"loop = {name!r}: its log is still being read from Kafka")
        if loop is None:
            raise unknown_loop(name)
        return loop

    def _message(self, loop: str, rollout: Rollout) -> pb.Rollout:
        return rollout_message(loop, rollout, waiting_for=self._loops[loop].ledger.waiting_for)

    async def StartRollout(self, request: pb.StartRolloutRequest, context: object) -> pb.StartRolloutResponse:
        """Start the rollout of a version, again where an earlier one failed; a repeated call finds what it started."""
        rollout = await self._loop(request.loop).start(request.version, request.request_id)
        return pb.StartRolloutResponse(rollout=self._message(request.loop, rollout))

    async def GetRollout(self, request: pb.GetRolloutRequest, context: object) -> pb.GetRolloutResponse:
        """Tell where a rollout stands."""
        rollout = self._loop(request.loop).get(request.rollout_id)
        return pb.GetRolloutResponse(rollout=self._message(request.loop, rollout))

    async def ListRollouts(self, request: pb.ListRolloutsRequest, context: object) -> pb.ListRolloutsResponse:
        """List the rollouts of a loop, newest first, and who gets which model now."""
        state = self._loop(request.loop).ledger.state
        rollouts = [self._message(request.loop, each) for each in reversed(list(state.rollouts.values()))]
        return pb.ListRolloutsResponse(rollouts=rollouts, view=view_message(state))

    async def WatchRollout(
        self, request: pb.WatchRolloutRequest, context: object
    ) -> AsyncIterator[pb.WatchRolloutResponse]:
        """Stream a rollout now and at each change, until it has ended."""
        async for rollout in self._loop(request.loop).watch(request.rollout_id):
            yield pb.WatchRolloutResponse(rollout=self._message(request.loop, rollout))

    async def Promote(self, request: pb.PromoteRequest, context: object) -> pb.PromoteResponse:
        """Give the candidate all traffic now."""
        rollout = await self._loop(request.loop).promote(request.rollout_id, request.reason)
        return pb.PromoteResponse(rollout=self._message(request.loop, rollout))

    async def Rollback(self, request: pb.RollbackRequest, context: object) -> pb.RollbackResponse:
        """Give all traffic back."""
        rollout = await self._loop(request.loop).roll_back(request.rollout_id, request.reason)
        return pb.RollbackResponse(rollout=self._message(request.loop, rollout))

    async def Pause(self, request: pb.PauseRequest, context: object) -> pb.PauseResponse:
        """Hold a rollout, or let it go on."""
        rollout = await self._loop(request.loop).pause(request.rollout_id, request.reason, resume=request.resume)
        return pb.PauseResponse(rollout=self._message(request.loop, rollout))
