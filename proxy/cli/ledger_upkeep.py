"""``lava-proxy ledger prune`` and ``migrate``: what the daemon does by itself, done by hand while no daemon runs."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from proxy.cli import ledger_asking, loading, terminal
from proxy.cli.terminal import Exit, Screen, put_json
from proxy.config.settings import seconds_of
from proxy.ledger import columns, queries, reading, upkeep
from proxy.ledger.lock import AlreadyRunningError
from proxy.protocol.wording import counted

if TYPE_CHECKING:
    from pathlib import Path

    from proxy.ledger.reading import Book


def run_prune(config: Path | None, *, dry_run: bool, as_json: bool) -> int:
    """Remove what is older than ``ledger.keep``; returns the exit code."""

    def work(book: Book) -> int:
        settings = book.settings.ledger
        keep = seconds_of(settings.keep)
        with book.reading() as connection:
            count = queries.older(connection, int((time.time() - keep) * 1_000_000))
        removed, note = 0, ""
        if not dry_run:
            try:
                with upkeep.writing(settings) as connection:
                    removed = upkeep.remove_old(connection, keep)
            except AlreadyRunningError:
                note = "The running daemon removes them by itself, a few at a time."
        if as_json:
            put_json({"keep": settings.keep, "older": count, "removed": removed, "by_the_daemon": bool(note)})
            return Exit.OK
        screen = Screen()
        if dry_run or note:
            verb = "is" if count == 1 else "are"
            screen.line(
                f"{counted(count, 'request')} {verb} older than {settings.keep} (keep under [ledger]). {note}".rstrip()
            )
        else:
            screen.line(f"{counted(removed, 'request')} older than {settings.keep} removed; the sums per hour stay.")
        return Exit.OK

    return ledger_asking.ask(config, work, as_json=as_json)


def run_migrate(config: Path | None, *, as_json: bool) -> int:
    """Bring the schema up to date; returns the exit code."""
    settings = loading.settings(config, as_json=as_json).ledger
    try:
        with upkeep.writing(settings) as connection:
            found = upkeep.migrate(connection)
    except AlreadyRunningError as error:
        text = f"A daemon has the ledger (pid {error.pid}), and it brought the schema up to date when it started"
        return terminal.failed(text, as_json=as_json, code="ledger_in_use")
    except reading.LedgerUnreadableError as error:
        return terminal.failed(str(error), as_json=as_json, code="ledger_unreadable")
    if as_json:
        put_json({"ok": True, "found": found, "schema": columns.VERSION})
    elif found == columns.VERSION:
        Screen().line(f"The ledger has schema {found} already.")
    else:
        Screen().line(f"The ledger was brought from schema {found} to {columns.VERSION}.")
    return Exit.OK
