"""What the chassis decides without any network: settings, constraints, events, metrics, tracing, retry budget."""

import pickle
import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import redis.exceptions
from google.protobuf.message import Message
from gyre.events.v1.behavior_pb2 import Impression, Interaction, ItemChanged
from gyre.gateway.v1.gateway_pb2 import RankRequest, RequestContext, SubmitBatchRequest, TrackRequest
from gyre_core.event_time import format_time
from gyre_runtime import (
    Invalid,
    Misconfigured,
    RetryBudget,
    ServiceSettings,
    Unavailable,
    instrument,
    load_loops,
    load_settings,
)
from gyre_runtime.constraints import checker_for, require_valid
from gyre_runtime.errors import from_status, is_transient, to_status
from gyre_runtime.events import JSON, Unreadable, decode, decode_many, encode, message_types
from gyre_runtime.metrics import METRICS
from gyre_runtime.settings import PARTS, variable_of
from gyre_runtime.tracing import FlowSampler, current_trace_id, inject, is_sampled, model_tracer, parse, start_span
from opentelemetry import trace
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import generate_latest

TYPES = message_types(Interaction)
SAMPLED = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class ExampleSettings(ServiceSettings):
    """A service's settings."""

    service: ClassVar[str] = "gateway"
    gateway_max_inflight: int = 10


def test_defaults_are_valid() -> None:
    """With an empty environment every default holds."""
    assert load_settings(ExampleSettings, {}).gateway_max_inflight == 10


def test_settings_come_from_the_environment() -> None:
    """Values are parsed, lists split at the path separator, and an address that may be empty is."""
    environ = {
        "GYRE_LOOPS": "a.yaml:b.yaml",
        "GYRE_GATEWAY_MAX_INFLIGHT": "7",
        "GYRE_OTLP": "",
        "PATH": "/bin",
    }
    settings = load_settings(ExampleSettings, environ)
    assert settings.loops == (Path("a.yaml"), Path("b.yaml"))
    assert (settings.gateway_max_inflight, settings.otlp, settings.token_file) == (7, "", None)


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("GYRE_LISTEN", "nowhere", "must be host:port with a port from 0 to 65535"),
        ("GYRE_GATEWAY_MAX_INFLIGHT", "many", "Input should be a valid integer"),
        ("GYRE_TRACE_RATIO", "2", "Input should be less than or equal to 1"),
        ("GYRE_LOOPS", "", "is blank"),
        ("GYRE_LOOPS", "a.yaml:", "none of them blank"),
        ("GYRE_LISTEN", "a b:9092", "must be host:port"),
        ("GYRE_LISTEN", ":9092", "must be host:port"),
        ("GYRE_LISTEN", "::1:9092", "an IP version 6 address in brackets"),
        ("GYRE_OTLP", " ", "is blank"),
        ("GYRE_DRAIN_S", "nan", "finite number"),
        ("GYRE_MAX_STREAM_S", "inf", "finite number"),
        ("GYRE_MAX_STREAM_S", "1e300", "must be at most 315360000"),
        ("GYRE_MAX_STREAM_S", " 5 ", "has spaces around it"),
        ("GYRE_GATEWAY_MAX_INFLIGHT", str(10**30), "must be at most 9007199254740992"),
        ("GYRE_KAFFKA", "127.0.0.1:1", "is not a setting of this process"),
        ("GYRE_GATEWAY_TYPO", "1", "is not a setting of this process"),
    ],
)
def test_a_bad_setting_stops_the_start(name: str, value: str, rule: str) -> None:
    """The message names the variable, the value and the rule."""
    with pytest.raises(SystemExit) as caught:
        load_settings(ExampleSettings, {name: value})
    message = str(caught.value)
    assert message.startswith(f"{name}={value!r}" if name != "GYRE_LOOPS" else f"{name}=")
    assert rule in message


class RenamedSettings(ServiceSettings):
    """A service whose setting had another name."""

    service: ClassVar[str] = "features"
    features_max_popular: int = 10


def test_a_renamed_setting_is_read_by_its_old_name(caplog: pytest.LogCaptureFixture) -> None:
    """For one release the old name counts where the new one is not set, and the log says what to write."""
    old, new = "GYRE_FEATURES_POPULAR_KEPT", "GYRE_FEATURES_MAX_POPULAR"
    assert load_settings(RenamedSettings, {old: "7"}).features_max_popular == 7
    assert f"{old} is an old name, read for one release: write {new}" in caplog.text
    assert load_settings(RenamedSettings, {old: "7", new: "8"}).features_max_popular == 8
    with pytest.raises(SystemExit, match=f"^{new}='many'"):
        load_settings(RenamedSettings, {old: "many"})


