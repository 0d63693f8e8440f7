"""Generated records get one verdict from gateway, stream, archive, quality and import, and after a restart anywhere."""

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import lru_cache
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from google.protobuf import json_format
from google.protobuf.message import Message
from gyre.events.v1 import behavior_pb2 as behavior
from gyre.gateway.v1 import gateway_pb2 as pb
from gyre_client.history import refusal_of
from gyre_core.features import FieldsChanged, UserInteraction
from gyre_core.spec import LoopSpec, parse_loop
from gyre_core.topics import IMPORT_SOURCE, topic
from gyre_features.processes.archive import ARCHIVED
from gyre_features.processes.stream import TYPES
from gyre_features.quality.watch import QualityWatch
from gyre_gateway.transport.reading import tracked_event
from gyre_privacy.masking import LoopPrivacy, Privacy
from gyre_privacy.redaction import redactor
from gyre_runtime import Invalid
from gyre_runtime.admission import Admission, PartitionClock, Refusal, Rules, decide
from gyre_runtime.constraints import checker_for
from gyre_runtime.events import JSON, Event, encode
from gyre_runtime.fields import field_values

LOOP = """
version: 1
loop: shop
clock: {clock}
events: {{interactions: {{click: {{}}, rating: {{value: {{min: 0, max: 10}}}}}}}}
items:
  fields:
    price: {{kind: number}}
    genre: {{kind: category, values: [drama, action]}}
    tags: {{kind: categories, buckets: 8}}
    fresh: {{kind: boolean}}
    released: {{kind: time}}
    place: {{kind: vector, length: 2}}
    about: {{kind: text}}
users: {{fields: {{age: {{kind: number}}}}}}
features: [{{name: popular, kind: decayed_count, scope: item, events: [click], half_lives: [1d]}}]
privacy: {{fields: {{items.about: {{action: redact}}, labels.ref: {{action: redact}}}}}}
"""
WORDS = ("jane@shop.example", "a@b.co ", "+49 30 901820 ", "1234567 ", "quiet ", "<EMAIL_ADDRESS> ", "203.0.113.7,")
"""Of which texts are made that masking makes longer, or shorter, or leaves as they are."""
FIELDS: list[tuple[str, dict[str, Any]]] = [
    ("price", {"number": 3.5}),
    ("price", {"number": 1e39}),
    ("price", {"number": float("nan")}),
    ("price", {"boolean": True}),
    ("genre", {"text": "drama"}),
    ("genre", {"text": "opera"}),
    ("genre", {"categories": behavior.Categories(values=["action"])}),
    ("tags", {"categories": behavior.Categories(values=["a", "b"])}),
    ("fresh", {"boolean": False}),
    ("fresh", {"number": 1}),
    ("released", {"text": "2013-04-03t00:00:00z"}),
    ("released", {"text": "9999-12-31T23:59:59-23:59"}),
    ("released", {"number": 1e13}),
    ("place", {"vector": behavior.Vector(values=[1, 2])}),
    ("place", {"vector": behavior.Vector(values=[1])}),
    ("colour", {"text": "red"}),
    ("price", {}),
]
IDS = ("e" * 64, "e" * 65, "e" * 256, "e" * 257, "e" * 100_000, "\N{GREEK SMALL LETTER ALPHA}" * 256, " ", "e\t")
SOURCES = ("s" * 256, "s" * 257, "s" * 100_000, " ", "gateway/shop", "gateway/shop\x7f")
SUFFIXES = ("behavior.interactions", "behavior.impressions", "catalog.items", "catalog.users")


class Sent(NamedTuple):
    """A record of Kafka, and what it was made from: a message, or None where its bytes or headers are broken."""

    record: Any
    message: Message | None
    at: float
    id: str
    source: str


def texts(draw: random.Random, max_chars: int) -> str:
    """A text of words, sometimes as long as the proto allows or longer by one."""
    text = "".join(draw.choice(WORDS) for _ in range(draw.randrange(6)))
    if draw.random() < 0.1:
        text = (draw.choice(WORDS) * max_chars)[: max_chars + draw.choice([0, 0, 1])]
    return text


