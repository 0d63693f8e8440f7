"""Process settings: `GYRE_*` environment variables and nothing else, in small parts that a process is composed of.

A service's settings class names the parts that it uses (`class GatewaySettings(ServiceSettings, KafkaSettings)`) and
adds its own few fields, so that no process holds the address or the secret of something that it never speaks to. Give
a field of one service the service's name as prefix (`gateway_max_inflight`): the other processes of a stack then
tolerate it in a shared environment. `load_settings` reads the environment.
"""

import os
import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

PREFIX = "GYRE_"
SERVICES = ("gateway", "features", "inference", "trainer", "deployer", "monitor")

MAX_SECONDS = 10 * 365 * 86_400
"""The longest time of a setting, ten years: beyond it timers overflow, and nobody waits."""
MAX_NUMBER = 2**53
"""The greatest number of a setting: up to it every whole number is exact in a double."""
_HOST = re.compile(r"\[[0-9A-Fa-f:.]+(%\w+)?\]|[^\s:/@,\[\]]+")

_CLASSES: list[type["Settings"]] = []


def variable_of(field: str) -> str:
    """The environment variable of a field: `GYRE_` and its name in capitals; whether there is one is not checked."""
    return f"{PREFIX}{field.upper()}"


def known_variables() -> set[str]:
    """The variables of every settings class that is loaded: the parts of this module, and the process's own."""
    return {variable_of(field) for each in _CLASSES for field in each.model_fields}


def _address(value: str) -> str:
    host, _, port = value.rpartition(":")
    if not _HOST.fullmatch(host) or not re.fullmatch("[0-9]{1,5}", port) or int(port) > 65535:
        raise ValueError("must be host:port with a port from 0 to 65535, an IP version 6 address in brackets")
    return value


def _optional_address(value: str) -> str:
    return _address(value) if value else value


def _addresses(value: str) -> str:
    for part in value.split(","):
        _address(part)
    return value


def _target(value: str) -> str:
    """A peer: host:port, or what gRPC resolves to several (https://grpc.github.io/grpc/core/md_doc_naming.html)."""
    scheme, _, rest = value.partition(":")
    try:
        if scheme in ("ipv4", "ipv6"):
            _addresses(rest)
        else:
            _address(value.removeprefix("dns:///"))
    except ValueError as error:
        raise ValueError(f"{error}; several as ipv4:HOST:PORT,HOST:PORT") from None
    return value


