"""The gateway over gRPC on the real Kafka: answers, fallbacks, limits in time, every status and reason."""

import re

import pytest
from gyre.events.v1 import behavior_pb2 as behavior
from gyre.gateway.v1 import gateway_pb2 as pb
from gyre_local.testing import eventually
from gyre_runtime import DeadlineExceeded, GyreError, Invalid, NotFound, Precondition, Unavailable, Unsupported

from .conftest import Mesh, StartMesh, ids

pytestmark = pytest.mark.adapter
REVERSED = ["item-1", "item-2", "item-3"]
"""The told model's order: the reverse of popularity."""
POPULAR = ["item-3", "item-2", "item-1"]
NO_DEADLINE_S = 600.0
"""A caller's deadline that no test lives to see: an answer while a peer hangs for ever is bounded by the loop."""


async def until_whole(mesh: Mesh) -> None:
    """Wait until an answer is not degraded: the peers are connected."""

    async def whole() -> bool:
        return not (await mesh.rank()).provenance.degraded

    await eventually(whole, message="the peers are used")


async def test_the_live_model_ranks(mesh: Mesh) -> None:
    """An answer has the live version's order and scores, and says version, epoch, arm, propensity and feature age."""
    epoch = await mesh.roll_out(("live", "v1", 1.0))
    answer = await mesh.rank("item-2", "item-3", "item-1")
    assert ids(answer) == REVERSED
    assert [item.score for item in answer.items] == [-1, -2, -3]
    provenance = answer.provenance
    assert (provenance.model_version, provenance.epoch, provenance.arm) == ("v1", epoch, "live")
    assert (provenance.arm_propensity, provenance.feature_age_s) == (1.0, 12.5)
    assert not provenance.degraded
    assert not provenance.degraded_reason
    assert not provenance.explored
    assert re.fullmatch("gw-[0-9a-f]{32}", provenance.request_id)
    assert mesh.inference.requests[-1].epoch == epoch


async def test_limit_cuts_the_answer(mesh: Mesh) -> None:
    """Only the first `limit` items are answered."""
    await mesh.roll_out(("live", "v1", 1.0))
    assert ids(await mesh.rank(limit=2)) == REVERSED[:2]


async def test_before_the_first_model_popularity_ranks(mesh: Mesh) -> None:
    """Without a model the order is that of popularity, degraded as NO_MODEL, and inference is not asked."""
    answer = await mesh.rank()
    assert ids(answer) == POPULAR
    assert (answer.provenance.degraded, answer.provenance.degraded_reason) == (True, "NO_MODEL")
    assert not answer.provenance.model_version
    assert not mesh.inference.requests


async def test_a_failing_candidate_falls_back_to_the_live_version(mesh: Mesh) -> None:
    """A user of the candidate that fails gets the live version's scores, and the answer says why."""
    for error, reason in (
        (Precondition("VERSION_NOT_SERVED", "x"), "VERSION_NOT_SERVED"),
        (Precondition("LAYOUT_MISMATCH", "x"), "LAYOUT_MISMATCH"),
        (GyreError("MODEL_FAILED", "x"), "MODEL_FAILED"),
        (Unavailable("TRITON_UNAVAILABLE", "x"), "TRITON_UNAVAILABLE"),
        (GyreError("SOMETHING_ELSE", "x"), "INFERENCE_UNAVAILABLE"),
    ):
        await mesh.roll_out(("live", "v1", 0.0), ("candidate", "v2", 1.0))
        mesh.inference.errors["v2"] = error
        answer = await mesh.rank()
        assert ids(answer) == REVERSED
        assert (answer.provenance.model_version, answer.provenance.arm) == ("v1", "candidate")
        assert answer.provenance.degraded_reason == reason


