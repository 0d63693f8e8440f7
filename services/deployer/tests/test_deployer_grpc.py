"""The service over gRPC: what each method does, and every status and reason that it can return."""

import asyncio

import pytest
from gyre.deployer.v1 import deployer_pb2 as pb
from gyre_local.testing import eventually
from gyre_local.timeouts import scaled
from gyre_runtime import Invalid, NotFound, Precondition

pytestmark = pytest.mark.adapter


def by_id(kind, loop: str, rollout_id: str, **more):
    """A request for one rollout."""
    return kind(loop=loop, rollout_id=rollout_id, **more)


async def test_unknown_loops_rollouts_and_versions_are_not_found(start, loop, place) -> None:
    """Each method says NOT_FOUND with what it does not know."""
    stub = (await start()).stub
    unknown = [
        (
            stub.StartRollout(pb.StartRolloutRequest(loop=loop, version="v9", request_id="a"), timeout=30),
            "UNKNOWN_VERSION",
        ),
        (stub.GetRollout(by_id(pb.GetRolloutRequest, loop, "r9"), timeout=30), "UNKNOWN_ROLLOUT"),
        (stub.Promote(by_id(pb.PromoteRequest, loop, "r9"), timeout=30), "UNKNOWN_ROLLOUT"),
        (stub.Rollback(by_id(pb.RollbackRequest, loop, "r9"), timeout=30), "UNKNOWN_ROLLOUT"),
        (stub.Pause(by_id(pb.PauseRequest, loop, "r9"), timeout=30), "UNKNOWN_ROLLOUT"),
        (
            stub.StartRollout(pb.StartRolloutRequest(loop="no", version="v9", request_id="a"), timeout=30),
            "UNKNOWN_LOOP",
        ),
        (stub.GetRollout(by_id(pb.GetRolloutRequest, "no", "r9"), timeout=30), "UNKNOWN_LOOP"),
        (stub.ListRollouts(pb.ListRolloutsRequest(loop="no"), timeout=30), "UNKNOWN_LOOP"),
        (stub.Promote(by_id(pb.PromoteRequest, "no", "r9"), timeout=30), "UNKNOWN_LOOP"),
        (stub.Rollback(by_id(pb.RollbackRequest, "no", "r9"), timeout=30), "UNKNOWN_LOOP"),
        (stub.Pause(by_id(pb.PauseRequest, "no", "r9"), timeout=30), "UNKNOWN_LOOP"),
    ]
    for call, reason in unknown:
        with pytest.raises(NotFound) as caught:
            await call
        assert caught.value.reason == reason
    for name, reason in ((loop, "UNKNOWN_ROLLOUT"), ("no", "UNKNOWN_LOOP")):
        with pytest.raises(NotFound) as caught:
            await anext(aiter(stub.WatchRollout(by_id(pb.WatchRolloutRequest, name, "r9"), timeout=30)))
        assert caught.value.reason == reason


async def test_a_request_that_breaks_a_rule_is_invalid(start, loop, place) -> None:
    """A missing version or request id is named with its rule."""
    stub = (await start()).stub
    with pytest.raises(Invalid) as caught:
        await stub.StartRollout(pb.StartRolloutRequest(loop=loop), timeout=30)
    assert {each.field for each in caught.value.violations} == {"version", "request_id"}


async def test_a_rollout_is_watched_paused_resumed_and_promoted(start, models, loop, place) -> None:
    """Without traffic a canary stays; it can be held, let go on and promoted, and a watcher sees each change once."""
    deployer = await start()
    stub = deployer.stub
    await models.register("v1")
    first = await deployer.reaches("v1", "PROMOTED")
    await models.register("v2")
    canary = await deployer.reaches("v2", "CANARY")
    seen: list[pb.Rollout] = []

    async def watch() -> None:
        request = by_id(pb.WatchRolloutRequest, loop, canary.rollout_id)
        async for answer in stub.WatchRollout(request, timeout=60):
            seen.append(answer.rollout)  # noqa: PERF401 - the test looks at it meanwhile

    watching = asyncio.create_task(watch())
    await eventually(lambda: seen, message="the watcher sees the rollout")
    for _ in range(2):  # a repeated call changes nothing
        paused = await stub.Pause(by_id(pb.PauseRequest, loop, canary.rollout_id, reason="lunch"), timeout=30)
        assert paused.rollout.state == pb.ROLLOUT_STATE_PAUSED
        assert paused.rollout.events[-1].reason == "lunch"
        assert (paused.rollout.share, paused.rollout.epoch) == (0.1, paused.rollout.events[-1].epoch)
    for _ in range(2):
        resumed = await stub.Pause(by_id(pb.PauseRequest, loop, canary.rollout_id, resume=True), timeout=30)
        assert (resumed.rollout.state, resumed.rollout.share) == (pb.ROLLOUT_STATE_CANARY, 0.1)
    for _ in range(2):
        promoted = await stub.Promote(by_id(pb.PromoteRequest, loop, canary.rollout_id), timeout=30)
        assert promoted.rollout.state == pb.ROLLOUT_STATE_PROMOTED
    await asyncio.wait_for(watching, scaled(10))
    assert [each.state for each in seen] == [
        pb.ROLLOUT_STATE_CANARY,
        pb.ROLLOUT_STATE_PAUSED,
        pb.ROLLOUT_STATE_CANARY,
        pb.ROLLOUT_STATE_PROMOTED,
    ]
    view = (await deployer.listed()).view
    assert (view.arms[0].version, view.last_good_version) == ("v2", "v1")
    await refused_verbs(stub, loop, first.rollout_id, canary.rollout_id)


