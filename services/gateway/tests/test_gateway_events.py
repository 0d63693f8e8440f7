"""What the gateway writes to Kafka: impressions, tracked events, reports."""

import asyncio
import time

import numpy as np
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from gyre.events.v1 import behavior_pb2 as behavior
from gyre.events.v1 import models_pb2 as models
from gyre.gateway.v1 import gateway_pb2 as pb
from gyre_core.topics import topic
from gyre_gateway.adapters.impressions import KafkaImpressions, count_drop
from gyre_gateway.domain.ranking import Ranking
from gyre_gateway.domain.requests import RankedAnswer, Request, Scored
from gyre_gateway.domain.routing import Route
from gyre_local.testing import eventually
from gyre_local.timeouts import scaled
from gyre_runtime import Invalid, Unavailable
from gyre_runtime.events import Event, decode, message_types
from gyre_runtime.kafka import Producer, read_records
from gyre_runtime.telemetry import Telemetry

from .conftest import Mesh, StartMesh, ids

pytestmark = pytest.mark.adapter
TYPES = message_types(
    behavior.Impression, behavior.Interaction, behavior.ItemChanged, behavior.UserChanged, models.GatewayReport
)


async def read(kafka: str, name: str, count: int) -> list[Event]:
    """The first `count` events of a topic, over all partitions, in each partition's order."""
    consumer = AIOKafkaConsumer(bootstrap_servers=kafka, enable_auto_commit=False, auto_offset_reset="earliest")
    await consumer.start()
    events: list[Event] = []
    try:
        partitions = (await consumer._client.fetch_all_metadata()).partitions_for_topic(name)
        consumer.assign([TopicPartition(name, number) for number in partitions or ()])
        async with asyncio.timeout(scaled(10)):
            while len(events) < count:
                fetched = await consumer.getmany(timeout_ms=100)
                events.extend(decode(record, TYPES) for records in fetched.values() for record in records)
    finally:
        await consumer.stop()
    return events


async def test_an_impression_holds_what_was_shown_and_served(mesh: Mesh, kafka: str) -> None:
    """An answer leaves one impression: the shown items in order, a sample of the rest, scores, features."""
    epoch = await mesh.roll_out(("live", "v1", 1.0))
    items = [f"item-{n}" for n in range(1, 11)]
    context = pb.RequestContext(numbers={"device": 3.0}, labels={"referrer": "search"})
    before, started = time.time(), time.monotonic()
    answer = await mesh.rank(*items, limit=4, request_id="request-1", context=context)
    took_s = time.monotonic() - started
    (event,) = await read(kafka, topic(mesh.loop, "behavior.impressions"), 1)
    record = event.message
    assert (event.source, event.key) == ("gyre/gateway", "user-1")
    assert before - 0.001 <= event.time <= time.time()
    assert list(record.item_ids[:4]) == ids(answer)
    assert len(set(record.item_ids)) == 7
    assert (record.shown, record.rest, record.request_id, record.user_id) == (4, 6, "request-1", "user-1")
    assert (record.model_version, record.epoch, record.arm, record.arm_propensity) == ("v1", epoch, "live", 1.0)
    assert (record.method, dict(record.context)) == (behavior.IMPRESSION_METHOD_RANK, {"device": 3.0})
    assert dict(record.labels) == {"referrer": "search"}
    assert [items[position] for position in record.positions] == list(record.item_ids)
    numbers = [float(item.rpartition("-")[2]) for item in record.item_ids]
    assert list(record.scores) == [-number for number in numbers]
    assert not record.item_propensities
    block = record.features
    matrix = np.frombuffer(block.values, "<f4").reshape(block.rows, block.columns)
    assert (block.layout, matrix[:, 0].tolist()) == (mesh.features.layout.hash, numbers)
    assert list(record.item_batches) == [number - 1 for number in numbers]
    assert (record.user_batch, record.global_batch, record.feature_age_s) == (7, 9, 12.5)
    assert 0 < record.latency_s <= took_s


