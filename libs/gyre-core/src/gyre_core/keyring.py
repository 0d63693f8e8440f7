"""Keyed hashes that stand for ids: the same wherever the id occurs, and nobody without the key can link them to it.

With the stable key joins and the assignment to arms hold. A rotating key gives other hashes each period; once it is
deleted from the file, its hashes lead to nothing.
"""

from __future__ import annotations

import base64
import hmac
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gyre_core.spec.privacy import KeyKind

USER_DOMAIN = "user"
"""The domain of user ids."""
_MIN_KEY_BYTES = 32
_TOKEN_BYTES = 16
_TOKEN = re.compile(r"^h[0-9a-z]{1,16}_[A-Za-z0-9_-]{22}$")
_STABLE_ID = "s"
_KEY_ID = re.compile(r"^[0-9a-z]{1,16}$")


@dataclass(frozen=True, slots=True)
class Keyring:
    """The secret keys of hashes: a stable one, and rotating ones by id, of which the greatest, as text, is in use."""

    stable: bytes = field(repr=False)
    rotating: Mapping[str, bytes] = field(default_factory=dict, repr=False)

    @classmethod
    def from_file(cls, path: Path) -> Keyring:
        """Read `{"stable": "<hex>", "rotating": {"<id>": "<hex>"}}`.

        Raises:
            OSError: the file cannot be read.
            ValueError: a key is shorter than 32 bytes or no hexadecimal, or an id is not of 1 to 16 of [0-9a-z].
        """
        try:
            body = json.loads(path.read_text(encoding="utf-8"))
            stable, rotating = body["stable"], body.get("rotating", {})
            keys = {"stable": stable, **{f"rotating.{name}": key for name, key in rotating.items()}}
            read = {name: bytes.fromhex(key) for name, key in keys.items()}
        except (KeyError, TypeError, AttributeError, ValueError):
            # The cause is left out, since it could show a key.
            raise ValueError(f"{path}: must be JSON with `stable` and `rotating` keys in hexadecimal") from None
        for name, key in read.items():
            if len(key) < _MIN_KEY_BYTES:
                raise ValueError(f"{path}: {name} has {len(key)} bytes, must have at least {_MIN_KEY_BYTES}")
        for name in rotating:
            if not _KEY_ID.match(name) or name == _STABLE_ID:
                raise ValueError(f"{path}: rotating.{name}: the id must be 1 to 16 of [0-9a-z] and not {_STABLE_ID}")
        return cls(read["stable"], {name: read[f"rotating.{name}"] for name in rotating})

    def token(self, value: str, *, domain: str, key: KeyKind = "stable") -> str:
        """The hash of a value, `h<key id>_<22 characters>`: HMAC-SHA256 (RFC 2104) cut to 128 bits.

        One value has another hash in each `domain`. A value that reads like such a token stays as it is, so that a
        replayed record is not hashed twice.

        Raises:
            ValueError: there is no rotating key.
        """
        if _TOKEN.match(value):
            return value
        name, secret = (_STABLE_ID, self.stable) if key == "stable" else self._current()
        return f"h{name}_{base64.urlsafe_b64encode(_digest(secret, value, domain)).rstrip(b'=').decode()}"

    def digest(self, value: str, *, domain: str) -> bytes:
        """The hash of any value under the stable key, 16 bytes: HMAC-SHA256 (RFC 2104) cut to 128 bits.

        Unlike in `token`, a value that is a token is hashed like any other.
        """
        return _digest(self.stable, value, domain)

    def _current(self) -> tuple[str, bytes]:
        if not self.rotating:
            raise ValueError("the key file has no rotating key: must have one for rules with key = rotating")
        name = max(self.rotating)
        return name, self.rotating[name]


def _digest(secret: bytes, value: str, domain: str) -> bytes:
    return hmac.digest(secret, f"{domain}\0{value}".encode(), "sha256")[:_TOKEN_BYTES]
