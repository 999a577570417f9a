"""``lava-proxy ledger status`` and ``check``: what the ledger holds, and whether it is sound."""

from __future__ import annotations

import http.client
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from proxy.cli import ledger_asking, running
from proxy.cli.ledger_asking import iso, time_of
from proxy.cli.terminal import Exit, Screen, put_json
from proxy.ledger import queries, reading
from proxy.ledger.queries import HOUR_US
from proxy.protocol.wording import counted

if TYPE_CHECKING:
    from pathlib import Path

    from proxy.config.settings import Settings
    from proxy.ledger.reading import Book

SECONDS = 2.0
_MOST = 4 * 1024 * 1024
_METRIC = re.compile(r"^lava_proxy_ledger_(queue|dropped|written)(?:_total)? ([0-9.e+]+)$", re.MULTILINE)
_SHOWN = 20
HOURS_AT_ONCE = 6
"""Of ``check``: how many hours are compared in one read transaction."""


class Writer(NamedTuple):
    """What the running daemon says of its ledger since its start; numbers of requests."""

    queued: int
    dropped: int
    written: int

    def words(self) -> str:
        """Return the numbers in words."""
        return f"running: {self.queued:,} waiting to be written, {self.dropped:,} dropped, {self.written:,} written"


def status(config: Path | None, *, as_json: bool) -> int:
    """Show what the ledger holds; returns the exit code."""

    def show(book: Book) -> int:
        with book.reading() as connection:
            found = queries.extent(connection)
            version = reading.version_of(connection)
            size = reading.size_of(book.settings.ledger, connection)
        writer = ask_daemon(book.settings)
        if as_json:
            put_json(_for_scripts(book, found, version, size, writer))
        else:
            _draw(Screen(), book, found, version, size, writer)
        return Exit.OK

    return ledger_asking.ask(config, show, as_json=as_json)


def _for_scripts(book: Book, found: queries.Extent, version: int, size: int, writer: Writer | str) -> dict[str, Any]:
    from proxy.ledger.schema import RETENTION

    return {
        "ledger": reading.place(book.settings.ledger),
        "bytes": size,
        "requests": found.rows,
        "running": found.running,
        "oldest": None if found.oldest_us is None else iso(found.oldest_us),
        "newest": None if found.newest_us is None else iso(found.newest_us),
        "rollup_hours": found.hours,
        "sums_since": None if found.first_hour is None else iso(found.first_hour * HOUR_US),
        "outbox": found.waiting,
        "schema": version,
        "keep": book.settings.ledger.keep,
        "retention": {name: each.rule for name, each in RETENTION.items()},
        "daemon": None if isinstance(writer, str) else writer._asdict(),
    }


def _draw(screen: Screen, book: Book, found: queries.Extent, version: int, size: int, writer: Writer | str) -> None:
    settings = book.settings.ledger
    rows = f"{found.rows:,}" + (f", {found.running:,} of them running" if found.running else "")
    if found.oldest_us is not None and found.newest_us is not None:
        rows += f"; from {time_of(found.oldest_us):%Y-%m-%d %H:%M} to {time_of(found.newest_us):%Y-%m-%d %H:%M}"
    since = "" if found.first_hour is None else f"; since {time_of(found.first_hour * HOUR_US):%Y-%m-%d %H:%M}"
    screen.pairs(
        [
            ("ledger", reading.place(settings)),
            ("written", "" if settings.enabled else "no: enabled = false under [ledger]"),
            ("size", _size(size)),
            ("requests", rows),
            ("sums per hour", f"{counted(found.hours, 'hour')}{since}"),
            ("outbox", counted(found.waiting, "entry").replace("entrys", "entries")),
            ("schema", str(version)),
            ("kept", f"requests {settings.keep}; sums per hour forever"),
            ("daemon", writer if isinstance(writer, str) else writer.words()),
        ]
    )


def _size(size: int) -> str:
    for unit, least in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= least:
            return f"{size / least:.1f} {unit}"
    return counted(size, "byte")


def ask_daemon(settings: Settings) -> Writer | str:
    """Return what the daemon's metrics say, or why they cannot be had."""
    found = "not asked: its port is not known"
    for _, connection in running.ways(settings.server, SECONDS):
        try:
            connection.request("GET", "/metrics", headers=running.headers(connection, settings.server))
            answer = connection.getresponse()
            return _said(answer.status, answer.read(_MOST).decode("utf-8", "replace"))
        except (OSError, http.client.HTTPException):
            found = "not running"
        finally:
            connection.close()
    return found


def _said(status: int, text: str) -> Writer | str:
    if status in (401, 403):
        return "running; it shows its numbers only to a key under [server]"
    found = {name: int(float(number)) for name, number in _METRIC.findall(text)}
    if not found:
        return "running without a ledger, or another program has its port"
    return Writer(found.get("queue", 0), found.get("dropped", 0), found.get("written", 0))


def check(config: Path | None, *, as_json: bool) -> int:
    """Check the file, and that the sums per hour are those of the rows; 0 if all is well, else 1."""

    def look(book: Book) -> int:
        with book.reading() as connection:
            faults = reading.faults(connection)
            hours = None if faults else queries.checked_hours(connection)
        found: list[queries.Difference] = []
        first, end = hours or (0, 0)
        for hour in range(first, end, HOURS_AT_ONCE):
            with book.reading() as connection:
                found += queries.differences(connection, (hour, min(hour + HOURS_AT_ONCE, end)))
        ok = not faults and not found
        if as_json:
            listed = [{"hour": iso(each.hour_us), **each._asdict()} for each in found]
            for each in listed:
                del each["hour_us"]
            put_json({"ok": ok, "faults": faults, "hours": end - first, "differences": listed})
        else:
            _tell(Screen(), faults, end - first, found)
        return Exit.OK if ok else Exit.FAILED

    return ledger_asking.ask(config, look, as_json=as_json)


def _tell(screen: Screen, faults: list[str], hours: int, found: list[queries.Difference]) -> None:
    if faults:
        screen.line("✗ the database is damaged:", "bad")
        for fault in faults[:_SHOWN]:
            screen.line(fault, indent=2)
        screen.line("Restart the daemon: it sets a damaged file aside and begins a new one.")
        return
    screen.line("✓ the database is sound", "good")
    if not found:
        screen.line(f"✓ the sums of {counted(hours, 'hour')} are those of their rows", "good")
        return
    screen.line(f"✗ {counted(len(found), 'sum')} of {counted(hours, 'hour')} differ from their rows:", "bad")
    rows = [
        [f"{time_of(each.hour_us):%Y-%m-%d %H:%M}", each.name, f"{each.rollups:,}", f"{each.rows:,}"]
        for each in found[:_SHOWN]
    ]
    screen.table(["hour", "sum", "in rollups", "in rows"], rows, numbers={2, 3})
    if len(found) > _SHOWN:
        screen.line(f"… and {len(found) - _SHOWN:,} more; --json prints all.", "note", indent=2)
    screen.line("`stats` may be wrong for these hours; `logs` and `export` are not. Please report it.")
