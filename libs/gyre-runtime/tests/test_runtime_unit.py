"""What the chassis decides without any network: constraints, events, metrics, tracing, retry budget."""

import pickle
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import redis.exceptions
from google.protobuf.message import Message
from gyre.events.v1.behavior_pb2 import Impression, Interaction, ItemChanged
from gyre.gateway.v1.gateway_pb2 import RankRequest, RequestContext, SubmitBatchRequest, TrackRequest
from gyre_core.event_time import format_time
from gyre_runtime import (
    Invalid,
    RetryBudget,
    Unavailable,
    instrument,
)
from gyre_runtime.constraints import checker_for, require_valid
from gyre_runtime.errors import from_status, is_transient, to_status
from gyre_runtime.events import JSON, Unreadable, decode, decode_many, encode, message_types
from gyre_runtime.metrics import METRICS
from gyre_runtime.tracing import (
    FlowSampler,
    current_trace_id,
    current_traceparent,
    is_sampled,
    model_tracer,
    parse,
    start_span,
)
from opentelemetry import trace
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import generate_latest

TYPES = message_types(Interaction)
SAMPLED = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


VALID = {"loop": "movies", "user_id": "u", "item_ids": ["a"]}


@pytest.mark.parametrize(
    ("change", "field", "rule"),
    [
        ({"user_id": ""}, "user_id", "is required"),
        ({"user_id": "u" * 129}, "user_id", "must have at most 128 characters"),
        ({"item_ids": []}, "item_ids", "is required"),
        ({"item_ids": ["a"] * 1001}, "item_ids", "must have at most 1000 items"),
        ({"item_ids": ["a", "b" * 129]}, "item_ids[1]", "must have at most 128 characters"),
        ({"limit": 1001}, "limit", "must be at most 1000"),
        ({"request_id": "with space"}, "request_id", "must match [A-Za-z0-9_-]{1,64}"),
        ({"context": RequestContext(numbers={str(n): n for n in range(65)})}, "context.numbers", "at most 64 items"),
        ({"context": RequestContext(labels={"device": "d" * 129})}, "context.labels[device]", "at most 128 characters"),
        ({"context": RequestContext(labels={"d" * 129: ""})}, "context.labels", "keys of at most 128 characters"),
    ],
)
def test_a_broken_rule_is_named(change: dict[str, Any], field: str, rule: str) -> None:
    """A violation names the field, with index and nesting, and the rule."""
    with pytest.raises(Invalid) as caught:
        require_valid(RankRequest(**{**VALID, **change}))
    assert any(broken.field == field and rule in broken.rule for broken in caught.value.violations)


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (RankRequest(**{**VALID, "item_ids": []}), "item_ids: is required"),
        (
            RankRequest(**{**VALID, "user_id": "jane" * 33}),
            "user_id = 132 characters: must have at most 128 characters",
        ),
        (RankRequest(**{**VALID, "limit": 1001}), "limit = 1001: must be at most 1000"),
        (RankRequest(**{**VALID, "request_id": "a b"}), "request_id = 'a b': must match [A-Za-z0-9_-]{1,64}"),
        (RankRequest(**{**VALID, "item_ids": ["a", ""]}), "item_ids[1] = 0 characters: must have at least 1 character"),
        (Interaction(user_id="u", item_id="i", type="Click"), "type = 'Click': must match [a-z][a-z0-9_]{0,31}"),
        (
            Interaction(user_id="u", item_id="i", type="click", value=float("nan")),
            "value = nan: must be finite",
        ),
    ],
)
def test_a_refusal_names_field_value_and_rule_once(message: Message, said: str) -> None:
    """The sentence for people names the field, the value (of a text that may name a person its length) and the rule."""
    with pytest.raises(Invalid) as caught:
        require_valid(message)
    assert caught.value.message == said
    assert [str(each) for each in caught.value.violations] == [said]


def test_a_bound_is_named_exactly() -> None:
    """A bound of many digits is not rounded, which would name another one."""
    broken = checker_for(Impression.DESCRIPTOR)(Impression(epoch=2**53))
    assert [each.rule for each in broken if each.field == "epoch"] == ["must be at most 9007199254740991"]


def test_valid_messages_pass() -> None:
    """What keeps the rules has no violation, unset optional fields included."""
    assert checker_for(RankRequest.DESCRIPTOR)(RankRequest(**VALID, request_id="r-1", limit=1000)) == []