class EverySettings(*PARTS):  # type: ignore[misc]
    """All settings that processes share."""


def _samples(field: str) -> list[str]:
    """Values that say nothing, by what a setting is."""
    kind = EverySettings.model_fields[field].annotation
    if kind is str:
        return [" ", "\t"]
    if kind in (int, float):
        return ["", " ", "nan", "inf", "-inf", "1e300", "9" * 400]
    return ["", " ", "\t"]


@pytest.mark.parametrize("field", sorted(EverySettings.model_fields))
def test_no_setting_takes_what_says_nothing(field: str) -> None:
    """Blank texts, paths and numbers, and numbers that nothing can count to, stop the start, whatever the setting."""
    for value in _samples(field):
        with pytest.raises(SystemExit, match=rf"(?m)^{variable_of(field)}={re.escape(repr(value))}: \S"):
            load_settings(EverySettings, {variable_of(field): value})


def test_settings_of_other_processes_are_tolerated() -> None:
    """A variable with another service's prefix, or of the local stack, may be in the environment."""
    load_settings(ExampleSettings, {"GYRE_TRAINER_THREADS": "2", "GYRE_PORT_OFFSET": "100", "GYRE_DATA": "data"})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("GYRE_KAFKA_SERVICE_HOST", "10.96.12.7"),
        ("GYRE_KAFKA_SERVICE_PORT", "9092"),
        ("GYRE_KAFKA_SERVICE_PORT_TCP_CLIENTS", "9092"),
        ("GYRE_KAFKA_PORT", "tcp://10.96.12.7:9092"),
        ("GYRE_KAFKA_PORT_9092_TCP", "tcp://10.96.12.7:9092"),
        ("GYRE_KAFKA_PORT_9092_TCP_PROTO", "tcp"),
        ("GYRE_KAFKA_PORT_9092_TCP_PORT", "9092"),
        ("GYRE_KAFKA_PORT_9092_TCP_ADDR", "10.96.12.7"),
        ("GYRE_KAFKA_BOOTSTRAP_PORT", "tcp://10.96.12.8:9091"),
        ("GYRE_SERVICE_HOST", "fd00::12"),
        ("GYRE_PORT", "udp://10.96.12.9:53"),
    ],
)
def test_what_kubernetes_injects_is_passed_over(name: str, value: str) -> None:
    """The variables of a Service whose name begins with `gyre` do not stop a process of its namespace."""
    assert load_settings(ExampleSettings, {name: value}) == ExampleSettings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("GYRE_METRICS_PORT", "7001"),
        ("GYRE_KAFKA_BOOTSTRAP", "127.0.0.1:9092"),
        ("GYRE_KAFKA_SERVICE_HOST", "not an address"),
        ("GYRE_KAFKA_PORT_9092_TCP_PROTO", "http"),
    ],
)
def test_what_only_looks_like_it_stops_the_start(name: str, value: str) -> None:
    """A misspelt setting is named even where it ends as Kubernetes' names do: the value tells them apart."""
    with pytest.raises(SystemExit, match=f"{name}=.*is not a setting of this process"):
        load_settings(ExampleSettings, {name: value})


FILE = "/run/secrets/file"


@pytest.mark.parametrize(
    ("environ", "named"),
    [
        ({"GYRE_TOKEN_FILE": ""}, "GYRE_TOKEN_FILE"),
        ({"GYRE_TOKEN_FILE": "  "}, "GYRE_TOKEN_FILE"),
        ({"GYRE_TLS_CERT": "", "GYRE_TLS_KEY": ""}, "GYRE_TLS_CERT"),
        ({"GYRE_TLS_CERT": FILE}, "GYRE_TLS_KEY"),
        ({"GYRE_TLS_KEY": FILE}, "GYRE_TLS_CERT"),
        ({"GYRE_TLS_CA": FILE}, "GYRE_TLS_CERT"),
        ({"GYRE_TLS_REQUIRE_CLIENT": "true"}, "GYRE_TLS_CERT"),
        ({"GYRE_TLS_REQUIRE_CLIENT": "true", "GYRE_TLS_CA": FILE}, "GYRE_TLS_CERT"),
        ({"GYRE_TLS_REQUIRE_CLIENT": "true", "GYRE_TLS_CERT": FILE, "GYRE_TLS_KEY": FILE}, "GYRE_TLS_CA"),
        ({"GYRE_TLS_REQUIRE_CLIENT": ""}, "GYRE_TLS_REQUIRE_CLIENT"),
    ],
)
def test_security_that_is_blank_or_set_by_half_stops_the_start(environ: dict[str, str], named: str) -> None:
    """No blank or half-set security setting opens the door: the start stops and names the setting that is missing."""
    with pytest.raises(SystemExit, match=rf"(?m)^{named}\b"):
        load_settings(ExampleSettings, environ)


