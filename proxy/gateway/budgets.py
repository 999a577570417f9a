"""Budgets: pure arithmetic over calendar periods, what is used in them, and what requests in flight hold.

Theory. A limit belongs to a *period* (the current minute, hour, day, week or month in the budget's time zone). The sums of what was
used are kept per project and period from finished requests, and are seeded from the ledger's rows. What is held is not counted: it
is the sum over the requests in flight, so it is 0 when there are none.
"""

from __future__ import annotations

import contextlib
import os
from bisect import bisect_left, insort
from collections import deque
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, NamedTuple
from zoneinfo import ZoneInfo

from proxy.protocol.money import NANO_PER_DOLLAR
from proxy.protocol.token_classes import TokenClasses

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import date

    from proxy.config.settings import Budget, Period

MICROSECONDS: Final = 1_000_000
_SECONDS: Final[dict[Period, int]] = {"minute": 60, "hour": 3600}


class PeriodWindow(NamedTuple):
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


def window(period: Period, now_us: int, zone: tzinfo, reset_hour: int = 0) -> PeriodWindow:
    """Return the period that contains ``now_us``.

    Minutes and hours are counted from the epoch. A day begins at ``reset_hour`` on the clock of ``zone``, a week on Monday, a month on
    its first day. On a day on which the clock skips that hour, the day begins at the moment of the change; on one on which the hour
    occurs twice, at the first.
    """
    seconds = _SECONDS.get(period)
    if seconds is not None:
        length = seconds * MICROSECONDS
        start = now_us - now_us % length
        return PeriodWindow(start, start + length)
    day = (datetime.fromtimestamp(now_us / MICROSECONDS, zone)).date()
    # The calendar day of the clock minus the reset hour; a change of the clock can move it by one day either way.
    for back in (1, 0, -1):
        first = _first_day(period, day + timedelta(days=-back))
        found = PeriodWindow(_instant(first, zone, reset_hour), _instant(_next(period, first), zone, reset_hour))
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


# --- amounts and limits ----------------------------------------------------------------------------------------------

Unit = Literal["requests", "tokens", "usd"]
UNITS: Final[tuple[Unit, ...]] = ("requests", "tokens", "usd")
MAX_WINDOWS: Final = 3
"""Periods whose sums are kept, for a clock that is set back."""


class Amount(NamedTuple):
    """What requests use, or hold: their number, tokens, and billionths of a dollar. The fields are in the order of ``UNITS``."""

    requests: int = 0
    tokens: int = 0
    nano: int = 0

    def plus(self, other: Amount) -> Amount:
        """Return the sum of both."""
        return Amount(self.requests + other.requests, self.tokens + other.tokens, self.nano + other.nano)

    def of(self, unit: Unit) -> int:
        """Return the amount in ``unit``; ``usd`` in billionths of a dollar."""
        return self[UNITS.index(unit)]


NOTHING: Final = Amount()


class Hold(NamedTuple):
    """What a request in flight holds. ``at_us`` is when it was admitted, which decides the periods that it counts in."""

    at_us: int
    amount: Amount


class BudgetLimit(NamedTuple):
    """One limit of a budget; ``usd`` in billionths of a dollar."""

    unit: Unit
    period: Period
    most: int

    @property
    def name(self) -> str:
        """The name for people: ``usd per month``."""
        return f"{self.unit} per {self.period}"

    def shown(self, amount: int) -> str:
        """Return an amount in words: dollars with as many decimals as they need, at least two."""
        if self.unit != "usd":
            return str(amount)
        sign, amount = ("-" if amount < 0 else ""), abs(amount)
        decimals = f"{amount % NANO_PER_DOLLAR:09d}".rstrip("0").ljust(2, "0")
        return f"{sign}{amount // NANO_PER_DOLLAR}.{decimals}"


class BudgetPlan:
    """The budget of one project, as a configuration has it."""

    def __init__(self, project: str, budget: Budget) -> None:
        self.project = project
        self.zone_name = budget.timezone
        self.zone = zone_of(budget.timezone)
        self.reset_hour = budget.reset_hour
        self.strict = budget.strict
        self.on_unknown_cost = budget.on_unknown_cost
        tables = (budget.requests, budget.tokens, budget.usd)
        self.limits = tuple(
            BudgetLimit(unit, period, most)
            for unit, table in zip(UNITS, tables, strict=True)
            for period, most in table.items()
        )
        self.periods: tuple[Period, ...] = tuple(dict.fromkeys(limit.period for limit in self.limits))
        self._windows: dict[Period, PeriodWindow] = {}

    @property
    def counts_money(self) -> bool:
        """Whether a limit is in dollars."""
        return any(limit.unit == "usd" for limit in self.limits)

    def window(self, period: Period, now_us: int) -> PeriodWindow:
        """Return the period that contains ``now_us``. The last one is remembered: the calendar is slow."""
        found = self._windows.get(period)
        if found is None or not found.start <= now_us < found.end:
            found = self._windows[period] = window(period, now_us, self.zone, self.reset_hour)
        return found

    def key(self, period: Period) -> tuple[Period, str, int]:
        """Return what two plans with the same periods share."""
        return period, self.zone_name, self.reset_hour


