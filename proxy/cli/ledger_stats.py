"""``lava-proxy stats``: what was used and what it cost, by project, model, tool and so on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from proxy.cli import ledger_asking
from proxy.cli.drawing import bar, sparkline
from proxy.cli.ledger_asking import money, price_words, short, sums_for_scripts, time_of
from proxy.cli.ledger_logs import duration, thousands
from proxy.cli.terminal import Exit, Screen, put_json, table_width
from proxy.ledger import queries
from proxy.ledger.queries import HOUR_US, Filter, StatsLine, Totals

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from proxy.ledger.queries import By
    from proxy.ledger.reading import Book

_PARTS = 24
"""Of the window, in the course; letters of a bar. In a terminal below ``_WIDE`` columns half of them."""
_WIDE = 120
_SHOWN = 40
"""Lines of a table; scripts get all."""


def run(config: Path | None, *, by: By, since: str, project: str | None, as_json: bool) -> int:
    """Show what was used since ``since``; returns the exit code."""

    def show(book: Book) -> int:
        now = ledger_asking.now_us()
        begin = ledger_asking.begin_us(since) or 0
        begin -= begin % HOUR_US
        screen = Screen()
        room = screen.room()
        parts = _PARTS if as_json or room is None or room >= _WIDE else _PARTS // 2
        with book.reading() as connection:
            groups = queries.stats(connection, by, Filter(project=project, since_us=begin), now, parts)
            tables = queries.price_tables(connection)
        if as_json:
            put_json({"by": by, "since": ledger_asking.iso(begin), "groups": [_for_scripts(each) for each in groups]})
            return Exit.OK
        if not groups:
            screen.line(f"No request has ended since {time_of(begin):%Y-%m-%d %H:%M}.")
            return Exit.OK
        _draw(screen, by, groups, parts)
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


def _tokens(count: int) -> str:
    return thousands(count) if count else ""


def _money(nano: int) -> str:
    return money(nano) if nano else ""


def _count(number: int) -> str:
    return f"{number:,}" if number else ""


_COLUMNS: tuple[tuple[str, int, Callable[[Totals], str]], ...] = (
    ("requests", 0, lambda sums: f"{sums.requests:,}"),
    ("input", 3, lambda sums: _tokens(sums.input)),
    ("cache read", 8, lambda sums: _tokens(sums.cache_read)),
    ("cache write", 9, lambda sums: _tokens(sums.cache_write_5m + sums.cache_write_1h)),
    ("output", 3, lambda sums: _tokens(sums.output)),
    ("audio", 7, lambda sums: _tokens(sums.audio_in + sums.audio_out)),
    ("images", 7, lambda sums: _tokens(sums.images)),
    ("chars", 7, lambda sums: _tokens(sums.characters)),
    ("billed", 0, lambda sums: _money(sums.billed)),
    ("pending", 0, lambda sums: _money(sums.pending)),
    ("estimated", 0, lambda sums: _money(sums.estimated)),
    ("unmetered", 4, lambda sums: _count(sums.unmetered_requests)),
    ("unknown", 4, lambda sums: _count(sums.unknown_requests)),
)
"""Where there is no room, those with the highest number are left out first, 0 never: the note has what unmetered and unknown say."""
_ALWAYS = ("requests", "input", "output", "billed")


class _Column(NamedTuple):
    head: str
    rank: int
    cells: list[str]


def _draw(screen: Screen, by: By, groups: list[StatsLine], parts: int) -> None:
    in_time = by in ("day", "hour")
    shown = groups[-_SHOWN:] if in_time else groups[:_SHOWN]
    total = _total(groups)
    summed = len(groups) > 1
    sums = [*(group.sums for group in shown), *([total] if summed else [])]
    errors = [*(group.errors for group in shown), *([sum(group.errors for group in groups)] if summed else [])]
    by_cost = total.nano > 0
    sizes = [group.sums.nano if by_cost else group.sums.requests for group in shown]
    most = max(group.sums.nano if by_cost else group.sums.requests for group in groups)
    drawn = [bar(size, most, parts) for size in sizes] if in_time else [sparkline(group.course) for group in shown]
    rest = [""] * summed
    columns = [
        _Column(by, 0, [*(_name(by, group.name) for group in shown), *(["total"] * summed)]),
        *(
            _Column(head, rank, [cell(each) for each in sums])
            for head, rank, cell in _COLUMNS
            if head in _ALWAYS or cell(total)
        ),
        _Column("errors", 2, [_share(part, each.requests) for part, each in zip(errors, sums, strict=True)]),
        _Column("p50", 5, [*(duration(group.first_byte_p50_us) for group in shown), *rest]),
        _Column("p95", 6, [*(duration(group.first_byte_p95_us) for group in shown), *rest]),
        _Column(("cost" if by_cost else "requests") if in_time else "course", 1, [*drawn, *rest]),
    ]
    left_out = _fit(columns, screen.room())
    heads = [column.head for column in columns]
    rows = list(zip(*(column.cells for column in columns), strict=True))
    words = {0} if left_out and columns[-1].rank != 1 else {0, len(columns) - 1}
    screen.table(heads, rows, numbers=set(range(len(columns))) - words)
    if len(groups) > len(shown):
        more = "before" if in_time else "more"
        screen.line(f"… and {len(groups) - len(shown):,} {more}; --json prints all.", "note", indent=2)
    if left_out:
        screen.prose(f"No room for {', '.join(left_out)}: a wider terminal and --json have all.", "note")


def _fit(columns: list[_Column], room: int | None) -> list[str]:
    """Remove the columns for which there is no room. Return their heads."""
    left_out = []
    while room is not None:
        widths = [max(map(len, (column.head, *column.cells))) for column in columns]
        least = max(columns, key=lambda column: column.rank)
        if table_width(widths) <= room or not least.rank:
            break
        columns.remove(least)
        left_out.append(least.head)
    return left_out


def _total(groups: list[StatsLine]) -> Totals:
    total = Totals()
    for group in groups:
        total = total.plus(group.sums)
    return total


def _name(by: By, name: str | int | None) -> str:
    if isinstance(name, int):
        return f"{time_of(name):%Y-%m-%d}" if by == "day" else f"{time_of(name):%Y-%m-%d %H:%M}"
    return "–" if name is None else " ".join(short(name).split())


def _share(part: int, whole: int) -> str:
    if not part:
        return "0%"
    return f"{part / whole:.1%}" if part / whole < 0.0995 else f"{part / whole:.0%}"


def _explain(screen: Screen, begin: int, groups: list[StatsLine], tables: list[str]) -> None:
    total = _total(groups)
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
