"""Numbers that Presidio 2.2.362 misses, each found by its pattern and its published check digit.

Presidio's own later tests name them: German, Swedish, Turkish, Canadian and South African numbers, the account numbers
of countries it lists no format for, and IP version 6 addresses, of which it drops the last digit.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import date
from ipaddress import ip_address, ip_interface

Check = Callable[[str], float]

_SEPARATORS = re.compile(r"[ .\-+]")


@dataclass(frozen=True, slots=True)
class CheckedNumber:
    """A number of an entity.

    Attributes:
        entity: named as Presidio names it.
        pattern: what it looks like.
        check: how sure a match is, 0 to 1, by its check digits.
        context: words that speak for a weak match.
    """

    entity: str
    pattern: re.Pattern[str]
    check: Check
    context: tuple[str, ...] = ()

    def spans(self, text: str) -> Iterable[tuple[int, int, float]]:
        """Yield (start, end, score) of each match whose check is above 0; the end is exclusive."""
        for match in self.pattern.finditer(text):
            if (score := self.check(match.group())) > 0:
                yield match.start(), match.end(), score


_CROSS_SUMS_OF_DOUBLES = (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)
"""By digit."""


def luhn(digits: str) -> bool:
    """Whether the last of these digits, and nothing else, checks the others (ISO/IEC 7812-1, annex B)."""
    return (
        sum(map(int, digits[-1::-2])) + sum(map(_CROSS_SUMS_OF_DOUBLES.__getitem__, map(int, digits[-2::-2])))
    ) % 10 == 0


def gtin(digits: str) -> bool:
    """Whether the last digit checks the others of an article's number (GS1 General Specifications, 7.9)."""
    return sum(int(digit) * (1 + 2 * (place % 2)) for place, digit in enumerate(reversed(digits))) % 10 == 0


def mod_11_10(digits: str) -> bool:
    """Whether the last of these digits, and nothing else, checks the others (ISO/IEC 7064, MOD 11,10)."""
    product = 10
    for digit in digits[:-1]:
        product = ((int(digit) + product) % 10 or 10) * 2 % 11
    return (11 - product) % 10 == int(digits[-1])


def _weighted(digits: Iterable[int], weights: Iterable[int], *, cross_sum: bool = False) -> int:
    """The sum of weighted digits, or of their products' cross sums."""
    products = (digit * weight for digit, weight in zip(digits, weights, strict=True))
    return sum(sum(divmod(product, 10)) if cross_sum else product for product in products)


def _is_date(year: int, month: int, day: int) -> bool:
    try:
        date(year, month, day)
    except ValueError:
        return False
    return True


def _unseparated(found: str) -> str:
    return _SEPARATORS.sub("", found)


def _varied(digits: str) -> bool:
    return len(set(digits)) > 1


def _letter(letter: str) -> list[int]:
    """A letter's place in the alphabet as two digits."""
    return list(divmod(ord(letter.upper()) - ord("A") + 1, 10))


def canadian_sin(found: str) -> float:
    """1.0 where a match is a Canadian social insurance number, else 0.0: a region's first digit and Luhn's check."""
    digits = _unseparated(found)
    return float(digits[0] not in "08" and _varied(digits) and luhn(digits))


def german_tax(found: str) -> float:
    """1.0 where a match is a German tax number, else 0.0: ISO/IEC 7064, MOD 11,10."""
    return float(found[0] != "0" and _varied(found) and mod_11_10(found))


def _german_vat(found: str) -> float:
    return 1.0 if mod_11_10(_unseparated(found)[2:]) else 0.5


def german_health(found: str) -> float:
    """1.0 where a letter and nine digits are a German health insurance number, else 0.0: weighted cross sums."""
    digits = _letter(found[0]) + [int(digit) for digit in found[1:9]]
    return float(_weighted(digits, [1, 2] * 5, cross_sum=True) % 10 == int(found[9]))


def _german_physician(found: str) -> float:
    total = _weighted([int(digit) for digit in found[:6]], [4, 9] * 3)
    # One number in ten passes: too weak without a word that speaks for it.
    return 0.1 if -total % 10 == int(found[6]) else 0.0


def german_pension(found: str) -> float:
    """1.0 where a match is a German pension number, else 0.0: a day of birth, a letter, weighted cross sums."""
    digits = [int(digit) for digit in found[:8]] + _letter(found[8]) + [int(digit) for digit in found[9:11]]
    # Some birthdays carry 50 more, to keep numbers of one day apart.
    born = int(found[2:4]) % 50, int(found[4:6])
    valid = 1 <= born[0] <= 31 and 1 <= born[1] <= 12
    total = _weighted(digits, [2, 1, 2, 5, 7, 1, 2, 1, 2, 1, 2, 1], cross_sum=True)
    return float(valid and total % 10 == int(found[11]))


def _german_passport(found: str) -> float:
    """The check digit of ICAO 9303, part 3, 4.9; one in ten passes by chance."""
    values = [int(sign, 36) for sign in found[:8]]
    return 0.4 if _weighted(values, [7, 3, 1, 7, 3, 1, 7, 3]) % 10 == int(found[8]) else 0.0


