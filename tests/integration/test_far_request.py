"""Gateway, stream and features on a replay: a `Rank` of a far time moves nothing that others see."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import numpy as np
import pytest
from gyre.events.v1.behavior_pb2 import Interaction
from gyre.features.v1.features_pb2 import GetFeaturesRequest, ListPopularRequest
from gyre.features.v1.features_pb2_grpc import FeaturesServiceStub
from gyre.gateway.v1.gateway_pb2 import RankRequest, TrackedEvent, TrackRequest
from gyre.gateway.v1.gateway_pb2_grpc import GatewayServiceStub
from gyre_core.features import Layout
from gyre_core.spec import parse_loop
from gyre_core.topics import dead_letter_topic, topic
from gyre_local.places import StackDirectories
from gyre_local.process import running
from gyre_local.stack import Stack, build_stack
from gyre_local.testing import eventually, free_stack_ports
from gyre_runtime.kafka import read_records

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
LOOP = """
version: 1
loop: past
clock: replay
events: {interactions: {click: {}}}
features:
  - {name: clicks, kind: decayed_count, scope: item, events: [click], half_lives: [365d]}
  - {name: shown, kind: decayed_count, scope: item, events: [impression], half_lives: [365d]}
  - {name: clicks_in, kind: windowed_count, scope: item, events: [click], windows: [1d]}
  - {name: exposed, kind: decayed_count, scope: user, events: [impression], half_lives: [365d]}
  - {name: active, kind: decayed_count, scope: user, events: [click], half_lives: [365d]}
serving: {deadline: 10s, feature_timeout: 4s, fallback_feature: clicks_365d}
shards: {kafka_partitions: 1}
"""
BEGIN, FAR = 1_365_000_000, 1_365_000_000 + 7 * 365 * 86_400
ITEMS = ("a", "b", "c")
PATIENCE_S = 90


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    """A gateway between the real stream and features."""
    file = tmp_path / "gyre.yaml"
    file.write_text(LOOP)
    made = build_stack(StackDirectories(tmp_path / "var"), free_stack_ports(tmp_path / "ports.toml"), [file])
    with ExitStack() as opened:
        for name in ("kafka", "redis", "features-stream", "features-serve", "gateway"):
            opened.enter_context(running(made.members[name].prepare(), log=made.places.logs / f"{name}.log"))
        yield made


class Shop:
    """What users of the past do, and what is known of them."""

    def __init__(self, gateway: GatewayServiceStub, features: FeaturesServiceStub) -> None:
        self._gateway, self._features = gateway, features
        self._columns = Layout.compile(parse_loop(LOOP, source="test")).columns

    async def rank(self, at: int) -> None:
        """All items are shown to the user, at unix seconds."""
        request = RankRequest(loop="past", user_id="u", item_ids=ITEMS, request_id=f"at-{at}")
        request.context.request_time.FromSeconds(at)
        assert len((await self._gateway.Rank(request, timeout=30)).items) == len(ITEMS)

    async def click(self, at: int, *items: str) -> None:
        """The user clicks items."""
        events = []
        for item in items:
            click = Interaction(user_id="u", item_id=item, type="click")
            event = TrackedEvent(event_id=f"{item}-{at}", interaction=click)
            event.event_time.FromSeconds(at)
            events.append(event)
        await self._gateway.Track(TrackRequest(loop="past", events=events), timeout=30)

    async def is_known(self, at: int, **expected: list[float]) -> bool:
        """Check what the features say of each item, the user's being the same for all, and what is popular."""
        request = GetFeaturesRequest(loop="past", user_id="u", item_ids=ITEMS)
        request.request_time.FromSeconds(at)
        block = (await self._features.GetFeatures(request, timeout=30)).features
        found = np.frombuffer(block.values, "<f4").reshape(len(ITEMS), len(self._columns))
        own = {name: found[:, place] for place, name in enumerate(self._columns)}
        assert own == {name: pytest.approx(values, rel=1e-3) for name, values in expected.items()}
        wanted = ListPopularRequest(loop="past", limit=10, user_id="u")
        wanted.request_time.FromSeconds(at)
        popular = await self._features.ListPopular(wanted, timeout=30)
        clicks = {item: count for item, count in zip(ITEMS, expected["clicks_365d"], strict=True) if count}
        assert dict(zip(popular.item_ids, popular.counts, strict=True)) == pytest.approx(clicks, rel=1e-3)
        return True


async def test_a_request_of_another_year_freezes_nothing(stack: Stack) -> None:
    """In a replay of 2013 a request of 2020 is answered; its user, its candidates and what is popular count on."""
    ports, letters = stack.ports, dead_letter_topic(topic("past", "behavior.impressions"))

    async def is_refused() -> bool:
        found = [dict(each.headers) async for each in read_records(ports.address("kafka", "broker"), letters)]
        assert [each["gyre_reason"] for each in found] == [b"IN_THE_FUTURE"]
        return True

    async with (
        grpc.aio.insecure_channel(ports.address("gateway", "grpc")) as gateway,
        grpc.aio.insecure_channel(ports.address("features-serve", "grpc")) as features,
    ):
        shop = Shop(GatewayServiceStub(gateway), FeaturesServiceStub(features))
        await shop.rank(BEGIN)
        await shop.click(BEGIN + 10, "a", "b")
        once = {"clicks_365d": [1, 1, 0], "clicks_in_1d": [1, 1, 0], "shown_365d": [1, 1, 1]}
        once |= {"exposed_365d": [3, 3, 3], "active_365d": [2, 2, 2]}
        await eventually(lambda: shop.is_known(BEGIN + 20, **once), timeout_s=PATIENCE_S, message="features of before")
        await shop.rank(FAR)
        await shop.rank(BEGIN + 30)
        await shop.click(BEGIN + 40, "a", "c")
        twice = {"clicks_365d": [2, 1, 1], "clicks_in_1d": [2, 1, 1], "shown_365d": [2, 2, 2]}
        twice |= {"exposed_365d": [6, 6, 6], "active_365d": [4, 4, 4]}
        await eventually(lambda: shop.is_known(BEGIN + 50, **twice), timeout_s=PATIENCE_S, message="all count on")
        await eventually(is_refused, timeout_s=PATIENCE_S, message="the far impression is set aside")
