"""The SDK over TLS: it trusts the authority that it is given, and nobody else."""

import datetime as dt
import ipaddress
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from gyre_client import ClientSettings, DeadlineExceeded, GyreClient, Unavailable


def certificate(folder: Path) -> tuple[Path, Path]:
    """The files of a self-signed certificate for 127.0.0.1, and of its key."""
    key, now = ec.generate_private_key(ec.SECP256R1()), dt.datetime.now(dt.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "gyre tests")])
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
    folder.mkdir()
    paths = folder / "tls.crt", folder / "tls.key"
    paths[0].write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return paths


async def test_the_client_speaks_tls(serve: Callable[..., Awaitable[ClientSettings]], tmp_path: Path) -> None:
    """With the gateway's authority it is answered; with another's, or in plain text, it is not."""
    own, key = certificate(tmp_path / "own")
    other, _ = certificate(tmp_path / "other")
    plain = await serve(tls_cert=own, tls_key=key)
    async with GyreClient(settings=plain.model_copy(update={"tls_ca": own})) as client:
        assert (await client.rank("shop", "u", ["a"])).items
    for wrong in (plain, plain.model_copy(update={"tls_ca": other})):
        async with GyreClient(settings=wrong, timeout_s=1.0) as client:
            with pytest.raises((Unavailable, DeadlineExceeded)):
                await client.rank("shop", "u", ["a"])
