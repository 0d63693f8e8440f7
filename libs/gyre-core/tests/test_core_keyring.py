"""Keyed hashes of ids: stable, told apart, never hashed twice, and keys that cannot be seen."""

import base64
import hashlib
import hmac
import json
from pathlib import Path

import pytest
from gyre_core.keyring import Keyring
from hypothesis import given
from hypothesis import strategies as st

KEYS = Keyring(stable=bytes(32), rotating={"k1": b"1" * 32, "k2": b"2" * 32})


@given(st.text(min_size=1))
def test_tokens_are_stable_and_idempotent(value: str) -> None:
    """The same value has the same token, a token stays itself, and domains do not share tokens."""
    token = KEYS.token(value, domain="user")
    assert token == KEYS.token(value, domain="user")
    assert KEYS.token(token, domain="user") == token
    assert token != KEYS.token(value, domain="item")
    assert value not in token or len(value) < 5


def test_tokens_are_hmac_sha256() -> None:
    """The token of a domain-separated message is HMAC-SHA256's first 128 bits."""
    digest = hmac.new(bytes(32), b"user\0u1", hashlib.sha256).digest()[:16]
    assert KEYS.token("u1", domain="user") == "hs_" + base64.urlsafe_b64encode(digest).decode().rstrip("=")


def test_a_new_rotating_key_gives_new_tokens() -> None:
    """Adding a key with a greater id changes rotating tokens and leaves stable ones."""
    later = Keyring(stable=KEYS.stable, rotating={**KEYS.rotating, "k3": b"3" * 32})
    assert later.token("s", domain="d", key="rotating") != KEYS.token("s", domain="d", key="rotating")
    assert later.token("s", domain="d") == KEYS.token("s", domain="d")
    with pytest.raises(ValueError, match="no rotating key"):
        Keyring(stable=bytes(32)).token("s", domain="d", key="rotating")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"stable": "00"}, "1 bytes, must have at least 32"),
        ({"stable": "secretsecret"}, "must be JSON"),
        ({"stable": "00" * 32, "rotating": {"s": "11" * 32}}, r"rotating\.s"),
        ([], "must be JSON"),
    ],
)
def test_bad_key_files_are_refused_unseen(tmp_path: Path, body: object, message: str) -> None:
    """Short or malformed keys are refused without showing them."""
    path = tmp_path / "keys.json"
    path.write_text(json.dumps(body))
    with pytest.raises(ValueError, match=message) as refused:
        Keyring.from_file(path)
    assert "secretsecret" not in str(refused.value)
    assert refused.value.__cause__ is None


def test_keys_come_from_a_file(tmp_path: Path) -> None:
    """A key file is read, and a keyring does not show its keys."""
    path = tmp_path / "keys.json"
    path.write_text(json.dumps({"stable": "00" * 32, "rotating": {"k1": "11" * 32}}))
    keys = Keyring.from_file(path)
    assert keys.token("u1", domain="user") == KEYS.token("u1", domain="user")
    assert "00" * 32 not in repr(keys)
