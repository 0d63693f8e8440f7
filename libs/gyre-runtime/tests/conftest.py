"""Fixtures of the chassis' tests: telemetry that keeps spans, a gateway servicer that does as told, fresh topics."""

import datetime as dt
import ipaddress
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from gyre.gateway.v1 import gateway_pb2, gateway_pb2_grpc
from gyre_runtime import Health, Registration, Server, ServiceSettings, build_server, setup_telemetry
from gyre_runtime.kafka import create_topics
from gyre_runtime.telemetry import Telemetry
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter


@dataclass(frozen=True)
class TestTopic:
    """A topic as a test declares it."""

    __test__ = False
    name: str
    partitions: int = 1
    compacted: bool = False
    max_bytes: int | None = None
    settings: Mapping[str, str] = field(default_factory=dict)

    def config(self) -> dict[str, str]:
        """Return Kafka's configuration."""
        limit = {} if self.max_bytes is None else {"max.message.bytes": str(self.max_bytes)}
        return {"cleanup.policy": "compact" if self.compacted else "delete", **limit, **self.settings}


@pytest.fixture(scope="session")
def telemetry() -> Telemetry:
    """The process's telemetry: OpenTelemetry can be set up once only."""
    return setup_telemetry("tests", ServiceSettings(trace_ratio=0.0))


@pytest.fixture(scope="session")
def span_exporter(telemetry: Telemetry) -> InMemorySpanExporter:
    """Keeps every sampled span of the session."""
    exporter = InMemorySpanExporter()
    telemetry.tracer_provider.add_span_processor(SimpleSpanProcessor(exporter))
    return exporter


@pytest.fixture
def spans(span_exporter: InMemorySpanExporter) -> Iterator[InMemorySpanExporter]:
    """The sampled spans of one test."""
    span_exporter.clear()
    yield span_exporter
    span_exporter.clear()


@pytest.fixture
async def make_topic(kafka: str, loop_name: str) -> Callable[..., Awaitable[str]]:
    """Create a topic that no other test uses, and return its name."""

    async def make(suffix: str = "behavior.interactions", **declaration: object) -> str:
        topic = TestTopic(f"{loop_name}.{suffix}", **declaration)  # type: ignore[arg-type]
        await create_topics(kafka, [topic])
        return topic.name

    return make


class ToldGateway(gateway_pb2_grpc.GatewayServiceServicer):
    """Does in `Rank` what the test puts into `rank`, and streams in `WatchBatch` what it puts into `watch`."""

    def __init__(self) -> None:
        self.rank: Callable[[gateway_pb2.RankRequest], Awaitable[gateway_pb2.RankResponse]] | None = None
        self.watch: Callable[[], AsyncIterator[gateway_pb2.WatchBatchResponse]] | None = None
        self.calls = 0

    async def Rank(self, request: gateway_pb2.RankRequest, context: object) -> gateway_pb2.RankResponse:  # noqa: N802
        """Count, then do as told."""
        self.calls += 1
        return await self.rank(request) if self.rank else gateway_pb2.RankResponse()

    async def WatchBatch(  # noqa: N802
        self, request: gateway_pb2.WatchBatchRequest, context: object
    ) -> AsyncIterator[gateway_pb2.WatchBatchResponse]:
        """Stream as told."""
        assert self.watch is not None
        async for response in self.watch():
            yield response


@pytest.fixture
def gateway() -> ToldGateway:
    """The servicer that the test instructs."""
    return ToldGateway()


ServerAt = Callable[..., Server]


@pytest.fixture
def server_of(gateway: ToldGateway, telemetry: Telemetry) -> ServerAt:
    """Build a server of the told gateway with given settings."""

    def build(health: Health | None = None, **settings: object) -> Server:
        services = [Registration(gateway_pb2_grpc.add_GatewayServiceServicer_to_server, gateway)]
        return build_server(ServiceSettings(**settings), services, health=health)  # type: ignore[arg-type]

    return build


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """The files of a self-signed certificate for 127.0.0.1, and of its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "gyre tests")])
    now = dt.datetime.now(dt.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate_path, key_path = tmp_path / "tls.crt", tmp_path / "tls.key"
    certificate_path.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    key_path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return certificate_path, key_path
