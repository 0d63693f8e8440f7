"""What gyre.yaml declares, through Kafka and gRPC: refused, or by a clock that is ahead."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from gyre.events.v1 import features_pb2 as events_pb2
from gyre.events.v1 import models_pb2 as models
from gyre_core.features import Layout
from gyre_core.layouts import LayoutState
from gyre_core.spec import parse_loop
from gyre_local.testing import eventually
from gyre_runtime import GyreError

from .layouts_loop import DAY, SERVING, Loop, later, moment_of, opened, until_served

pytestmark = [pytest.mark.adapter, pytest.mark.timeout(400)]
YEAR_S = 365 * 86_400.0


@pytest.fixture
async def loop(loop_file: Path, kafka: str, start_process: Callable[..., Any]) -> AsyncIterator[Loop]:
    """The loop, with stream, archive and serve running."""
    async with opened(loop_file, kafka, start_process) as made:
        yield made


async def test_a_layout_that_is_refused_is_not_read_and_keeps_no_other(loop: Loop, history: Any, produce: Any) -> None:
    """What features-stream refuses features-serve refuses to read; meanwhile what nothing wants retires as ever."""
    events = [*history.catalogue(), *history.ratings(100)]
    await produce(events)
    old = loop.spec
    await until_served(loop, old, events)
    live = Layout.compile(old).hash
    await loop.name_models(("v1", models.MODEL_ROLE_LIVE, live))
    refused = Layout.compile(loop.edit(DAY, ("price: {kind: number}", "price: {kind: boolean}"))).hash
    process = await loop.restart("stream")
    await eventually(lambda: "KIND_CHANGED" in process.log.read_text(), timeout_s=60, message="the log says why")
    await loop.restart("serve")
    await loop.until_health("serve", SERVING)
    more = later(history, after_s=300, seed=9)
    await produce(more)
    await until_served(loop, old, [*events, *more])
    with pytest.raises(GyreError, match="features-stream has not declared it yet, or refuses it") as found:
        await loop.matrix(moment_of(more), refused)
    assert found.value.reason == "LAYOUT_NOT_SERVED"
    unwanted = parse_loop(loop.path.read_text().replace("[2d, 7d]", "[3d, 7d]"), source="test")
    between = await loop.publish(unwanted, LayoutState.READY, ago_s=3600.0)
    await loop.until(between, events_pb2.LAYOUT_STATE_RETIRED)
    assert set(await loop.layouts()) == {live, between}


async def test_a_clock_that_was_ahead_keeps_no_layout(loop: Loop, history: Any, produce: Any) -> None:
    """A newer gyre.yaml is the newest though the one before was declared a year ahead, which retires once unwanted."""
    events = [*history.catalogue(), *history.ratings(100)]
    await produce(events)
    old = loop.spec
    await until_served(loop, old, events)
    before, after = Layout.compile(old).hash, Layout.compile(loop.edit(DAY)).hash
    await loop.publish(old, LayoutState.READY, ago_s=-YEAR_S)
    await loop.name_models(("v1", models.MODEL_ROLE_LIVE, after))
    await loop.restart("stream")
    await loop.restart("serve")
    await until_served(loop, loop.spec, events)
    await loop.until(before, events_pb2.LAYOUT_STATE_RETIRED)
    assert (await loop.read(moment_of(events))).features.layout == after
