"""Process settings: `GYRE_*` environment variables and nothing else, checked once at start.

A service subclasses `ServiceSettings` with its own few fields. Give a field of one service the service's name as
prefix (`gateway_max_inflight`): the other processes of a stack then tolerate it in a shared environment.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

PREFIX = "GYRE_"
SERVICES = ("gateway", "features", "inference", "trainer", "deployer", "monitor")

TOLERATED: Mapping[str, str] = {
    "GYRE_CACHE": "where downloads are kept, `~/.cache/gyre` by default",
    "GYRE_DATA": "where the examples find their data",
    "GYRE_OTLP_LISTEN": "where the monitor takes spans (OTLP over gRPC)",
    "GYRE_PORTS_FILE": "a ports file in place of `infra/local/ports.toml`",
    "GYRE_PORT_OFFSET": "added to every port of the local stack",
    "GYRE_TOKEN": "the bearer token of the command line",
    "GYRE_VAR": "the folder of the local stack's data and logs, `var/` by default",
}
"""Variables of the local stack, the tests and the client, which a service may find in its environment."""

_CLASSES: list[type["ServiceSettings"]] = []


def _address(value: str) -> str:
    host, _, port = value.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise ValueError("must be host:port with a port from 0 to 65535")
    return value


def _optional_address(value: str) -> str:
    return _address(value) if value else value


def _addresses(value: str) -> str:
    for part in value.split(","):
        _address(part)
    return value


def _paths(value: Any) -> Any:
    return tuple(Path(part) for part in value.split(os.pathsep) if part) if isinstance(value, str) else value


Address = Annotated[str, AfterValidator(_address)]
OptionalAddress = Annotated[str, AfterValidator(_optional_address)]
Addresses = Annotated[str, AfterValidator(_addresses)]
Paths = Annotated[tuple[Path, ...], NoDecode, BeforeValidator(_paths)]


class ServiceSettings(BaseSettings):
    """What every process knows; the defaults run the local stack."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        frozen=True,
        extra="ignore",
        validate_default=True,
        env_file=None,
        use_attribute_docstrings=True,  # docs/reference/settings.md is written from them
    )

    service: ClassVar[str] = ""
    """The service whose prefixed variables are its own; empty accepts those of any service."""

    loops: Paths = Field((Path("examples/movies/gyre.yaml"),), min_length=1)
    """The `gyre.yaml` of each loop that is served, separated by colons."""
    listen: Address = "127.0.0.1:0"
    """host:port of the gRPC server; port 0 takes a free one."""
    metrics_listen: OptionalAddress = "127.0.0.1:0"
    """host:port of the Prometheus page `/metrics`; empty for none."""

    kafka: Addresses = "127.0.0.1:17000"
    """Bootstrap servers, host:port separated by commas."""
    kafka_replication: int = Field(1, ge=1, le=32767)
    """Replication factor of the topics that are created at start."""
    redis: str = Field("redis://127.0.0.1:17005/0", pattern=r"^(redis|rediss|unix)://")
    """URL of the online store."""
    triton: Address = "127.0.0.1:17011"
    """host:port of Triton's gRPC server."""
    triton_repository: Path = Path("var/triton/models")
    """Triton's model repository, which the deployer writes."""
    mlflow: str = Field("http://127.0.0.1:17018", pattern=r"^https?://")
    """URL of MLflow's tracking server."""
    prometheus: str = Field("http://127.0.0.1:17015", pattern=r"^https?://")
    """URL of Prometheus."""
    warehouse: str = Field("var/warehouse", min_length=1)
    """Folder of the Iceberg warehouse, a URI such as s3://bucket/path, or what a REST catalogue calls it."""
    warehouse_catalog: str = Field("", pattern=r"^(|https?://.+|sqlite:///.+)$")
    """URI of the Iceberg catalogue: REST (https://…) or SQLite (sqlite:///…); empty for SQLite in the folder."""
    warehouse_catalog_token_file: Path | None = None
    """File of the bearer token for a REST catalogue."""
    warehouse_catalog_credential_file: Path | None = None
    """File of the OAuth2 client credential, `id:secret`, for a REST catalogue."""
    warehouse_s3_endpoint: str = Field("", pattern=r"^(|https?://.+)$")
    """URL of the S3 API, for other stores than Amazon's."""
    warehouse_s3_region: str = ""
    """Region of the S3 store."""
    warehouse_s3_credential_file: Path | None = None
    """File of the S3 key, `id:secret`; without it those of the process's surroundings, such as an IAM role."""
    artifacts: Path = Path("var/artifacts")
    """Folder of trained models, written by the trainer and read by the deployer."""
    state_dir: Path = Path("var/state")
    """Folder of the process's own state."""

    gateway: Address = "127.0.0.1:17020"
    """host:port of the gateway."""
    features: Address = "127.0.0.1:17025"
    """host:port of `features-serve`."""
    features_check: Address = "127.0.0.1:17065"
    """host:port of `features-check`."""
    inference: Address = "127.0.0.1:17045"
    """host:port of inference."""
    trainer: Address = "127.0.0.1:17050"
    """host:port of the trainer."""
    deployer: Address = "127.0.0.1:17055"
    """host:port of the deployer."""
    monitor: Address = "127.0.0.1:17060"
    """host:port of the monitor."""

    otlp: OptionalAddress = ""
    """host:port that spans are sent to (OTLP over gRPC); empty for nowhere."""
    trace_ratio: float = Field(0.01, ge=0, le=1)
    """Share of requests whose trace is kept; the flow of models is always kept."""
    log_level: str = Field("INFO", pattern=r"^(DEBUG|INFO|WARNING|ERROR)$")
    """The least severe log records that are written."""

    drain_s: float = Field(10.0, gt=0, le=600)
    """Seconds that calls and events under way have to finish after SIGTERM."""
    max_deadline_s: float = Field(30.0, gt=0, le=3600)
    """The deadline of a unary call that brings none, seconds."""
    max_stream_s: float = Field(3600.0, gt=0)
    """The deadline of a streaming call that brings none, seconds."""
    max_message_bytes: int = Field(16 * 1024 * 1024, ge=1024)
    """The largest gRPC message, bytes."""

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
    privacy_key_file: Path | None = None
    """File of the keys that ids are hashed with (JSON); needed where a loop's `privacy` hashes."""

    @classmethod
    def settings_customise_sources(cls, *args: Any, **sources: Any) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read nothing by itself: `load_settings` reads the environment, tests give what they mean."""
        return (args[1] if len(args) > 1 else sources["init_settings"],)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Register the class, so that its variables are known."""
        super().__init_subclass__(**kwargs)
        _CLASSES.append(cls)


