"""What stands for a user where the id itself must not: in tombstones, and in the monitor's database."""

from __future__ import annotations

import base64
import json
import os
import secrets
from pathlib import Path

from gyre.events.v1 import privacy_pb2 as privacy
from gyre_core.keyring import USER_DOMAIN, Keyring
from gyre_runtime.errors import Misconfigured, Precondition

_DOMAIN = "forgotten"
_KEY_BYTES = 32


def user_hash(keyring: Keyring, loop: str, user_id: str) -> bytes:
    """The hash of a user's id in a loop, 16 bytes: nobody without the key can tell whose it is, or link two loops.

    Args:
        keyring: of the process; its stable key is used.
        loop: its name.
        user_id: as the loop keeps it, hashed or not.
    """
    return keyring.digest(user_id, domain=f"{_DOMAIN}\0{loop}")


def record_key(message: privacy.UserForgotten | privacy.UserErased) -> str:
    """The Kafka key of a tombstone's or an erasure's record: its hash as base64url, or the id of the former form."""
    return base64.urlsafe_b64encode(message.user_hash).rstrip(b"=").decode() or message.user_id


class Pseudonyms:
    """Compares users with tombstones, by hashes; tombstones of the former form name the user, and need no key.

    Args:
        keyring: None where the process has no key file.
    """

    def __init__(self, keyring: Keyring | None) -> None:
        self._keyring = keyring

    def of(self, loop: str, user_id: str) -> bytes:
        """The hash of a user's id in a loop, as `user_hash` makes it.

        Raises:
            Precondition: there is no key file (PRIVACY_KEY_MISSING).
        """
        return user_hash(self._key(), loop, user_id)

    def forms(self, user_id: str) -> tuple[str, ...]:
        """The ids that a user may stand under in a loop: as producers know them, and hashed, as `user_id: hmac` has it.

        Both, whatever the loop's setting is: it may have been another one when some of what stands was written.

        Raises:
            Precondition: there is no key file (PRIVACY_KEY_MISSING).
        """
        return tuple(dict.fromkeys((user_id, self._key().token(user_id, domain=USER_DOMAIN))))

    def of_message(self, loop: str, message: privacy.UserForgotten | privacy.UserErased) -> bytes:
        """Whose a tombstone is, to be compared with `of_user`: its hash; of the former form that of its id.

        Without a key file the former form gives the id itself, as bytes.

        Raises:
            Precondition: it is a hash, and there is no key file (PRIVACY_KEY_MISSING).
        """
        if message.user_hash:
            self._key()
            return bytes(message.user_hash)
        return self.of(loop, message.user_id) if self._keyring is not None else message.user_id.encode()

    def of_user(self, loop: str, user_id: str) -> bytes:
        """What `of_message` answers for tombstones of a user; without a key file for those of the former form."""
        return self.of(loop, user_id) if self._keyring is not None else user_id.encode()

    def _key(self) -> Keyring:
        if self._keyring is None:
            message = "GYRE_PRIVACY_KEY_FILE is not set: users are forgotten by hashes under its key"
            raise Precondition("PRIVACY_KEY_MISSING", message)
        return self._keyring


def own_keyring(path: Path) -> Keyring:
    """The keys of a file; where it is missing, it is written first, with a new random key and for its owner alone.

    Raises:
        Misconfigured: it can be neither read nor written, or holds no keys (STATE_UNUSABLE).
    """
    try:
        if not path.exists():
            _write_key(path)
        return Keyring.from_file(path)
    except (OSError, ValueError) as error:
        rule = f"{path}: {error.strerror}" if isinstance(error, OSError) else str(error)
        raise Misconfigured("STATE_UNUSABLE", f"GYRE_STATE_DIR={str(path.parent)!r}: {rule}") from None


def _write_key(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(number, "w", encoding="utf-8") as file:
        json.dump({"stable": secrets.token_hex(_KEY_BYTES)}, file)
