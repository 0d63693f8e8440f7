"""Finds how a person or a machine of a person is reached: e-mail, telephone, IP and MAC addresses.

Each search is linear in the text: runs are taken whole by possessive patterns, and what surrounds a sign is bounded by
the longest that its standard allows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from ipaddress import ip_address, ip_interface

from gyre_privacy.context import IP, PHONE, has_context

Span = tuple[int, int, float]
SURE, LIKELY, FAIR, WEAK = 1.0, 0.75, 0.5, 0.1
"""Scores: checked, of an unmistakable form, of a usual form, and what needs a word of context."""

_MAX_LOCAL, _MAX_DOMAIN = 64, 253  # RFC 5321, 4.5.3.1
_LOCAL = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]+\Z")
_LOCAL_ANY = re.compile(r"[\w.!#$%&'*+/=?^`{|}~-]+\Z")
_DOMAIN = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?")
_DOMAIN_ANY = re.compile(r"\w(?:[\w.-]*\w)?")
_LABEL = re.compile(r"[^\W_](?:[\w-]{0,61}[^\W_])?\Z")
_TOP = re.compile(r"(?:xn--[A-Za-z0-9-]{1,59}|[^\W\d_]{2,63})")


@dataclass(frozen=True, slots=True)
class Search:
    """A recogniser of one entity whose search is a function."""

    entity: str
    spans: Callable[[str], Iterable[Span]]


def emails(text: str) -> Iterator[Span]:
    """Addresses by their @: a local part of RFC 5322's dot-atom before it, a domain with a top level behind it.

    Internationalised domains are found in both their forms (RFC 5890), as letters and as `xn--`.
    """
    at = text.find("@")
    while at >= 0:
        # Both are searched for only where they can be: text full of @ costs no more than other text.
        domain = _domain(text[at + 1 : at + 1 + _MAX_DOMAIN])
        before = text[max(at - _MAX_LOCAL, 0) : at] if domain else ""
        local = _LOCAL.search(before) or _LOCAL_ANY.search(before)
        if local and domain:
            name = local.group().lstrip(".!#$%&'*/=?^`{|}~-")
            if name and not name.endswith(".") and ".." not in name:
                yield at - len(name), at + 1 + len(domain), SURE
        at = text.find("@", at + 1)


def _domain(after: str) -> str | None:
    """The domain that a text begins with, or None."""
    if (not after[:1].isalnum() and after[:1] != "_") or "." not in after:
        return None
    for pattern in (_DOMAIN, _DOMAIN_ANY):
        match = pattern.match(after)
        if match is None:
            continue
        labels = match.group().split(".")
        while len(labels) > 1 and not (top := _TOP.match(labels[-1])):
            labels.pop()
        if len(labels) < 2 or not all(map(_LABEL.match, labels[:-1])):
            continue
        top = _TOP.match(labels[-1])
        if top:
            return ".".join([*labels[:-1], top.group()])
    return None


_OCTET = r"(?:25[0-5]|2[0-4]\d|1?\d?\d)"
_IPV4 = re.compile(
    rf"(?<![\w.])(?:(?<=[:=@/(\[])|(?<![:=@/(\[]))({_OCTET}(?:\.{_OCTET}){{3}})(:\d{{1,5}}(?!\d)|/(?:3[0-2]|[12]?\d)(?!\d))?(?!\w|\.\d)"
)
_IPV6 = re.compile(r"(?<![A-Za-z0-9_.])[0-9A-Fa-f:.]{2,}+(?:%[0-9A-Za-z]+)?(?:/\d{1,3}(?!\d))?")
_VERSION = re.compile(r"(?:version|versión|версия|release|build|\bv|版本|ver)\W{0,2}\Z")
_MAX_IPV6 = 60


def ip_addresses(text: str) -> Iterator[Span]:
    """IP addresses of both versions, with the port or prefix length that may follow.

    Four numbers with dots are as often a version. They are an address where a port, a prefix length or a word says so,
    or where a part of them is at least 100, as in 98 % of all addresses and few versions.
    """
    for match in _IPV4.finditer(text):
        start, end = match.span()
        if _VERSION.search(text[max(start - 12, 0) : start].lower()):
            continue
        large = max(map(int, match.group(1).split("."))) >= 100
        sure = large or match.group(2) or has_context(text, start, IP)
        yield start, end, LIKELY if sure else WEAK
    if text.count(":") < 2:
        return
    for match in _IPV6.finditer(text):
        found = match.group()
        if found.count(":") >= 2 and len(found) <= _MAX_IPV6:
            yield from _ipv6(match.start(), found)


def _ipv6(start: int, found: str) -> Iterator[Span]:
    """The address within a run of its signs, less the colon before it and the punctuation behind it."""
    lead = 1 if found.startswith(":") and not found.startswith("::") else 0
    bare = found[lead:].rstrip(".")
    if bare.endswith(":") and not bare.endswith("::"):
        bare = bare[:-1]
    if sum(sign.isdigit() for sign in bare) < 1 or len(bare.strip(":")) < 2:
        return
    try:
        ip_interface(bare) if "/" in bare else ip_address(bare)
    except ValueError:
        return
    yield start + lead, start + lead + len(bare), LIKELY


_MAC = re.compile(
    r"(?<![\w:.-])(?:[0-9A-Fa-f]{2}([:-])(?:[0-9A-Fa-f]{2}\1){4}[0-9A-Fa-f]{2}|(?:[0-9A-Fa-f]{4}\.){2}[0-9A-Fa-f]{4})(?![\w:-])"
)


def mac_addresses(text: str) -> Iterator[Span]:
    """Hardware addresses (IEEE 802) in their three usual forms."""
    for match in _MAC.finditer(text):
        yield match.start(), match.end(), LIKELY


_SEPARATORS = r"[ \t\u00a0\u202f.\-/()\u2010-\u2015]"
_RUN = re.compile(
    # A + begins a number whatever stands before it: else each number of a glued list would hide the next.
    rf"(?:(?<![0-9A-Za-z_+])|(?<!\+)(?=[+＋]))(?:[+＋]|\((?=[+\d]))?+\(?+\d(?:{_SEPARATORS}{{0,3}}+\d){{5,}}+"
)
_PIECE = re.compile(r"(?<=[ \t/\u00a0])[+＋(0]|(?<=\d{7}[ \t/\u00a0])\d(?=\d{6})")
_EXTENSION = re.compile(r"\s{0,2}(?:x|ext\.?|extension|доб\.?|#)\s{0,2}\d{1,6}(?!\w)")
_DATE = re.compile(
    r"(?<!\d)(?:[12]\d{3}[-./](?:1[0-2]|0?[1-9])[-./](?:3[01]|[12]\d|0?[1-9])|(?:3[01]|[12]\d|0?[1-9])[-./](?:3[01]|[12]\d|0?[1-9])[-./](?:[12]\d{3}|\d{2}))(?!\d)"
)
_GROUP = re.compile(r"\d+")
_THOUSANDS = re.compile(r"[1-9]\d{0,2}(?:([. \u00a0\u202f])\d{3})(?:\1\d{3})*\Z")
_DECIMAL = re.compile(r"\d+\.\d+\Z")
_VERSIONED = re.compile(r"\d{1,3}(?:\.\d{1,3}){3}\Z")
_YEAR = re.compile(r"(?:1[5-9]|20)\d\d\Z")
_ISBN = re.compile(r"97[89][ -]?(?:\d[ -]?){9}\d\Z")
_ISBN10 = re.compile(r"(?=(?:\d-?){10}\Z)\d{1,5}-\d{1,7}-\d{1,6}-\d\Z")
_OPENS = re.compile(r"[+＋(0]")


class Phones:
    """Telephone numbers: international, in a usual national format, or behind a word that says so.

    Args:
        lengths: how many digits a national number may have, without its trunk prefix; None for those of all regions.
    """

    entity = "PHONE_NUMBER"

    def __init__(self, lengths: frozenset[int] | None = None) -> None:
        self._lengths = lengths

    def spans(self, text: str) -> Iterator[Span]:
        """Every number with its score."""
        for match in _RUN.finditer(text):
            if match.end() < len(text) and (text[match.end()].isascii() and text[match.end()].isalnum()):
                follows = _EXTENSION.match(text, match.end())
                if follows is None:
                    continue
            yield from self._in_run(text, match.start(), match.end())

    def _in_run(self, text: str, start: int, end: int) -> Iterator[Span]:
        run = text[start:end]
        named = has_context(text, start, PHONE, end=end)
        if score := self._score(run, named=named):
            yield start, _with_extension(text, end), score
            return
        # Numbers side by side are one run: it is cut where there is space before what begins like a
        # number, and between two that are long enough for one.
        pieces = [match.start() for match in _PIECE.finditer(run)]
        for first, last in zip([0, *pieces], [*pieces, len(run)], strict=True):
            piece = run[first:last].rstrip(" \t/.-\u00a0")
            if len(piece) < len(run) and (score := self._score(piece, named=named)):
                yield start + first, start + first + len(piece), score

    def _score(self, found: str, *, named: bool) -> float:
        """How sure it is that `found`, digits and separators, is one telephone number."""
        groups = _GROUP.findall(found)
        digits = "".join(groups)
        if not 6 <= len(digits) <= 17 or _DATE.search(found) or _is_book(found, digits):
            return 0.0
        if found.lstrip("(")[0] in "+＋":
            return LIKELY if 8 <= len(digits) <= 15 and digits[0] != "0" else 0.0
        if digits.startswith("00") and len(digits) >= 10:
            return FAIR
        if len(digits) < (6 if named else 7) or len(digits) > 15 or not self._fits(digits):
            return 0.0
        if named:
            return FAIR
        return FAIR if len(groups) > 1 and _is_formatted(found, groups, digits) else WEAK

    def _fits(self, digits: str) -> bool:
        """Whether a national number of the regions may have so many digits, with or without a trunk prefix."""
        return self._lengths is None or bool(self._lengths & {len(digits), len(digits) - 1, len(digits) - 2})


def _with_extension(text: str, end: int) -> int:
    match = _EXTENSION.match(text, end)
    return match.end() if match else end


def _is_book(found: str, digits: str) -> bool:
    """Whether it is an ISBN of either length, or an EAN of a book, with a check digit that fits."""
    if _ISBN.match(found) and len(digits) == 13:
        return sum(int(digit) * (1 + 2 * (place % 2)) for place, digit in enumerate(digits)) % 10 == 0
    if _ISBN10.match(found):
        return sum(int(digit) * (10 - place) for place, digit in enumerate(digits)) % 11 == 0
    return False


def _is_formatted(found: str, groups: list[str], digits: str) -> bool:
    """Whether groups and separators are those of a telephone number, and not of a count, a range or a sequence."""
    if _YEAR.match(groups[0]) and not found.startswith(("(", "0")):
        return False
    if _THOUSANDS.match(found) or _DECIMAL.match(found) or _VERSIONED.match(found):
        return False
    if len(digits) > 13 or any(len(group) > 8 for group in groups) or max(map(len, groups)) < 2:
        return False
    if groups[0][0] == "0" or "(" in found:
        return True
    return len(digits) <= 12 and len(groups[-1]) >= 2 and sum(len(group) == 1 for group in groups) <= 1
