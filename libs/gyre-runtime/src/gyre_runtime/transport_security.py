"""TLS credentials and the bearer token, read from the files that the settings name. Nothing here fails open."""

import hmac
import ssl
from pathlib import Path

import grpc

from gyre_runtime.errors import Misconfigured, Unauthenticated
from gyre_runtime.settings import ChannelSettings, ServerSettings, variable_of


def check_security(settings: ChannelSettings) -> None:
    """Read every file of the security settings once, so that a start that would fail does so at once.

    Raises:
        Misconfigured: a file cannot be read, is blank, or does not hold what its setting says (SECURITY_UNUSABLE); the
            message names the setting.
    """
    read_token(settings.token_file)
    if settings.tls_ca is not None:
        _read("tls_ca", settings.tls_ca)
        try:
            ssl.create_default_context(cafile=settings.tls_ca)
        except ssl.SSLError:
            raise _unusable("tls_ca", settings.tls_ca, "must hold certificates (PEM)") from None
    if settings.tls_cert is not None and settings.tls_key is not None:
        _check_pair(settings.tls_cert, settings.tls_key)


def _check_pair(certificate: Path, key: Path) -> None:
    _read("tls_cert", certificate)
    _read("tls_key", key)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")
    except (ssl.SSLError, ValueError):
        also = f"{variable_of('tls_key')}={key}"
        rule = f"must hold a certificate chain (PEM), and {also} its key without a password"
        raise _unusable("tls_cert", certificate, rule) from None


def server_credentials(settings: ServerSettings) -> grpc.ServerCredentials | None:
    """Return the server's TLS credentials, or None for plaintext when no certificate is set; files are read now.

    Raises:
        Misconfigured: see `check_security`.
    """
    check_security(settings)
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    ca = settings.tls_ca.read_bytes() if settings.tls_ca and settings.tls_require_client else None
    pair = (settings.tls_key.read_bytes(), settings.tls_cert.read_bytes())
    return grpc.ssl_server_credentials([pair], root_certificates=ca, require_client_auth=settings.tls_require_client)


def channel_credentials(settings: ChannelSettings) -> grpc.ChannelCredentials | None:
    """Return a client's TLS credentials, or None for plaintext when neither authority nor certificate is set.

    Without an authority of their own the public ones are trusted. Files are read now.

    Raises:
        Misconfigured: see `check_security`.
    """
    check_security(settings)
    if settings.tls_ca is None and settings.tls_cert is None:
        return None
    own = settings.tls_require_client and settings.tls_cert and settings.tls_key
    return grpc.ssl_channel_credentials(
        root_certificates=settings.tls_ca.read_bytes() if settings.tls_ca else None,
        private_key=settings.tls_key.read_bytes() if own and settings.tls_key else None,
        certificate_chain=settings.tls_cert.read_bytes() if own and settings.tls_cert else None,
    )


def read_token(path: Path | None) -> str:
    """Return the bearer token of a file, without spaces around it; empty when no file is set.

    The file is read each time.

    Raises:
        Misconfigured: see `check_security`.
    """
    if path is None:
        return ""
    token = _read("token_file", path)
    if not token.isascii() or not token.isprintable():
        raise _unusable("token_file", path, "must hold one line of printable ASCII")
    return token


def _read(field: str, path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise _unusable(field, path, f"cannot be read: {getattr(error, 'strerror', None) or 'not text'}") from None
    if not text:
        raise _unusable(field, path, "the file is blank")
    return text


def _unusable(field: str, path: Path, rule: str) -> Misconfigured:
    return Misconfigured("SECURITY_UNUSABLE", f"{variable_of(field)}={str(path)!r}: {rule}")


def check_token(expected: str, authorization: str) -> None:
    """Check the bearer token in a caller's `authorization` header in constant time; an empty `expected` admits all.

    Raises:
        Unauthenticated: the header is missing (TOKEN_MISSING) or wrong (TOKEN_REFUSED).
    """
    if not expected:
        return
    if not authorization:
        raise Unauthenticated("TOKEN_MISSING", "this server wants a bearer token in the authorization metadata")
    if not hmac.compare_digest(authorization.encode(), f"Bearer {expected}".encode()):
        raise Unauthenticated("TOKEN_REFUSED", "the bearer token is not the one this server accepts")
