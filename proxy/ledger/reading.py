"""The ledger as the commands read it: read-only, beside a running daemon or without one, never in the writer's way.

Theory. In WAL mode a reader never waits for the writer, and the writer never for a reader; but while a read transaction is
open, the WAL cannot begin anew. So a command reads in short transactions, each of which opens the file again and closes it. A file that no process has open has no WAL file; opened as ``immutable`` it is then read without the WAL and
shared-memory files that SQLite would otherwise create, and leave behind with this user as their owner.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from proxy.ledger.columns import VERSION, NewerSchemaError
from proxy.ledger.queries import ask

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    import sqlalchemy
    from sqlalchemy.exc import DBAPIError

    from proxy.config.settings import LedgerSettings, Settings
    from proxy.ledger.queries import Connection

BUSY_SECONDS: Final = 5.0


class LedgerUnreadableError(Exception):
    """There is no ledger, or it cannot be read: what is wrong, then what to do."""


@dataclass(frozen=True, slots=True)
class Book:
    """The ledger of a configuration, open for reading."""

    settings: Settings
    reading: Callable[[], AbstractContextManager[Connection]]
    """A short read transaction. Raises ``LedgerUnreadableError``."""


def open_readonly(settings: LedgerSettings) -> Callable[[], AbstractContextManager[Connection]]:
    """Return what opens a short read transaction. Raises ``LedgerUnreadableError``, as that does; creates no file.

    The schema is looked at once, here.
    """
    begin = _sqlite(settings) if settings.url is None else _postgres(settings.url.reveal())
    with begin() as connection:
        _check_version(connection)
    return begin


def place(settings: LedgerSettings) -> str:
    """Return where the ledger is, for people: the path, or the address without its password."""
    if settings.url is None:
        try:
            return str(file_of(settings))
        except LedgerUnreadableError:
            return "the user's data directory"
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(settings.url.reveal())
    except ArgumentError:
        return "the address under [ledger] url"
    # The query may hold a password, too.
    return url.set(query={}).render_as_string(hide_password=True)


def file_of(settings: LedgerSettings) -> Path:
    """Return the path of the file. Raises ``LedgerUnreadableError``."""
    try:
        return settings.file()
    except RuntimeError:  # no home directory
        raise LedgerUnreadableError(
            "This user has no home directory, so there is no ledger. Set path under [ledger]."
        ) from None


def missing(settings: LedgerSettings) -> str:
    """Return what to say if there is no file."""
    path = settings.file()
    if not settings.enabled:
        return f"There is no ledger at {path}, and none is written: enabled = false under [ledger]."
    return (
        f"There is no ledger at {path}. It is made when `lava-proxy serve` starts; if it is elsewhere, set path under "
        "[ledger], or name the daemon's configuration with --config."
    )


def _sqlite(settings: LedgerSettings) -> Callable[[], AbstractContextManager[sqlite3.Connection]]:
    path = file_of(settings)
    if not path.is_file():
        raise LedgerUnreadableError(missing(settings))

    @contextmanager
    def begin() -> Iterator[sqlite3.Connection]:
        # Without a WAL file no process has the database open; see above.
        alone = not path.with_name(path.name + "-wal").exists()
        uri = f"{path.absolute().as_uri()}?mode=ro{'&immutable=1' if alone else ''}"
        try:
            with closing(sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None)) as connection:
                connection.execute("BEGIN")
                yield connection
        except sqlite3.Error as error:
            problem = _file_problem(str(error))
        else:
            return
        raise LedgerUnreadableError(problem)

    return begin


def _postgres(url: str) -> Callable[[], AbstractContextManager[sqlalchemy.Connection]]:
    from sqlalchemy import create_engine, event
    from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError
    from sqlalchemy.pool import NullPool

    try:
        engine = create_engine(url, poolclass=NullPool, connect_args={"connect_timeout": int(BUSY_SECONDS)})
    except (ArgumentError, NoSuchModuleError):
        raise LedgerUnreadableError(
            "url under [ledger] is no address of a database. Write postgresql+psycopg://…"
        ) from None
    except ImportError:
        raise LedgerUnreadableError(
            "The ledger is in PostgreSQL, and its driver is not installed. Install lava-proxy with the extra: "
            "pipx install 'lava-proxy[postgres]'."
        ) from None

    @event.listens_for(engine, "connect")
    def _only_read(connection: object, record: object) -> None:
        connection.read_only = True  # type: ignore[attr-defined]  # psycopg's own

    @contextmanager
    def begin() -> Iterator[sqlalchemy.Connection]:
        try:
            with engine.connect() as connection:
                yield connection
        except DBAPIError as error:
            problem = _server_problem(error)
        else:
            return
        raise LedgerUnreadableError(problem)

    return begin


def version_of(connection: Connection) -> int:
    """Return the version of the schema; 0 if there is none yet. Raises ``LedgerUnreadableError`` if this is no ledger."""
    here = isinstance(connection, sqlite3.Connection)
    # Asked first: after a query that failed, PostgreSQL's transaction would refuse all others.
    there = (
        "SELECT 1 FROM sqlite_master WHERE name = 'meta'" if here else "SELECT 1 WHERE to_regclass('meta') IS NOT NULL"
    )
    if not list(ask(connection, there)):
        raise LedgerUnreadableError(
            "This database is no ledger: it has no table meta. Start `lava-proxy serve` once, or set another path or url "
            "under [ledger]."
        )
    return next((int(value) for (value,) in ask(connection, "SELECT value FROM meta WHERE name = 'schema'")), 0)


def _check_version(connection: Connection) -> None:
    found = version_of(connection)
    if found > VERSION:
        raise LedgerUnreadableError(str(NewerSchemaError(found)))
    if found < VERSION:
        raise LedgerUnreadableError(
            f"The ledger has schema {found}, and this lava-proxy reads schema {VERSION}. Run "
            "`lava-proxy ledger migrate`, or restart the daemon, which does it."
        )


def size_of(settings: LedgerSettings, connection: Connection) -> int:
    """Return the bytes the ledger takes, with its indexes and its WAL."""
    if settings.url is None:
        file = settings.file()
        beside = (file.with_name(file.name + ending) for ending in ("", "-wal"))
        return sum(each.stat().st_size for each in beside if each.exists())
    from proxy.ledger.schema import RETENTION

    tables = ", ".join(f"'{name}'" for name in RETENTION)
    query = (
        f"SELECT COALESCE(SUM(pg_total_relation_size(relid)), 0) FROM pg_stat_user_tables WHERE relname IN ({tables})"  # noqa: S608 - our own names
    )
    [(size,)] = ask(connection, query)
    return int(size)


def _server_problem(error: DBAPIError) -> str:
    # Without its words: they may quote the address, and with it the password.
    return (
        f"The ledger's PostgreSQL cannot be used ({type(error.orig).__name__}). Check url under [ledger], and that the "
        "server runs and knows the user and the database."
    )


def _file_problem(reason: str) -> str:
    if "not a database" in reason or "malformed" in reason:
        return "The ledger's file is damaged or no database. Restart the daemon: it sets a damaged file aside and begins a new one."
    if "readonly" in reason or "unable to open" in reason:
        return "The ledger's file may not be read by this user. Run the command as the user that runs the daemon."
    return f"The ledger cannot be read: {reason}. Try again, or run `lava-proxy ledger check`."


def faults(connection: Connection) -> list[str]:
    """Return what SQLite's ``integrity_check`` finds; empty if all is well, and for PostgreSQL, which has no such check."""
    if not isinstance(connection, sqlite3.Connection):
        return []
    return [fault for (fault,) in connection.execute("PRAGMA integrity_check(100)") if fault != "ok"]
