"""TLS credentials and the bearer token, read once from the files that the settings name."""

import hmac
from pathlib import Path

import grpc

from gyre_runtime.errors import Unauthenticated
from gyre_runtime.settings import ServiceSettings


def server_credentials(settings: ServiceSettings) -> grpc.ServerCredentials | None:
    """Return the server's TLS credentials, or None for plaintext when no certificate is set."""
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    ca = settings.tls_ca.read_bytes() if settings.tls_ca and settings.tls_require_client else None
    pair = (settings.tls_key.read_bytes(), settings.tls_cert.read_bytes())
    return grpc.ssl_server_credentials([pair], root_certificates=ca, require_client_auth=settings.tls_require_client)


def channel_credentials(settings: ServiceSettings) -> grpc.ChannelCredentials | None:
    """Return a client's TLS credentials, or None for plaintext when neither authority nor certificate is set."""
    if settings.tls_ca is None and settings.tls_cert is None:
        return None
    own = settings.tls_require_client and settings.tls_cert and settings.tls_key
    return grpc.ssl_channel_credentials(
        root_certificates=settings.tls_ca.read_bytes() if settings.tls_ca else None,
        private_key=settings.tls_key.read_bytes() if own and settings.tls_key else None,
        certificate_chain=settings.tls_cert.read_bytes() if own and settings.tls_cert else None,
    )


def read_token(path: Path | None) -> str:
    """Return the bearer token of a file, empty when no file is set."""
    return path.read_text().strip() if path else ""


def check_token(expected: str, authorization: str) -> None:
    """Compare a caller's `authorization` header with the token, in constant time.

    Raises:
        Unauthenticated: the header is missing (TOKEN_MISSING) or wrong (TOKEN_REFUSED).
    """
    if not expected:
        return
    if not authorization:
        raise Unauthenticated("TOKEN_MISSING", "this server wants a bearer token in the authorization metadata")
    if not hmac.compare_digest(authorization.encode(), f"Bearer {expected}".encode()):
        raise Unauthenticated("TOKEN_REFUSED", "the bearer token is not the one this server accepts")