def test_rules_hold_in_nested_lists() -> None:
    """A rule of a message in a list in a message is checked, and its path says where."""
    request = TrackRequest(loop="movies")
    request.events.add().interaction.CopyFrom(Interaction(user_id="u", item_id="i", type="click", value=1.0))
    request.events.add().interaction.CopyFrom(Interaction(user_id="u", item_id="i", type="click", value=float("nan")))
    (broken,) = checker_for(request.DESCRIPTOR)(request)
    assert (broken.field, broken.rule) == ("events[1].interaction.value", "must be finite")


def test_shown_values_are_short() -> None:
    """A violation shows the length of a text that is too long, and at most 64 characters of one that does not match."""
    (broken,) = checker_for(RankRequest.DESCRIPTOR)(RankRequest(**{**VALID, "user_id": "u" * 5000}))
    assert broken.value == "5000 characters"
    (broken,) = checker_for(RankRequest.DESCRIPTOR)(RankRequest(**{**VALID, "request_id": "!" * 5000}))
    assert len(broken.value) == 64


def test_candidates_are_checked_together() -> None:
    """The checker of a request calls as many functions for 1,000 candidates as for one: none for each candidate."""
    one, thousand = (
        RankRequest(**{**VALID, "item_ids": [f"tt{number:07d}" for number in range(count)]}) for count in (1, 1000)
    )
    check = checker_for(RankRequest.DESCRIPTOR)
    assert 0 < _calls(lambda: check(thousand)) == _calls(lambda: check(one))


def _calls(work: Callable[[], object]) -> int:
    """How many functions written in Python a piece of work calls, itself included."""
    called: list[str] = []
    sys.setprofile(lambda _frame, event, _argument: called.append(event))
    try:
        work()
    finally:
        sys.setprofile(None)
    return called.count("call")


def test_an_error_crosses_from_process_to_process() -> None:
    """What a process of a pool raises arrives as the same class, with all that it says."""
    error = Unavailable("STORE_UNAVAILABLE", "does not answer", metadata={"loop": "shop"}, retry_after_s=2.0)
    found = pickle.loads(pickle.dumps(error))
    assert (type(found), str(found)) == (Unavailable, str(error))
    assert (found.metadata, found.retry_after_s) == ({"loop": "shop"}, 2.0)


def test_violations_are_bounded() -> None:
    """A request that is wrong everywhere gets a bounded answer."""
    request = SubmitBatchRequest(loop="movies", request_id="r")
    for _ in range(1000):
        request.entries.add()
    assert len(checker_for(request.DESCRIPTOR)(request)) == 32


def received(record: Any, **changes: Any) -> Any:
    """Return a record as aiokafka would hand it over."""
    fields = {
        "topic": "t",
        "partition": 1,
        "offset": 2,
        "timestamp": 0,
        "timestamp_type": 0,
        **record._asdict(),
        **changes,
    }
    return SimpleNamespace(**fields)


PAYLOAD = Interaction(user_id="u", item_id="i", type="click")


def test_an_event_survives_its_encoding() -> None:
    """Decoding what was encoded gives payload, attributes and a time exact to the microsecond."""
    record = encode(PAYLOAD, source="s", id="e", time=1_385_250_000.123456, key="u", traceparent=SAMPLED)
    event = decode(received(record), TYPES)
    assert (event.message, event.id, event.source, event.key) == (PAYLOAD, "e", "s", "u")
    assert (event.type, event.traceparent) == ("gyre.events.v1.Interaction", SAMPLED)
    assert event.time == pytest.approx(1_385_250_000.123456, abs=1e-6)
    assert dict(record.headers)["ce_specversion"] == b"1.0"
    assert format_time(0.5) == "1970-01-01T00:00:00.500000Z"


def test_json_payloads_are_read() -> None:
    """A payload in protobuf's JSON mapping is the same event; field names may be in either case."""
    headers = [(k, v) for k, v in encode(PAYLOAD, source="s", id="e").headers if k != "content-type"]
    headers.append(("content-type", b"application/json; charset=utf-8"))
    value = b'{"userId": "u", "item_id": "i", "type": "click"}'
    assert decode(received(encode(PAYLOAD, source="s"), value=value, headers=headers), TYPES).message == PAYLOAD


