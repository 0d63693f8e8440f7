"""The service over gRPC on a real Triton: exact scores, and every status and reason that it can return."""

import asyncio

import numpy as np
import pytest
from gyre.events.v1.models_pb2 import RolloutView
from gyre.inference.v1.inference_pb2 import ListModelsRequest
from gyre_core.topics import topic
from gyre_local.reserve import free_ports
from gyre_local.testing import TritonServer, eventually
from gyre_runtime import DeadlineExceeded, GyreError, Invalid, NotFound, Precondition, Unavailable
from gyre_runtime.kafka import Producer

pytestmark = pytest.mark.adapter


async def test_predict_scores_with_the_version_asked_for(triton, models, start, ask, loop, rows) -> None:
    """Two loaded versions each answer with their own scores, bit for bit, also in concurrent calls."""
    await models.load("v1")
    await models.load("v2", weights=(3.0, 2.0, 1.0))
    stub = (await start(triton.grpc)).stub
    wanted = {"v1": rows @ np.float32([1, 2, 3]), "v2": rows @ np.float32([3, 2, 1])}
    calls = [(version, stub.Predict(ask(loop, version, rows), timeout=30)) for version in ("v1", "v2") * 5]
    for (version, _), answer in zip(calls, await asyncio.gather(*(each for _, each in calls)), strict=True):
        assert answer.version == version
        np.testing.assert_allclose(np.frombuffer(answer.scores, "<f4"), wanted[version])


async def test_a_version_that_is_not_loaded_is_refused(triton, models, start, ask, loop, rows) -> None:
    """A version that Triton never loaded, or unloaded meanwhile, gives VERSION_NOT_SERVED; loaded again, it answers."""
    stub = (await start(triton.grpc)).stub
    with pytest.raises(Precondition) as caught:
        await stub.Predict(ask(loop, "v1", rows), timeout=30)
    assert caught.value.reason == "VERSION_NOT_SERVED"
    await models.load("v1")
    await stub.Predict(ask(loop, "v1", rows), timeout=30)
    await models.unload("v1")
    with pytest.raises(Precondition) as caught:
        await stub.Predict(ask(loop, "v1", rows), timeout=30)
    assert caught.value.reason == "VERSION_NOT_SERVED"


async def test_features_of_another_layout_are_refused(triton, models, start, ask, loop, rows) -> None:
    """Another layout, or another count of columns, gives LAYOUT_MISMATCH and never a score."""
    await models.load("v1")
    stub = (await start(triton.grpc)).stub
    for wrong in (ask(loop, "v1", rows, layout="other"), ask(loop, "v1", np.ones((2, 4), np.float32))):
        with pytest.raises(Precondition) as caught:
            await stub.Predict(wrong, timeout=30)
        assert caught.value.reason == "LAYOUT_MISMATCH"


async def test_malformed_features_are_invalid(triton, models, start, ask, loop, rows) -> None:
    """Values of the wrong size or not finite, or too many rows for the model, give INVALID_ARGUMENT with the field."""
    await models.load("v1")
    stub = (await start(triton.grpc)).stub
    for number in (np.nan, np.inf):
        with pytest.raises(Invalid) as caught:
            await stub.Predict(ask(loop, "v1", np.full((2, 3), number, np.float32)), timeout=30)
        broken = caught.value.violations[0]
        assert (broken.field, broken.rule) == ("features.values", "must be finite")
    with pytest.raises(Invalid) as caught:
        await stub.Predict(ask(loop, "v1", rows, rows=21), timeout=30)
    assert caught.value.violations[0].field == "features.values"
    with pytest.raises(Invalid) as caught:
        await stub.Predict(ask(loop, "v1", np.ones((65, 3), np.float32)), timeout=30)
    assert caught.value.violations[0].field == "features.rows"


async def test_a_model_that_gives_no_number_failed(triton, models, start, ask, loop, rows) -> None:
    """Scores that are not finite are an error with the reason MODEL_FAILED, so that guardrails see it."""
    await models.load("v1", weights=(float("nan"), 1.0, 1.0))
    stub = (await start(triton.grpc)).stub
    with pytest.raises(GyreError) as caught:
        await stub.Predict(ask(loop, "v1", rows), timeout=30)
    assert caught.value.reason == "MODEL_FAILED"


async def test_unknown_loop_is_not_found(triton, start, ask, rows) -> None:
    """A loop that this process does not serve gives NOT_FOUND, in both methods."""
    stub = (await start(triton.grpc)).stub
    for call in (
        stub.Predict(ask("elsewhere", "v1", rows), timeout=30),
        stub.ListModels(ListModelsRequest(loop="elsewhere"), timeout=30),
    ):
        with pytest.raises(NotFound) as caught:
            await call
        assert caught.value.reason == "UNKNOWN_LOOP"


async def test_no_time_is_deadline_exceeded(triton, models, start, ask, loop, rows) -> None:
    """A caller that leaves less than the margin gets DEADLINE_EXCEEDED."""
    await models.load("v1")
    stub = (await start(triton.grpc)).stub
    with pytest.raises(DeadlineExceeded):
        await stub.Predict(ask(loop, "v1", rows), timeout=0.001)


async def test_no_triton_is_unavailable(start, ask, loop, rows) -> None:
    """Where nobody answers, a prediction fails at once with TRITON_UNAVAILABLE and the process is not SERVING."""
    (port,) = free_ports(1)
    service = await start(f"127.0.0.1:{port}")
    with pytest.raises(Unavailable) as caught:
        await service.stub.Predict(ask(loop, "v1", rows), timeout=30)
    assert caught.value.reason == "TRITON_UNAVAILABLE"
    assert not service.lifespan.health.serving


async def test_triton_stopped_and_back(triton: TritonServer, models, start, ask, loop, rows) -> None:
    """A Triton that stops makes predictions UNAVAILABLE; back and loaded, it is used without a restart."""
    await models.load("v1")
    service = await start(triton.grpc)
    await service.stub.Predict(ask(loop, "v1", rows), timeout=30)
    await service.lifespan.health.wait_serving(10)
    triton.process.stop()
    try:
        with pytest.raises(Unavailable) as caught:
            await service.stub.Predict(ask(loop, "v1", rows), timeout=30)
        assert caught.value.reason == "TRITON_UNAVAILABLE"
    finally:
        triton.process.start()

    async def refused() -> bool:
        try:
            await service.stub.Predict(ask(loop, "v1", rows), timeout=30)
        except Unavailable:
            return False
        except Precondition as error:
            return error.reason == "VERSION_NOT_SERVED"
        return False

    await eventually(refused, message="the emptied Triton is reached again")


async def test_list_models_follows_the_rollout_state(kafka: str, triton, models, start, loop) -> None:
    """The versions that the rollout state names as loaded are listed, with what Triton says of each."""
    await models.load("v1")
    stub = (await start(triton.grpc)).stub
    async with Producer(kafka, source="tests") as producer:
        view = RolloutView(loop=loop, epoch=4, loaded_versions=["v1", "v2"])
        await producer.send(topic(loop, "models.rollouts"), view, key=loop)

    async def listed() -> list[tuple[str, bool]]:
        answer = await stub.ListModels(ListModelsRequest(), timeout=30)
        return [(each.version, each.ready) for each in answer.models]

    assert await eventually(listed, message="the view is followed") == [("v1", True), ("v2", False)]
