"""Finds the numbers by which states know people, each by its form, its date and its check digits.

A number is taken without a word of context only where chance would give its form and check to fewer than one in fifty
numbers of its length; the others need a word that says what they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import date
from functools import cache
from operator import mul

from gyre_privacy import numbers as checks
from gyre_privacy.contact import FAIR, SURE, WEAK, Span
from gyre_privacy.context import SearchedText, context_pattern, has_context, has_word_before

_SEPARATORS = re.compile(r"[ \u00a0.\-/+]")
_DIGITS_ONLY = re.compile(r"[\d \u00a0.\-/+]+\Z")
_START = r"(?<![0-9A-Za-z_])(?:(?<!\d[-./])|(?=[A-Za-z]))"
_END = r"(?![0-9A-Za-z_])(?!(?<=\d)[-./]\d)"
"""A number begins and ends with a word, and at no separator between digits: of two values side by side each hides the
other or none does, so that masking one frees no chain of them."""


@dataclass(frozen=True, slots=True)
class Identity:
    """One kind of number by which a state knows people: how it is written, checked and named.

    Attributes:
        entity: named as Presidio names it, where it does.
        region: the state that gives it, ISO 3166-1.
        form: a pattern of it, without groups, with separators or letters as it is written.
        check: above 0 where a match, without separators and in upper case, is one.
        words: those that speak for it, as `context_pattern` takes them.
        bare: whether digits, whole or in groups, need a word of context.
        own_grouping: the grouping that no other number has, which needs none all the same.
    """

    entity: str
    region: str
    form: str
    check: Callable[[str], float]
    words: tuple[str, ...]
    bare: bool = False
    own_grouping: re.Pattern[str] | None = None

    def needs_word(self, found: str) -> bool:
        """Whether a match of the form needs a word of context."""
        if not self.bare or (self.own_grouping is not None and self.own_grouping.match(found)):
            return False
        return _DIGITS_ONLY.match(found) is not None

    def holds(self, found: str) -> bool:
        """Whether the check of a match of the form holds."""
        return self.check(_SEPARATORS.sub("", found).upper()) > 0


@cache
def _pattern(words: tuple[str, ...]) -> re.Pattern[str]:
    return context_pattern(words)


class IdentitySearch:
    """Finds several kinds of number in one pass: a text without any costs one search, and not one for each kind.

    Args:
        kinds: what is looked for.
        min_score: the least score of a match.
    """

    def __init__(self, kinds: Iterable[Identity], min_score: float = 0.0) -> None:
        self.kinds, self._min_score = tuple(kinds), min_score
        forms = "|".join(each.form for each in self.kinds) or "(?!)"
        self._any = re.compile(f"{_START}(?=(?:{forms}){_END})", re.IGNORECASE)
        self._each = [(each, re.compile(f"(?:{each.form}){_END}", re.IGNORECASE)) for each in self.kinds]
        self._words = _pattern(tuple(sorted({word for each in self.kinds for word in each.words} or {"\n"})))

    def spans(self, text: SearchedText) -> Iterator[tuple[str, Span]]:
        """Yield entity and (start, end, score) of each match whose check holds, also where it begins within another.

        `WEAK`, and by `min_score` mostly left out, where the kind needs a word of context that is not there.
        """
        for place in self._any.finditer(text):
            start, named = place.start(), None
            for kind, form in self._each:
                match = form.match(text, start)
                if match is None:
                    continue
                score = SURE
                if kind.needs_word(match.group()):
                    # Most numbers have no word before them at all, which is asked once and not for each kind.
                    named = has_context(text, start, self._words) if named is None else named
                    score = FAIR if named and has_word_before(text, start, _pattern(kind.words)) else WEAK
                if score >= self._min_score and kind.holds(match.group()):
                    yield kind.entity, (start, match.end(), score)


def _weighted(digits: str, weights: tuple[int, ...]) -> int:
    return sum(map(mul, map(int, digits), weights))


def _is_date(year: int, month: int, day: int) -> bool:
    try:
        date(year, month, day)
    except ValueError:
        return False
    return True


def _in_a_century(year: int, month: int, day: int) -> bool:
    return any(_is_date(century + year, month, day) for century in (1900, 2000))


def _us(found: str) -> bool:
    area, group, serial = found[:3], found[3:5], found[5:]
    return area not in ("000", "666") and area < "900" and group != "00" and serial != "0000"


def _nino(found: str) -> bool:
    return found[:2] not in ("BG", "GB", "KN", "NK", "NT", "TN")


def _nhs(found: str) -> bool:
    rest = 11 - _weighted(found[:9], (10, 9, 8, 7, 6, 5, 4, 3, 2)) % 11
    return len(set(found)) > 1 and rest % 11 == int(found[9]) and rest != 10


def _cn(found: str) -> bool:
    total = _weighted(found[:17], (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2))
    return _is_date(int(found[6:10]), int(found[10:12]), int(found[12:14])) and "10X98765432"[total % 11] == found[17]


def _es(found: str) -> bool:
    number = str("XYZ".find(found[0])) + found[1:-1] if found[0] in "XYZ" else found[:-1]
    return "TRWAGMYFPDXBNJZSQVHLCKE"[int(number) % 23] == found[-1]


_IT_DIGITS = (1, 0, 5, 7, 9, 13, 15, 17, 19, 21)
_IT_ODD = dict(
    zip(
        "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ",
        [*_IT_DIGITS, *_IT_DIGITS, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23],
        strict=True,
    )
)


def _it(found: str) -> bool:
    even = sum(int(sign) if sign.isdigit() else ord(sign) - ord("A") for sign in found[1:15:2])
    odd = sum(_IT_ODD[sign] for sign in found[0:15:2])
    return chr((even + odd) % 26 + ord("A")) == found[15]


def _fr(found: str) -> bool:
    number = found[:13].replace("2A", "19").replace("2B", "18") if found[5:7] in ("2A", "2B") else found[:13]
    return 97 - int(number) % 97 == int(found[13:])


def _pl(found: str) -> bool:
    month = int(found[2:4])
    rest = -_weighted(found[:10], (1, 3, 7, 9, 1, 3, 7, 9, 1, 3)) % 10
    return rest == int(found[10]) and _in_a_century(int(found[:2]), month % 20, int(found[4:6]))


def _fi(found: str) -> bool:
    number = int(found[:6] + found[-4:-1])
    dated = _in_a_century(int(found[4:6]), int(found[2:4]), int(found[:2]))
    return dated and "0123456789ABCDEFHJKLMNPRSTUVWXY"[number % 31] == found[-1]


_VERHOEFF = "0123456789123406789523401789563401289567401239567859876043216598710432765982104387659321049876543210"
_VERHOEFF_TURNS = (
    "0123456789",
    "1576283094",
    "5803796142",
    "8916043527",
    "9453126870",
    "4286573901",
    "2793806415",
    "7046913258",
)


def _in(found: str) -> bool:
    """Verhoeff's check (J. Verhoeff, Error detecting decimal codes, 1969)."""
    check = 0
    for place, digit in enumerate(reversed(found)):
        check = int(_VERHOEFF[check * 10 + int(_VERHOEFF_TURNS[place % 8][int(digit)])])
    return found[0] not in "01" and check == 0


