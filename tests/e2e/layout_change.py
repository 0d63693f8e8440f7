"""A change of the features in gyre.yaml under an open load, from the edit to the retirement of the old layout."""

from __future__ import annotations

import asyncio
import http.client
import os
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from gyre.events.v1 import features_pb2 as events_pb2
from gyre.events.v1 import models_pb2 as models
from gyre.events.v1.behavior_pb2 import Interaction
from gyre.features.v1.features_pb2 import GetFeaturesRequest
from gyre.features.v1.parity_pb2 import CheckParityRequest, ParityReport
from gyre.gateway.v1.gateway_pb2 import TrackedEvent, TrackRequest
from gyre.monitor.v1 import monitor_pb2 as monitor
from gyre_core.features import Layout
from gyre_core.topics import topic
from gyre_local.testing import eventually
from gyre_local.timeouts import scaled
from gyre_runtime import GyreError
from gyre_runtime.events import message_types
from gyre_runtime.kafka import read_compacted, read_log
from prometheus_client.parser import text_string_to_metric_families

if TYPE_CHECKING:
    from .conftest import Mesh
    from .open_load import OpenLoad

_LOOK_S = 0.5
"""Between two looks at something that may take minutes, so that looking takes little of the processor."""
_ADDED = "  - {name: week, kind: decayed_count, scope: item, events: [click], half_lives: [7d]}\n"
_REMOVED = (
    "  - {name: genre_ctr, kind: smoothed_rate, by: genre, events: [click], per: [impression], half_lives: [1h]}\n"
)
EDITS = (
    ("features:\n  - {name: popular,", f"features:\n{_ADDED}  - {{name: popular,"),
    (_REMOVED, ""),
    ("field: genre, events: [click], half_lives: [1d]}", "field: genre, events: [click], half_lives: [2d]}"),
    ("features: [popular, price,", "features: [popular, week, price,"),
)
"""A feature is added, one is removed, and one has another half-life."""
IN_ORDER = (
    ("features-stream", "trainer", "deployer", "monitor"),
    ("features-serve",),
    ("features-serve-2",),
    ("gateway",),
    ("gateway-2",),
)
"""The processes that are restarted with a changed file: those that answer requests one after the other."""
FILLING, READY, RETIRED = (
    events_pb2.LAYOUT_STATE_FILLING, events_pb2.LAYOUT_STATE_READY, events_pb2.LAYOUT_STATE_RETIRED,
)  # fmt: skip


@dataclass
class Freshness:
    """How many events a layout's stream has made readable since its start, and how many of them within a second."""

    count: float
    within_1s: float

    def since(self, before: Freshness) -> Freshness:
        """Of the time between two readings of one process."""
        return Freshness(self.count - before.count, self.within_1s - before.within_1s)