async def test_the_live_version_falls_back_to_the_last_good_one_then_to_popularity(mesh: Mesh) -> None:
    """The live version's fallback is the last good one; when that fails, too, popularity orders the items."""
    await mesh.roll_out(("live", "v2", 1.0), last_good_version="v1")
    mesh.inference.errors["v2"] = Precondition("VERSION_NOT_SERVED", "x")
    answer = await mesh.rank()
    assert (answer.provenance.model_version, answer.provenance.degraded_reason) == ("v1", "VERSION_NOT_SERVED")
    mesh.inference.errors["v1"] = GyreError("MODEL_FAILED", "x")
    answer = await mesh.rank()
    assert ids(answer) == POPULAR
    assert (answer.provenance.model_version, answer.provenance.degraded_reason) == ("", "VERSION_NOT_SERVED")


async def test_bad_scores_are_not_used(mesh: Mesh) -> None:
    """Scores that are too few or not finite degrade the answer as BAD_SCORES."""
    await mesh.roll_out(("live", "v1", 1.0))
    for scores in ([1.0, 2.0], [1.0, 2.0, float("nan")], []):
        mesh.inference.scores["v1"] = scores
        answer = await mesh.rank()
        assert (ids(answer), answer.provenance.degraded_reason) == (POPULAR, "BAD_SCORES")


async def test_each_version_gets_features_of_its_own_layout(mesh: Mesh) -> None:
    """A fallback that reads another layout gets features of that one, and one whose layout is refused is skipped."""
    layouts = {"v2": "new", "v1": mesh.features.layout.hash}
    await mesh.roll_out(("live", "v1", 0.0), ("candidate", "v2", 1.0), layouts=layouts)
    assert (await mesh.rank()).provenance.model_version == "v2"
    mesh.inference.errors["v2"] = GyreError("MODEL_FAILED", "x")
    assert (await mesh.rank()).provenance.model_version == "v1"
    assert [request.features.layout for request in mesh.inference.requests[-2:]] == ["new", layouts["v1"]]
    mesh.features.refused_layouts.add("new")
    answer = await mesh.rank()
    assert (answer.provenance.model_version, answer.provenance.degraded_reason) == ("v1", "LAYOUT_NOT_SERVED")
    counts = mesh.running.routers[mesh.loop].counts["v2"]
    assert (counts.requests, counts.failures, counts.left_out, counts.without_features) == (2, 1, 1, 1)


async def test_a_layout_that_is_not_read_in_time_is_no_reason_to_ask_no_model(mesh: Mesh) -> None:
    """While the candidate's layout hangs its users get the live model's order by its own layout, marked as degraded."""
    layouts = {"v2": "new", "v1": mesh.features.layout.hash}
    await mesh.roll_out(("live", "v1", 0.0), ("candidate", "v2", 1.0), layouts=layouts)
    mesh.features.hanging_layouts.add("new")

    async def by_live() -> bool:
        provenance = (await mesh.rank()).provenance
        assert provenance.degraded_reason == "FEATURES_UNAVAILABLE"
        return provenance.model_version == "v1"

    await eventually(by_live, timeout_s=20, message="the live model answers by its own layout")
    counts = mesh.running.routers[mesh.loop].counts["v2"]
    assert (counts.requests, counts.failures) == (0, 0)
    assert counts.left_out == counts.without_features > 0


async def test_a_failing_candidate_is_tripped_and_recovers(mesh: Mesh) -> None:
    """After five failures live answers for it; well again, it is asked after a back-off or under a new epoch."""
    arms = ("live", "v1", 0.0), ("candidate", "v2", 1.0)
    await mesh.roll_out(*arms)

    async def reason() -> str:
        return (await mesh.rank()).provenance.degraded_reason

    mesh.inference.errors["v2"] = GyreError("MODEL_FAILED", "x")
    assert [await reason() for _ in range(5)] == ["MODEL_FAILED"] * 5
    assert await reason() == "CANDIDATE_TRIPPED"
    mesh.inference.errors.clear()

    async def whole() -> bool:
        return not await reason()

    await eventually(whole, message="the candidate is asked again under the same epoch")
    mesh.inference.errors["v2"] = GyreError("MODEL_FAILED", "x")
    assert [await reason() for _ in range(6)] == ["MODEL_FAILED"] * 5 + ["CANDIDATE_TRIPPED"]
    mesh.inference.errors.clear()
    await mesh.roll_out(*arms)
    answer = await mesh.rank()
    assert (answer.provenance.model_version, answer.provenance.degraded) == ("v2", False)


