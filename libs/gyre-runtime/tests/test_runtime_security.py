"""Who may call: the bearer token and TLS, by setting."""

import datetime as dt
import ipaddress
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from grpc_health.v1 import health_pb2, health_pb2_grpc
from gyre.gateway.v1.gateway_pb2 import RankRequest
from gyre.gateway.v1.gateway_pb2_grpc import GatewayServiceStub
from gyre_runtime import DeadlineExceeded, Server, ServiceSettings, Unauthenticated, Unavailable, call, channel

pytestmark = pytest.mark.timeout(20)
SETTINGS = ServiceSettings()
RANK = RankRequest(loop="movies", user_id="u1", item_ids=["a", "b"])

ServerAt = Callable[..., Server]


async def test_a_token_is_asked_for(server_of: ServerAt, tmp_path: Path) -> None:
    """With a token file, a call needs that token; health answers without."""
    token, wrong = tmp_path / "token", tmp_path / "wrong"
    token.write_text("s3cret\n")
    wrong.write_text("other")
    async with server_of(token_file=token) as server:
        for path, reason in ((None, "TOKEN_MISSING"), (wrong, "TOKEN_REFUSED")):
            async with channel(server.address, ServiceSettings(token_file=path), name="gateway") as peer:
                with pytest.raises(Unauthenticated) as caught:
                    await call(GatewayServiceStub(peer).Rank, RANK, timeout_s=5)
                assert caught.value.reason == reason
        async with channel(server.address, ServiceSettings(token_file=token), name="gateway") as peer:
            await call(GatewayServiceStub(peer).Rank, RANK, timeout_s=5)
        async with grpc.aio.insecure_channel(server.address) as bare:
            await health_pb2_grpc.HealthStub(bare).Check(health_pb2.HealthCheckRequest(), timeout=5)


def _certificate(folder: Path) -> tuple[Path, Path]:
    """Write a self-signed certificate for 127.0.0.1, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "gyre tests")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
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
    certificate_path, key_path = folder / "tls.crt", folder / "tls.key"
    certificate_path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return certificate_path, key_path


@pytest.mark.parametrize("mutual", [False, True])
async def test_tls_by_setting(mutual: bool, server_of: ServerAt, tmp_path: Path) -> None:
    """With a certificate the server speaks TLS only; with client certificates required, it asks for them."""
    certificate, key = _certificate(tmp_path)
    secured = {"tls_cert": certificate, "tls_key": key, "tls_ca": certificate, "tls_require_client": mutual}
    async with server_of(**secured) as server:
        async with channel(server.address, ServiceSettings(**secured), name="gateway") as peer:
            await call(GatewayServiceStub(peer).Rank, RANK, timeout_s=5)
        stranger = ServiceSettings(tls_ca=certificate) if mutual else SETTINGS
        async with channel(server.address, stranger, name="gateway") as peer:
            with pytest.raises((Unavailable, DeadlineExceeded)):
                await call(GatewayServiceStub(peer).Rank, RANK, timeout_s=1)
