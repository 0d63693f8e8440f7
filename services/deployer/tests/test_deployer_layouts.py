"""Candidates whose layout is not known, or cannot be read, on the real Kafka and Triton."""

import asyncio
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace

import numpy as np
import pytest
from gyre.events.v1.models_pb2 import RolloutView
from gyre_core.features import Layout
from gyre_core.layouts import KnownLayout, LayoutDefinition, LayoutState
from gyre_core.models import triton_model
from gyre_core.spec import LoopSpec, parse_loop
from gyre_core.topics import topic
from gyre_deployer.adapters.triton import TritonControl
from gyre_deployer.domain.decisions import StepProgress, unread
from gyre_local.testing import eventually
from gyre_runtime.events import message_types
from gyre_runtime.kafka import Producer, read_compacted
from gyre_runtime.layouts import layout_message

from .conftest import WEIGHTS, Deployer, Models, Place, Start

pytestmark = [pytest.mark.adapter, pytest.mark.timeout(300)]


def with_half_life(text: str, days: int) -> LoopSpec:
    """The loop with another half-life, and so with another layout."""
    return parse_loop(text.replace("half_lives: [1d", f"half_lives: [{days}d"), source="test")


async def declare(kafka: str, spec: LoopSpec) -> str:
    """Have the topic say that the layout of a spec is read; its hash."""
    now, hash_ = time.time(), Layout.compile(spec).hash
    known = KnownLayout(hash_, LayoutDefinition.of(spec), LayoutState.READY, now, now, wanted_by=("gyre.yaml",))
    async with Producer(kafka, source="tests") as producer:
        await producer.send(topic(spec.loop, "features.layouts"), layout_message(spec.loop, known), key=hash_)
    return hash_


async def with_live_model(start: Start, models: Models, *, wait_s: float) -> Deployer:
    """A deployer that waits so long for a candidate's features, with v1 live."""
    deployer = await start(deployer_layout_wait_s=wait_s)
    await models.register("v1")
    await deployer.reaches("v1", "PROMOTED")
    return deployer


async def test_a_candidate_of_a_layout_that_is_not_known_waits(start, models, place, gateway, spec, loop_file) -> None:
    """One of a newer gyre.yaml than the deployer's, or of its own that is refused, waits until the topic knows it."""
    text, name = loop_file.read_text(), topic(place.loop, "models.rollouts")
    await declare(place.kafka, with_half_life(text, 3))
    deployer = await start()
    for version, declared in {"own": spec, "newer": with_half_life(text, 2)}.items():
        await replace(models, layout=Layout.compile(declared)).register(version)

        async def waits(version: str = version) -> bool:
            found = (await read_compacted(place.kafka, name, message_types(RolloutView))).get(place.loop)
            return found is not None and version in [each.version for each in found.message.models]

        await eventually(waits, timeout_s=30, message=f"{version} is named in the projection")
        rollout = await deployer.rollout(version)
        assert rollout is None, rollout.reason
        await declare(place.kafka, declared)
        await deployer.reaches(version, "PROMOTED", timeout_s=60)


async def test_a_candidate_that_is_waited_for_too_long_is_refused(start, models, place, loop_file) -> None:
    """The reason names the layout and who does not know it, and the candidate may be offered again."""
    await declare(place.kafka, with_half_life(loop_file.read_text(), 3))
    deployer = await start(deployer_layout_wait_s=0.5)
    await models.register("v1")
    refused = await deployer.reaches("v1", "REFUSED", timeout_s=60)
    why = f"layout {models.layout.hash} is not known: features-stream has not declared it, or refuses it"
    assert why in refused.reason


async def test_a_candidate_whose_features_are_not_read_is_rolled_back(start, models, place, gateway) -> None:
    """It counts no request in its step, which ends by one change after the time that a layout is waited for."""
    deployer = await with_live_model(start, models, wait_s=2.0)
    gateway.unread.add("v2")
    await models.register("v2")
    ended = await deployer.reaches("v2", "ROLLED_BACK", timeout_s=60)
    assert "got no features of its layout" in ended.reason
    assert [each.share for each in ended.events if each.share] == [0.1]
    await models.register("v3")
    await deployer.reaches("v3", "PROMOTED", timeout_s=60)


async def test_callers_that_leave_too_little_time_end_no_rollout(start, models, place, gateway) -> None:
    """A candidate that hears of impatient callers alone keeps its step, however long, and goes on with patient ones."""
    deployer = await with_live_model(start, models, wait_s=0.5)
    gateway.brief.add("v2")
    await models.register("v2")
    await eventually(lambda: gateway.left_out["v2"] >= 300, timeout_s=60, message="3 s of impatient callers")
    gateway.brief.clear()
    await deployer.reaches("v2", "PROMOTED", timeout_s=60)


async def test_a_live_model_keeps_the_width_of_its_own_layout(
    running: Callable[..., AbstractAsyncContextManager[Deployer]], models: Models, place: Place, gateway
) -> None:
    """Put into Triton's repository again after gyre.yaml got another column, it answers requests of its own three."""
    text = place.loop_file.read_text()
    await declare(place.kafka, parse_loop(text, source="test"))
    await models.register("v1")
    async with running() as deployer:
        await deployer.reaches("v1", "PROMOTED")
    wider = text.replace("30d]", "30d, 90d]")
    place.loop_file.write_text(wider)
    await declare(place.kafka, parse_loop(wider, source="test"))
    folder = place.triton.repository / triton_model(place.loop, "v1")
    await asyncio.to_thread(place.triton.process.stop)
    shutil.rmtree(folder)
    await asyncio.to_thread(place.triton.process.start)
    async with running(), TritonControl(place.settings(), timeout_s=30) as control:
        await eventually(lambda: place.is_served("v1"), timeout_s=60, message="v1 is loaded again")
        assert "dims: [ 3 ]" in (folder / "config.pbtxt").read_text()
        rows = np.arange(6, dtype=np.float32).reshape(2, 3)
        assert await control.score(folder.name, rows) == pytest.approx(rows @ np.float32(WEIGHTS))
        newer = replace(models, layout=Layout.compile(parse_loop(wider, source="test")))
        await newer.register("v2", weights=(*WEIGHTS, 4.0))
        await eventually(lambda: place.is_served("v2"), timeout_s=60, message="v2 is loaded beside it")
        assert await place.is_served("v1")
        rows = np.arange(8, dtype=np.float32).reshape(2, 4)
        scores = await control.score(triton_model(place.loop, "v2"), rows)
        assert scores == pytest.approx(rows @ np.float32([*WEIGHTS, 4.0]))


@pytest.mark.parametrize(
    ("held", "ends"),
    [
        (StepProgress(61.0, 0, requests_in_all=0, without_features=11), True),
        (StepProgress(61.0, 0, requests_in_all=0, without_features=10), False),
        (StepProgress(60.0, 0, requests_in_all=0, without_features=99), False),
        (StepProgress(61.0, 0, requests_in_all=0, without_features=0), False),
        (StepProgress(61.0, 5, requests_in_all=19, without_features=19), False),
        (StepProgress(61.0, 5, requests_in_all=19, without_features=20), True),
    ],
)
def test_a_step_ends_once_most_requests_get_no_features_for_too_long(held: StepProgress, ends: bool) -> None:
    """A step with few requests, with mostly scored ones, or within its time goes on."""
    assert bool(unread(held, 60.0)) == ends