async def test_without_features_the_callers_order_stays(mesh: Mesh, down: Unavailable) -> None:
    """When features fail the caller's order is answered, as FEATURES_UNAVAILABLE, with or without a model."""
    mesh.features.error = down
    for _ in range(2):
        answer = await mesh.rank("item-2", "item-3", "item-1")
        assert ids(answer) == ["item-2", "item-3", "item-1"]
        assert answer.provenance.degraded_reason == "FEATURES_UNAVAILABLE"
        assert answer.provenance.feature_age_s < 0
        await mesh.roll_out(("live", "v1", 1.0))
    assert not mesh.inference.requests


async def test_peers_that_are_gone_and_come_back(mesh: Mesh) -> None:
    """Stopped processes degrade the answers that need them; back at their addresses they are used without a restart."""
    await mesh.roll_out(("live", "v1", 1.0))
    await mesh.rank()
    await mesh.inference_peer.stop()
    answer = await mesh.rank()
    assert (ids(answer), answer.provenance.degraded_reason) == (POPULAR, "INFERENCE_UNAVAILABLE")
    await mesh.features_peer.stop()
    answer = await mesh.rank()
    assert (ids(answer), answer.provenance.degraded_reason) == (REVERSED, "FEATURES_UNAVAILABLE")
    await mesh.inference_peer.start()
    await mesh.features_peer.start()

    await until_whole(mesh)


@pytest.mark.parametrize("hanging", ["features", "candidate", "all versions"])
async def test_an_answer_comes_in_time_though_peers_hang(start: StartMesh, hanging: str) -> None:
    """Whatever hangs, the answer comes by the loop's deadline of 300 ms and says what was late."""
    mesh = await start(patient=False)
    await mesh.roll_out(("live", "v1", 0.0), ("candidate", "v2", 1.0), last_good_version="v0")
    await until_whole(mesh)
    mesh.features.hangs = hanging == "features"
    mesh.inference.hanging = {"features": set(), "candidate": {"v2"}, "all versions": {"v0", "v1", "v2"}}[hanging]
    late = "FEATURES_UNAVAILABLE" if hanging == "features" else "INFERENCE_TIMEOUT"

    async def named() -> pb.RankResponse | None:
        answer = await mesh.rank(timeout=NO_DEADLINE_S)
        return answer if answer.provenance.degraded_reason == late else None

    answer = await eventually(named, message=f"an answer says {late}")
    assert answer.provenance.model_version == ("v1" if hanging == "candidate" else "")
    # The first version takes 250 of the 300 ms: there is one budget for all calls, and none of it is left for a third.
    assert "v0" not in {request.version for request in mesh.inference.requests}


async def test_the_callers_own_deadline_is_kept(start: StartMesh) -> None:
    """A caller that leaves less time than the loop's deadline gets its degraded answer within that time."""
    mesh = await start(patient=False)
    await mesh.roll_out(("live", "v1", 1.0))
    await until_whole(mesh)
    mesh.features.hangs = True

    async def in_time() -> bool:
        try:
            return (await mesh.rank(timeout=0.12)).provenance.degraded_reason == "FEATURES_UNAVAILABLE"
        except DeadlineExceeded:
            return False

    await eventually(in_time, timeout_s=3, message="the answer comes within the caller's 120 ms")


