"""Finds payment cards, bank accounts and wallets, each by its issuer's ranges and its check digits."""

from __future__ import annotations

import hashlib
import re
import string
from collections.abc import Iterator, Sequence

from gyre_privacy.contact import SURE, WEAK, Span
from gyre_privacy.context import CARD, follows_word, has_context
from gyre_privacy.numbers import gtin, luhn

_CARD = re.compile(
    # Within a lookahead, so that one that begins within another is found, too.
    # A decimal is no card, but digits behind a whole number are, and so are grouped ones.
    r"(?<![0-9_])(?=("
    r"(?:(?<!\d\.)|(?<=\d{3}\.))\d{12,19}+"
    r"|\d{4}(?:([ .-])\2?\d{4,6}+(?:\2{1,2}\d{1,7}+){1,3})"
    r")(?![0-9A-Za-z_]))"
)
_ARTICLE_LENGTHS = (12, 13, 14)
"""Of the numbers of articles, UPC, EAN and GTIN-14, which need a word to be a card's."""
_GROUPINGS = re.compile(r"4,4,4,[1-7]|4,4,4,4,[1-3]|4,[4-6],[45]")
_GROUP = re.compile(r"\d+")
_SIGNS = re.compile(r"\D")
_Range = tuple[str, str, tuple[int, ...]]
_ISSUERS: tuple[_Range, ...] = (
    ("4", "4", (13, 16, 19)),  # Visa
    ("51", "55", (16,)),
    ("2221", "2720", (16,)),  # Mastercard
    ("34", "34", (15,)),
    ("37", "37", (15,)),  # American Express
    ("6011", "6011", (16, 17, 18, 19)),
    ("644", "659", (16, 17, 18, 19)),  # Discover
    ("62", "62", (16, 17, 18, 19)),  # UnionPay
    ("35", "35", (16, 17, 18, 19)),
    ("2131", "2131", (15,)),
    ("1800", "1800", (15,)),  # JCB
    ("300", "305", (14,)),
    ("36", "36", (14,)),
    ("38", "39", (14,)),  # Diners Club
    ("2200", "2204", (16, 17, 18, 19)),  # Mir
    ("50", "50", (12, 13, 14, 15, 16, 17, 18, 19)),
    ("56", "58", (12, 13, 14, 15, 16, 17, 18, 19)),
    ("60", "60", (16, 17, 18, 19)),
    ("63", "63", (12, 13, 14, 15, 16, 17, 18, 19)),
    ("67", "67", (12, 13, 14, 15, 16, 17, 18, 19)),  # Maestro, RuPay, Elo
    ("9792", "9792", (16,)),  # Troy
)
"""First digits from, to (inclusive), and lengths, of the ranges of ISO/IEC 7812 in use."""
_LENGTHS = {str(prefix): lengths for low, high, lengths in _ISSUERS for prefix in range(int(low), int(high) + 1)}


def cards(text: str) -> Iterator[Span]:
    """Card numbers of known issuers, written whole or in groups, whose last digit checks (ISO/IEC 7812-1).

    `WEAK` where a number of an article would look the same, and no word says that it is a card.
    """
    for match in _CARD.finditer(text):
        start, end = match.span(1)
        lengths = _lengths(text[start : start + 4])
        if not lengths or (_ends_in_letter(text, start) and not follows_word(text, start, CARD)):
            continue
        groups = [each.span() for each in _GROUP.finditer(text, start, end)]
        # What follows a grouped number looks like a group of it, so shorter readings are tried, too.
        for size in range(len(groups), 0, -1):
            end = groups[size - 1][1]
            digits = _SIGNS.sub("", text[start:end])
            if len(digits) in lengths and _is_grouped(groups[:size]) and len(set(digits)) > 1 and luhn(digits):
                bare = size == 1 and len(digits) in _ARTICLE_LENGTHS and gtin(digits)
                yield start, end, SURE if not bare or has_context(text, start, CARD) else WEAK
                break


def _ends_in_letter(text: str, start: int) -> bool:
    """Whether a letter of ASCII stands right before a position: what it begins is a part of a code."""
    return start > 0 and text[start - 1].isascii() and text[start - 1].isalpha()


def _lengths(first: str) -> tuple[int, ...]:
    """How many digits a card has that begins with these four; none where no issuer's does."""
    found = (_LENGTHS.get(first[:size]) for size in (1, 2, 3, 4))
    return tuple(length for lengths in found if lengths for length in lengths)


def _is_grouped(groups: Sequence[tuple[int, int]]) -> bool:
    return len(groups) == 1 or _GROUPINGS.fullmatch(",".join(str(end - start) for start, end in groups)) is not None