@pytest.mark.parametrize(
    ("environ", "named", "wanted"),
    [
        ({"GYRE_TOKEN": "s3cret"}, "GYRE_TOKEN_FILE", "GYRE_TOKEN_FILE"),
        ({"gyre_token_file": FILE}, "gyre_token_file", "GYRE_TOKEN_FILE"),
        ({"Gyre_Token_File": FILE}, "Gyre_Token_File", "GYRE_TOKEN_FILE"),
        ({"GYRE-TOKEN-FILE": FILE}, "GYRE-TOKEN-FILE", "GYRE_TOKEN_FILE"),
        ({"gyre.token.file": FILE}, "gyre.token.file", "GYRE_TOKEN_FILE"),
        ({" GYRE_TOKEN_FILE": FILE}, " GYRE_TOKEN_FILE", "GYRE_TOKEN_FILE"),
        ({"gyre_token": "s3cret"}, "gyre_token", "GYRE_TOKEN"),
        ({"GYRE_INFERENCE_TOKEN_FILE": FILE}, "GYRE_INFERENCE_TOKEN_FILE", "GYRE_TOKEN_FILE"),
        ({"GYRE_INFERENCE_TLS_CA": FILE}, "GYRE_INFERENCE_TLS_CA", "GYRE_TLS_CA"),
        ({"gyre_tls_cert": FILE, "gyre_tls_key": FILE}, "gyre_tls_cert", "GYRE_TLS_CERT"),
        ({"gyre_trainer_threads": "2"}, "gyre_trainer_threads", "is not a setting"),
    ],
)
def test_a_server_whose_door_is_closed_by_another_name_stops(environ: dict[str, str], named: str, wanted: str) -> None:
    """A token or certificate under another name stops the start, which names the one that is wanted and no secret."""
    with pytest.raises(SystemExit) as stopped:
        load_settings(ExampleSettings, environ)
    line = next(each for each in str(stopped.value).splitlines() if each.startswith(named))
    assert wanted in line
    assert "s3cret" not in str(stopped.value)


def test_a_server_with_its_token_file_tolerates_the_clients_token() -> None:
    """Where the door is closed, the token of the command line may be in the environment beside it."""
    assert load_settings(ExampleSettings, {"GYRE_TOKEN": "s3cret", "GYRE_TOKEN_FILE": FILE}).token_file == Path(FILE)


def test_a_process_holds_what_it_uses_alone() -> None:
    """The settings of every process lack the addresses of others, and tolerate their variables."""
    settings = load_settings(ExampleSettings, {"GYRE_REDIS": "redis://:secret@store:6379/0", "GYRE_KAFKA": "k:1"})
    assert not {"redis", "kafka", "triton", "warehouse", "gateway"} & set(type(settings).model_fields)


def test_settings_cannot_be_changed() -> None:
    """A settings object is frozen."""
    with pytest.raises(ValueError, match="frozen"):
        ExampleSettings().listen = "other:1"


def test_two_files_of_one_loop_are_refused(tmp_path: Path) -> None:
    """A process serves each loop once."""
    sample = Path(__file__).parent / "data" / "minimal.yaml"
    copy = tmp_path / "copy.yaml"
    copy.write_text(sample.read_text())
    assert list(load_loops(ServiceSettings(loops=(sample,)))) == ["tiny"]
    with pytest.raises(Misconfigured, match="must be named once"):
        load_loops(ServiceSettings(loops=(sample, copy)))


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


def test_a_thousand_candidates_are_checked_quickly() -> None:
    """The checker of a request with 1,000 candidates takes well under a millisecond."""
    request = RankRequest(**{**VALID, "item_ids": [f"tt{number:07d}" for number in range(1000)]})
    check = checker_for(request.DESCRIPTOR)
    best_s = min(_time_s(lambda: check(request)) for _ in range(20))
    assert best_s < 0.0003


def _time_s(work: Any) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


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
    """Bulk decoding keeps the order, sorts out the unreadable, and reaches 50,000 records a second."""
    records = [received(encode(PAYLOAD, source="s", id=str(number)), offset=number) for number in range(5000)]
    records[7].value = b"\xff"
    taken_s = min(_time_s(lambda: decode_many(records, TYPES)) for _ in range(3))
    events, refused = decode_many(records, TYPES)
    assert [event.offset for event in events] == [number for number in range(5000) if number != 7]
    assert [error.reason for _, error in refused] == ["BAD_PAYLOAD"]
    assert 5000 / taken_s > 50_000


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
        assert not is_sampled(inject())
    with model_tracer().span("train", links=[SAMPLED]), start_span("child"):
        assert is_sampled(inject())
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