def swedish_person(found: str) -> float:
    """1.0 where a match is a Swedish personal number, else 0.0: a date and Luhn's check."""
    digits = _unseparated(found)
    year = int(digits[:4]) if len(digits) == 12 else 2000 + int(digits[:2])
    # Coordination numbers add 60 to the day.
    day = int(digits[-6:-4])
    return float(_is_date(year, int(digits[-8:-6]), day - 60 * (day > 60)) and luhn(digits[-10:]))


def turkish_person(found: str) -> float:
    """1.0 where eleven digits are a Turkish identity number, else 0.0: two check digits."""
    digits = [int(digit) for digit in found]
    tenth = (sum(digits[0:9:2]) * 7 - sum(digits[1:8:2])) % 10
    return float(digits[9] == tenth and digits[10] == sum(digits[:10]) % 10)


def south_african_person(found: str) -> float:
    """1.0 where thirteen digits are a South African identity number, else 0.0: a date and Luhn's check."""
    month, day = int(found[2:4]), int(found[4:6])
    # The century is not part of the number.
    dated = any(_is_date(century + int(found[:2]), month, day) for century in (1900, 2000))
    return float(dated and luhn(found))


def _account(found: str) -> float:
    """The check of ISO 13616 (ISO/IEC 7064, MOD 97-10)."""
    plain = _unseparated(found)
    return float(
        15 <= len(plain) <= 34 and int("".join(str(int(sign, 36)) for sign in plain[4:] + plain[:4])) % 97 == 1
    )


def _address(found: str) -> float:
    bare = re.split(r"[%/]", found)[0]
    try:
        ip_interface(found) if "/" in found else ip_address(bare)
    except ValueError:
        return 0.0
    # Two colons alone are the unspecified address, and mostly something else.
    return 0.1 if bare == "::" else 0.6


_OCTET = r"(?:25[0-5]|2[0-4]\d|1?\d?\d)"
_IPV4 = rf"{_OCTET}(?:\.{_OCTET}){{3}}"
_SIGNS = "[0-9A-Fa-f]"

NUMBERS: tuple[CheckedNumber, ...] = (
    CheckedNumber(
        "IP_ADDRESS", re.compile(rf"(?<![\w:.]){_IPV4}(?:/(?:3[0-2]|[12]?\d)\b)?(?![\w:])"), _address, ("ip",)
    ),
    CheckedNumber(
        "IP_ADDRESS",
        re.compile(
            rf"(?<![\w:.])(?={_SIGNS}*:{_SIGNS}*:)(?:{_SIGNS}{{0,4}}:){{2,7}}(?:{_IPV4}|{_SIGNS}{{0,4}})"
            r"(?:%[0-9A-Za-z]+|/(?:12[0-8]|1[01]\d|\d?\d)\b(?!\d))?(?![\w:])"
        ),
        _address,
        ("ip", "ipv6"),
    ),
    CheckedNumber("IBAN_CODE", re.compile(r"(?<![A-Z0-9])[A-Z]{2}\d{2}[A-Z0-9]{11,30}(?![A-Za-z0-9])"), _account),
    CheckedNumber(
        "IBAN_CODE",
        re.compile(r"(?<![A-Z0-9])[A-Z]{2}\d{2}(?:[ -][A-Z0-9]{4}){2,7}(?:[ -][A-Z0-9]{1,3})?(?![A-Za-z0-9])"),
        _account,
    ),
    CheckedNumber("CA_SIN", re.compile(r"(?<!\d)\d{3}([ -]?)\d{3}\1\d{3}(?!\d)"), canadian_sin),
    CheckedNumber("DE_TAX_ID", re.compile(r"(?<!\w)[1-9]\d{10}(?!\w)"), german_tax),
    CheckedNumber("DE_VAT_ID", re.compile(r"(?i)(?<!\w)DE(?:[ .-]?\d{3}){3}(?!\w)"), _german_vat),
    CheckedNumber("DE_HEALTH_INSURANCE", re.compile(r"(?<!\w)[A-Z]\d{9}(?!\w)"), german_health),
    CheckedNumber("DE_LANR", re.compile(r"(?<!\w)\d{9}(?!\w)"), _german_physician, ("lanr", "arztnummer", "arzt")),
    CheckedNumber("DE_SOCIAL_SECURITY", re.compile(r"(?<!\w)\d{8}[A-Z]\d{3}(?!\w)"), german_pension),
    CheckedNumber(
        "DE_PASSPORT", re.compile(r"(?i)(?<!\w)[CFGHJK][CFGHJKLMNPRTVWXYZ\d]{7}\d(?!\w)"), _german_passport, ("pass",)
    ),
    CheckedNumber(
        "SE_PERSONNUMMER",
        re.compile(r"(?<!\d)(?:(?:18|19|20)\d{6}[-+]?|\d{6}[-+])\d{4}(?!\d)"),
        swedish_person,
    ),
    CheckedNumber("TR_NATIONAL_ID", re.compile(r"(?<!\w)[1-9]\d{10}(?!\w)"), turkish_person),
    CheckedNumber("ZA_ID_NUMBER", re.compile(r"(?<!\w)\d{10}[0-2][89]\d(?!\w)"), south_african_person),
)
