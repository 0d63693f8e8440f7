"""Times as texts (RFC 3339, https://www.rfc-editor.org/rfc/rfc3339) and unix seconds, within what every store holds."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

FIRST_TIME_S = -62_135_596_800.0
"""0001-01-01T00:00:00Z, the first time that can be stored, unix seconds."""
END_TIME_S = 253_402_300_800.0
"""10000-01-01T00:00:00Z: every time that can be stored is before it, unix seconds."""
_RULE = "must be a time from year 1 to 9999 in UTC"
_LEAP_SECOND = re.compile(r"([\dW-]+[Tt ]\d\d:?)(59:?)60((?:[.,]\d+)?(?:[Zz]|[+-][\d:]+)?)", re.ASCII)


def in_range(unix_s: float) -> bool:
    """Whether a time can be stored: from `FIRST_TIME_S` on and before `END_TIME_S`; False for NaN."""
    return FIRST_TIME_S <= unix_s < END_TIME_S


def format_time(unix_s: float) -> str:
    """A time as RFC 3339 with microseconds, in UTC; it must be `in_range`, else ValueError or OverflowError."""
    return datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="microseconds")[:-6] + "Z"


def parse_moment(text: str) -> datetime:
    """The datetime of an ISO 8601 or RFC 3339 text, naive where it has no UTC offset; a leap second as in `parse_time`.

    Raises:
        ValueError: the text is no time. Whether it is `in_range` is not checked.
    """
    leap = _LEAP_SECOND.fullmatch(text) if "60" in text[-24:] else None
    if leap is not None:
        text = f"{leap[1]}{leap[2]}59{leap[3]}"
    moment = datetime.fromisoformat(text if text[-1:] != "z" else f"{text[:-1]}Z")
    if leap is None:
        return moment
    try:
        in_utc = moment.astimezone(UTC) if moment.tzinfo else moment
        if (in_utc.hour, in_utc.minute) != (23, 59):
            raise ValueError("second must be in 0..59, but for a leap second, 23:59:60 in UTC")
        return moment + timedelta(seconds=1)
    except OverflowError as error:
        raise ValueError(_RULE) from error


def parse_time(text: str) -> float:
    """Unix seconds of an ISO 8601 or RFC 3339 time with a UTC offset; digits past the microsecond are cut off.

    RFC 3339 allows `t` and `z` in lower case, and a leap second, 23:59:60 in UTC, which is taken for the one after it.

    Raises:
        ValueError: the text is no time, has no UTC offset, or means a time that is not from year 1 to 9999 in UTC.
    """
    moment = parse_moment(text)
    if moment.tzinfo is None:
        raise ValueError("must carry its UTC offset")
    unix_s = moment.timestamp()
    if not in_range(unix_s):
        raise ValueError(_RULE)
    return unix_s
