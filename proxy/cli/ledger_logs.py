"""``lava-proxy logs``: one row per request, the newest last."""

from __future__ import annotations

import json
import select
import shutil
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from proxy.cli import ledger_asking
from proxy.cli.ledger_asking import cost_words, price_words, row_for_scripts, short, time_of
from proxy.cli.terminal import Exit, Screen, printable
from proxy.ledger import queries
from proxy.ledger.columns import State
from proxy.ledger.queries import Filter
from proxy.ledger.reading import LedgerUnreadableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from proxy.cli.terminal import Style
    from proxy.ledger.queries import Connection, Row
    from proxy.ledger.reading import Book

POLL_SECONDS = 0.5
AWAY_SECONDS = 30.0
"""How long ``-f`` waits for a ledger that cannot be read."""
_WIDE = 160
"""The columns of a row that goes to no terminal."""


class Column(NamedTuple):
    """A column of at most ``width`` characters. Where there is no room, the highest ``rank`` is left out first, 0 never.

    If that is not enough, names are cut to ``least`` characters, and times to their end.
    """

    head: str
    width: int
    rank: int
    cell: Callable[[Row], str]
    number: bool = False
    least: int = 0


def run(
    config: Path | None,
    *,
    project: str | None,
    model: str | None,
    tool: str | None,
    session: str | None,
    outcome: str | None,
    since: str | None,
    limit: int,
    follow: bool,
    as_json: bool,
) -> int:
    """Show the newest ``limit`` requests, and with ``follow`` those that come; returns the exit code."""

    def show(book: Book) -> int:
        put = _lines_of_json if as_json else _Table(fixed=follow).put
        with book.reading() as connection:
            wanted = Filter(
                project=project,
                model=model,
                tool=tool,
                session=None if session is None else queries.stored_session(connection, session),
                outcome=outcome,
                since_us=ledger_asking.begin_us(since),
            )
            last = queries.last_seq(connection)
            position = _Position(last, queries.id_at(connection, last), queries.running(connection))
            try:
                rows = queries.newest(connection, wanted, limit + 1)
            except queries.UnknownNameError:
                if not follow:
                    raise
                rows = []
        older = len(rows) > limit
        rows = rows[-limit:]
        if follow:
            put([row for row in rows if row.state is not State.OPEN])
            _follow(book, wanted, position, put)
        elif rows or as_json:
            put(rows)
            if not as_json:
                _explain(rows, older=older)
        else:
            Screen().line("There is no such request in the ledger." if last else "The ledger has no request yet.")
        return Exit.OK

    return ledger_asking.ask(config, show, as_json=as_json)


def _explain(rows: list[Row], *, older: bool) -> None:
    """Say what the table leaves out, and which prices its estimates are by."""
    screen = Screen()
    notes = []
    if older:
        notes.append(f"The newest {len(rows):,}; --limit N shows more.")
    tables = [row.prices for row in reversed(rows) if row.prices is not None]
    if tables:
        notes.append(f"~ is estimated by {price_words(tables)}.")
    if notes:
        screen.line()
        screen.prose(" ".join(notes), "note")


@dataclass(slots=True)
class _Position:
    """Up to where a ledger was read: its last request, and those before it that had not ended."""

    last: int
    last_id: str | None
    running: set[int]

    def read(self, connection: Connection, wanted: Filter) -> list[Row]:
        """Return the requests that have ended since."""
        if queries.id_at(connection, self.last) != self.last_id:
            self.last, self.running = 0, set()  # a new ledger has begun
        rows = queries.arrived(connection, wanted, self.last, self.running)
        self.running -= {row.seq for row in rows if row.state is not State.OPEN}
        self.running |= {row.seq for row in rows if row.state is State.OPEN}
        self.last = max([self.last, *(row.seq for row in rows)])
        self.last_id = queries.id_at(connection, self.last)
        return [row for row in rows if row.state is not State.OPEN]


def _follow(book: Book, wanted: Filter, position: _Position, put: Callable[[list[Row]], None]) -> None:
    """Show each request when it has ended, until Ctrl-C or until the reader of the output has gone."""
    read = time.monotonic()
    try:
        while not _reader_left(POLL_SECONDS):
            try:
                with book.reading() as connection:
                    rows = position.read(connection, wanted)
            except LedgerUnreadableError:
                # For a moment, while the file is replaced or the database restarts.
                if time.monotonic() - read > AWAY_SECONDS:
                    raise
                continue
            read = time.monotonic()
            put(rows)
    except KeyboardInterrupt:
        return


def _reader_left(seconds: float) -> bool:
    """Wait; True as soon as nothing reads the output any more."""
    if not hasattr(select, "poll"):
        time.sleep(seconds)
        return False
    watched = select.poll()
    watched.register(sys.stdout.fileno(), 0)  # errors are always reported
    return bool(watched.poll(seconds * 1000))


