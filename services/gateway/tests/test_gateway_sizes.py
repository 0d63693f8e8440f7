"""Sizes at the gateway's door: what callers give is bounded, and what is logged of an answer always fits its topic."""

from collections.abc import Awaitable

import grpc
import numpy as np
import pytest
from gyre.events.v1 import behavior_pb2 as behavior
from gyre.gateway.v1 import gateway_pb2 as pb
from gyre_core.topics import topic
from gyre_gateway.adapters.impressions import KafkaImpressions
from gyre_gateway.adapters.intake import KafkaIntake
from gyre_gateway.domain.events import OutgoingEvent
from gyre_gateway.domain.ranking import Ranking
from gyre_gateway.domain.requests import Features, RankedAnswer, Request, Scored
from gyre_gateway.domain.routing import Route
from gyre_local.testing import eventually
from gyre_runtime import GyreError, Invalid
from gyre_runtime.errors import from_rpc_error
from gyre_runtime.events import Event, decode, message_types
from gyre_runtime.kafka import Producer, read_records

from .conftest import Mesh, StartMesh

pytestmark = pytest.mark.adapter
TYPES = message_types(behavior.Impression, behavior.Interaction, behavior.ItemChanged)


async def logged(kafka: str, name: str) -> list[Event]:
    """The events of a topic."""
    return [decode(record, TYPES) async for record in read_records(kafka, name)]


async def outcome(call: Awaitable[object]) -> GyreError | None:
    """The error of a call, None when it succeeds."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return from_rpc_error(error)
    except GyreError as error:
        return error
    return None


async def test_no_caller_can_stop_the_impressions(mesh: Mesh, kafka: str) -> None:
    """A context of long names is refused with its field, and what others are shown is logged as before."""
    context = pb.RequestContext(numbers={"n" * 1_200_000: 1.0})
    refused = await outcome(mesh.rank(user="attacker", context=context))
    for number in range(4):
        await mesh.rank(user=f"user-{number}", request_id=f"r{number}")
    assert isinstance(refused, Invalid)
    assert [each.field for each in refused.violations] == ["context.numbers"]

    async def all_logged() -> bool:
        events = await logged(kafka, topic(mesh.loop, "behavior.impressions"))
        return {event.message.request_id for event in events} == {f"r{number}" for number in range(4)}

    await eventually(all_logged, timeout_s=20, message="every answer is logged")


async def test_a_tracked_text_has_a_bound(mesh: Mesh, kafka: str) -> None:
    """A text of more than 10,000 characters is refused with its field; the same caller's next events are taken."""
    event = pb.TrackedEvent(event_id="long")
    event.item_changed.item_id = "i"
    event.item_changed.fields["genres"].text = "x" * 1_200_000
    call = mesh.stub.Track(pb.TrackRequest(loop=mesh.loop, events=[event]), timeout=30)
    refused = await outcome(call)
    assert isinstance(refused, Invalid)
    assert [each.field for each in refused.violations] == ["events[0].item_changed.fields[genres].text"]
    for number in range(4):
        event = pb.TrackedEvent(event_id=f"e{number}")
        event.item_changed.item_id = "i"
        await mesh.stub.Track(pb.TrackRequest(loop=mesh.loop, events=[event]), timeout=30)
    assert [each.id for each in await logged(kafka, topic(mesh.loop, "catalog.items"))] == [f"e{n}" for n in range(4)]


async def test_of_a_call_with_a_too_large_event_none_is_taken(mesh: Mesh, kafka: str) -> None:
    """An event that only its topic's size forbids is refused with its place in the call, before any is sent."""
    large = behavior.ItemChanged(item_id="i")
    for number in range(40):
        large.fields[f"f{number}"].text = "\N{WATER WAVE}" * 10_000
    small = behavior.ItemChanged(item_id="i")
    events = [OutgoingEvent("catalog.items", "i", name, 1.0, each) for name, each in (("e0", small), ("e1", large))]
    refused = await outcome(KafkaIntake(mesh.producer).send(mesh.loop, events, source="gateway"))
    assert isinstance(refused, Invalid)
    assert refused.reason == "RECORD_TOO_LARGE"
    assert [each.field for each in refused.violations] == ["events[1].item_changed"]
    assert await logged(kafka, topic(mesh.loop, "catalog.items")) == []


def answer_of(loop: str, *, shown: int, columns: int, request_id: str = "r") -> RankedAnswer:
    """An answer of 1,000 candidates with as many columns of features, of which some are shown."""
    items = [f"{number:04d}" + "\N{WATER WAVE}" * 124 for number in range(1000)]
    numbers = {f"{number:02d}" + "n" * 62: 1.0 for number in range(64)}
    labels = {f"{number:02d}" + "\N{WATER WAVE}" * 126: "\N{WATER WAVE}" * 128 for number in range(64)}
    request = Request(
        loop, "\N{WATER WAVE}" * 128, items, request_id, 1.0, numbers, labels, "rank", started=0.0, deadline=1.0
    )
    values = np.ones((1000, columns), dtype="<f4").tobytes()
    features = Features("0" * 64, 1000, columns, values, range(1000), 7, 9, 1.0)
    scored = Scored(np.arange(1000, 0, -1).astype(np.float32), Route(), version="v1", features=features)
    return RankedAnswer(request, scored, Ranking(np.arange(1000), explored=True, propensity=0.001), shown, 0.01)


@pytest.mark.parametrize(
    ("shown", "columns", "thinning"),
    [(1000, 260, 0), (10, 900, 1), (1000, 900, 2), (1000, 4096, 2)],
)
async def test_the_largest_answers_are_logged(
    start: StartMesh, kafka: str, shown: int, columns: int, thinning: int
) -> None:
    """Of the largest answer what was shown, context and propensities are logged; what is left out is said."""
    mesh = await start()
    rest = mesh.spec.model_copy(update={"serving": mesh.spec.serving.model_copy(update={"logged_rest": 990})})
    async with Producer(kafka, source="gyre/gateway") as producer:
        impressions = KafkaImpressions(producer, {mesh.loop: rest})
        impressions.write(answer_of(mesh.loop, shown=shown, columns=columns))
        impressions.write(answer_of(mesh.loop, shown=1, columns=1, request_id="next"))
    events = await logged(kafka, topic(mesh.loop, "behavior.impressions"))
    by_request = {each.message.request_id: each.message for each in events}
    assert set(by_request) == {"r", "next"}
    record = by_request["r"]
    assert (record.shown, record.rest, len(record.item_propensities)) == (shown, 1000 - shown, shown)
    assert (len(record.context), len(record.labels), len(set(record.item_ids[:shown]))) == (64, 64, shown)
    assert record.thinning == thinning
    assert record.features.rows == (0 if thinning == 2 else len(record.item_ids))
    assert len(record.features.values) == 4 * record.features.rows * record.features.columns
    if thinning == 1:
        assert shown < len(record.item_ids) < 1000
