"""One decision for every record of a loop."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from gyre.events.v1 import behavior_pb2 as behavior
from gyre_core.spec import LoopSpec, parse_loop
from gyre_runtime.admission import Admission, PartitionClock, Refusal, StalledClock
from gyre_runtime.events import FIRST_APPEND_TIME, PROTOBUF, Event, encode, message_types

NOW = 1_700_000_000.0
TYPES = message_types(behavior.Impression, behavior.Interaction, behavior.ItemChanged, behavior.UserChanged)
SPEC = parse_loop(
    """
version: 1
loop: shop
events: {interactions: {click: {}, rating: {value: {min: 0, max: 10}}}}
items: {fields: {price: {kind: number}, genre: {kind: category, values: [drama, action]}, new: {kind: boolean}}}
features: [{name: popular, kind: decayed_count, scope: item, events: [click], half_lives: [1d]}]
"""
)
REPLAY = SPEC.model_copy(update={"clock": "replay"})


def record(
    message: Message, suffix: str = "behavior.interactions", *, time: float = NOW, at: float = NOW, **headers: str
) -> Any:
    """A record as Kafka hands it over, taken in at `at`."""
    made = encode(message, source="shop", time=time, key="k")
    more = [(name, value.encode()) for name, value in headers.items()]
    kept = [each for each in made.headers if each[0] not in headers]
    return SimpleNamespace(
        topic=f"shop.{suffix}",
        partition=0,
        offset=0,
        key=made.key,
        value=made.value,
        headers=kept + more,
        timestamp=round(at * 1000),
        timestamp_type=0,
    )


def click(**fields: Any) -> behavior.Interaction:
    """A valid interaction."""
    return behavior.Interaction(**{"user_id": "u", "item_id": "i", "type": "click"} | fields)


def impression(**fields: Any) -> behavior.Impression:
    """A valid impression of two items, of which one was shown."""
    given = {"request_id": "r", "user_id": "u", "item_ids": ["a", "b"], "shown": 1, "method": 1}
    return behavior.Impression(**given | fields)


def item(**fields: Any) -> behavior.ItemChanged:
    """An item with one field."""
    (name, value), *_ = fields.items()
    return behavior.ItemChanged(item_id="i", fields={name: behavior.FieldValue(**value)})


def reason(decision: object, spec: LoopSpec = SPEC) -> str:
    """The reason why a record is refused; nothing where it is not."""
    found = Admission({spec.loop: spec}, TYPES).decide(decision)  # type: ignore[arg-type]
    return found.reason if isinstance(found, Refusal) else ""


BLOCK = behavior.FeatureBlock(layout="l", rows=2, columns=1, values=b"\0" * 8)
NAN = behavior.FeatureBlock(layout="l", rows=2, columns=1, values=b"\0\0\0\0\0\0\xc0\x7f")


@pytest.mark.parametrize(
    ("message", "suffix", "expected"),
    [
        (click(), "behavior.interactions", ""),
        (click(), "catalog.items", "UNKNOWN_TYPE"),
        (item(price={"number": 1}), "behavior.interactions", "UNKNOWN_TYPE"),
        (click(type="stare"), "behavior.interactions", "UNKNOWN_TYPE"),
        (click(value=1e39), "behavior.interactions", "INVALID_FIELD"),
        (item(price={"number": 1}), "catalog.items", ""),
        (item(price={"number": -1e39}), "catalog.items", "INVALID_FIELD"),
        (item(price={"boolean": True}), "catalog.items", "FIELD_INVALID"),
        (item(new={"number": 1}), "catalog.items", "FIELD_INVALID"),
        (item(genre={"text": "opera"}), "catalog.items", "FIELD_INVALID"),
        (item(genre={"text": ""}), "catalog.items", ""),
        (impression(), "behavior.impressions", ""),
        (impression(method=99), "behavior.impressions", ""),
        (impression(method=0), "behavior.impressions", "INVALID_FIELD"),
        (impression(epoch=2**63), "behavior.impressions", "INVALID_FIELD"),
        (impression(shown=2**32 - 1), "behavior.impressions", "INVALID_FIELD"),
        (impression(shown=3), "behavior.impressions", "INVALID_FIELD"),
        (impression(rest=2**32 - 1), "behavior.impressions", "INVALID_FIELD"),
        (impression(positions=[2**32 - 1, 0]), "behavior.impressions", "INVALID_FIELD"),
        (impression(scores=[1.0]), "behavior.impressions", "INVALID_FIELD"),
        (impression(scores=[1.0, float("nan")]), "behavior.impressions", "INVALID_FIELD"),
        (impression(item_propensities=[0.5, 0.5]), "behavior.impressions", "INVALID_FIELD"),
        (impression(context={"hour": 1e39}), "behavior.impressions", "INVALID_FIELD"),
        (impression(item_ids=["a", "a"], shown=2), "behavior.impressions", "INVALID_FIELD"),
        (impression(item_ids=["a", "b", "a"]), "behavior.impressions", "INVALID_FIELD"),
        (impression(features=BLOCK), "behavior.impressions", ""),
        (impression(features=NAN), "behavior.impressions", "INVALID_FIELD"),
        (impression(item_ids=["a"], features=BLOCK), "behavior.impressions", "INVALID_FIELD"),
        (impression(request_id=f"gw-{7:032x}"), "behavior.impressions", "RESERVED_REQUEST_ID"),
        (impression(request_id=f"gw-{7:031x}"), "behavior.impressions", ""),
        (click(request_id=f"gw-{7:032x}"), "behavior.interactions", ""),
    ],
)
def test_what_a_record_says_is_decided_once(message: Message, suffix: str, expected: str) -> None:
    """Types by topic, bounds of the tables' columns, shapes, kinds of fields; enums stay open."""
    assert reason(record(message, suffix)) == expected


