"""Budgets: pure arithmetic over calendar periods, what is used in them, and what requests in flight hold.

Theory. A limit belongs to a *period* (the current minute, hour, day, week or month in the budget's time zone). The sums of what was
used are kept per project and period from finished requests, and are seeded from the ledger's rows. What is held is not counted: it
is the sum over the requests in flight, so it is 0 when there are none.
"""

from __future__ import annotations

import contextlib
import os
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple
from zoneinfo import ZoneInfo

if TYPE_CHECKING:
    from datetime import date

    from proxy.config.settings import Period

MICROSECONDS: Final = 1_000_000
_SECONDS: Final[dict[Period, int]] = {"minute": 60, "hour": 3600}


class Window(NamedTuple):
    """One period, in microseconds UTC since the epoch: from ``start`` up to and without ``end``."""

    start: int
    end: int


def zone_of(name: str) -> tzinfo:
    """Return the time zone of an IANA name; an empty name is the machine's (``TZ``, else ``/etc/localtime``, else its offset now)."""
    with contextlib.suppress(OSError, KeyError, ValueError):  # a TZ in the form of POSIX, or none
        return ZoneInfo(name or os.environ.get("TZ", "").removeprefix(":"))
    with contextlib.suppress(OSError, ValueError), Path("/etc/localtime").open("rb") as file:
        return ZoneInfo.from_file(file)
    return datetime.now().astimezone().tzinfo or UTC


def window(period: Period, now_us: int, zone: tzinfo, reset_hour: int = 0) -> Window:
    """Return the period that contains ``now_us``.

    Minutes and hours are counted from the epoch. A day begins at ``reset_hour`` on the clock of ``zone``, a week on Monday, a month on
    its first day. On a day on which the clock skips that hour, the day begins at the moment of the change; on one on which the hour
    occurs twice, at the first.
    """
    seconds = _SECONDS.get(period)
    if seconds is not None:
        length = seconds * MICROSECONDS
        start = now_us - now_us % length
        return Window(start, start + length)
    day = (datetime.fromtimestamp(now_us / MICROSECONDS, zone)).date()
    # The calendar day of the clock minus the reset hour; a change of the clock can move it by one day either way.
    for back in (1, 0, -1):
        first = _first_day(period, day + timedelta(days=-back))
        found = Window(_instant(first, zone, reset_hour), _instant(_next(period, first), zone, reset_hour))
        if found.start <= now_us < found.end:
            return found
    raise ValueError(f"no {period} contains {now_us}")  # not reached: the windows are adjacent


def _first_day(period: Period, day: date) -> date:
    if period == "week":
        return day - timedelta(days=day.weekday())
    return day.replace(day=1) if period == "month" else day


def _next(period: Period, first: date) -> date:
    if period == "month":
        return (first + timedelta(days=31)).replace(day=1)
    return first + timedelta(days=7 if period == "week" else 1)


def _instant(day: date, zone: tzinfo, hour: int) -> int:
    """Return the moment at which the clock of ``zone`` reaches this hour of this day, in microseconds UTC."""
    local = datetime(day.year, day.month, day.day, hour, tzinfo=zone)
    moment = local.astimezone(UTC)
    if moment.astimezone(zone).replace(tzinfo=None) != local.replace(tzinfo=None):
        # The clock skips this hour. With the offset after the change the result is before it, with the one before it is after it.
        earlier, later = moment - timedelta(hours=3), moment + timedelta(hours=3)
        while later - earlier > timedelta(seconds=1):
            middle = earlier + (later - earlier) / 2
            if middle.astimezone(zone).utcoffset() == earlier.astimezone(zone).utcoffset():
                earlier = middle
            else:
                later = middle
        moment = later.replace(microsecond=0)
    return round(moment.timestamp()) * MICROSECONDS