def _paths(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    parts = value.split(os.pathsep)
    if not all(part.strip() for part in parts):
        raise ValueError(f"must be paths separated by {os.pathsep!r}, none of them blank")
    return tuple(map(Path, parts))


Address = Annotated[str, AfterValidator(_address)]
OptionalAddress = Annotated[str, AfterValidator(_optional_address)]
Addresses = Annotated[str, AfterValidator(_addresses)]
Target = Annotated[str, AfterValidator(_target)]
Paths = Annotated[tuple[Path, ...], NoDecode, BeforeValidator(_paths)]


class Settings(BaseSettings):
    """The base of every part: frozen, validated, and filled by `load_settings` or by what a test gives."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        frozen=True,
        extra="forbid",
        validate_default=True,
        env_file=None,
        allow_inf_nan=False,
        use_attribute_docstrings=True,  # docs/reference/settings.md is written from them
    )

    service: ClassVar[str] = ""
    """The service whose prefixed variables are its own; empty accepts those of any service."""

    @classmethod
    def settings_customise_sources(cls, *args: Any, **sources: Any) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take what the constructor is given, and nothing from the environment, which `load_settings` reads."""
        return (args[1] if len(args) > 1 else sources["init_settings"],)

    @field_validator("*", mode="before")
    @classmethod
    def _says_something(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse a text that says nothing: a blank path would be the working folder. Only texts may be empty.

        Raises:
            ValueError: it is blank, or has spaces around it.
        """
        if not isinstance(value, str) or info.field_name is None:
            return value
        if not value.strip() and (value or cls.model_fields[info.field_name].annotation is not str):
            raise ValueError("is blank: give it a value, or leave it out")
        if value != value.strip():
            raise ValueError("has spaces around it: leave them out")
        return value

    @field_validator("*", mode="after")
    @classmethod
    def _is_bounded(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse a number that nothing can count to.

        Raises:
            ValueError: it is greater than `MAX_SECONDS`, or than `MAX_NUMBER` where it is no time.
        """
        limit = MAX_SECONDS if (info.field_name or "").endswith("_s") else MAX_NUMBER
        if isinstance(value, int | float) and abs(value) > limit:
            raise ValueError(f"must be at most {limit}")
        return value

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Register the class, so that its variables are known."""
        super().__init_subclass__(**kwargs)
        _CLASSES.append(cls)


class ChannelSettings(Settings):
    """What a call to a peer needs: TLS, the bearer token, the size of messages."""

    tls_cert: Path | None = None
    """File of the certificate chain (PEM); with `tls_key` the server speaks TLS only."""
    tls_key: Path | None = None
    """File of the certificate's key (PEM)."""
    tls_ca: Path | None = None
    """File of the authority (PEM) that peers are checked against."""
    tls_require_client: bool = False
    """Whether a client must show a certificate of the authority, and own calls do."""
    token_file: Path | None = None
    """File of the bearer token that callers must send, and own calls do."""
    max_message_bytes: int = Field(16 * 1024 * 1024, ge=1024)
    """The largest gRPC message, bytes."""

    @model_validator(mode="after")
    def _certificate_is_whole(self) -> Self:
        """Refuse a certificate that is set by half, which would leave connections without TLS.

        Raises:
            ValueError: a certificate has no key, a key no certificate, or client certificates have neither.
        """
        if self.tls_cert is not None and self.tls_key is None:
            raise ValueError("GYRE_TLS_KEY: is not set, and GYRE_TLS_CERT is: a certificate needs its key")
        if self.tls_key is not None and self.tls_cert is None:
            raise ValueError("GYRE_TLS_CERT: is not set, and GYRE_TLS_KEY is: a key needs its certificate")
        if self.tls_require_client and self.tls_cert is None:
            raise ValueError("GYRE_TLS_CERT: is not set, and GYRE_TLS_REQUIRE_CLIENT is: it needs a certificate")
        return self


class ServerSettings(ChannelSettings):
    """What a gRPC server needs."""

    listen: Address = "127.0.0.1:0"
    """host:port of the gRPC server; port 0 takes a free one."""
    drain_delay_s: float = Field(5.0, ge=0, le=600)
    """Seconds after SIGTERM in which the process is NOT_SERVING and still takes calls, until balancers have noticed."""
    drain_s: float = Field(10.0, gt=0, le=600)
    """Seconds that calls and events under way have to finish after that."""
    max_deadline_s: float = Field(30.0, gt=0, le=3600)
    """The deadline of a unary call that brings none, seconds."""
    max_stream_s: float = Field(3600.0, gt=0)
    """The deadline of a streaming call that brings none, seconds."""

    @model_validator(mode="after")
    def _authority_has_a_certificate(self) -> Self:
        """Refuse an authority without a certificate: own calls would speak TLS, and the own server would not.

        Raises:
            ValueError: an authority is set without a certificate, or client certificates without an authority.
        """
        if self.tls_ca is not None and self.tls_cert is None:
            raise ValueError("GYRE_TLS_CERT: is not set, and GYRE_TLS_CA is: the server would speak without TLS")
        if self.tls_require_client and self.tls_ca is None:
            raise ValueError("GYRE_TLS_CA: is not set, and GYRE_TLS_REQUIRE_CLIENT is: it says whom to believe")
        return self


class TelemetrySettings(Settings):
    """Logs, spans and metrics."""

    metrics_listen: OptionalAddress = "127.0.0.1:0"
    """host:port of the Prometheus page `/metrics`; empty for none."""
    otlp: OptionalAddress = ""
    """host:port that spans are sent to (OTLP over gRPC); empty for nowhere."""
    trace_ratio: float = Field(0.01, ge=0, le=1)
    """Share of requests whose trace is kept; the flow of models is always kept."""
    log_level: str = Field("INFO", pattern=r"^(DEBUG|INFO|WARNING|ERROR)$")
    """The least severe log records that are written."""


class LoopSettings(Settings):
    """Which loops a process serves."""

    loops: Paths = Field((Path("examples/movies/gyre.yaml"),), min_length=1)
    """The `gyre.yaml` of each loop that is served, separated by colons."""


class ServiceSettings(LoopSettings, TelemetrySettings, ServerSettings):
    """What every process of the mesh has; the defaults run the local stack."""


class KafkaSettings(Settings):
    """Kafka."""

    kafka: Addresses = "127.0.0.1:17000"
    """Bootstrap servers, host:port separated by commas."""
    kafka_replication: int = Field(1, ge=1, le=32767)
    """Replication factor of the topics that are created at start."""


class RedisSettings(Settings):
    """The online store."""

    redis: str = Field("redis://127.0.0.1:17005/0", pattern=r"^(redis|rediss|unix)://\S+$")
    """URL of the online store."""


class TritonSettings(Settings):
    """Triton's server."""

    triton: Address = "127.0.0.1:17011"
    """host:port of Triton's gRPC server."""


class ModelRepositorySettings(Settings):
    """The folder that Triton loads models from."""

    triton_repository: Path = Path("var/triton/models")
    """Triton's model repository, which the deployer writes."""


class MlflowSettings(Settings):
    """MLflow."""

    mlflow: str = Field("http://127.0.0.1:17018", pattern=r"^https?://\S+$")
    """URL of MLflow's tracking server."""


class PrometheusSettings(Settings):
    """Prometheus, for what reads figures back."""

    prometheus: str = Field("http://127.0.0.1:17015", pattern=r"^https?://\S+$")
    """URL of Prometheus."""


class WarehouseSettings(Settings):
    """The Iceberg warehouse, its catalogue and their secrets."""

    warehouse: str = Field("var/warehouse", min_length=1)
    """Folder of the Iceberg warehouse, a URI such as s3://bucket/path, or what a REST catalogue calls it."""
    warehouse_catalog: str = Field("", pattern=r"^(|https?://\S+|sqlite:///.+)$")
    """URI of the Iceberg catalogue: REST (https://…) or SQLite (sqlite:///…); empty for SQLite in the folder."""
    warehouse_catalog_token_file: Path | None = None
    """File of the bearer token for a REST catalogue."""
    warehouse_catalog_credential_file: Path | None = None
    """File of the OAuth2 client credential, `id:secret`, for a REST catalogue."""
    warehouse_s3_endpoint: str = Field("", pattern=r"^(|https?://\S+)$")
    """URL of the S3 API, for other stores than Amazon's."""
    warehouse_s3_region: str = ""
    """Region of the S3 store."""
    warehouse_s3_credential_file: Path | None = None
    """File of the S3 key, `id:secret`; without it those of the process's surroundings, such as an IAM role."""


class ArtifactSettings(Settings):
    """The folder of trained models."""

    artifacts: Path = Path("var/artifacts")
    """Folder of trained models, written by the trainer and read by the deployer."""


class StateSettings(Settings):
    """A folder of the process's own, for what it keeps from one start to the next."""

    state_dir: Path = Path("var/state")
    """Folder of the process's own state."""


class PrivacySettings(Settings):
    """The keys that personal data is hashed with."""

    privacy_key_file: Path | None = None
    """File of the keys that ids are hashed with (JSON); needed to forget users, and where a loop's `privacy` hashes."""


class GatewayPeer(Settings):
    """The gateway, for those that call it."""

    gateway: Target = "127.0.0.1:17020"
    """host:port of the gateway, several as `ipv4:HOST:PORT,HOST:PORT`."""


class FeaturesPeer(Settings):
    """`features-serve`, for those that call it."""

    features: Target = "127.0.0.1:17025"
    """host:port of `features-serve`, several as `ipv4:HOST:PORT,HOST:PORT`."""


class FeaturesCheckPeer(Settings):
    """`features-check`, for those that call it."""

    features_check: Target = "127.0.0.1:17065"
    """host:port of `features-check`, several as `ipv4:HOST:PORT,HOST:PORT`."""


class InferencePeer(Settings):
    """Inference, for those that call it."""

    inference: Target = "127.0.0.1:17045"
    """host:port of inference, several as `ipv4:HOST:PORT,HOST:PORT`."""


class TrainerPeer(Settings):
    """The trainer, for those that call it."""

    trainer: Target = "127.0.0.1:17050"
    """host:port of the trainer, several as `ipv4:HOST:PORT,HOST:PORT`."""


class DeployerPeer(Settings):
    """The deployer, for those that call it."""

    deployer: Target = "127.0.0.1:17055"
    """host:port of the deployer, several as `ipv4:HOST:PORT,HOST:PORT`."""


class MonitorPeer(Settings):
    """The monitor, for those that call it."""

    monitor: Target = "127.0.0.1:17060"
    """host:port of the monitor, several as `ipv4:HOST:PORT,HOST:PORT`."""


PARTS: tuple[type[Settings], ...] = (
    LoopSettings, ServerSettings, TelemetrySettings, KafkaSettings, RedisSettings, TritonSettings,
    ModelRepositorySettings, MlflowSettings, PrometheusSettings, WarehouseSettings, ArtifactSettings, StateSettings,
    PrivacySettings, GatewayPeer, FeaturesPeer, FeaturesCheckPeer, InferencePeer, TrainerPeer, DeployerPeer,
    MonitorPeer,
)  # fmt: skip
"""The parts that processes are composed of, in the order of the reference."""
