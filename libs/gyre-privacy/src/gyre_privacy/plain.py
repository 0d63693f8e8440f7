"""Writes digits, dashes, spaces and signs of all scripts as ASCII has them, so that one pattern finds every writing."""

from __future__ import annotations

import unicodedata

_SIGNS = {
    **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe58\ufe63\uff0d", "-"),
    **dict.fromkeys("\t\u00a0\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000", " "),
    **dict(zip("\uff0b\uff20\uff0e\uff08\uff09\uff0f", "+@.()/", strict=True)),
}


class _Plain(dict[int, int]):
    """What becomes of a code point, worked out when it is first met."""

    def __missing__(self, code: int) -> int:
        sign = chr(code)
        plain = ord(str(unicodedata.decimal(sign)) if sign.isdecimal() else _SIGNS.get(sign, sign))
        self[code] = plain
        return plain


_TABLE = _Plain()


def plain(text: str) -> str:
    """The text, of the same length, with ASCII's digits, dashes, spaces and signs of numbers and addresses."""
    return text.replace("\t", " ") if text.isascii() else text.translate(_TABLE)
