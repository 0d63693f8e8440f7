"""What settings a process takes, and which stop its start."""

import re
from pathlib import Path
from typing import ClassVar

import pytest
from gyre_runtime import (
    Misconfigured,
    ServiceSettings,
    load_loops,
    load_settings,
)
from gyre_runtime.settings import PARTS, FeaturesPeer, variable_of


class ExampleSettings(ServiceSettings):
    """A service's settings."""

    service: ClassVar[str] = "gateway"
    gateway_max_inflight: int = 10


class CallerSettings(ServiceSettings, FeaturesPeer):
    """The settings of a service that calls another."""


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
    "target",
    ["features:17025", "dns:///features:17025", "ipv4:127.0.0.1:1,127.0.0.2:2", "ipv6:[::1]:1,[::2]:2"],
)
def test_a_peer_may_have_several_addresses(target: str) -> None:
    """What gRPC resolves to one address or several is taken as it is given."""
    assert load_settings(CallerSettings, {"GYRE_FEATURES": target}).features == target


@pytest.mark.parametrize("target", ["ipv4:127.0.0.1:1,", "ipv4:127.0.0.1", "127.0.0.1:1,127.0.0.2:2", "dns:///a b:1"])
def test_a_peer_without_an_address_stops_the_start(target: str) -> None:
    """The message names the variable, the value and how several addresses are written."""
    with pytest.raises(SystemExit, match="several as ipv4:HOST:PORT,HOST:PORT") as caught:
        load_settings(CallerSettings, {"GYRE_FEATURES": target})
    assert str(caught.value).startswith(f"GYRE_FEATURES={target!r}")


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