def test_the_gateway_alone_uses_ids_of_its_form() -> None:
    """An impression with a request id that the gateway made is admitted from the gateway's own source."""
    own = impression(request_id=f"gw-{7:032x}")
    assert reason(record(own, "behavior.impressions", ce_source="gyre/gateway")) == ""
    assert reason(record(own, "behavior.impressions", ce_source="gateway/shop")) == "RESERVED_REQUEST_ID"


@pytest.mark.parametrize("name", ["ce_id", "ce_source"])
@pytest.mark.parametrize("text", ["e" * 257, "e" * 100_000, " ", "e\0"])
def test_ids_and_sources_are_bounded(name: str, text: str) -> None:
    """An event of any topic with an id or a source that is longer, blank or holds control characters is refused."""
    assert reason(record(click(), **{name: "e" * 256})) == ""
    for message, suffix in ((click(), "behavior.interactions"), (item(price={"number": 1}), "catalog.items")):
        assert reason(record(message, suffix, **{name: text})) == "INVALID_FIELD"


def test_a_mark_whose_time_is_none_is_refused() -> None:
    """Nanoseconds below 0 or of a second and more, and years past 9999, are no time: a refusal, and no exception."""
    for seconds, nanos in ((5, -1), (5, 1_000_000_000), (2**60, 0), (-(2**60), 0)):
        mark = behavior.ClockMark()
        mark.clock_time.seconds, mark.clock_time.nanos = seconds, nanos
        assert reason(record(mark), REPLAY) == "INVALID_FIELD"


def test_lateness_is_between_the_event_and_kafka() -> None:
    """It does not matter when a record is read; a replayed dead letter has its first time, where the loop trusts it."""
    assert reason(record(click(), time=NOW - 1e7, at=NOW - 1e7 + 3599)) == ""
    late = record(click(), time=NOW - 7200, at=NOW)
    assert reason(late) == "TOO_OLD"
    first = str(round((NOW - 7100) * 1000))
    replayed = record(click(), time=NOW - 7200, at=NOW, **{FIRST_APPEND_TIME: first})
    assert reason(replayed) == ""
    events = SPEC.events.model_copy(update={"trust_replayed_append_time": False})
    assert reason(replayed, SPEC.model_copy(update={"events": events})) == "TOO_OLD"
    assert reason(record(click(), **{FIRST_APPEND_TIME: "soon"})) == "BAD_HEADER"
    assert reason(record(click(), time=NOW - 1e8, ce_source="gyre/import")) == ""


@pytest.mark.parametrize("days", [29, 400])
def test_a_first_append_time_counts_no_further_back_than_dead_letters_are_kept(days: int) -> None:
    """An event of long ago is late whatever its producer says, since no letter of then is there to be replayed."""
    then = NOW - days * 86_400
    first = str(round(then * 1000))
    decided = reason(record(click(), time=then, at=NOW, gyre_append_time=first))
    assert decided == ("" if days < 30 else "TOO_OLD")


