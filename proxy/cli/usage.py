"""``lava-proxy usage``: what was used and what it cost, by day, as a table and as bars."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from proxy.cli import account
from proxy.cli.drawing import bar
from proxy.cli.terminal import Exit, Screen, misused, put_json, table_width
from proxy.cli.times import UsageError, begin, parse_time
from proxy.protocol.wording import counted

if TYPE_CHECKING:
    from collections.abc import Sequence
    from decimal import Decimal
    from pathlib import Path

    from proxy.lava import LavaSync
    from proxy.lava.records import UsageDay, UsageTotals

_LEAST_BAR, _MAX_BAR = 8, 40


def run(
    config: Path | None, *, since: str, until: str | None, customer: str | None, meter: str | None, as_json: bool
) -> int:
    """Show usage from `since` on, and return the exit code."""
    now = datetime.now(UTC).astimezone()
    try:
        start = begin(since, now)
        end = parse_time(until, now, "--until", ahead=False) if until else None
    except UsageError as error:
        return misused(str(error))
    if end is not None and end <= start:
        return misused("--until must be after --since")

    def show(lava: LavaSync) -> int:
        from proxy.cli.rendering import plain

        usage = lava.usage.retrieve(start=start, end=end, customer_id=customer, meter_id=meter)
        if as_json:
            put_json(plain(usage))
            return Exit.OK
        screen = Screen()
        if not usage.items:
            screen.line(f"Nothing was used since {start:%Y-%m-%d %H:%M}.")
            return Exit.OK
        _draw(screen, usage.items, usage.totals)
        return Exit.OK

    return account.ask(config, show, as_json=as_json)


def cost(totals: UsageTotals) -> Decimal | None:
    """Return the cost, under its current name or that of SDK 8."""
    return totals.total_cost if totals.total_cost is not None else totals.total_request_cost


def _draw(screen: Screen, days: Sequence[UsageDay], totals: UsageTotals | None) -> None:
    from proxy.lava.money import dollars

    # Bars show money if any was spent, else requests.
    by_cost = any(cost(day) for day in days)
    sizes = [(cost(day) if by_cost else day.total_requests) or 0 for day in days]
    rows = [[_name(day), *_cells(day)] for day in days]
    if totals is not None:
        rows.append(["total", *_cells(totals)])
    heads = ["day", "requests", "tokens", "cost", "charged"]
    widths = [max(len(head), *(len(row[at]) for row in rows)) for at, head in enumerate(heads)]
    left = shutil.get_terminal_size((100, 0)).columns - table_width([*widths, 0])
    width = max(_LEAST_BAR, min(_MAX_BAR, left))
    most = max(sizes)
    bars = [bar(size, most, width) for size in sizes] + [""] * (totals is not None)
    screen.table(
        [*heads, "cost by day" if by_cost else "requests by day"],
        [[*row, drawn] for row, drawn in zip(rows, bars, strict=True)],
        numbers={1, 2, 3, 4},
    )
    spent = cost(totals) if totals is not None else None
    if spent is not None and len(days) > 1:
        screen.line()
        screen.line(
            f"{dollars(spent)} in {counted(len(days), 'day')} with usage, {dollars(spent / len(days))} a day.", "note"
        )


def _name(day: UsageDay) -> str:
    return day.date or (f"{day.start:%Y-%m-%d}" if day.start is not None else "?")


def _cells(totals: UsageTotals) -> list[str]:
    from proxy.lava.money import dollars

    numbers = (totals.total_requests, totals.total_usage_tokens)
    counts = [f"{number:,}" if number is not None else "" for number in numbers]
    charged = totals.total_charge if totals.total_charge is not None else totals.total_wallet_cost
    return [*counts, dollars(cost(totals)), dollars(charged)]