def _kr(found: str) -> bool:
    return _in_a_century(int(found[:2]), int(found[2:4]), int(found[4:6]))


def _br(found: str) -> bool:
    if len(set(found)) == 1:
        return False
    for size in (9, 10):
        rest = _weighted(found[:size], tuple(range(size + 1, 1, -1))) * 10 % 11 % 10
        if rest != int(found[size]):
            return False
    return True


def _nl(found: str) -> bool:
    return _weighted(found[:8], (9, 8, 7, 6, 5, 4, 3, 2)) % 11 == int(found[8]) and int(found) > 0


def _jp(found: str) -> bool:
    rest = _weighted(found[:11], (6, 5, 4, 3, 2, 7, 6, 5, 4, 3, 2)) % 11
    return (0 if rest <= 1 else 11 - rest) == int(found[11])


def _ru(found: str) -> bool:
    rest = _weighted(found[:9], (9, 8, 7, 6, 5, 4, 3, 2, 1)) % 101 % 100
    return rest == int(found[9:])


def _be(found: str) -> bool:
    return any(97 - int(prefix + found[:9]) % 97 == int(found[9:]) for prefix in ("", "2")) and _in_a_century(
        int(found[:2]), int(found[2:4]) % 20, int(found[4:6])
    )


def _no(found: str) -> bool:
    first = -_weighted(found[:9], (3, 7, 6, 1, 8, 9, 4, 5, 2)) % 11
    second = -_weighted(found[:10], (5, 4, 3, 2, 7, 6, 5, 4, 3, 2)) % 11
    return (first, second) == (int(found[9]), int(found[10])) and _in_a_century(
        int(found[4:6]), int(found[2:4]), int(found[:2]) % 40
    )