@pytest.mark.parametrize(
    ("header", "value", "expected"),
    [
        ("b3", b"\xff", ""),
        ("x-tenant", None, ""),
        ("traceparent", b"\xff", ""),
        ("traceparent", None, ""),
        ("ce_id", b"\xff", "BAD_HEADER"),
        ("ce_id", None, "BAD_HEADER"),
        ("content-type", None, "BAD_HEADER"),
        ("gyre_append_time", b"\xff", "BAD_HEADER"),
    ],
)
def test_only_headers_that_are_read_refuse_an_event(header: str, value: bytes | None, expected: str) -> None:
    """Kafka's headers are bytes or null, and those of others are nobody's business; a trace decides nothing."""
    made = record(click())
    made.headers = [*(each for each in made.headers if each[0] != header), (header, value)]
    assert reason(made) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2016-12-31T23:59:60Z", ""),
        ("2016-12-31T15:59:60.25-08:00", ""),
        ("2016-12-31T22:59:60Z", "BAD_TIME"),
        ("2016-12-31T23:59:61Z", "BAD_TIME"),
        ("9999-12-31T23:59:60Z", "BAD_TIME"),
    ],
)
def test_a_leap_second_is_the_second_after_it(text: str, expected: str) -> None:
    """RFC 3339 knows 23:59:60 UTC, which unix time counts as the next midnight."""
    midnight = 1_483_228_800.0
    made = record(click(), at=midnight + 1, ce_time=text)
    assert reason(made) == expected
    if not expected:
        event = Admission({SPEC.loop: SPEC}, TYPES).decide(made)
        assert isinstance(event, Event)
        assert midnight <= event.time < midnight + 1


@pytest.mark.parametrize("text", ["0001-01-01T00:00:00+01:00", "9999-12-31T23:59:59-23:59", "soon"])
def test_a_time_that_no_table_holds_is_none(text: str) -> None:
    """What is before year 1 or after 9999 in UTC is refused, in the catalogue, too."""
    assert reason(record(item(price={"number": 1}), "catalog.items", ce_time=text)) == "BAD_TIME"


def test_a_leap_does_not_move_the_replay_clock() -> None:
    """Among events of 2013 one of 2020 is in the future, and those after it are decided as if it were not there."""
    admission, begin = Admission({REPLAY.loop: REPLAY}, TYPES), 1_365_000_000.0
    assert isinstance(admission.decide(record(click(), time=begin)), Event)
    leap = admission.decide(record(click(), time=begin + 7 * 365 * 86_400))
    assert isinstance(leap, Refusal)
    assert leap.reason == "IN_THE_FUTURE"
    assert isinstance(admission.decide(record(click(), time=begin + 60)), Event)
    assert admission.clock("shop.behavior.interactions", 0) == PartitionClock(begin + 60)


def test_a_clock_that_a_gap_holds_is_known_until_it_moves() -> None:
    """Ten events after a gap are known with the earliest of their times; a mark ends it; a leap of the wall is none."""
    admission, begin, gap = Admission({REPLAY.loop: REPLAY}, TYPES), 1_365_000_000.0, 5 * 86_400
    place = ("shop.behavior.interactions", 0)
    assert isinstance(admission.decide(record(click(), time=begin)), Event)
    for after in (60, 0, *range(120, 1000, 110)):
        refused = admission.decide(record(click(), time=begin + gap + after))
        assert isinstance(refused, Refusal)
        assert f"gyre clock {REPLAY.loop} --to {begin + gap + after:.0f}" in refused.detail
    assert admission.stalled == {place: StalledClock(begin, begin + gap, 10)}
    assert isinstance(admission.decide(record(click(), time=NOW + 2 * 86_400)), Refusal)
    assert admission.stalled[place].refused == 10
    mark = behavior.ClockMark()
    mark.clock_time.FromSeconds(int(begin + gap))
    assert admission.decide(record(mark, time=begin + gap)) is None
    assert admission.stalled == {}
    assert isinstance(admission.decide(record(click(), time=begin + gap + 60)), Event)


@pytest.mark.parametrize("away_s", [5 * 86_400, -5 * 86_400])
def test_a_clock_stands_from_ten_refusals_in_a_row_on(away_s: int, caplog: pytest.LogCaptureFixture) -> None:
    """Nine say nothing of the clock, also again and again with an event between that passes; the tenth says it once."""
    admission, begin = Admission({REPLAY.loop: REPLAY}, TYPES), 1_365_000_000.0

    def refuse(times: int) -> None:
        for _ in range(times):
            assert isinstance(admission.decide(record(click(), time=begin + away_s)), Refusal)

    for _ in range(3):
        assert isinstance(admission.decide(record(click(), time=begin)), Event)
        refuse(9)
    assert (admission.stalled, caplog.messages) == ({}, [])
    refuse(1)
    assert [each.refused for each in admission.stalled.values()] == [10]
    refuse(9)
    assert [each.refused for each in admission.stalled.values()] == [19]
    (said,) = caplog.messages
    assert "a replay clock stands" in said
    assert isinstance(admission.decide(record(click(), time=begin)), Event)
    assert admission.stalled == {}