class Used:
    """What was used in the last few periods of one kind, by their start. ``seed`` sets a period from stored rows."""

    def __init__(self) -> None:
        self._by_start: dict[int, Amount] = {}

    def knows(self, start: int) -> bool:
        """Whether the sums of the period are known: seeded, or begun while this program ran."""
        return start in self._by_start or (bool(self._by_start) and start > max(self._by_start))

    def of(self, start: int) -> Amount:
        """Return what was used in the period."""
        return self._by_start.get(start, NOTHING)

    def seed(self, start: int, stored: Amount) -> None:
        """Set the sums of a period. What was counted here meanwhile is kept where it is more."""
        self._by_start[start] = Amount(*map(max, self.of(start), stored))
        self._forget()

    def enter(self, start: int) -> None:
        """Begin a period, if it has not begun."""
        self._by_start.setdefault(start, NOTHING)
        self._forget()

    def add(self, start: int, amount: Amount) -> None:
        """Count ``amount`` in the period that begins at ``start``, unless that is forgotten."""
        if self.knows(start):
            self._by_start[start] = self.of(start).plus(amount)
            self._forget()

    def _forget(self) -> None:
        while len(self._by_start) > MAX_WINDOWS:
            del self._by_start[next(iter(self._by_start))]  # the one that was begun first


def held(holds: Iterable[Hold], start: int) -> Amount:
    """Return the sum of what is held by requests that were admitted at ``start`` or later."""
    requests = tokens = nano = 0
    for at_us, amount in holds:
        if at_us >= start:
            requests, tokens, nano = requests + amount.requests, tokens + amount.tokens, nano + amount.nano
    return Amount(requests, tokens, nano)


class Standing(NamedTuple):
    """A limit with what is used and held of it now, and when its period ends (microseconds UTC)."""

    limit: BudgetLimit
    used: int
    held: int
    resets_us: int

    @property
    def left(self) -> int:
        """What is left, never below 0."""
        return max(0, self.limit.most - self.used - self.held)

    @property
    def resets_at(self) -> str:
        """When its period ends, for people and programs."""
        return datetime.fromtimestamp(self.resets_us // MICROSECONDS, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    def details(self) -> dict[str, int | str]:
        """Return the fields of an error that refuses a request; dollars as text."""
        amounts = {"limit": self.limit.most, "used": self.used, "held": self.held}
        if self.limit.unit == "usd":
            return {
                "budget": self.limit.name,
                **{name: self.limit.shown(amount) for name, amount in amounts.items()},
                "resets_at": self.resets_at,
            }
        return {"budget": self.limit.name, **amounts, "resets_at": self.resets_at}


# --- estimates -------------------------------------------------------------------------------------------------------

BYTES_PER_TOKEN: Final = 4
"""Until a project has used a model."""
OUTPUT_TOKENS: Final = 1000
"""Estimated output until a project has used a model."""
STRICT_OUTPUT_TOKENS: Final = 128_000
"""Highest output that is assumed with ``strict`` for a request without a limit of its own: no smaller than what models in use
produce at most in one answer."""
RECENT: Final = 100
"""Finished requests that an estimate is learned from."""


class Usual:
    """What a project's recent requests to one model were like: their sizes in bytes, and their tokens."""

    def __init__(self) -> None:
        self.served: str | None = None
        """The model in the last answer: the only known one, where the address names only a provider."""
        self._seen: deque[tuple[int, int, int]] = deque()
        self._outputs: list[int] = []
        """The tokens out of ``_seen``, in order."""
        self._bytes = self._inputs = 0

    def learn(self, size: int, inputs: int, outputs: int) -> None:
        """Add a finished request: bytes of its body, tokens in and out."""
        self._seen.append((size, inputs, outputs))
        insort(self._outputs, outputs)
        self._bytes += size
        self._inputs += inputs
        if len(self._seen) > RECENT:
            oldest = self._seen.popleft()
            self._bytes -= oldest[0]
            self._inputs -= oldest[1]
            del self._outputs[bisect_left(self._outputs, oldest[2])]

    def inputs(self, size: int) -> int:
        """Return the tokens of a body of this size, rounded up."""
        if not self._bytes or not self._inputs:
            return -(-size // BYTES_PER_TOKEN)
        return -(-size * self._inputs // self._bytes)

    def outputs(self) -> int:
        """Return the 95th percentile of the output."""
        outputs = self._outputs
        return outputs[-(-len(outputs) * 95 // 100) - 1] if outputs else OUTPUT_TOKENS


FREE_ENDPOINTS: Final = frozenset({"count_tokens", "files"})
"""What costs neither tokens nor dollars (``dialects.endpoint_name``)."""
_LOST_ANSWERS: Final = frozenset({408, 499, 502, 504, 524})


def costs_nothing(status: int | None) -> bool:
    """Whether a response of this status is an error, or a redirect, that no provider charges for.

    With some statuses something between us and the model says that it lost the answer: the model may have run.
    """
    return status is not None and status >= 300 and status not in _LOST_ANSWERS


def estimate(usual: Usual, size: int, own_limit: int | None, choices: int, *, strict: bool) -> tuple[int, int]:
    """Return the tokens, in and out, that a request with a body of ``size`` bytes holds. ``own_limit`` is the client's, per choice."""
    if strict:
        return size, choices * (STRICT_OUTPUT_TOKENS if own_limit is None else own_limit)
    return usual.inputs(size), max(usual.outputs(), choices * (own_limit or 0))


_INPUTS: Final = ("input", "cache_write_5m", "cache_write_1h", "audio_in")
_OUTPUTS: Final = (("output",), ("output", "reasoning"), ("audio_out",))


def dearest_uses(inputs: int, outputs: int) -> list[TokenClasses]:
    """Return what so many tokens may be at worst, by price: written to a cache, audio, reasoning."""
    return [TokenClasses(**{one: inputs}, **dict.fromkeys(others, outputs)) for one in _INPUTS for others in _OUTPUTS]