def _dk(found: str) -> bool:
    return _in_a_century(int(found[4:6]), int(found[2:4]), int(found[:2]))


def _ch(found: str) -> bool:
    return -sum(int(digit) * (1 + 2 * (place % 2)) for place, digit in enumerate(found[:12])) % 10 == int(found[12])


def _au(found: str) -> bool:
    return _weighted(found, (1, 4, 3, 7, 5, 8, 6, 9, 10)) % 11 == 0


def _ro(found: str) -> bool:
    rest = _weighted(found[:12], (2, 7, 9, 1, 4, 6, 3, 5, 8, 2, 7, 9)) % 11
    return rest % 10 == int(found[12]) and _in_a_century(int(found[1:3]), int(found[3:5]), int(found[5:7]))


_ID = (
    "national id",
    "id card",
    "id number",
    "id no",
    "identity",
    "passport",
    "ausweis*",
    "identité",
    "identidad",
    "身份证",
    "身份證",
)
_TAX = ("tax", "tax id", "steuer*", "fiscal", "fiscale", "impôt", "skatt")


def _words(*words: str) -> tuple[str, ...]:
    return (*words, *_ID)


IDENTITIES: tuple[Identity, ...] = (
    Identity(
        "US_SSN",
        "US",
        r"\d{3}-\d{2}-\d{4}|\d{3} \d{2} \d{4}|\d{9}",
        _us,
        _words("ssn", "social security", "social"),
        bare=True,
        own_grouping=re.compile(r"\d{3}-\d{2}-\d{4}\Z"),
    ),
    Identity("UK_NINO", "GB", r"[A-Z]{2} ?\d{2} ?\d{2} ?\d{2} ?[A-Z]", _nino, _words()),
    Identity(
        "UK_NHS",
        "GB",
        r"\d{3}(?: \d{3} |-\d{3}-)\d{4}|\d{10}",
        _nhs,
        _words("nhs", "health"),
        bare=True,
    ),
    Identity(
        "CA_SIN",
        "CA",
        r"\d{3}-\d{3}-\d{3}|\d{3} \d{3} \d{3}|\d{9}",
        checks.canadian_sin,
        _words("sin", "social insurance", "nas"),
        bare=True,
    ),
    Identity("CN_RESIDENT_ID", "CN", r"[1-8]\d{5}(?:18|19|20)\d{2}(?:0[1-9]|1[0-2])\d{5}[0-9X]", _cn, _words()),
    Identity(
        "DE_TAX_ID",
        "DE",
        r"[1-9]\d{10}|[1-9]\d ?\d{3} ?\d{3} ?\d{3}",
        checks.german_tax,
        _words(*_TAX),
        bare=True,
    ),
    Identity("DE_SOCIAL_SECURITY", "DE", r"\d{2} ?\d{6} ?[A-Z] ?\d{3}", checks.german_pension, _words()),
    Identity("DE_HEALTH_INSURANCE", "DE", r"[A-Z]\d{9}", checks.german_health, _words()),
    Identity("ES_NIF", "ES", r"\d{8}-?[A-Z]|\d{2}\.\d{3}\.\d{3}-?[A-Z]", _es, _words()),
    Identity("ES_NIE", "ES", r"[XYZ]-?\d{7}-?[A-Z]", _es, _words()),
    Identity(
        "IT_FISCAL_CODE",
        "IT",
        r"[A-Z]{6}[0-9L-NP-V]{2}[A-EHLMPR-T][0-9L-NP-V]{2}[A-Z][0-9L-NP-V]{3}[A-Z]",
        _it,
        _words(),
    ),
    Identity(
        "FR_NIR",
        "FR",
        r"[12] ?\d{2} ?(?:0[1-9]|1[0-2]|[2-9]\d) ?(?:\d{2}|2[AB]) ?\d{3} ?\d{3} ?\d{2}",
        _fr,
        _words(),
    ),
    Identity("PL_PESEL", "PL", r"\d{11}", _pl, _words()),
    Identity("FI_PERSONAL_IDENTITY_CODE", "FI", r"[0-3]\d[01]\d{3}[-+A-FU-Y]\d{3}[0-9A-Z]", _fi, _words()),
    Identity(
        "SE_PERSONNUMMER",
        "SE",
        r"(?:(?:18|19|20)\d{6}[-+]?|\d{6}[-+])\d{4}",
        checks.swedish_person,
        _words("personnummer"),
    ),
    Identity("TR_NATIONAL_ID", "TR", r"[1-9]\d{10}", checks.turkish_person, _words()),
    Identity("ZA_ID_NUMBER", "ZA", r"\d{10}[0-2][89]\d", checks.south_african_person, _words()),
    Identity(
        "KR_RRN",
        "KR",
        r"\d{6}-[1-8]\d{6}|\d{6}[1-8]\d{6}",
        _kr,
        _words("주민등록번호", "rrn"),
        bare=True,
        own_grouping=re.compile(r"\d{6}-\d{7}\Z"),
    ),
    Identity(
        "IN_AADHAAR",
        "IN",
        r"[2-9]\d{3}(?: \d{4} |-\d{4}-)\d{4}|[2-9]\d{11}",
        _in,
        _words("aadhaar", "aadhar", "uidai", "आधार"),
        bare=True,
    ),
    Identity("IN_PAN", "IN", r"[A-Z]{3}[ABCFGHLJPT][A-Z]\d{4}[A-Z]", bool, _words()),
    Identity("BR_CPF", "BR", r"\d{3}\.\d{3}\.\d{3}-\d{2}|\d{9}-\d{2}|\d{11}", _br, _words("cpf")),
    Identity(
        "NL_BSN",
        "NL",
        r"\d{9}",
        _nl,
        _words("bsn", "burgerservicenummer", "sofinummer"),
        bare=True,
    ),
    Identity(
        "JP_MY_NUMBER",
        "JP",
        r"\d{4}(?: \d{4} |-\d{4}-)\d{4}|\d{12}",
        _jp,
        _words("my number", "マイナンバー", "個人番号"),
        bare=True,
    ),
    Identity("RU_SNILS", "RU", r"\d{3}-\d{3}-\d{3}[ -]\d{2}", _ru, _words("снилс")),
    Identity(
        "BE_NATIONAL_NUMBER",
        "BE",
        r"\d{2}\.\d{2}\.\d{2}-\d{3}\.\d{2}|\d{11}",
        _be,
        _words("rijksregister", "registre national"),
        bare=True,
    ),
    Identity("NO_NATIONAL_ID", "NO", r"\d{6} ?\d{5}", _no, _words("fødselsnummer", "personnummer")),
    Identity("DK_CPR", "DK", r"\d{6}-\d{4}", _dk, _words("cpr")),
    Identity("CH_AHV", "CH", r"756\.\d{4}\.\d{4}\.\d{2}|756\d{10}", _ch, _words("ahv", "avs")),
    Identity(
        "AU_TFN",
        "AU",
        r"\d{3} \d{3} \d{3}|\d{9}",
        _au,
        _words("tfn", *_TAX),
        bare=True,
    ),
    Identity("RO_CNP", "RO", r"[1-8]\d{12}", _ro, _words("cnp")),
)
"""By state. A region's loop looks for its own; where no regions are set, all are looked for."""
REGIONS = tuple(sorted({each.region for each in IDENTITIES}))
"""The states whose numbers of people are documented and found."""