def _lines_of_json(rows: Iterable[Row]) -> None:
    for row in rows:
        sys.stdout.write(json.dumps(row_for_scripts(row)) + "\n")
    sys.stdout.flush()


def _status(row: Row) -> str:
    return "" if row.status is None else str(row.status)


def _target(row: Row) -> str:
    model = row.served or row.asked or ""
    return "/".join(filter(None, (row.provider, model))) or "–"


def tokens_in(row: Row) -> int | None:
    """Return the tokens of a request's input, cached ones included; ``None`` if nothing is known of them."""
    classes = ("input", "cache_read", "cache_write_5m", "cache_write_1h", "audio_in")
    known = [count for name in classes if (count := row.tokens[name]) is not None]
    return sum(known) if known else None


def _tokens(row: Row) -> str:
    counts = (tokens_in(row), row.tokens["output"])
    if counts == (None, None):
        return ""
    return "→".join("?" if count is None else thousands(count) for count in counts)


def thousands(count: int) -> str:
    """Return a number in at most five characters: 999, 12.3k, 4.56M."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            return f"{count / size:.3g}{unit}" if count < 999.5 * size else f"{count / size:.0f}{unit}"
    return str(count)


def duration(us: int | None) -> str:
    """Return a duration for people; empty if it is not known."""
    if us is None:
        return ""
    if us < 1_000_000:
        return f"{us / 1000:.0f}ms"
    return f"{us / 1_000_000:.1f}s" if us < 100_000_000 else f"{us / 1_000_000:.0f}s"


def _end(row: Row) -> str:
    if row.state is State.OPEN:
        return "running"
    word = row.outcome or row.state.name.lower()
    return f"{word} ({row.state.name.lower()})" if row.state is State.HEALED else word


_COLUMNS = (
    Column("time", 19, 0, lambda row: f"{time_of(row.received_us):%Y-%m-%d %H:%M:%S}", least=8),
    Column("code", 4, 0, _status, number=True),
    Column("project", 12, 0, lambda row: row.project, least=7),
    Column("model", 30, 0, _target, least=16),
    Column("tool", 14, 4, lambda row: row.tool or ""),
    Column("tokens", 13, 2, _tokens, number=True),
    Column("cost", 18, 0, lambda row: cost_words(row.cost), number=True),
    Column("first", 6, 5, lambda row: duration(row.first_byte_us), number=True),
    Column("total", 6, 3, lambda row: duration(row.duration_us), number=True),
    Column("ended", 14, 1, _end),
)


class _Table:
    """Rows of columns: as many as the terminal is wide for. Rows that come one by one have columns of fixed width."""

    def __init__(self, *, fixed: bool) -> None:
        self._screen = Screen()
        self._columns = list(_COLUMNS)
        self._widths = {column.head: column.width for column in _COLUMNS}
        self._fixed = fixed
        self._begun = False

    def put(self, rows: list[Row]) -> None:
        """Show rows; the heads before the first."""
        if not rows:
            return
        # One line each, whatever a name holds.
        shown = [
            {
                column.head: short(printable(" ".join(column.cell(row).split())), column.width)
                for column in self._columns
            }
            for row in rows
        ]
        if not self._begun:
            self._begun = True
            self._fit(shown)
            self._screen.line(self._line({column.head: column.head for column in self._columns}), "note")
        for row, cells in zip(rows, shown, strict=True):
            style: Style = "plain" if row.outcome in (None, *queries.NO_ERROR) else "bad"
            self._screen.line(self._line(cells), style)

    def _fit(self, shown: list[dict[str, str]]) -> None:
        if not self._fixed:
            self._widths = {name: max(len(name), *(len(row[name]) for row in shown)) for name in self._widths}
        room = shutil.get_terminal_size((_WIDE, 0)).columns if sys.stdout.isatty() else _WIDE
        while self._width() > room:
            least = max(self._columns, key=lambda column: column.rank)
            if not least.rank:
                break
            self._columns.remove(least)
        for column in sorted(self._columns, key=lambda column: -column.least):
            if column.least:
                width = self._widths[column.head]
                self._widths[column.head] = max(min(width, column.least), width - max(self._width() - room, 0))

    def _width(self) -> int:
        return sum(self._widths[column.head] + 2 for column in self._columns) - 2

    def _line(self, cells: dict[str, str]) -> str:
        fitted = []
        for column in self._columns:
            width, cell = self._widths[column.head], cells[column.head]
            if len(cell) > width:
                cell = cell[-column.least :] if column.head == "time" else short(cell, width)
            fitted.append(cell.rjust(width) if column.number else cell.ljust(width))
        return "  ".join(fitted).rstrip()