@dataclass
class LayoutChange:
    """The change of a running mesh to another layout.

    Attributes:
        mesh: that is changed.
        before: hash of the layout of the live model.
        after: hash of the layout that gyre.yaml declares from the edit on.
        shares: how much of the new layout was filled, each time that the status said so, 0 to 1.
    """

    mesh: Mesh
    before: str
    after: str = ""
    shares: list[float] = field(default_factory=list)

    async def edit(self) -> None:
        """Edit gyre.yaml."""
        self.after = Layout.compile(self.mesh.edit(*EDITS)).hash

    async def state(self, layout: str) -> int:
        """What the topic says of a layout."""
        types = message_types(events_pb2.FeatureLayout)
        found = await read_compacted(self.mesh.kafka, topic(self.mesh.loop, "features.layouts"), types)
        return found[layout].message.state if layout in found else 0

    async def until(self, layout: str, state: int, *, timeout_s: float) -> None:
        """Wait until a layout is in a state."""

        async def reached() -> bool:
            await asyncio.sleep(_LOOK_S)
            return await self.state(layout) == state

        name = events_pb2.LayoutState.Name(state)
        await eventually(reached, timeout_s=timeout_s, message=f"layout {layout} is {name}")

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Note how much of the new layout is filled, as the status says, while the block runs."""

        async def watch() -> None:
            while True:
                with suppress(GyreError):  # the monitor is being restarted
                    await self._look()
                await asyncio.sleep(_LOOK_S)

        task = asyncio.create_task(watch())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _look(self) -> None:
        request = monitor.GetLoopStatusRequest(loop=self.mesh.loop)
        found = await self.mesh.monitor.GetLoopStatus(request, timeout=10)
        for each in found.layouts:
            if each.layout == self.after and each.state == FILLING and each.total_events:
                self.shares.append(each.filled_events / each.total_events)

    async def models(self) -> dict[str, models.CandidateRegistered]:
        """Every candidate by its version."""
        types, name = message_types(models.CandidateRegistered), topic(self.mesh.loop, "models.candidates")
        return {event.message.version: event.message async for event in read_log(self.mesh.kafka, name, types)}

    async def live(self) -> models.RolloutArm | None:
        """The model that is live."""
        name, types = topic(self.mesh.loop, "models.rollouts"), message_types(models.RolloutView)
        found = await read_compacted(self.mesh.kafka, name, types)
        arms = found[self.mesh.loop].message.arms if self.mesh.loop in found else ()
        return next((arm for arm in arms if arm.name == "live"), None)

    async def until_live(self, *, timeout_s: float) -> str:
        """Wait until a model of the new layout is live; its version."""

        async def live() -> str:
            await asyncio.sleep(_LOOK_S)
            arm = await self.live()
            return arm.version if arm is not None and arm.layout == self.after else ""

        return await eventually(live, timeout_s=timeout_s, message="a model of the new layout is live")

    async def until_counted(self, layout: str) -> None:
        """Wait until a layout holds an event that is tracked now: its stream has caught up."""
        item = f"probe-{time.time_ns()}"
        click = TrackedEvent(interaction=Interaction(user_id="probe", item_id=item, type="click"))
        await self.mesh.gateway.Track(TrackRequest(loop=self.mesh.loop, events=[click]), timeout=30)
        request = GetFeaturesRequest(loop=self.mesh.loop, user_id="probe", item_ids=[item], layout=layout)

        async def counted() -> bool:
            answer = await self.mesh.features.GetFeatures(request, timeout=30)
            return answer.item_batches[0] >= 0

        await eventually(counted, timeout_s=60, message=f"layout {layout} has caught up")

    def freshness(self, layout: str) -> Freshness:
        """What the stream's metrics say of a layout."""
        page = http.client.HTTPConnection(self.mesh.ports.address("features-stream", "metrics"), timeout=10)
        try:
            page.request("GET", "/metrics")
            text = page.getresponse().read().decode()
        finally:
            page.close()
        found = Counter[str]()
        for family in text_string_to_metric_families(text):
            if family.name == "gyre_features_freshness_seconds":
                for sample in family.samples:
                    if sample.labels["layout"] == layout and sample.name.endswith("_bucket"):
                        found[sample.labels["le"]] += int(sample.value)
        return Freshness(found["+Inf"], found["1.0"])

    async def status(self) -> str:
        """What `gyre status` prints."""
        env = {**os.environ, "GYRE_MONITOR": self.mesh.ports.address("monitor", "grpc")}
        command = [Path(sys.executable).with_name("gyre"), "status", self.mesh.loop]
        process = await asyncio.create_subprocess_exec(*command, env=env, stdout=asyncio.subprocess.PIPE)
        output, _ = await process.communicate()
        return output.decode()

    async def parity(self) -> dict[str, ParityReport]:
        """The reports of a check of everything that was served, by layout, once the warehouse holds it."""
        request = CheckParityRequest(loop=self.mesh.loop, impressions=20_000)

        async def whole() -> dict[str, ParityReport]:
            answer = await self.mesh.parity.CheckParity(request, timeout=scaled(120))
            found = {each.layout: each for each in answer.reports}
            assert {self.before, self.after} <= set(found)
            assert not any(each.pending for each in found.values())
            return found

        return await eventually(whole, timeout_s=120, message="the warehouse holds what was served")


async def assert_models_answered(change: LayoutChange, load: OpenLoad) -> None:
    """No call failed, no answer is degraded, and models of both layouts answered side by side."""
    assert not load.failures, load.failures
    assert not load.degraded, load.degraded
    candidates = await change.models()
    layouts = [candidates[each.version].layout for each in load.answers]
    assert set(layouts) == {change.before, change.after}, Counter(layouts)
    # The new model had a share of the users while the old one answered the others.
    first_new, last_old = layouts.index(change.after), len(layouts) - 1 - layouts[::-1].index(change.before)
    beside = Counter(each.arm for each in load.answers[first_new:last_old])
    assert min(beside["live"], beside["candidate"]) > 0, beside


async def assert_compared(change: LayoutChange, version: str) -> None:
    """The first model of the new layout was compared with the live one on that one's own layout."""
    measured = {each.name for each in (await change.models())[version].measurements}
    assert "incumbent_ndcg_at_10" in measured, measured


async def assert_parity(change: LayoutChange) -> None:
    """What was served under each of both layouts is what a replay gives."""
    for layout, report in (await change.parity()).items():
        assert report.mismatches == 0, report.examples
        assert sum(report.unknown.values()) == 0, report.unknown
        if layout in (change.before, change.after):
            assert report.impressions > 0, layout