async def test_an_impression_names_each_item_once(mesh: Mesh, kafka: str) -> None:
    """Where the popular list holds an item twice, it is shown once: an impression of it twice nobody would admit."""
    mesh.features.popular = ["item-1", "item-2", "item-1", "item-3"]
    answer = await mesh.stub.Recommend(pb.RecommendRequest(loop=mesh.loop, user_id="user-1", limit=4), timeout=30)
    assert sorted(ids(answer)) == ["item-1", "item-2", "item-3"]
    (event,) = await read(kafka, topic(mesh.loop, "behavior.impressions"), 1)
    assert sorted(event.message.item_ids) == ["item-1", "item-2", "item-3"]


async def test_degraded_and_explored_answers_leave_impressions(start: StartMesh, kafka: str, down: Unavailable) -> None:
    """A degraded answer is written down with its reason and without scores, an explored one with its propensities."""
    mesh = await start(exploration=0.5)
    mesh.features.error = down
    for number in range(20):
        await mesh.rank(request_id=f"r{number}")
    records = [event.message for event in await read(kafka, topic(mesh.loop, "behavior.impressions"), 20)]
    assert {record.degraded_reason for record in records} == {"FEATURES_UNAVAILABLE"}
    assert {len(record.scores) for record in records} == {0}
    assert {(record.user_batch, record.feature_age_s, record.features.rows) for record in records} == {(-1, -1.0, 0)}
    assert {record.explored: tuple(record.item_propensities) for record in records} == {
        True: (1 / 3, 1 / 3, 1 / 3),
        False: (),
    }


def answer_of(loop: str, number: int) -> RankedAnswer:
    """An answer to write down."""
    request = Request(loop, "u", ["a", "b"], f"r{number}", 1.0, {}, {}, "rank", started=0.0, deadline=1.0)
    ranking = Ranking(np.arange(2), explored=False, propensity=0.0)
    return RankedAnswer(request, Scored(np.ones(2, np.float32), Route()), ranking, 2, 0.01)


async def test_impressions_are_bounded_and_their_loss_is_counted(mesh: Mesh, kafka: str, telemetry: Telemetry) -> None:
    """What comes faster than Kafka takes it waits up to the bound; each impression given up is counted."""
    dropped: list[str] = []

    def on_drop(name: str, reason: str) -> None:
        dropped.append(reason)
        count_drop(name, reason)

    async with Producer(kafka, source="tests", max_queue_records=10, on_drop=on_drop) as producer:
        impressions = KafkaImpressions(producer, {mesh.loop: mesh.spec})
        for number in range(25):
            impressions.write(answer_of(mesh.loop, number))
        assert producer.queued[0] == 10
        assert dropped == ["QUEUE_FULL"] * 15
        await eventually(lambda: producer.queued == (0, 0), message="what was enqueued is sent")
    assert len(await read(kafka, topic(mesh.loop, "behavior.impressions"), 10)) == 10
    assert telemetry.registry.get_sample_value("gyre_gateway_impressions_dropped_total", {"loop": mesh.loop}) == 15


def click(user: str = "user-1", **more: object) -> pb.TrackedEvent:
    """A click to track."""
    return pb.TrackedEvent(interaction=behavior.Interaction(user_id=user, item_id="item-1", type="click"), **more)


async def test_track_sends_a_thousand_events_at_once(mesh: Mesh, kafka: str) -> None:
    """A call of 1,000 events is answered with their ids in order, each event once in Kafka."""
    events = [click(f"user-{n}", event_id=f"event-{n}") for n in range(1000)]
    await mesh.stub.Track(pb.TrackRequest(loop=mesh.loop, events=[click()]), timeout=30)
    answer = await mesh.stub.Track(pb.TrackRequest(loop=mesh.loop, events=events), timeout=30)
    assert list(answer.event_ids) == [f"event-{n}" for n in range(1000)]
    stored = await read(kafka, topic(mesh.loop, "behavior.interactions"), 1001)
    assert {event.id for event in stored} >= {f"event-{n}" for n in range(1000)}
    assert len(stored) == 1001