def interactions(draw: random.Random) -> behavior.Interaction:
    """Mostly right ones."""
    made = behavior.Interaction(user_id=draw.choice(["u1", "u2", "", "u" * 200]) if draw.random() < 0.1 else "u1")
    made.item_id, made.type = "i1", draw.choice(["click", "click", "rating", "stare", "Click!", ""])
    if draw.random() < 0.5:
        made.value = draw.choice([0.0, 5.0, 10.0, 10.5, -1.0, 1e39, float("inf"), float("nan")])
    return made


def impressions(draw: random.Random) -> behavior.Impression:
    """Mostly wrong in one thing at most."""
    made = behavior.Impression(request_id="r", user_id="u1", item_ids=["a", "b"], shown=1, method=1)
    odd = draw.randrange(17)
    if draw.random() < 0.3:
        made.labels["ref"] = texts(draw, 128)
    if odd < 8:
        name, value = [
            ("method", draw.choice([0, 99])),
            ("epoch", draw.choice([7, 2**53, 2**63])),
            ("shown", draw.choice([0, 2, 3, 2**32 - 1])),
            ("rest", draw.choice([9, 2**31, 2**32 - 1])),
            ("latency_s", draw.choice([0.1, float("nan")])),
            ("arm_propensity", draw.choice([0.5, 1.5])),
            ("request_id", draw.choice(["", "r" * 65])),
            ("feature_age_s", draw.choice([-1.0, float("inf")])),
        ][odd]
        setattr(made, name, value)
    elif odd < 11:
        lists: dict[str, list[Any]] = {"scores": [1.0, 2.0], "positions": [0, 2**32 - 1], "item_propensities": [0.5]}
        name = draw.choice(list(lists))
        getattr(made, name).extend(lists[name][: draw.randrange(3)])
    elif odd < 14:
        block = made.features
        block.layout, block.rows, block.columns = draw.choice(["l", ""]), draw.choice([1, 2]), 1
        block.values = draw.choice([b"\0" * 8, b"\0" * 7, b"\0\0\0\0\0\0\xc0\x7f"])
    elif odd < 16:
        made.context["hour"] = draw.choice([3.0, 1e39, float("nan")])
    else:
        made.item_ids[1] = draw.choice(["a", "c"])
    return made


def changes(draw: random.Random, suffix: str) -> behavior.ItemChanged | behavior.UserChanged:
    """An item or a user with some fields."""
    if suffix == "catalog.users":
        number = draw.choice([1.0, -1e39])
        return behavior.UserChanged(user_id="u1", fields={"age": behavior.FieldValue(number=number)})
    chosen = draw.sample(FIELDS, draw.randrange(3))
    fields = {name: behavior.FieldValue(**value) for name, value in chosen}
    if draw.random() < 0.1:
        fields["about"] = behavior.FieldValue(text=texts(draw, 10_000))
    if draw.random() < 0.02:
        words = [texts(draw, 128) for _ in range(2)]
        fields["about"] = behavior.FieldValue(categories=behavior.Categories(values=words))
    return behavior.ItemChanged(item_id=draw.choice(["i1", ""]), fields=fields)


def times(draw: random.Random, spec: LoopSpec, newest: float, now: float) -> float:
    """An event time within the bounds or beyond them, never within seconds of one."""
    base = now if spec.clock == "wall" else newest
    away = [0, -60, 30, -spec.max_lateness_s - 99, spec.events.max_future_s + 99, -4e8, 200 * 86_400]
    return base + draw.choice(away[:3]) + draw.random() if draw.random() < 0.8 else base + draw.choice(away)