async def refused_verbs(stub, loop: str, first: str, second: str) -> None:
    """Verbs that make no sense after the promotion of the second, which then goes back to the first."""
    refusals = [
        (stub.Pause(by_id(pb.PauseRequest, loop, second), timeout=30), "ROLLOUT_ENDED"),
        (stub.Pause(by_id(pb.PauseRequest, loop, second, resume=True), timeout=30), "ROLLOUT_ENDED"),
        (stub.Rollback(by_id(pb.RollbackRequest, loop, first), timeout=30), "NOT_LIVE"),
    ]
    for call, reason in refusals:
        with pytest.raises(Precondition) as caught:
            await call
        assert caught.value.reason == reason
    for _ in range(2):
        back = await stub.Rollback(by_id(pb.RollbackRequest, loop, second, reason="complaints"), timeout=30)
        assert (back.rollout.state, back.rollout.reason) == (pb.ROLLOUT_STATE_ROLLED_BACK, "complaints")
    view = (await stub.ListRollouts(pb.ListRolloutsRequest(loop=loop), timeout=30)).view
    assert [(arm.name, arm.version, arm.share) for arm in view.arms] == [("live", "v1", 1.0)]
    assert view.last_good_version == ""
    for kind, method, reason in (
        (pb.PromoteRequest, stub.Promote, "ROLLOUT_ENDED"),
        (pb.PauseRequest, stub.Pause, "ROLLOUT_ENDED"),
    ):
        with pytest.raises(Precondition) as caught:
            await method(by_id(kind, loop, second), timeout=30)
        assert caught.value.reason == reason
    with pytest.raises(Precondition) as caught:
        await stub.Rollback(by_id(pb.RollbackRequest, loop, first), timeout=30)
    assert caught.value.reason == "NO_LAST_GOOD"


async def test_start_is_idempotent_and_waits_for_its_turn(start, models, loop, place) -> None:
    """A version has one rollout, which every call returns; another version is refused while one is under way."""
    deployer = await start()
    stub = deployer.stub
    await models.register("v1")
    first = await deployer.reaches("v1", "PROMOTED")
    await models.register("v2")
    canary = await deployer.reaches("v2", "CANARY")
    await models.register("v3")

    async def refused() -> Precondition | None:
        try:
            await stub.StartRollout(pb.StartRolloutRequest(loop=loop, version="v3", request_id="b"), timeout=30)
        except Precondition as error:
            return error
        except NotFound:
            return None
        return None

    error = await eventually(refused, message="v3 is known, and has to wait")
    assert (error.reason, error.metadata) == ("ROLLOUT_UNDER_WAY", {"rollout_id": canary.rollout_id})
    with pytest.raises(Precondition) as caught:
        await stub.Rollback(by_id(pb.RollbackRequest, loop, first.rollout_id), timeout=30)
    assert caught.value.reason == "ROLLOUT_UNDER_WAY"
    for request_id in ("a", "a", "other"):
        request = pb.StartRolloutRequest(loop=loop, version="v1", request_id=request_id)
        assert (await stub.StartRollout(request, timeout=30)).rollout.rollout_id == first.rollout_id
    back = await stub.Rollback(by_id(pb.RollbackRequest, loop, canary.rollout_id), timeout=30)
    assert back.rollout.state == pb.ROLLOUT_STATE_ROLLED_BACK
    got = await stub.GetRollout(by_id(pb.GetRolloutRequest, loop, canary.rollout_id), timeout=30)
    assert got.rollout.events == back.rollout.events
    await deployer.reaches("v3", "CANARY")
    with pytest.raises(Precondition) as caught:
        await stub.Promote(by_id(pb.PromoteRequest, loop, canary.rollout_id), timeout=30)
    assert caught.value.reason == "ROLLOUT_ENDED"