async def test_exploration_says_its_propensities(start: StartMesh) -> None:
    """An explored answer carries the propensity 1/n with each item; a request id repeated gets the same order."""
    mesh = await start(exploration=0.5)
    await mesh.roll_out(("live", "v1", 1.0))
    items = [f"item-{n}" for n in range(8)]
    answers = [await mesh.rank(*items, request_id=f"r{n}") for n in range(40)]
    explored = [answer for answer in answers if answer.provenance.explored]
    assert 8 <= len(explored) <= 32
    assert {item.propensity for answer in explored for item in answer.items} == {1 / 8}
    assert {ids(answer) == items for answer in answers if not answer.provenance.explored} == {True}
    again = await mesh.rank(*items, request_id=explored[0].provenance.request_id)
    assert again == explored[0]


async def test_recommend_orders_what_is_popular(mesh: Mesh) -> None:
    """Candidates are the popular items, with the user's, as many as gyre.yaml says; the model orders them."""
    await mesh.roll_out(("live", "v1", 1.0))
    mesh.features.popular = [f"item-{n}" for n in range(30, 0, -1)]
    request = pb.RecommendRequest(loop=mesh.loop, user_id="user-1", limit=3)
    answer = await mesh.stub.Recommend(request, timeout=30)
    assert ids(answer) == ["item-11", "item-12", "item-13"]
    assert (answer.provenance.model_version, answer.provenance.degraded) == ("v1", False)
    asked = mesh.features.popular_requests[0]
    assert (asked.user_id, asked.limit) == ("user-1", 20)


async def test_recommend_without_features_answers_with_nobodys_list(start: StartMesh, down: Unavailable) -> None:
    """Without features the loop's own popular list is answered as it stands, never what another user got."""
    mesh = await start(patient=False)
    await mesh.roll_out(("live", "v1", 1.0))
    await until_whole(mesh)

    async def recommended(user: str) -> pb.RecommendResponse:
        request = pb.RecommendRequest(loop=mesh.loop, user_id=user, limit=2)
        return await mesh.stub.Recommend(request, timeout=NO_DEADLINE_S)

    answer = await recommended("user-1")
    assert (ids(answer), answer.provenance.degraded_reason) == ([], "NO_CANDIDATES")
    mesh.features.popular = POPULAR
    mesh.features.own_popular = {"user-1": ["item-7", "item-8"], "user-2": ["item-9"]}
    assert ids(await recommended("user-1")) == ["item-7", "item-8"]
    assert ids(await recommended("user-2")) == ["item-9"]
    for mesh.features.error, mesh.features.hangs in ((down, False), (None, True)):
        for user in ("user-1", "user-2", "user-3"):
            answer = await recommended(user)
            assert (ids(answer), answer.provenance.degraded_reason) == (POPULAR[:2], "FEATURES_UNAVAILABLE")


async def test_recommend_never_saw_features(mesh: Mesh, down: Unavailable) -> None:
    """Where features never answered, Recommend answers an empty list that says so, and no error."""
    mesh.features.error = down
    answer = await mesh.stub.Recommend(pb.RecommendRequest(loop=mesh.loop, user_id="user-1", limit=2), timeout=30)
    assert (ids(answer), answer.provenance.degraded_reason) == ([], "FEATURES_UNAVAILABLE")


async def test_unknown_loops_are_not_found(mesh: Mesh) -> None:
    """A loop that the gateway does not serve gives NOT_FOUND, UNKNOWN_LOOP, in every method."""
    event = pb.TrackedEvent(interaction=behavior.Interaction(user_id="u", item_id="i", type="click"))
    for call in (
        mesh.stub.Rank(pb.RankRequest(loop="elsewhere", user_id="u", item_ids=["a"]), timeout=30),
        mesh.stub.Recommend(pb.RecommendRequest(loop="elsewhere", user_id="u", limit=1), timeout=30),
        mesh.stub.Track(pb.TrackRequest(loop="elsewhere", events=[event]), timeout=30),
    ):
        with pytest.raises(NotFound) as caught:
            await call
        assert caught.value.reason == "UNKNOWN_LOOP"


