"""
Dates of header fields (RFC 5322, section 3.3, and its obsolete forms).

Reading never fails: what is not a date is ``None``.
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone
from typing import Final

from yatxmilter._mail.tokens import without_comments

__all__ = ["read_date", "write_date"]

_MONTHS: Final = (
    *("jan", "feb", "mar", "apr", "may", "jun"),
    *("jul", "aug", "sep", "oct", "nov", "dec"),
)
_ZONES: Final = {
    **{"ut": 0, "utc": 0, "gmt": 0, "z": 0},
    **{"est": -5, "edt": -4, "cst": -6, "cdt": -5, "mst": -7, "mdt": -6, "pst": -8, "pdt": -7},
}
_DATE: Final = re.compile(
    r"(?:[a-z]{3,9}\s*[,.]?\s*)?"
    r"(?P<day>[0-9]{1,2})[\s-]+(?P<month>[a-z]{3})[a-z]{0,6}\.?[\s-]+(?P<year>[0-9]{2,4})\s*,?\s+"
    r"(?P<hour>[0-9]{1,2})\s*[:.]\s*(?P<minute>[0-9]{2})(?:\s*[:.]\s*(?P<second>[0-9]{2}))?"
    r"(?:\s*(?P<zone>[+-][0-9]{4}|[a-z]{1,5}))?",
    re.ASCII,
)
# A date is no longer than this, its comments left out.
_LONGEST: Final = 100


def read_date(text: str) -> datetime | None:
    """
    Read a date; without a zone, or with ``-0000``, it is in UTC and naive.
    """
    plain = " ".join(without_comments(text).lower().split())
    match = _DATE.fullmatch(plain) if len(plain) <= _LONGEST else None
    if match is None or match["month"] not in _MONTHS:
        return None
    year = int(match["year"])
    if len(match["year"]) < 4:
        year += 2000 if year < 50 else 1900
    second = int(match["second"] or 0)
    try:
        when = datetime(
            year,
            _MONTHS.index(match["month"]) + 1,
            int(match["day"]),
            int(match["hour"]),
            int(match["minute"]),
            # A leap second.
            59 if second == 60 else second,
        )
        return _in_zone(when, match["zone"])
    except (ValueError, OverflowError):
        return None


def _in_zone(when: datetime, zone: str | None) -> datetime:
    if zone is None or zone == "-0000":
        return when
    if zone[0] in "+-":
        minutes = int(zone[1:3]) * 60 + int(zone[3:])
        offset = timedelta(minutes=-minutes if zone[0] == "-" else minutes)
    elif zone in _ZONES:
        offset = timedelta(hours=_ZONES[zone])
    else:
        return when
    return when.replace(tzinfo=timezone(offset))


def write_date(when: datetime) -> str:
    """
    Write a date; a naive one is in UTC.
    """
    days = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
    zone = "-0000" if when.tzinfo is None else when.strftime("%z")[:5]
    return (
        f"{days[when.weekday()]}, {when.day:02} {_MONTHS[when.month - 1].title()} {when.year:04}"
        f" {when.hour:02}:{when.minute:02}:{when.second:02} {zone}"
    )
