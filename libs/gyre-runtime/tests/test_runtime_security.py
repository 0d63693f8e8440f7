"""Who may call: the bearer token and TLS, by setting."""

from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
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


@pytest.mark.parametrize("mutual", [False, True])
async def test_tls_by_setting(mutual: bool, server_of: ServerAt, certificate: tuple[Path, Path]) -> None:
    """With a certificate the server speaks TLS only; with client certificates required, it asks for them."""
    path, key = certificate
    secured = {"tls_cert": path, "tls_key": key, "tls_ca": path, "tls_require_client": mutual}
    async with server_of(**secured) as server:
        async with channel(server.address, ServiceSettings(**secured), name="gateway") as peer:
            await call(GatewayServiceStub(peer).Rank, RANK, timeout_s=5)
        stranger = ServiceSettings(tls_ca=path) if mutual else SETTINGS
        async with channel(server.address, stranger, name="gateway") as peer:
            with pytest.raises((Unavailable, DeadlineExceeded)):
                await call(GatewayServiceStub(peer).Rank, RANK, timeout_s=1)