def test_a_deletion_is_neither_event_nor_refusal() -> None:
    """A record of a compacted topic without a value says nothing more."""
    gone = record(item(price={"number": 1}), "catalog.items")
    gone.value, gone.headers = None, []
    assert Admission({SPEC.loop: SPEC}, TYPES).decide(gone) is None


def in_json(message: Message, suffix: str, **more: Any) -> Any:
    """The record with a message in protobuf's JSON mapping, some fields in place of its own."""
    sent = record(message, suffix)
    sent.value = json.dumps(MessageToDict(message) | more).encode()
    sent.headers = [each for each in sent.headers if each[1] != PROTOBUF] + [("content-type", b"application/json")]
    return sent


def test_content_types_do_not_matter() -> None:
    """The same payload in protobuf's JSON mapping has the same verdict."""
    assert reason(in_json(click(), "behavior.interactions", value=1e39)) == "INVALID_FIELD"


@pytest.mark.parametrize(
    ("sent", "refusal"),
    [
        (("interactions", {"value": True}), "value = true: must be a number"),
        (("interactions", {"value": "1_0"}), 'value = "1_0": must be a number'),
        (("impressions", {"method": 4294967298}), "method = 4294967298: must be "),
        (("impressions", {"method": True}), "method = true: must be "),
        (("impressions", {"method": "2"}), 'method = "2": must be '),
        (("impressions", {"method": 1.5}), "method = 1.5: must be "),
        (("impressions", {"epoch": "1_0"}), 'epoch = "1_0": must be a number'),
        (("impressions", {"scores": [1, False]}), "scores[1] = false: must be a number"),
        (("impressions", {"context": {"hour": True}}), "context[hour] = true: must be a number"),
        (("impressions", {"features": {"values": "AA AA"}}), 'features.values = "AA AA": must be base64'),
        (("impressions", {"features": []}), "features = []: must be an object"),
        (("items", {"fields": {"price": {"number": True}}}), "fields[price].number = true: must be a number"),
    ],
)
def test_json_is_taken_by_the_rules_of_its_mapping_alone(sent: tuple[str, dict[str, Any]], refusal: str) -> None:
    """What Python's parser would store as something else than is written is refused, with field, value and rule."""
    topic, fields = sent
    whole = {
        "interactions": click(type="rating", value=1),
        "impressions": impression(),
        "items": item(price={"number": 1}),
    }
    suffix = "catalog.items" if topic == "items" else f"behavior.{topic}"
    plain = in_json(whole[topic], suffix)
    assert isinstance(Admission({SPEC.loop: SPEC}, TYPES).decide(plain), Event)
    decided = Admission({SPEC.loop: SPEC}, TYPES).decide(in_json(whole[topic], suffix, **fields))
    assert isinstance(decided, Refusal), decided
    assert decided.reason == "BAD_PAYLOAD"
    assert refusal in decided.detail


def test_a_mark_sets_the_replay_clock_and_no_event_is_made_of_it() -> None:
    """It crosses a gap; a mark in the past does nothing unless it says so; on the wall clock none does anything."""
    begin, later = 1_365_000_000.0, 1_565_000_000.0
    admission = Admission({REPLAY.loop: REPLAY}, TYPES)

    def mark(to: float, *, back: bool = False) -> Any:
        made = behavior.ClockMark(back=back)
        made.clock_time.FromSeconds(int(to))
        return record(made, time=to)

    assert isinstance(admission.decide(record(click(), time=begin)), Event)
    assert admission.decide(mark(later)) is None
    assert isinstance(admission.decide(record(click(), time=later + 1)), Event)
    assert admission.decide(mark(begin)) is None
    assert admission.clock("shop.behavior.interactions", 0).newest == later + 1
    assert admission.decide(mark(begin, back=True)) is None
    assert isinstance(admission.decide(record(click(), time=begin + 1)), Event)
    ahead = admission.decide(mark(NOW + 2 * 86_400))
    assert isinstance(ahead, Refusal)
    assert ahead.reason == "IN_THE_FUTURE"
    assert Admission({SPEC.loop: SPEC}, TYPES).decide(mark(NOW)) is None