BAD_REQUESTS: tuple[tuple[dict[str, object], str, str, str], ...] = (
    ({"item_ids": ["a", "b", "a"]}, "item_ids[2]", "'a'", "is given twice"),
    ({"item_ids": [f"i{n}" for n in range(201)]}, "item_ids", "201", "must be at most 200 items"),
    ({"item_ids": ["a", ""]}, "item_ids[1]", "0 characters", "must have at least 1 character"),
    ({"item_ids": []}, "item_ids", "unset", "is required"),
    ({"user_id": ""}, "user_id", "unset", "is required"),
    ({"user_id": "u" * 129}, "user_id", "129 characters", "must have at most 128 characters"),
    ({"limit": 1001}, "limit", "1001", "must be at most 1000"),
    ({"request_id": "a b"}, "request_id", "'a b'", "must match"),
    ({"context": {"numbers": {"device": float("nan")}}}, "context.numbers[device]", "nan", "must be finite"),
    (
        {"context": {"labels": {"referrer": "r" * 129}}},
        "context.labels[referrer]",
        "129 characters",
        "at most 128 characters",
    ),
)


async def test_a_bad_request_names_field_value_and_rule(mesh: Mesh) -> None:
    """INVALID_ARGUMENT names the field, its value and the rule that it breaks."""
    for changes, field, value, rule in BAD_REQUESTS:
        request = pb.RankRequest(**{"loop": mesh.loop, "user_id": "u", "item_ids": ["a"], **changes})
        with pytest.raises(Invalid) as caught:
            await mesh.stub.Rank(request, timeout=30)
        broken = caught.value.violations[0]
        assert (caught.value.reason, broken.field) == ("INVALID_FIELD", field)
        assert value in broken.value
        assert rule in broken.rule


async def test_recommend_refuses_more_than_the_loop_ranks(mesh: Mesh) -> None:
    """A limit above the loop's max_candidates is refused with the bound."""
    with pytest.raises(Invalid) as caught:
        await mesh.stub.Recommend(pb.RecommendRequest(loop=mesh.loop, user_id="u", limit=201), timeout=30)
    assert str(caught.value.violations[0]) == "limit = 201: must be at most 200"


async def test_the_replay_clock_needs_the_requests_time(start: StartMesh) -> None:
    """On the replay clock a request without a time, or with one of no year, is refused; else features get its time."""
    mesh = await start(clock="replay")
    with pytest.raises(Invalid) as caught:
        await mesh.rank()
    assert caught.value.violations[0].field == "context.request_time"
    context = pb.RequestContext(numbers={"device": 2.0}, labels={"referrer": "mail"})
    context.request_time.seconds = 2**60
    with pytest.raises(Invalid, match=r"context\.request_time"):
        await mesh.rank(context=context)
    context.request_time.FromJsonString("2013-03-01T12:00:00.5Z")
    await mesh.rank(context=context)
    asked = mesh.features.requests[-1]
    assert asked.request_time == context.request_time
    assert (dict(asked.context), dict(asked.labels)) == ({"device": 2.0}, {"referrer": "mail"})


async def test_batches_are_not_offered(mesh: Mesh) -> None:
    """The batch methods answer UNIMPLEMENTED with the reason NOT_IMPLEMENTED, the stream too."""
    entry = {"entries": [{"user_id": "u", "item_ids": ["a"]}], "request_id": "r"}
    with pytest.raises(Unsupported) as submitted:
        await mesh.stub.SubmitBatch(pb.SubmitBatchRequest(loop=mesh.loop, **entry), timeout=30)
    with pytest.raises(Unsupported) as got:
        await mesh.stub.GetBatch(pb.GetBatchRequest(loop=mesh.loop, batch_id="b"), timeout=30)
    with pytest.raises(Unsupported) as watched:
        async for _ in mesh.stub.WatchBatch(pb.WatchBatchRequest(loop=mesh.loop, batch_id="b"), timeout=30):
            pass
    assert {each.value.reason for each in (submitted, got, watched)} == {"NOT_IMPLEMENTED"}