def records(spec: LoopSpec, count: int, seed: int) -> Iterator[Sent]:
    """Records of all topics, each in one partition, as Kafka would hand them over now."""
    draw, newest = random.Random(seed), 1_365_000_000.0
    for offset in range(count):
        now, suffix = time.time(), draw.choice(SUFFIXES)
        kind = suffix if draw.random() < 0.97 else draw.choice(SUFFIXES)
        made: Message = interactions(draw)
        if kind != "behavior.interactions":
            made = impressions(draw) if kind == "behavior.impressions" else changes(draw, kind)
        at = round(times(draw, spec, newest, now), 6)
        if spec.clock == "replay":
            newest += draw.random() * 600
        source = draw.choice(["gateway", "gateway", IMPORT_SOURCE]) if draw.random() < 0.92 else draw.choice(SOURCES)
        id_ = f"e{offset}" if draw.random() < 0.92 else draw.choice(IDS)
        record = encode(made, source=source, id=id_, time=at, key="k")
        headers, value, message = dict(record.headers), record.value, made if kind == suffix else None
        if draw.random() < 0.1:
            headers["content-type"], value = JSON, json_format.MessageToJson(made).encode()
        if draw.random() < 0.05:
            message = None
            broken = draw.choice(["ce_id", "ce_source", "ce_type", "ce_time", "value", "odd_time", "bytes", "version"])
            headers.pop(broken, None)
            headers["ce_specversion"] = draw.choice([b"0.3", b"2.0"]) if broken == "version" else b"1.0"
            value = None if broken == "value" and suffix.startswith("behavior") else value
            value = b"\xff\xff" if broken == "bytes" else value
            headers["ce_time"] = b"0001-01-01T00:00:00+01:00" if broken == "odd_time" else headers.get("ce_time", b"")
        taken = {"topic": topic(spec.loop, suffix), "partition": 0, "offset": offset, "key": b"k"}
        yield Sent(
            SimpleNamespace(
                **taken, value=value, headers=list(headers.items()), timestamp=round(now * 1000), timestamp_type=1
            ),
            message,
            at,
            id_,
            source,
        )


def reason(decision: object) -> str:
    """The reason of a refusal; nothing for an event."""
    return decision.reason if isinstance(decision, Refusal) else ""


def of_gateway(spec: LoopSpec, sent: Sent) -> str | None:
    """What `Track` says of the event, or the stream of what `Track` makes of it; None where it takes no such events."""
    names = {"Interaction": "interaction", "ItemChanged": "item_changed", "UserChanged": "user_changed"}
    name = names.get(sent.message.DESCRIPTOR.name) if sent.message is not None else None
    if sent.message is None or name is None:
        return None
    event = pb.TrackedEvent(event_id=sent.id, **{name: sent.message})
    event.event_time.FromMicroseconds(round(sent.at * 1e6))
    request = pb.TrackRequest(loop=spec.loop, events=[event])
    if checker_for(request.DESCRIPTOR)(request):
        return "INVALID_FIELD"  # what a server answers
    try:
        made = tracked_event(spec, privacy_of(spec)[spec.loop], "events[0]", request.events[0])
    except Invalid as error:
        return error.reason
    return reason(again(spec, sent.record, made.payload, made.time))


@lru_cache
def _privacy(text: str) -> Privacy:
    spec = parse_loop(text)
    return Privacy({spec.loop: LoopPrivacy(spec, None, redactor)})


def privacy_of(spec: LoopSpec) -> Privacy:
    """What masks the loop's events."""
    return _privacy(LOOP.format(clock=spec.clock))


def again(spec: LoopSpec, record: Any, message: Message, at: float) -> object:
    """What a reader decides of an event that was masked before, however its clock stands."""
    made = encode(message, source="gateway", time=at)
    masked = SimpleNamespace(**{**vars(record), "value": made.value, "headers": made.headers})
    return decide(masked, Rules(TYPES, spec, privacy_of(spec).mask), PartitionClock())


