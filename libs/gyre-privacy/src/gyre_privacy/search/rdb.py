"""The strings of a Redis snapshot that are compressed; all others lie in its bytes as they are."""

from __future__ import annotations

from collections.abc import Iterator

RDB_MAGIC = b"REDIS0"
"""How a snapshot begins, and an append-only file with a snapshot in it."""
_COMPRESSED = 0xC3
_MAX_BYTES = 512 * 1024 * 1024
"""The longest string that Redis holds (https://redis.io/docs/latest/develop/data-types/strings/)."""


def compressed_strings(data: bytes) -> Iterator[bytes]:
    """Every string of an RDB file, or of the RDB part of an append-only file, that is compressed by LZF.

    It is looked for by its encoding (a byte 0xC3, both lengths, the content), wherever that stands: so nothing needs to
    be known of types and versions, whose packed forms are such strings, too. What only looks like one is left out where
    its content does not decode to exactly the length that it says.
    """
    at = data.find(_COMPRESSED)
    while at >= 0:
        found = _string(data, at + 1)
        if found is not None:
            yield found
        at = data.find(_COMPRESSED, at + 1)


def _string(data: bytes, place: int) -> bytes | None:
    """The string whose lengths and content begin at a place, or None."""
    try:
        packed, place = _length(data, place)
        size, place = _length(data, place)
        if not 0 < packed < size <= _MAX_BYTES or place + packed > len(data):
            return None
        return _inflated(data[place : place + packed], size)
    except (IndexError, ValueError):
        return None


def _length(data: bytes, place: int) -> tuple[int, int]:
    """A length in Redis's coding (`rdb.h`, RDB_6BITLEN to RDB_64BITLEN), and where it ends.

    Raises:
        IndexError: the data ends within it.
        ValueError: there is none.
    """
    first = data[place]
    if first < 0x40:
        return first, place + 1
    if first < 0x80:
        return (first & 0x3F) << 8 | data[place + 1], place + 2
    size = {0x80: 4, 0x81: 8}.get(first, 0)
    if not size or place + 1 + size > len(data):
        raise ValueError(f"no length at {place}")
    return int.from_bytes(data[place + 1 : place + 1 + size], "big"), place + 1 + size


def _inflated(packed: bytes, size: int) -> bytes:
    """What LZF (http://oldhome.schmorp.de/marc/liblzf.html, `lzf_d.c`) made of `size` bytes.

    Raises:
        IndexError: it ends within a reference.
        ValueError: it is not LZF, or of another size.
    """
    made, place = bytearray(), 0
    while place < len(packed):
        control = packed[place]
        place += 1
        if control < 0x20:
            made += packed[place : place + control + 1]
            place += control + 1
            continue
        length = control >> 5
        if length == 7:
            length += packed[place]
            place += 1
        back = ((control & 0x1F) << 8 | packed[place]) + 1
        place += 1
        start = len(made) - back
        if start < 0 or len(made) + length + 2 > size:
            raise ValueError(f"no LZF at {place}")
        for step in range(length + 2):  # it may reach into what it makes
            made.append(made[start + step])
    if place != len(packed) or len(made) != size:
        raise ValueError(f"LZF of {len(made)} bytes: must be of {size}")
    return bytes(made)
