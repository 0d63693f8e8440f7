"""What a search looks for: the bytes that stand for a person."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from dataclasses import dataclass

from gyre_core.keyring import Keyring

from gyre_privacy.pseudonyms import user_hash

ID, HASH = "id", "hash"
_BOUND_CHARS = 16
"""To how many characters Iceberg cuts the bounds of text columns by default
(https://iceberg.apache.org/docs/latest/configuration/, `write.metadata.metrics.default`)."""


@dataclass(frozen=True, slots=True)
class Needle:
    """Bytes that stand for a person.

    Attributes:
        name: `id`, an id by which the person is known, or `hash`, a keyed hash of one.
        forms: the bytes in each encoding.
        bound: what a lower bound of a text column keeps of it.
        packed: the bytes of a whole number in a snapshot of Redis, too few to be looked for elsewhere.
    """

    name: str
    forms: tuple[bytes, ...]
    bound: bytes = b""
    packed: tuple[bytes, ...] = ()

    def is_in(self, data: bytes, *, holds_bounds: bool = False, packs_numbers: bool = False) -> bool:
        """Whether any form occurs anywhere in the data.

        Args:
            data: bytes.
            holds_bounds: they hold bounds of text columns, in which the beginning of an id counts.
            packs_numbers: they are of a Redis snapshot, in which an id that is a number may be packed.
        """
        forms = (*self.forms, *self.packed) if packs_numbers else self.forms
        return any(form in data for form in forms) or bool(holds_bounds and self.bound and self.bound in data)


def needles_of(ids: Iterable[str], keyring: Keyring | None = None, *, loop: str = "") -> list[Needle]:
    """The needles for these ids and, with a keyring, for their hashes.

    A short id also occurs within other values: what is found of it need not be of the person.

    Args:
        ids: by which the person is known: to producers, and to the loop.
        keyring: where there is a privacy key, for hashes.
        loop: whose hashes.
    """
    found = []
    for each in dict.fromkeys(ids):
        escaped = json.dumps(each)[1:-1].encode()
        bound = each[:_BOUND_CHARS].encode() if len(each) > _BOUND_CHARS else b""
        found.append(Needle(ID, tuple(dict.fromkeys((each.encode(), escaped))), bound, _packed(each)))
        if keyring is not None:
            digest = user_hash(keyring, loop, each)
            texts = (digest.hex().encode(), base64.b64encode(digest).rstrip(b"="), base64.urlsafe_b64encode(digest))
            found.append(Needle(HASH, (digest, *(text.rstrip(b"=") for text in texts))))
    return found


def _packed(text: str) -> tuple[bytes, ...]:
    """How Redis packs a text that is a whole number (`rdb.h`, `listpack.c`, `intset.c`), of 24 bits and more.

    Smaller ones take one or two bytes, which occur everywhere.
    """
    if not text.lstrip("-").isdecimal() or str(value := int(text)) != text or not 1 << 15 <= abs(value) < 1 << 63:
        return ()
    packed = [value.to_bytes(8, "little", signed=True)]
    if abs(value) < 1 << 31:
        packed.append(value.to_bytes(4, "little", signed=True))
    if abs(value) < 1 << 23:
        packed.append(b"\xf2" + value.to_bytes(3, "little", signed=True))
    return tuple(packed)
