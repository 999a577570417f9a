"""``lava-proxy ledger prune`` and ``migrate``: what the daemon does by itself, done by hand while no daemon runs."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sqlalchemy.exc import DBAPIError

from proxy.cli import account, ledger_asking, loading
from proxy.cli.terminal import Exit, Screen, put_json
from proxy.config.settings import seconds_of
from proxy.ledger import opening, prune, queries, reading, schema
from proxy.ledger.lock import AlreadyRunningError, FileLock
from proxy.protocol.wording import counted

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqlalchemy import Connection

    from proxy.cli.ledger_asking import Book
    from proxy.config.settings import LedgerSettings


@contextmanager
def writing(settings: LedgerSettings) -> Iterator[Connection]:
    """A connection that may write. Of a file, no daemon may have it.

    Raises ``AlreadyRunningError``, ``LedgerUnreadableError``, and the database's errors.
    """
    if settings.url is not None:
        engine = opening.postgres_engine(settings.url.reveal())
        with engine.connect() as connection:
            yield connection
        return
    path = settings.file()
    if not path.is_file():
        raise reading.LedgerUnreadableError(reading.missing(path))
    lock = FileLock(path)
    try:
        with opening.sqlite_engine(path).connect() as connection:
            yield connection
    finally:
        lock.release()


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
                with writing(settings) as connection:
                    removed = _remove(connection, keep)
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


def _remove(connection: Connection, keep: float) -> int:
    removed = 0
    while True:
        with connection.begin():
            step = prune.requests_step(connection, keep)
        removed += step
        if step < prune.ROWS_PER_STEP:
            break
    with connection.begin():
        prune.unused_names(connection, keep)
    more = True
    while more:
        with connection.begin():
            more = prune.shrink_step(connection)
    return removed


def run_migrate(config: Path | None, *, as_json: bool) -> int:
    """Bring the schema up to date; returns the exit code."""
    settings = loading.settings(config, as_json=as_json).ledger
    try:
        with writing(settings) as connection:
            with connection.begin():
                found = schema.version_of(connection)
            opening.migrate(connection)
    except AlreadyRunningError as error:
        text = f"A daemon has the ledger (pid {error.pid}), and it brought the schema up to date when it started"
        return account.failed(text, as_json=as_json, code="ledger_in_use")
    except (reading.LedgerUnreadableError, schema.NewerSchemaError) as error:
        return account.failed(str(error), as_json=as_json, code="ledger_unreadable")
    except (DBAPIError, OSError, ModuleNotFoundError) as error:
        reason = type(getattr(error, "orig", None) or error).__name__
        text = f"The ledger cannot be written ({reason}). Check path or url under [ledger], and that this user may write there"
        return account.failed(text, as_json=as_json, code="ledger_unreadable")
    if as_json:
        put_json({"ok": True, "found": found, "schema": schema.VERSION})
    elif found == schema.VERSION:
        Screen().line(f"The ledger has schema {found} already.")
    else:
        Screen().line(f"The ledger was brought from schema {found} to {schema.VERSION}.")
    return Exit.OK