async def test_a_request_belongs_to_its_user(mesh: Mesh, kafka: str) -> None:
    """Two users with one request id leave two events; a request that its user repeats leaves one event twice."""
    for user in ("user-1", "user-2", "user-2"):
        await mesh.rank(user=user, request_id="request-1")
    stored = await read(kafka, topic(mesh.loop, "behavior.impressions"), 3)
    found = sorted((event.message.user_id, event.message.request_id, event.source, event.id) for event in stored)
    assert [each[:2] for each in found] == [("user-1", "request-1"), ("user-2", "request-1"), ("user-2", "request-1")]
    assert found[0][2:] != found[1][2:]
    assert found[1] == found[2]


async def test_applications_that_say_who_they_are_do_not_share_ids(mesh: Mesh, kafka: str) -> None:
    """Events of one id from two applications have sources of their own; who says nothing keeps the common one."""
    for source in ("shop", "blog.v2", ""):
        await mesh.stub.Track(pb.TrackRequest(loop=mesh.loop, events=[click(event_id="1")], source=source), timeout=30)
    stored = await read(kafka, topic(mesh.loop, "behavior.interactions"), 3)
    assert sorted((event.source, event.id) for event in stored) == [
        ("gateway", "1"), ("gateway/blog.v2", "1"), ("gateway/shop", "1"),
    ]  # fmt: skip
    with pytest.raises(Invalid, match="source"):
        await mesh.stub.Track(pb.TrackRequest(loop=mesh.loop, events=[click()], source="a shop"), timeout=30)


async def test_tracked_events_keep_their_identity(mesh: Mesh, kafka: str) -> None:
    """An event sent again has the same id and source, which consumers count once; without an id it gets a new one."""
    item = behavior.ItemChanged(item_id="item-9", fields={"year": behavior.FieldValue(number=1999)})
    request = pb.TrackRequest(
        loop=mesh.loop, events=[click(event_id="mine"), click(), pb.TrackedEvent(event_id="item", item_changed=item)]
    )
    user = behavior.UserChanged(user_id="user-9")
    request.events.add(event_id="user", user_changed=user)
    clicked = int(time.time()) - 60
    request.events[0].event_time.FromSeconds(clicked)
    first, again = [await mesh.stub.Track(request, timeout=30) for _ in range(2)]
    assert first.event_ids[0] == again.event_ids[0] == "mine"
    assert first.event_ids[1] != again.event_ids[1]
    stored = await read(kafka, topic(mesh.loop, "behavior.interactions"), 4)
    mine = [event for event in stored if event.id == "mine"]
    assert len({(event.source, event.time, event.key) for event in mine}) == 1
    assert len(mine) == 2
    assert {event.source for event in stored} == {"gateway"}
    assert mine[0].time == clicked
    (changed, _) = await read(kafka, topic(mesh.loop, "catalog.items"), 2)
    assert (changed.key, changed.message) == ("item-9", item)
    (known, _) = await read(kafka, topic(mesh.loop, "catalog.users"), 2)
    assert (known.key, known.message) == ("user-9", user)


