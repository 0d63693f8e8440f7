"""Who may call: the bearer token and TLS, by setting."""

from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from gyre.gateway.v1.gateway_pb2 import RankRequest
from gyre.gateway.v1.gateway_pb2_grpc import GatewayServiceStub
from gyre_runtime import (
    DeadlineExceeded,
    Precondition,
    Server,
    ServiceSettings,
    Unauthenticated,
    Unavailable,
    build_server,
    call,
    channel,
)
from gyre_runtime.settings import ChannelSettings

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


@pytest.mark.parametrize("authorization", [None, "Bearer other", "s3cret"])
async def test_a_bad_token_is_refused_before_the_body_is_decoded(
    authorization: str | None, server_of: ServerAt, tmp_path: Path
) -> None:
    """A body that is no message at all gets the refusal of its token, so nobody looked at it."""
    token = tmp_path / "token"
    token.write_text("s3cret")
    metadata = (("authorization", authorization),) if authorization else ()
    async with server_of(token_file=token) as server, grpc.aio.insecure_channel(server.address) as bare:
        unary = bare.unary_unary("/gyre.gateway.v1.GatewayService/Rank")
        stream = bare.unary_stream("/gyre.gateway.v1.GatewayService/WatchBatch")
        for method in (unary, stream):
            answer = method(b"\xff" * 1000, metadata=metadata, timeout=5)
            assert await answer.code() == grpc.StatusCode.UNAUTHENTICATED


async def test_a_body_is_decoded_for_who_has_the_token(server_of: ServerAt, tmp_path: Path) -> None:
    """With the token the same body is an error of the request, not of the caller."""
    token = tmp_path / "token"
    token.write_text("s3cret")
    async with server_of(token_file=token) as server, grpc.aio.insecure_channel(server.address) as bare:
        rank = bare.unary_unary("/gyre.gateway.v1.GatewayService/Rank")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await rank(b"\xff" * 1000, metadata=(("authorization", "Bearer s3cret"),), timeout=5)
        assert caught.value.code() != grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize("text", [None, "", " \n", "två ord", "a\nb"])
async def test_a_token_file_without_a_token_stops_the_start(text: str | None, tmp_path: Path) -> None:
    """A token file that is missing, blank or no line of ASCII opens neither a server nor a channel."""
    token = tmp_path / "token"
    if text is not None:
        token.write_text(text)
    settings = ServiceSettings(token_file=token)
    with pytest.raises(Precondition, match=r"GYRE_TOKEN_FILE=.*token"):
        build_server(settings, [])
    with pytest.raises(Precondition, match=r"GYRE_TOKEN_FILE=.*token"):
        channel("127.0.0.1:1", settings, name="peer")


async def test_certificates_that_do_not_fit_stop_the_start(certificate: tuple[Path, Path], tmp_path: Path) -> None:
    """A key of another certificate, a blank authority, a missing file: the start names the setting."""
    path, key = certificate
    blank = tmp_path / "blank"
    blank.touch()
    for given, named in (
        ({"tls_cert": path, "tls_key": path}, "GYRE_TLS_CERT"),
        ({"tls_cert": path, "tls_key": blank}, "GYRE_TLS_KEY"),
        ({"tls_cert": path, "tls_key": key, "tls_ca": blank}, "GYRE_TLS_CA"),
        ({"tls_cert": path, "tls_key": key, "tls_ca": key}, "GYRE_TLS_CA"),
        ({"tls_cert": tmp_path / "none", "tls_key": key}, "GYRE_TLS_CERT"),
    ):
        with pytest.raises(Precondition, match=f"{named}="):
            await build_server(ServiceSettings(**given), []).__aenter__()


@pytest.mark.parametrize("mutual", [False, True])
async def test_tls_by_setting(mutual: bool, server_of: ServerAt, certificate: tuple[Path, Path]) -> None:
    """With a certificate the server speaks TLS only; with client certificates required, it asks for them."""
    path, key = certificate
    secured = {"tls_cert": path, "tls_key": key, "tls_ca": path, "tls_require_client": mutual}
    async with server_of(**secured) as server:
        async with channel(server.address, ServiceSettings(**secured), name="gateway") as peer:
            await call(GatewayServiceStub(peer).Rank, RANK, timeout_s=5)
        stranger = ChannelSettings(tls_ca=path) if mutual else SETTINGS
        async with channel(server.address, stranger, name="gateway") as peer:
            with pytest.raises((Unavailable, DeadlineExceeded)):
                await call(GatewayServiceStub(peer).Rank, RANK, timeout_s=1)
