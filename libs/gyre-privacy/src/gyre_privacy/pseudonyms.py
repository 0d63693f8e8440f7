"""What stands for a user where the id itself must not: tombstones, and the monitor's database."""

from __future__ import annotations

from gyre_core.keyring import Keyring

HASH_BYTES = 16
_DOMAIN = "forgotten"


def user_hash(keyring: Keyring, loop: str, user_id: str) -> bytes:
    """The hash of a user's id in a loop, 16 bytes: nobody without the key can tell whose it is, or link two loops.

    Args:
        keyring: of the process; its stable key is used.
        loop: its name.
        user_id: as the loop keeps it, hashed or not.
    """
    return keyring.digest(user_id, domain=f"{_DOMAIN}\0{loop}")