async def test_a_bad_event_names_field_value_and_rule_and_nothing_is_taken(mesh: Mesh, kafka: str) -> None:
    """An event that breaks a rule of gyre.yaml refuses the call with its index, field, value and rule."""
    rating = behavior.Interaction(user_id="u", item_id="i", type="rating", value=11)
    bare = behavior.Interaction(user_id="u", item_id="i", type="rating")
    unknown = behavior.Interaction(user_id="u", item_id="i", type="purchase")
    future = click()
    future.event_time.FromNanoseconds(int((time.time() + 3600) * 1e9))
    late = click()
    late.event_time.FromNanoseconds(int((time.time() - 2 * 3600) * 1e9))
    odd = behavior.ItemChanged(item_id="i", fields={"colour": behavior.FieldValue(text="red")})
    wrong = behavior.ItemChanged(item_id="i", fields={"year": behavior.FieldValue(text="old")})
    tall = behavior.UserChanged(user_id="u", fields={"height": behavior.FieldValue(number=2)})
    cases = (
        (
            pb.TrackedEvent(user_changed=tall),
            "user_changed.fields[height]",
            "2",
            "gyre.yaml declares no field of users",
        ),
        (pb.TrackedEvent(), "payload", "unset", "is required"),
        (pb.TrackedEvent(interaction=rating), "interaction.value", "11", "must be 0 to 10"),
        (pb.TrackedEvent(interaction=bare), "interaction.value", "unset", "must be 0 to 10"),
        (pb.TrackedEvent(interaction=unknown), "interaction.type", "'purchase'", "must be one of click, rating"),
        (future, "event_time", "Z", "at most 5m is allowed"),
        (late, "event_time", "Z", "at most 1h is allowed"),
        (pb.TrackedEvent(item_changed=wrong), "item_changed.fields[year]", "'old'", "must be a finite number"),
        (pb.TrackedEvent(item_changed=odd), "item_changed.fields[colour]", "'red'", "must be one of genres, year"),
        (
            pb.TrackedEvent(interaction=behavior.Interaction(item_id="i", type="click")),
            "interaction.user_id",
            "unset",
            "is required",
        ),
    )
    for event, field, value, rule in cases:
        with pytest.raises(Invalid) as caught:
            await mesh.stub.Track(pb.TrackRequest(loop=mesh.loop, events=[click(), event]), timeout=30)
        broken = caught.value.violations[0]
        assert (broken.field, broken.rule) == (f"events[1].{field}", rule)
        assert value in broken.value
    await mesh.stub.Track(pb.TrackRequest(loop=mesh.loop, events=[click(event_id="good")]), timeout=30)
    assert [event.id for event in await read(kafka, topic(mesh.loop, "behavior.interactions"), 1)] == ["good"]


async def test_an_event_id_is_as_long_as_kafka_admits_it(mesh: Mesh, kafka: str) -> None:
    """256 characters are taken; more, blanks alone and control characters are refused by field, value and rule."""
    for odd in ("e" * 257, " ", "e\0"):
        with pytest.raises(Invalid) as caught:
            await mesh.stub.Track(pb.TrackRequest(loop=mesh.loop, events=[click(event_id=odd)]), timeout=30)
        broken = caught.value.violations[0]
        assert (caught.value.reason, broken.field) == ("INVALID_FIELD", "events[0].event_id")
        assert "must have at most 256 characters" in broken.rule
    await mesh.stub.Track(pb.TrackRequest(loop=mesh.loop, events=[click(event_id="e" * 256)]), timeout=30)
    assert [event.id for event in await read(kafka, topic(mesh.loop, "behavior.interactions"), 1)] == ["e" * 256]


async def test_history_may_come_from_an_application(start: StartMesh, kafka: str) -> None:
    """An event that the stream admits, since its source may send history, is not too old for the gateway either."""
    mesh = await start(history="gateway/importer")
    old = click(event_id="old")
    old.event_time.FromJsonString("2013-03-01T12:00:00Z")
    with pytest.raises(Invalid, match="TOO_OLD"):
        await mesh.stub.Track(pb.TrackRequest(loop=mesh.loop, events=[old]), timeout=30)
    await mesh.stub.Track(pb.TrackRequest(loop=mesh.loop, events=[old], source="importer"), timeout=30)
    assert [event.id for event in await read(kafka, topic(mesh.loop, "behavior.interactions"), 1)] == ["old"]


