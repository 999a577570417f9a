"""``lava-proxy stats``: what was used and what it cost, by project, model, tool and so on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from proxy.cli import ledger_asking
from proxy.cli.ledger_asking import money, price_words, short, sums_for_scripts, time_of
from proxy.cli.ledger_logs import duration, thousands
from proxy.cli.terminal import Exit, Screen, put_json
from proxy.ledger import queries
from proxy.ledger.queries import HOUR_US, Filter, StatsLine, Totals

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from proxy.ledger.queries import By
    from proxy.ledger.reading import Book

_LEVELS = "▁▂▃▄▅▆▇█"
_BAR = 24
_SHOWN = 40
"""Lines of a table; scripts get all."""


def run(config: Path | None, *, by: By, since: str, project: str | None, as_json: bool) -> int:
    """Show what was used since ``since``; returns the exit code."""

    def show(book: Book) -> int:
        now = ledger_asking.now_us()
        begin = ledger_asking.begin_us(since) or 0
        begin -= begin % HOUR_US
        with book.reading() as connection:
            groups = queries.stats(connection, by, Filter(project=project, since_us=begin), now)
            tables = queries.price_tables(connection)
        if as_json:
            put_json({"by": by, "since": ledger_asking.iso(begin), "groups": [_for_scripts(each) for each in groups]})
            return Exit.OK
        screen = Screen()
        if not groups:
            screen.line(f"No request has ended since {time_of(begin):%Y-%m-%d %H:%M}.")
            return Exit.OK
        _draw(screen, by, groups)
        screen.line()
        _explain(screen, begin, groups, tables)
        return Exit.OK

    return ledger_asking.ask(config, show, as_json=as_json)


def _for_scripts(group: StatsLine) -> dict[str, Any]:
    return {
        "name": ledger_asking.iso(group.name) if isinstance(group.name, int) else group.name,
        **sums_for_scripts(group.sums),
        "tokens": group.sums.tokens,
        "errors": group.errors,
        "first_byte_p50_ms": None if group.first_byte_p50_us is None else group.first_byte_p50_us / 1000,
        "first_byte_p95_ms": None if group.first_byte_p95_us is None else group.first_byte_p95_us / 1000,
        "course": list(group.course),
    }


def sparkline(values: Sequence[int]) -> str:
    """Return a letter for each value: a blank for 0, the highest for the largest."""
    most = max(values, default=0)
    return "".join(_LEVELS[(each * len(_LEVELS) - 1) // most] if each else " " for each in values).rstrip()


def _tokens(count: int) -> str:
    return thousands(count) if count else ""


def _money(nano: int) -> str:
    return money(nano) if nano else ""


def _count(number: int) -> str:
    return f"{number:,}" if number else ""


_COLUMNS: tuple[tuple[str, Callable[[Totals], str]], ...] = (
    ("requests", lambda sums: f"{sums.requests:,}"),
    ("input", lambda sums: _tokens(sums.input)),
    ("cache read", lambda sums: _tokens(sums.cache_read)),
    ("cache write", lambda sums: _tokens(sums.cache_write_5m + sums.cache_write_1h)),
    ("output", lambda sums: _tokens(sums.output)),
    ("audio", lambda sums: _tokens(sums.audio_in + sums.audio_out)),
    ("images", lambda sums: _tokens(sums.images)),
    ("chars", lambda sums: _tokens(sums.characters)),
    ("billed", lambda sums: _money(sums.billed)),
    ("pending", lambda sums: _money(sums.pending)),
    ("estimated", lambda sums: _money(sums.estimated)),
    ("unmetered", lambda sums: _count(sums.unmetered_requests)),
    ("unknown", lambda sums: _count(sums.unknown_requests)),
)
_ALWAYS = ("requests", "input", "output", "billed")


def _draw(screen: Screen, by: By, groups: list[StatsLine]) -> None:
    shown = groups[-_SHOWN:] if by in ("day", "hour") else groups[:_SHOWN]
    total = Totals()
    for group in groups:
        total = total.plus(group.sums)
    used = [(head, cell) for head, cell in _COLUMNS if head in _ALWAYS or cell(total)]
    in_time = by in ("day", "hour")
    by_cost = total.nano > 0
    most = max((group.sums.nano if by_cost else group.sums.requests) for group in groups)
    rows = []
    for group in shown:
        size = group.sums.nano if by_cost else group.sums.requests
        drawn = _bar(size, most) if in_time else sparkline(group.course)
        waits = [duration(group.first_byte_p50_us), duration(group.first_byte_p95_us)]
        rows.append(
            [
                _name(by, group.name),
                *(cell(group.sums) for _, cell in used),
                _share(group.errors, group.sums.requests),
                *waits,
                drawn,
            ]
        )
    if len(groups) > 1:
        errors = sum(group.errors for group in groups)
        rows.append(["total", *(cell(total) for _, cell in used), _share(errors, total.requests), "", "", ""])
    last = ("cost" if by_cost else "requests") if in_time else "course"
    heads = [by, *(head for head, _ in used), "errors", "p50", "p95", last]
    screen.table(heads, rows, numbers=range(1, len(heads) - 1))
    if len(groups) > len(shown):
        more = "before" if in_time else "more"
        screen.line(f"… and {len(groups) - len(shown):,} {more}; --json prints all.", "note", indent=2)


def _bar(size: int, most: int) -> str:
    from proxy.cli.usage import bar

    return bar(size, most, _BAR)


def _name(by: By, name: str | int | None) -> str:
    if isinstance(name, int):
        return f"{time_of(name):%Y-%m-%d}" if by == "day" else f"{time_of(name):%Y-%m-%d %H:%M}"
    return "–" if name is None else " ".join(short(name).split())


def _share(part: int, whole: int) -> str:
    if not part:
        return "0%"
    return f"{part / whole:.1%}" if part / whole < 0.0995 else f"{part / whole:.0%}"


def _explain(screen: Screen, begin: int, groups: list[StatsLine], tables: list[str]) -> None:
    total = Totals()
    for group in groups:
        total = total.plus(group.sums)
    found = [f"{money(total.billed)} billed"]
    for amount, requests, word, why in (
        (total.pending, total.pending_requests, "pending", "estimated, the bill is not there yet"),
        (total.estimated, total.estimated_requests, "estimated", "no bill"),
    ):
        if amount:
            found.append(f"{money(amount)} {word} ({why})")
        elif requests:
            found.append(f"{ledger_asking.requests(requests)} {word} without an estimate")
    if total.unmetered_requests:
        found.append(f"{ledger_asking.requests(total.unmetered_requests)} unmetered")
    if total.unknown_requests:
        found.append(f"{ledger_asking.requests(total.unknown_requests)} of unknown cost")
    by = f" Estimates are by {price_words(tables)}." if tables and (total.pending or total.estimated) else ""
    screen.prose(f"Since {time_of(begin):%Y-%m-%d %H:%M}: {', '.join(found)}.{by}", "note")