@pytest.mark.parametrize(
    ("reason", "header", "value"),
    [
        ("NO_ID", "ce_id", None),
        ("NO_SOURCE", "ce_source", None),
        ("NO_TYPE", "ce_type", None),
        ("NO_TIME", "ce_time", None),
        ("UNKNOWN_TYPE", "ce_type", b"other.Message"),
        ("BAD_TIME", "ce_time", b"yesterday"),
        ("BAD_TIME", "ce_time", b"2013-03-01T00:00:00"),
        ("BAD_CONTENT_TYPE", "content-type", b"text/plain"),
        ("BAD_HEADER", "ce_id", b"\xff"),
        ("BAD_HEADER", "ce_specversion", b"0.3"),
        ("BAD_HEADER", "ce_specversion", b""),
        ("BAD_PAYLOAD", "content-type", b"application/json"),
    ],
)
def test_an_unreadable_record_says_why(reason: str, header: str, value: bytes | None) -> None:
    """Each way in which a record is no event has its reason."""
    record = encode(PAYLOAD, source="s")
    headers = [(name, old) for name, old in record.headers if name != header]
    if value is not None:
        headers.append((header, value))
    with pytest.raises(Unreadable) as caught:
        decode(received(record, headers=headers), TYPES)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"null", "payload = null: must be an object of ItemChanged with itemId, fields"),
        (b"3", "payload = a number: must be an object of ItemChanged"),
        (b'{"fields": {"year": 2012}}', "fields[year] = a number: must be an object of FieldValue with "),
        (b'{"fields": {"year": null}}', "fields[year] = null: must be an object of FieldValue"),
        (b'{"fields": 3}', "fields = a number: must be an object"),
        (b'{"fields": {"g": {"categories": ["a"]}}}', "fields[g].categories = a list: must be an object of Categories"),
        (b'{"fields": {"g": {"categories": {"values": "a"}}}}', "fields[g].categories.values = a text: must be a list"),
        (b'{"fields": {"year": {"number": "x"}}}', "ItemChanged.fields[year].number"),
        (b"{", "Failed to load JSON"),
    ],
)
def test_a_json_payload_of_another_shape_names_its_field(body: bytes, said: str) -> None:
    """A JSON payload that is no such message names the field, what was found and the rule, and no Python error."""
    record = encode(ItemChanged(item_id="i"), source="s")
    headers = [(name, JSON if name == "content-type" else value) for name, value in record.headers]
    with pytest.raises(Unreadable) as caught:
        decode(received(record, headers=headers, value=body), message_types(ItemChanged))
    assert (caught.value.reason, said in str(caught.value)) == ("BAD_PAYLOAD", True), str(caught.value)
    assert "object is not" not in str(caught.value)


@pytest.mark.parametrize("content_type", [None, b"application/protobuf"])
def test_json_that_is_read_as_protobuf_names_the_header(content_type: bytes | None) -> None:
    """JSON without the header that says so is refused with the header that it needs."""
    record = encode(ItemChanged(item_id="i"), source="s")
    headers = [each for each in record.headers if each[0] != "content-type"]
    if content_type is not None:
        headers.append(("content-type", content_type))
    with pytest.raises(Unreadable, match=r"in protobuf; JSON needs the header content-type: application/json"):
        decode(received(record, headers=headers, value=b'{"itemId": "i"}'), message_types(ItemChanged))


def test_a_record_may_leave_its_specversion_out() -> None:
    """Without `ce_specversion` an event is read as one of CloudEvents 1.0; one of another version is named."""
    record = encode(PAYLOAD, source="s")
    others = [each for each in record.headers if each[0] != "ce_specversion"]
    assert decode(received(record, headers=others), TYPES).message == PAYLOAD
    with pytest.raises(Unreadable, match=r"ce_specversion = '2\.0': must be 1\.0"):
        decode(received(record, headers=[*others, ("ce_specversion", b"2.0")]), TYPES)


def test_a_tombstone_is_no_event() -> None:
    """A record without value is unreadable as an event."""
    with pytest.raises(Unreadable, match="NO_VALUE"):
        decode(received(encode(PAYLOAD, source="s"), value=None), TYPES)


def test_events_are_decoded_in_bulk() -> None:
    """Bulk decoding keeps the order and sorts out the unreadable."""
    records = [received(encode(PAYLOAD, source="s", id=str(number)), offset=number) for number in range(500)]
    records[7].value = b"\xff"
    events, refused = decode_many(records, TYPES)
    assert [event.offset for event in events] == [number for number in range(500) if number != 7]
    assert [error.reason for _, error in refused] == ["BAD_PAYLOAD"]


def test_metric_names_follow_prometheus() -> None:
    """Names are unique, counters end in _total, times in _seconds, and all have a description."""
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    for metric in METRICS:
        assert metric.name.startswith("gyre_")
        assert metric.name.endswith("_total") == (metric.kind == "counter"), metric.name
        assert metric.unit != "s" or metric.name.endswith("_seconds"), metric.name
        assert metric.description.endswith(".")