def of_import(spec: LoopSpec, sent: Sent) -> str | None:
    """What `gyre import --dry-run` says of the event, to which it gives an id; None where files hold no such events."""
    message = sent.message if sent.id not in IDS else None
    if isinstance(message, behavior.Interaction):
        value = message.value if message.HasField("value") else None
        event: Any = UserInteraction(message.user_id, message.item_id, message.type, sent.at, value)
    elif isinstance(message, behavior.ItemChanged):
        event = FieldsChanged("item", message.item_id, sent.at, field_values(message.fields))
    elif isinstance(message, behavior.UserChanged):
        event = FieldsChanged("user", message.user_id, sent.at, field_values(message.fields))
    else:
        return None
    return reason(refusal_of(spec, event))


def watch_of(spec: LoopSpec) -> QualityWatch:
    """The quality worker's watch, which is only asked what it decides."""
    nothing: Any = None
    doing = {"closed_until": nothing, "publish": nothing, "commit": nothing, "idle_s": 60}
    return QualityWatch({spec.loop: spec}, TYPES, **doing, mask=privacy_of(spec).mask)


@pytest.mark.parametrize("clock", ["wall", "replay"])
@pytest.mark.parametrize("count", [2000, pytest.param(50_000, marks=[pytest.mark.slow, pytest.mark.timeout(1200)])])
def test_every_record_gets_one_verdict(clock: str, count: int) -> None:
    """What one refuses all refuse, for the same reason; a restart at any offset changes no verdict after it."""
    spec = parse_loop(LOOP.format(clock=clock))
    mask = privacy_of(spec).mask
    stream, archive = Admission({spec.loop: spec}, TYPES, mask), Admission({spec.loop: spec}, ARCHIVED, mask)
    quality, reasons, draw = watch_of(spec)._admission, Counter[str](), random.Random(count)
    odd = Counter[tuple[str, str, str]]()
    restarted = Admission({spec.loop: spec}, TYPES, mask)
    for sent in records(spec, count, seed=count):
        record = sent.record
        place = record.topic, record.partition
        if draw.random() < 0.02:
            restarted = Admission({spec.loop: spec}, TYPES, mask)
            for suffix in SUFFIXES:
                restarted.start(topic(spec.loop, suffix), 0, stream.clock(topic(spec.loop, suffix), 0))
        decided = stream.decide(record)
        verdict = reason(decided)
        examined = quality.examine(record)
        others = {
            "archive": reason(archive.decide(record)),
            "quality": reason(examined[-1] if examined else None),
            "after a restart": reason(restarted.decide(record)),
        }
        if isinstance(decided, Event) and decided.source != IMPORT_SOURCE:
            others["masked before"] = reason(again(spec, record, decided.message, decided.time))
        is_timely = verdict not in ("TOO_OLD", "IN_THE_FUTURE")
        if clock == "wall" or (is_timely and verdict):
            if sent.source.partition("/")[0] == "gateway" and sent.source not in SOURCES:
                others |= _of(of_gateway, spec, sent)
            elif sent.source == IMPORT_SOURCE:
                others |= _of(of_import, spec, sent)
        assert others == dict.fromkeys(others, verdict), (
            place,
            sent.message,
            sent.at,
            sent.id[:300],
            sent.source[:300],
        )
        reasons[verdict] += 1
        odd[sent.id if sent.id in IDS else "", sent.source if sent.source in SOURCES else "", verdict] += 1
    assert reasons.keys() >= {
        "",
        "UNKNOWN_TYPE",
        "INVALID_FIELD",
        "FIELD_INVALID",
        "TOO_OLD",
        "IN_THE_FUTURE",
        "BAD_TIME",
        "BAD_HEADER",
    }
    taken = {(id_, source) for id_, source, verdict in odd if not verdict}
    assert {id_ for id_, _ in taken} == {"", *IDS[:3], IDS[5]}
    assert {source for _, source in taken} == {"", "s" * 256, "gateway/shop"}
    assert {id_ for id_, _, _ in odd} == {"", *IDS}
    assert {source for _, source, _ in odd} == {"", *SOURCES}


def _of(ask: Callable[[LoopSpec, Sent], str | None], spec: LoopSpec, sent: Sent) -> dict[str, str]:
    said = ask(spec, sent)
    return {} if said is None else {ask.__name__: said}
