"""Times as they are written after a command, and what is wrong with its arguments. Pure, but for the local time zone."""

from __future__ import annotations

import re
from datetime import datetime, timedelta

_SPAN = re.compile(r"([0-9]{1,6})\s*(m|h|d|w)")
_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


class UsageError(Exception):
    """The arguments are wrong. The message is a sentence."""


def parse_time(text: str, now: datetime, name: str, *, ahead: bool) -> datetime:
    """Return a time from ISO 8601 (local without an offset) or a span such as ``30d`` from `now`. Raises ``UsageError``."""
    try:
        if span := _SPAN.fullmatch(text.strip().lower()):
            delta = timedelta(**{_UNITS[span[2]]: int(span[1])})
            return now + delta if ahead else now - delta
        found = datetime.fromisoformat(text.strip())
        return found if found.tzinfo is not None else found.astimezone()
    except (ValueError, OverflowError, OSError):
        raise UsageError(f"{name} is a time such as 2026-11-30, 2026-11-30T12:00:00Z or 30d, not {text!r}") from None


def begin(since: str, now: datetime) -> datetime:
    """Return the start. A span of days or weeks begins at midnight, so that the first day is complete."""
    start = parse_time(since, now, "--since", ahead=False)
    if re.fullmatch(r"[0-9]+\s*[dw]", since.strip().lower()):
        # As a local time again: the offset of the zone may differ at that time.
        return datetime(start.year, start.month, start.day).astimezone()
    return start