_ACCOUNT = re.compile(
    r"(?:(?<![0-9A-Za-z_])|(?<=IBAN)|(?<=iban)|(?<=Iban))(?=([A-Za-z]{2}\d{2}(?:"
    r"[0-9A-Za-z]{11,30}"
    r"|(?:[ -]{1,2}[0-9A-Za-z]{4}){2,7}(?:[ -]{1,2}[0-9A-Za-z]{1,3})?"
    r")(?![0-9A-Za-z_])))"
)
_GROUPED = re.compile(r"[ -]")
_COUNTRIES = frozenset(
    [
        "AD",
        "AE",
        "AL",
        "AT",
        "AZ",
        "BA",
        "BE",
        "BG",
        "BH",
        "BI",
        "BR",
        "BY",
        "CH",
        "CR",
        "CY",
        "CZ",
        "DE",
        "DJ",
        "DK",
        "DO",
        "EE",
        "EG",
        "ES",
        "FI",
        "FK",
        "FO",
        "FR",
        "GB",
        "GE",
        "GI",
        "GL",
        "GR",
        "GT",
        "HN",
        "HR",
        "HU",
        "IE",
        "IL",
        "IQ",
        "IS",
        "IT",
        "JO",
        "KW",
        "KZ",
        "LB",
        "LC",
        "LI",
        "LT",
        "LU",
        "LV",
        "LY",
        "MC",
        "MD",
        "ME",
        "MK",
        "MN",
        "MR",
        "MT",
        "MU",
        "NI",
        "NL",
        "NO",
        "OM",
        "PK",
        "PL",
        "PS",
        "PT",
        "QA",
        "RO",
        "RS",
        "RU",
        "SA",
        "SC",
        "SD",
        "SE",
        "SI",
        "SK",
        "SM",
        "SO",
        "ST",
        "SV",
        "TL",
        "TN",
        "TR",
        "UA",
        "VA",
        "VG",
        "XK",
        "YE",
    ]
)
"""Of the registry of ISO 13616. Its lengths are not asked for: what checks is redacted, whatever its length."""


def accounts(text: str) -> Iterator[Span]:
    """IBANs of either case, written whole or in groups of four, that check (MOD 97-10).

    A word that follows a number looks like a part of it, so shorter readings are tried, too.
    """
    for match in _ACCOUNT.finditer(text):
        start, end = match.span(1)
        while end - start >= 15:
            if _is_account(text[start:end]):
                yield start, end, SURE
                break
            cut = max(text.rfind(sign, start, end) for sign in " -")
            last = text[max(cut, start - 1) + 1 : end]
            word = len(last) - len(last.rstrip(string.ascii_letters))
            if not word or (cut > start and word < len(last)):
                break
            end = start + len(text[start : cut if cut > start else end - word].rstrip(" -"))


def _is_account(found: str) -> bool:
    plain = _GROUPED.sub("", found).upper()
    if plain[:2] not in _COUNTRIES:
        return False
    turned = plain[4:] + plain[:4]
    return int("".join(str(int(sign, 36)) for sign in turned)) % 97 == 1


_WALLET = re.compile(r"(?<![0-9A-Za-z_])(?:bc1[02-9ac-hj-np-z]{11,71}|[13][1-9A-HJ-NP-Za-km-z]{25,34})(?![0-9A-Za-z_])")
_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_BECH32 = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
_BECH32_CHECKS = (1, 0x2BC830A3)  # BIP 173 and BIP 350


def wallets(text: str) -> Iterator[Span]:
    """Bitcoin addresses: `SURE` where the checksum holds (base58check; BIP 173 and 350), else `WEAK`."""
    for match in _WALLET.finditer(text):
        found = match.group()
        valid = _bech32(found) if found.startswith("bc1") else _base58(found)
        yield match.start(), match.end(), SURE if valid else WEAK


def _base58(found: str) -> bool:
    number = 0
    for sign in found:
        number = number * 58 + _BASE58.index(sign)
    try:
        raw = number.to_bytes(25, "big")
    except OverflowError:
        return False
    return hashlib.sha256(hashlib.sha256(raw[:21]).digest()).digest()[:4] == raw[21:]


def _bech32(found: str) -> bool:
    values = [3, 3, 0, 2, 3, *(_BECH32.index(sign) for sign in found[3:])]
    check = 1
    for value in values:
        top = check >> 25
        check = (check & 0x1FFFFFF) << 5 ^ value
        for place, generator in enumerate((0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)):
            check ^= generator if top >> place & 1 else 0
    return check in _BECH32_CHECKS