async def test_the_replay_clock_takes_old_events(start: StartMesh, kafka: str) -> None:
    """On the replay clock an event needs a time, may be years old, but not in the future."""
    mesh = await start(clock="replay")
    with pytest.raises(Invalid) as caught:
        await mesh.stub.Track(pb.TrackRequest(loop=mesh.loop, events=[click()]), timeout=30)
    assert caught.value.violations[0].field == "events[0].event_time"
    old = click()
    old.event_time.FromJsonString("2013-03-01T12:00:00Z")
    await mesh.stub.Track(pb.TrackRequest(loop=mesh.loop, events=[old]), timeout=30)
    (event,) = await read(kafka, topic(mesh.loop, "behavior.interactions"), 1)
    assert event.time == old.event_time.seconds
    old.event_time.FromNanoseconds(int((time.time() + 2 * 86_400) * 1e9))
    with pytest.raises(Invalid, match=r"IN_THE_FUTURE.*at most 1d"):
        await mesh.stub.Track(pb.TrackRequest(loop=mesh.loop, events=[old]), timeout=30)


async def test_times_at_the_edge_are_cut_or_refused(start: StartMesh, kafka: str) -> None:
    """A request at the end of year 9999 is invalid, not a fault of the server; Track cuts nanoseconds off."""
    mesh = await start(clock="replay")
    request = pb.RankRequest(loop=mesh.loop, user_id="u", item_ids=["item-1"])
    request.context.request_time.FromJsonString("9999-12-31T23:59:59.999999999Z")
    (refused,) = await asyncio.gather(mesh.stub.Rank(request, timeout=30), return_exceptions=True)
    assert isinstance(refused, Invalid), refused
    assert refused.violations[0].field == "context.request_time"
    event = click(event_id="edge")
    event.event_time.FromJsonString("2013-03-01T12:00:00.123456999Z")
    await mesh.stub.Track(pb.TrackRequest(loop=mesh.loop, events=[event]), timeout=30)
    (record,) = [each async for each in read_records(kafka, topic(mesh.loop, "behavior.interactions"))]
    assert dict(record.headers)["ce_time"] == b"2013-03-01T12:00:00.123456Z"


async def test_numbers_beyond_float32_are_refused_at_the_door(mesh: Mesh) -> None:
    """A context or an event with 1e39 is refused by its field, and no model is asked."""
    request = pb.RankRequest(loop=mesh.loop, user_id="u", item_ids=["item-1"])
    request.context.numbers["hour"] = 1e39
    year = behavior.ItemChanged(item_id="i", fields={"year": behavior.FieldValue(number=1e39)})
    flag = behavior.ItemChanged(item_id="i", fields={"year": behavior.FieldValue(boolean=True)})
    genre = behavior.Categories(values=["unheard-of"])
    unlisted = behavior.ItemChanged(item_id="i", fields={"genres": behavior.FieldValue(categories=genre)})
    calls = [mesh.stub.Rank(request, timeout=30)]
    for item in (year, flag, unlisted):
        events = [pb.TrackedEvent(item_changed=item)]
        calls.append(mesh.stub.Track(pb.TrackRequest(loop=mesh.loop, events=events), timeout=30))
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(each) for each in answers] == [Invalid] * 4, answers


async def test_reports_acknowledge_epochs_at_once_and_say_goodbye(start: StartMesh, kafka: str) -> None:
    """A new epoch is reported long before the next regular report, with counts; the last report says `leaving`."""
    mesh = await start(gateway_report_s=60.0, gateway_instance="gateway-7")
    name = topic(mesh.loop, "models.gateway-reports")
    epochs = [await mesh.roll_out(("live", "v1", 1.0)), await mesh.roll_out(("live", "v1", 1.0))]
    for _ in range(3):
        await mesh.rank()

    async def acknowledged() -> bool:
        return (await read(kafka, name, 1))[-1].message.epoch == epochs[-1]

    await eventually(acknowledged, message="the newest epoch is acknowledged")
    await mesh.lifespan.__aexit__(None, None, None)
    events = await read(kafka, name, 3)
    assert {event.key for event in events} == {"gateway-7"}
    reported = [event.message.epoch for event in events]
    assert reported == sorted(reported)
    last = events[-1].message
    assert last.leaving
    assert not any(event.message.leaving for event in events[:-1])
    assert [(each.version, each.requests, each.failures) for each in last.versions] == [("v1", 3, 0)]
