"""Whose fault it is: what a gateway reports to Kafka against a version, and what it leaves out."""

import asyncio
import contextlib
import time

import grpc
import pytest
from gyre.events.v1 import models_pb2 as models
from gyre.gateway.v1 import gateway_pb2
from gyre_core.topics import topic
from gyre_gateway.domain.circuit import BACKOFF_S
from gyre_local.testing import eventually
from gyre_runtime import DeadlineExceeded, GyreError, Invalid
from gyre_runtime.events import Event, message_types
from gyre_runtime.kafka import View

from .conftest import Mesh, StartMesh

pytestmark = pytest.mark.adapter
ALL_TO_CANDIDATE = ("live", "v1", 0.0), ("candidate", "v2", 1.0)


async def reported(kafka: str, mesh: Mesh, version: str, *, requests: int) -> models.VersionCounts:
    """What the gateway's reports say of a version once a report of all these requests has come."""
    newest: dict[str, models.VersionCounts] = {}

    def adopt(_key: str, event: Event | None) -> None:
        if event is not None:
            newest.update({each.version: each for each in event.message.versions})

    def is_told() -> models.VersionCounts | None:
        counts = newest.get(version)
        return counts if counts is not None and counts.requests >= requests else None

    name = topic(mesh.loop, "models.gateway-reports")
    async with View(kafka, name, message_types(models.GatewayReport), on_change=adopt) as view:
        await view.ready()
        return await eventually(is_told, message=f"{requests} requests of {version} are reported")


async def scored_by_candidate(mesh: Mesh) -> bool:
    """A patient caller gets the candidate's own scores."""
    answer = await mesh.rank()
    assert (answer.provenance.model_version, answer.provenance.degraded_reason) == ("v2", "")
    return True


async def test_impatient_callers_are_not_the_candidates_fault(kafka: str, start: StartMesh) -> None:
    """Callers whose time is over before, or soon after, a model is asked neither trip it nor count against it."""
    mesh = await start(patient=False)
    await mesh.roll_out(*ALL_TO_CANDIDATE)
    await eventually(lambda: scored_by_candidate(mesh), message="the peers are used")
    scored_at_first = mesh.running.routers[mesh.loop].counts["v2"].requests
    mesh.features.delay_s, mesh.inference.delay_s = 0.03, 0.03
    for timeout_s in (0.001, 0.06) * 6:
        with contextlib.suppress(DeadlineExceeded):
            await mesh.rank(timeout=timeout_s)
    await scored_by_candidate(mesh)
    counts = await reported(kafka, mesh, "v2", requests=scored_at_first + 1)
    assert (counts.failures, counts.tripped) == (0, False)


async def test_callers_that_hang_up_are_not_the_candidates_fault(kafka: str, start: StartMesh) -> None:
    """Requests cancelled while the model works count nowhere, and the next caller gets the candidate."""
    mesh = await start()
    await mesh.roll_out(*ALL_TO_CANDIDATE)
    await scored_by_candidate(mesh)
    mesh.inference.hanging.add("v2")
    asked = len(mesh.inference.requests)
    calls = [asyncio.ensure_future(mesh.rank(user=f"user-{number}")) for number in range(6)]
    await eventually(lambda: len(mesh.inference.requests) == asked + len(calls), message="the model is asked")
    for call in calls:
        call.cancel()
    for call in calls:
        with contextlib.suppress(asyncio.CancelledError, grpc.RpcError):
            await call
    mesh.inference.hanging.clear()
    await scored_by_candidate(mesh)
    counts = await reported(kafka, mesh, "v2", requests=2)
    assert (counts.requests, counts.failures, counts.tripped) == (2, 0, False)


@pytest.mark.parametrize("cause", ["a layout that is not served", "features that no model can score"])
async def test_what_the_mesh_lacks_is_not_the_candidates_fault(kafka: str, mesh: Mesh, cause: str) -> None:
    """A missing layout and bad input degrade answers, and count neither as the candidate's requests nor failures."""
    await mesh.roll_out(*ALL_TO_CANDIDATE, layouts={"v2": "new"})
    if cause.startswith("a layout"):
        mesh.features.refused_layouts.add("new")
    else:
        mesh.inference.errors["v2"] = Invalid("INVALID_FIELD", "features.values: must be finite")
    for _ in range(7):
        answer = await mesh.rank()
        assert answer.provenance.degraded
        assert answer.provenance.degraded_reason != "CANDIDATE_TRIPPED"
    mesh.features.refused_layouts.clear()
    mesh.inference.errors.clear()
    await scored_by_candidate(mesh)
    counts = await reported(kafka, mesh, "v2", requests=1)
    assert (counts.requests, counts.failures, counts.tripped) == (1, 0, False)


async def test_a_candidate_that_hangs_is_to_blame(kafka: str, start: StartMesh) -> None:
    """A version that had the loop's time and did not answer has failed, and trips the circuit."""
    mesh = await start(patient=False)
    await mesh.roll_out(*ALL_TO_CANDIDATE)
    await eventually(lambda: scored_by_candidate(mesh), message="the peers are used")
    mesh.inference.hanging.add("v2")

    async def tripped() -> bool:
        return (await mesh.rank()).provenance.degraded_reason == "CANDIDATE_TRIPPED"

    await eventually(tripped, message="the candidate is avoided")
    counts = await reported(kafka, mesh, "v2", requests=6)
    assert counts.failures >= 5


async def test_answers_from_memory_keep_no_candidate_away(mesh: Mesh) -> None:
    """A candidate that is well again is asked, however many requests meanwhile find no candidates to ask it about."""
    await mesh.roll_out(*ALL_TO_CANDIDATE)
    mesh.inference.errors["v2"] = GyreError("MODEL_FAILED", "x")
    for _ in range(5):
        await mesh.rank()
    assert (await mesh.rank()).provenance.degraded_reason == "CANDIDATE_TRIPPED"
    mesh.inference.errors.clear()
    mesh.features.popular.clear()
    unanswered = gateway_pb2.RecommendRequest(loop=mesh.loop, user_id="user-1", limit=2)
    end = time.monotonic() + 1.2 * BACKOFF_S
    while time.monotonic() < end:
        assert (await mesh.stub.Recommend(unanswered, timeout=30)).provenance.degraded_reason == "NO_CANDIDATES"
    await scored_by_candidate(mesh)


async def test_a_failure_says_the_models_reason_at_any_patience(start: StartMesh) -> None:
    """What the model itself answers is told as it is, also to a caller with little time."""
    mesh = await start(patient=False)
    await mesh.roll_out(("live", "v1", 1.0))
    mesh.inference.errors["v1"] = GyreError("MODEL_FAILED", "x")

    async def told() -> bool:
        try:
            return (await mesh.rank(timeout=0.1)).provenance.degraded_reason == "MODEL_FAILED"
        except DeadlineExceeded:
            return False

    await eventually(told, message="the model's reason is told")
    assert mesh.running.routers[mesh.loop].counts["v1"].requests == 0