SettingsT = TypeVar("SettingsT", bound=ServiceSettings)


def load_settings(cls: type[SettingsT], environ: Mapping[str, str] | None = None) -> SettingsT:
    """Read the settings of a process, or leave it with a message that names variable, value and rule.

    Args:
        cls: the settings class of the service.
        environ: for tests, an environment in place of the process's own.

    Raises:
        SystemExit: a variable is unknown, or its value breaks its rule.
    """
    environ = os.environ if environ is None else environ
    problems = [f"{name}={environ[name]!r}: is not a setting of this process" for name in _unknown(cls, environ)]
    values = {field: environ[_variable(field)] for field in cls.model_fields if _variable(field) in environ}
    try:
        settings = cls.model_validate({field: _or_none(cls, field, value) for field, value in values.items()})
    except ValidationError as error:
        problems += [_problem(issue, values) for issue in error.errors()]
    if problems:
        sys.exit("\n".join(problems))
    return settings


def _or_none(cls: type[ServiceSettings], field: str, value: str) -> str | None:
    return None if value == "" and cls.model_fields[field].default is None else value


def _variable(field: str) -> str:
    return f"{PREFIX}{field.upper()}"


def _unknown(cls: type[ServiceSettings], environ: Mapping[str, str]) -> list[str]:
    known = {_variable(field) for each in (cls, *_CLASSES) for field in each.model_fields}
    others = tuple(f"{PREFIX}{name.upper()}_" for name in SERVICES if name != cls.service)
    candidates = (name for name in environ if name.startswith(PREFIX) and name not in known | TOLERATED.keys())
    return sorted(name for name in candidates if not name.startswith(others))


def _problem(issue: Any, values: Mapping[str, str]) -> str:
    field = str(issue["loc"][0]) if issue["loc"] else "settings"
    rule = issue["msg"].removeprefix("Value error, ")
    return f"{_variable(field)}={values.get(field, issue['input'])!r}: {rule}"
