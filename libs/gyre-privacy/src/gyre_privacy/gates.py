"""What a text must hold for an entity to be possible in it, so that most recognisers need not look at most texts.

Each gate is implied by the recogniser's own patterns: passing it proves nothing, failing it proves that they cannot
match.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_DIGITS = re.compile(r"\d")
_SUSPICIOUS = re.compile(r"\d|@|\w\.\w|[:\-.]\w\w[:\-.]|::|\w{16}")
_LONG_WORD = re.compile(r"\w{16}")
_PHONE_DIGITS = re.compile(r"\d(?:[^\w\n]{0,4}\d){6}")


# A letter next to a digit, which the year in a title has not.
_MIXED = re.compile(r"[^\W\d_]\d|\d[^\W\d_]")
_MIXED_SPACED = re.compile(r"[^\W\d_][- ]?\d|\d[- ]?[^\W\d_]")


@dataclass(frozen=True, slots=True)
class Gate:
    """The least that a text must hold for an entity to be in it.

    Attributes:
        digits: decimal digits of any script in the text.
        needs: a pattern that the text must hold, or None.
    """

    digits: int = 0
    needs: re.Pattern[str] | None = None

    def admits(self, text: str, digits: int) -> bool:
        """Whether the entity may be in the text, which has so many `digits_in` it; False proves that it is not."""
        return digits >= self.digits and (self.needs is None or self.needs.search(text) is not None)


def digits_in(text: str) -> int:
    """How many decimal digits, of any script, the text has."""
    return len(_DIGITS.findall(text))


def may_hold_personal_data(text: str) -> bool:
    """Whether any known entity may be in the text, written as `plain` does; False proves that none is.

    It costs a microsecond.
    """
    return _SUSPICIOUS.search(text) is not None


def may_hold_identity(text: str, digits: int) -> bool:
    """Whether a number of a person may be in the text, which has so many digits: only Italy's needs fewer than four."""
    return digits >= 4 or _LONG_WORD.search(text) is not None


ANY = Gate()

GATES: Mapping[str, Gate] = {
    "ABA_ROUTING_NUMBER": Gate(9),
    "AU_ABN": Gate(11),
    "AU_ACN": Gate(9),
    "AU_MEDICARE": Gate(10),
    "AU_TFN": Gate(9),
    "CA_SIN": Gate(9),
    "CREDIT_CARD": Gate(12),
    "CRYPTO": Gate(1, re.compile(r"[13c]\w{25}")),
    "DATE_TIME": Gate(2, re.compile(r"[-/.:]\d|\d-")),
    "DE_HEALTH_INSURANCE": Gate(9),
    "DE_LANR": Gate(9),
    "DE_PASSPORT": Gate(1, re.compile(r"\w{9}")),
    "DE_SOCIAL_SECURITY": Gate(11),
    "DE_TAX_ID": Gate(11),
    "DE_VAT_ID": Gate(9),
    "EMAIL_ADDRESS": Gate(0, re.compile("@")),
    "ES_NIE": Gate(7),
    "ES_NIF": Gate(7),
    "FI_PERSONAL_IDENTITY_CODE": Gate(9),
    "IBAN_CODE": Gate(2, re.compile(r"[A-Z]{2}[0-9]{2}[ -]?[A-Z0-9]{4}")),
    "IN_AADHAAR": Gate(12),
    "IN_GSTIN": Gate(2, re.compile(r"\w{15}")),
    "IN_PAN": Gate(4, re.compile(r"[\w@#$%^?~-]{10}")),
    "IN_PASSPORT": Gate(7, _MIXED),
    "IN_VEHICLE_REGISTRATION": Gate(3, _MIXED),
    "IN_VOTER": Gate(7, _MIXED),
    "IP_ADDRESS": Gate(0, re.compile(r":\w{0,4}:|\d\.\d")),
    "IT_DRIVER_LICENSE": Gate(1, re.compile(r"\w{10}")),
    "IT_FISCAL_CODE": Gate(0, re.compile(r"\w{16}")),
    "IT_IDENTITY_CARD": Gate(5),
    "IT_PASSPORT": Gate(7),
    "IT_VAT_CODE": Gate(11),
    "KR_BRN": Gate(10),
    "KR_DRIVER_LICENSE": Gate(12),
    "KR_FRN": Gate(13),
    "KR_PASSPORT": Gate(7, _MIXED),
    "KR_RRN": Gate(13),
    "MAC_ADDRESS": Gate(0, re.compile(r"\w{2}[:-]\w{2}[:-]|\w{4}\.\w{4}\.")),
    "MEDICAL_LICENSE": Gate(7, _MIXED),
    "NG_NIN": Gate(11),
    "NG_VEHICLE_REGISTRATION": Gate(3, _MIXED),
    # Stricter than Presidio, on purpose: its German numbers of 4 to 6 digits are any year or price.
    "PHONE_NUMBER": Gate(7, _PHONE_DIGITS),
    "PL_PESEL": Gate(11),
    "SE_PERSONNUMMER": Gate(10),
    "SG_NRIC_FIN": Gate(7, _MIXED),
    "SG_UEN": Gate(6),
    "TH_TNIN": Gate(13),
    "TR_NATIONAL_ID": Gate(11),
    "UK_NHS": Gate(10),
    "UK_NINO": Gate(6),
    "UK_PASSPORT": Gate(7, _MIXED),
    "UK_POSTCODE": Gate(1, _MIXED),
    "UK_VEHICLE_REGISTRATION": Gate(1, _MIXED_SPACED),
    "URL": Gate(0, re.compile(r"\.\w")),
    "US_BANK_NUMBER": Gate(8),
    "US_DRIVER_LICENSE": Gate(1, re.compile(r"[^\W\d_]\d|\d[^\W\d_]|\]\d|\d{6}")),
    "US_ITIN": Gate(9),
    "US_MBI": Gate(4, re.compile(r"\w-?\w{4}")),
    "US_NPI": Gate(10),
    "US_PASSPORT": Gate(8),
    "US_SSN": Gate(9),
    "ZA_ID_NUMBER": Gate(13),
}
"""By entity; an entity that is not listed is always looked for."""
