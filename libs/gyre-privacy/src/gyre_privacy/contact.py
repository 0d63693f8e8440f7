"""Finds how a person or a machine of a person is reached: e-mail, telephone, IP and MAC addresses.

Each search is linear in the text: runs are taken whole by possessive patterns, and what surrounds a sign is bounded by
the longest that its standard allows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from ipaddress import ip_address, ip_interface

from gyre_privacy.context import IP, PHONE, UNSPACED, has_context

Span = tuple[int, int, float]
SURE, LIKELY, FAIR, WEAK = 1.0, 0.75, 0.5, 0.1
"""Scores: checked, of an unmistakable form, of a usual form, and what needs a word of context."""

_MAX_LOCAL, _MAX_DOMAIN = 64, 253  # RFC 5321, 4.5.3.1
_LOCAL = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]+\Z")
_NO_LETTERS = (
    r"\s\x00-\x20\"(),:;<>@\[\\\]\x7f-\xa9\xab-\xb1\xb4\xb6-\xb8\xbb-\xbf\u037e\u055d\u0589\u05be\u05c0\u05c3\u060c"
    r"\u061b\u061f\u06d4\u0964\u0965\u2000-\u206f\u2190-\u2bff\u3001-\u3004\u3008-\u3020\u30fb\ufe30-\ufe6f\uff01-\uff0f"
    r"\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65"
)
"""Spaces and punctuation. What is left of a script are its letters with their marks, which `\\w` would part."""
_LOCAL_ANY = re.compile(rf"[^{_NO_LETTERS}]+\Z")
_UNSPACED_END = re.compile(rf"[{UNSPACED}]\Z")
_CONTINUES = re.compile(rf"[.-]?[^\x00-\x7f{_NO_LETTERS}{UNSPACED}]")
_DOMAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]*+")
_DOMAIN_ANY = re.compile(rf"[^{_NO_LETTERS}!-,./:-@\[-`{{-~]+(?:[.-]+[^{_NO_LETTERS}!-,./:-@\[-`{{-~]+)*+")
_LABEL = re.compile(r"(?![-_])[^.]{1,63}(?<![-_])\Z")
_TOP = re.compile(r"(?:xn--[A-Za-z0-9-]{1,59}|[A-Za-z]{2,63}(?![^\W\d_])|(?:(?![A-Za-z0-9_-])[^.]|[A-Za-z]){2,63})")


@dataclass(frozen=True, slots=True)
class Search:
    """A recogniser of one entity, by a function that yields (start, end, score) of each span in a text."""

    entity: str
    spans: Callable[[str], Iterable[Span]]


def emails(text: str) -> Iterator[Span]:
    """Addresses by their @: a local part of RFC 5322's dot-atom before it, a domain with a top level behind it.

    Letters of all scripts are taken (RFC 6531), in domains in both their forms (RFC 5890), as letters and as `xn--`.
    """
    at = text.find("@")
    while at >= 0:
        # Both are searched for only where they can be: text full of @ costs no more than other text.
        domain = _domain(text[at + 1 : at + 1 + _MAX_DOMAIN])
        local = _local(text[max(at - _MAX_LOCAL, 0) : at]) if domain else None
        if local and domain:
            name = local.lstrip(".!#$%&'*/=?^`{|}~-")
            if name:
                yield at - len(name), at + 1 + len(domain), SURE
        at = text.find("@", at + 1)


def _local(before: str) -> str | None:
    """The local part that a text ends with, or None; of words written together its ASCII part, where there is one."""
    ascii_only, any_letters = _LOCAL.search(before), _LOCAL_ANY.search(before)
    if ascii_only and (any_letters is None or _ends_unspaced(before[: ascii_only.start()])):
        return ascii_only.group()
    return any_letters.group() if any_letters else None


def _ends_unspaced(before: str) -> bool:
    return _UNSPACED_END.search(before) is not None


def _domain(after: str) -> str | None:
    """The domain that a text begins with, or None; of words written together its ASCII part, where there is one."""
    if not after or "." not in after:
        return None
    match = _DOMAIN.match(after)
    if match and not _CONTINUES.match(after, len(match.group().rstrip(".-"))) and (found := _labels(match.group())):
        return found
    match = _DOMAIN_ANY.match(after)
    return _labels(match.group()) if match else None


def _labels(found: str) -> str | None:
    """The longest beginning that has two labels at least and ends with a top level, or None."""
    labels = found.rstrip(".-").split(".")
    while len(labels) > 1 and not _TOP.match(labels[-1]):
        labels.pop()
    top = _TOP.match(labels[-1])
    if len(labels) < 2 or top is None or not all(map(_LABEL.match, labels[:-1])):
        return None
    return ".".join([*labels[:-1], top.group()])


_OCTET = r"(?:25[0-5]|2[0-4]\d|[01]?\d?\d)"
_IPV4 = re.compile(
    rf"(?<![0-9A-Za-z_])(?<!\d\.)({_OCTET}(?:\.{_OCTET}){{3}})(:\d{{1,5}}(?!\d)|/(?:3[0-2]|[12]?\d)(?!\d))?(?![0-9A-Za-z_]|\.\d)"
)
_IPV6 = re.compile(r"(?<![A-Za-z0-9_.])[0-9A-Fa-f:.]{2,}+(?:%[0-9A-Za-z]+)?(?:/\d{1,3}(?!\d))?")
_VERSION = re.compile(r"(?:version|versión|версия|release|build|\bv|版本|ver)\W{0,2}\Z")
_IN_URL = re.compile(r"//(?:[^\s/@]{1,64}@)?\Z")
_MAX_IPV6 = 60


def ip_addresses(text: str) -> Iterator[Span]:
    """IP addresses of both versions, with the port or prefix length that may follow.

    Four numbers with dots are as often a version, and `WEAK`. They are an address where a port, a prefix length, a URL
    or a word says so, or where two of them are at least 100, or one of them and the first is at least 30: so are 94 %
    of all addresses, and few versions.
    """
    for match in _IPV4.finditer(text):
        start, end = match.span()
        if _VERSION.search(text[max(start - 12, 0) : start].lower()):
            continue
        parts = [int(part) for part in match.group(1).split(".")]
        large = sum(part >= 100 for part in parts)
        sure = large > 1 or (large and parts[0] >= 30) or match.group(2) or _is_named(text, start)
        yield start, end, LIKELY if sure else WEAK
    if text.count(":") < 2:
        return
    for match in _IPV6.finditer(text):
        found = match.group()
        if found.count(":") >= 2 and len(found) <= _MAX_IPV6:
            yield from _ipv6(match.start(), found)


def _is_named(text: str, start: int) -> bool:
    """Whether a URL or a word says that an address begins there."""
    return _IN_URL.search(text[max(start - 70, 0) : start]) is not None or has_context(text, start, IP)


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
    r"(?<![0-9A-Za-z_])(?<![^0-9A-Za-z][0-9A-Fa-f]{2}[:-])(?<![0-9A-Fa-f]{4}\.)"
    r"(?:[0-9A-Fa-f]{2}([:-])(?:[0-9A-Fa-f]{2}\1){4}[0-9A-Fa-f]{2}|(?:[0-9A-Fa-f]{4}\.){2}[0-9A-Fa-f]{4})"
    r"(?![0-9A-Za-z_]|[:-][0-9A-Fa-f]{2}(?![0-9A-Za-z])|\.[0-9A-Fa-f]{4}(?![0-9A-Za-z]))"
)


def mac_addresses(text: str) -> Iterator[Span]:
    """Hardware addresses (IEEE 802) in their three usual forms."""
    for match in _MAC.finditer(text):
        yield match.start(), match.end(), LIKELY


_SEPARATORS = r"[ \t.\-/()]"
_RUN = re.compile(
    # A + begins a number whatever stands before it: else each number of a glued list would hide the next.
    rf"(?:(?<![0-9A-Za-z_+])|(?<!\+)(?=\+))\(?+\+?+\(?+\d(?:{_SEPARATORS}{{0,3}}+\d){{5,}}+"
)
_PIECE = re.compile(r"(?<=[ \t/])[+(0]|(?<=\d{7}[ \t/])\d(?=\d{6})")
_EXTENSION = re.compile(r"\s{0,2}(?:x|ext\.?|extension|доб\.?|#)\s{0,2}\d{1,6}(?!\w)")
_DATE = re.compile(
    r"(?<!\d)(?:[12]\d{3}[-./](?:1[0-2]|0?[1-9])[-./](?:3[01]|[12]\d|0?[1-9])|(?:3[01]|[12]\d|0?[1-9])[-./](?:3[01]|[12]\d|0?[1-9])[-./](?:[12]\d{3}|\d{2}))(?!\d)"
)
_GROUP = re.compile(r"\d+")
_NO_PHONE = re.compile(r"(?:0|[1-9]\d{0,2})\.\d{3,}\Z|(?:1\d|20)\d\d ?- ?(?:1\d|20)\d\d\Z")
"""A decimal, a span of years."""
_AREA_CODE = re.compile(r"(?:\d{1,3}[ -]?)?\((?:0\d{1,4}|[1-9]\d{1,2})\)")
_ABROAD = re.compile(r"00(?:[1-9]\d{0,2}\D| [1-9]\d{0,2} \d+ \d)")
_MOBILE = re.compile(
    r"0[67](?: \d\d){4}|01[5-7]\d \d{6,8}|06[4-9]\d \d{6,7}|(?:0[1589]0|07\d) \d{7,8}|07\d \d{3} \d\d \d\d"
    r"|04\d\d(?: \d\d){3}|05\d\d \d{3} \d\d \d\d|0[4789]\d\d \d{3} \d{3}|0[15789]0 \d{4} \d{4}|07\d{3} \d{6}"
    r"|06 \d{8}|0[689]\d \d{3} \d{4}|0[6-9]\d{4} \d{5}"
)
"""Groups of mobile numbers as the documented regions write them: of random digits in any of these groupings at most one
in twenty match, of those of all national numbers one in ten."""
_ISBN = re.compile(r"97[89][ -]?(?:\d[ -]?){9}\d\Z")
_ISBN10 = re.compile(r"(?=(?:\d-?){10}\Z)\d{1,5}-\d{1,7}-\d{1,6}-\d\Z")


class Phones:
    """Telephone numbers: international, in a usual national format, or behind a word that says so.

    Args:
        lengths: how many digits a national number may have, without its trunk prefix; None for those of all regions.
    """

    entity = "PHONE_NUMBER"

    def __init__(self, lengths: frozenset[int] | None = None) -> None:
        self._lengths = lengths

    def spans(self, text: str) -> Iterator[Span]:
        """Yield (start, end, score) of each number, weak ones too; an extension is part of it."""
        for match in _RUN.finditer(text):
            if match.end() < len(text) and (text[match.end()].isascii() and text[match.end()].isalnum()):
                follows = _EXTENSION.match(text, match.end())
                if follows is None:
                    continue
            yield from self._in_run(text, match.start(), match.end())

    def _in_run(self, text: str, start: int, end: int) -> Iterator[Span]:
        run = text[start:end]
        named = has_context(text, start, PHONE, end=_with_extension(text, end))
        if score := self._score(run, named=named):
            yield start, _with_extension(text, end), score
            return
        # Numbers side by side are one run: it is cut where there is space before what begins like a
        # number, and between two that are long enough for one.
        pieces = [match.start() for match in _PIECE.finditer(run)]
        for first, last in zip([0, *pieces], [*pieces, len(run)], strict=True):
            piece = run[first:last].rstrip(" \t/.-")
            if len(piece) < len(run) and (score := self._score(piece, named=named)):
                yield start + first, start + first + len(piece), score

    def _score(self, found: str, *, named: bool) -> float:
        """How sure it is that `found`, digits and separators, is one telephone number."""
        groups = _GROUP.findall(found)
        digits = "".join(groups)
        if not 6 <= len(digits) <= 17 or _DATE.search(found) or _is_book(found, digits) or _NO_PHONE.match(found):
            return 0.0
        if found.lstrip("(")[0] == "+":
            return LIKELY if 8 <= len(digits) <= 15 and digits[0] != "0" else 0.0
        if len(digits) < (6 if named else 7) or len(digits) > 15 or not self._fits(digits):
            return FAIR if _ABROAD.match(found) or (named and digits.startswith("00")) else 0.0
        if named:
            return FAIR
        return FAIR if len(groups) > 1 and _is_formatted(found, groups) else WEAK

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


def _is_formatted(found: str, groups: list[str]) -> bool:
    """Whether groups and separators are those of a telephone number, and of hardly anything else.

    So are an area code in parentheses, a prefix for calls abroad, and the usual formats of mobile numbers. Others are
    grouped like the numbers of articles and parts: they need a word.
    """
    size = sum(map(len, groups))
    if "(" in found:
        return 9 <= size <= 13 and _AREA_CODE.match(found) is not None
    if _ABROAD.match(found):
        return size >= 10
    signs = set(re.sub(r"\d", "", found))
    if "." in signs or (signs == {"-"} and [len(group) for group in groups] != [3, 4, 4]):
        return False
    return _MOBILE.fullmatch(" ".join(groups)) is not None