def test_metrics_of_loops_carry_the_loop() -> None:
    """Every metric beyond the process's own has the label loop."""
    own = (
        "gyre_rpc_",
        "gyre_dependency_",
        "gyre_producer_queue_",
        "gyre_producer_replaced_",
        "gyre_task_",
        "gyre_monitor_spans_",
    )
    assert [m.name for m in METRICS if not m.name.startswith(own) and "loop" not in m.labels] == []


def test_every_metric_is_exposed_under_its_name(telemetry: Any) -> None:
    """Each metric of the catalogue, once written, stands on /metrics with exactly its name and labels."""
    for metric in METRICS:
        write = instrument(metric.name).bind(**dict.fromkeys(metric.labels, "unit-test"))
        write(1.0)
    page = generate_latest(telemetry.registry).decode()
    for metric in METRICS:
        labels = ",".join(f'{label}="unit-test"' for label in sorted(metric.labels))
        series = f"{metric.name}_count" if metric.kind == "histogram" else metric.name
        assert f"{series}{{{labels}}}" in page or (not labels and f"\n{series} " in page), metric.name


def test_the_catalogue_is_closed() -> None:
    """An unknown metric, a missing or unknown label and the wrong kind are errors."""
    with pytest.raises(KeyError):
        instrument("gyre_unheard_of_total")
    with pytest.raises(ValueError, match="takes the labels"):
        instrument("gyre_archive_rows_total").add(1, loop="movies")
    with pytest.raises(ValueError, match="takes the labels"):
        instrument("gyre_archive_rows_total").bind(loop="movies", table="t", other="x")
    with pytest.raises(TypeError, match="is a counter"):
        instrument("gyre_archive_rows_total").set(1, loop="movies", table="t")


def test_the_model_flow_is_always_sampled(spans: InMemorySpanExporter) -> None:
    """At ratio 0 a model span and its children are recorded, with links; a request span is not."""
    with start_span("request"):
        assert not is_sampled(current_traceparent())
    with model_tracer().span("train", links=[SAMPLED]), start_span("child"):
        assert is_sampled(current_traceparent())
        assert len(current_trace_id()) == 32
    child, train = spans.get_finished_spans()
    assert (child.name, train.name) == ("child", "train")
    assert child.parent.span_id == train.context.span_id
    assert f"{train.links[0].context.span_id:016x}" == SAMPLED.split("-")[2]


def test_a_parent_decides_for_requests() -> None:
    """The request flow follows its caller's flag; roots follow the ratio."""
    sampler = FlowSampler(1.0)
    unsampled = trace.set_span_in_context(trace.NonRecordingSpan(parse(SAMPLED[:-1] + "0")))
    assert not sampler.should_sample(unsampled, 1, "s").decision.is_sampled()
    assert sampler.should_sample(None, 1, "s").decision.is_sampled()
    assert "1.0" in sampler.get_description()


def test_a_span_tells_failure_without_its_text(spans: InMemorySpanExporter) -> None:
    """An exception marks the span with its class and reason, never with its message."""
    with pytest.raises(Unavailable), start_span("work", flow="model"):
        raise Unavailable("DOWN", "user u7 cannot be served")
    (span,) = spans.get_finished_spans()
    assert (span.attributes["error.type"], span.status.description) == ("Unavailable", "DOWN")
    assert span.events == ()


@pytest.mark.parametrize("text", ["", "x", "00-0-0-01", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", None])
def test_a_malformed_traceparent_is_ignored(text: str | None) -> None:
    """What is no valid trace context counts as absent."""
    assert parse(text) is None


def test_a_status_without_details_still_has_a_class() -> None:
    """An error of a foreign server is rebuilt from its code alone."""
    error = from_status(Unavailable.code, "gone", None)
    assert (type(error), error.reason) == (Unavailable, "UNAVAILABLE")
    assert is_transient(error)
    assert not is_transient(ValueError())
    assert to_status(ValueError("secret")).message == "internal error"


def test_a_lost_redis_is_transient() -> None:
    """redis-py's connection errors derive from none of Python's, and are tried again all the same."""
    assert is_transient(redis.exceptions.ConnectionError())
    assert is_transient(redis.exceptions.BusyLoadingError())
    assert not is_transient(redis.exceptions.ResponseError())


def test_the_retry_budget_is_earned() -> None:
    """Retries are bounded to the start allowance plus a share of the calls."""
    budget = RetryBudget(ratio=0.5, capacity=10)
    assert [budget.spend() for _ in range(11)] == [True] * 10 + [False]
    budget.earn()
    budget.earn()
    assert [budget.spend(), budget.spend()] == [True, False]
