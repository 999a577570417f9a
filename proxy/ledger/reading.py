"""The ledger as the commands read it: read-only, beside a running daemon or without one, never in the writer's way.

Theory. In WAL mode a reader never waits for the writer, and the writer never for a reader; but while a read transaction is
open, the WAL cannot begin anew. So a command reads in short transactions: each ``engine.connect()`` opens the file again
and closes it. A file that no process has open has no WAL file; opened as ``immutable`` it is then read without the WAL and
shared-memory files that SQLite would otherwise create, and leave behind with this user as their owner.
"""

from __future__ import annotations

import sqlite3
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sqlalchemy import create_engine, event, text
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError
from sqlalchemy.pool import NullPool

from proxy.ledger import schema

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from sqlalchemy import Connection, Engine

    from proxy.config.settings import LedgerSettings, Settings

BUSY_SECONDS: Final = 5.0


class LedgerUnreadableError(Exception):
    """There is no ledger, or it cannot be read: what is wrong, then what to do."""


def open_readonly(settings: LedgerSettings) -> Engine:
    """Return an engine that only reads, and pools nothing. Raises ``LedgerUnreadableError``; creates no file.

    What is raised inside ``reading`` is raised here, too: the schema is looked at once.
    """
    engine = _sqlite(settings.file()) if settings.url is None else _postgres(settings.url.reveal())
    with reading(engine) as connection:
        _check_version(connection)
    return engine


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """A short read transaction. Raises ``LedgerUnreadableError`` where the database fails; its words are left out.

    (An error of PostgreSQL may quote the address, and with it the password.)
    """
    try:
        with engine.connect() as connection:
            yield connection
    except DBAPIError as error:
        problem = _problem(engine, error)
    else:
        return
    raise LedgerUnreadableError(problem)


@dataclass(frozen=True, slots=True)
class Book:
    """The ledger of a configuration, open for reading."""

    settings: Settings
    engine: Engine

    def reading(self) -> AbstractContextManager[Connection]:
        """A short read transaction. Raises ``LedgerUnreadableError``."""
        return reading(self.engine)


def place(settings: LedgerSettings) -> str:
    """Return where the ledger is, for people: the path, or the address without its password."""
    if settings.url is None:
        return str(settings.file())
    from sqlalchemy.engine import make_url

    try:
        url = make_url(settings.url.reveal())
    except ArgumentError:
        return "the address under [ledger] url"
    # The query may hold a password, too.
    return url.set(query={}).render_as_string(hide_password=True)


def missing(path: Path) -> str:
    """Return what to say if there is no file."""
    return (
        f"There is no ledger at {path}. It is made when `lava-proxy serve` starts; if it is elsewhere, set path under "
        "[ledger], or name the daemon's configuration with --config."
    )


def _sqlite(path: Path) -> Engine:
    if not path.is_file():
        raise LedgerUnreadableError(missing(path))

    def connect() -> sqlite3.Connection:
        # Without a WAL file no process has the database open; see above.
        alone = not path.with_name(path.name + "-wal").exists()
        uri = f"{path.absolute().as_uri()}?mode=ro{'&immutable=1' if alone else ''}"
        return sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, check_same_thread=False)

    return create_engine("sqlite://", creator=connect, poolclass=NullPool)


def _postgres(url: str) -> Engine:
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

    return engine


def _check_version(connection: Connection) -> None:
    if not connection.dialect.has_table(connection, "meta"):
        raise LedgerUnreadableError(
            "This database is no ledger: it has no table meta. Start `lava-proxy serve` once, or set another path or url "
            "under [ledger]."
        )
    found = schema.version_of(connection)
    if found > schema.VERSION:
        raise LedgerUnreadableError(str(schema.NewerSchemaError(found)))
    if found < schema.VERSION:
        raise LedgerUnreadableError(
            f"The ledger has schema {found}, and this lava-proxy reads schema {schema.VERSION}. Run "
            "`lava-proxy ledger migrate`, or restart the daemon, which does it."
        )


def size_of(settings: LedgerSettings, connection: Connection) -> int:
    """Return the bytes the ledger takes, with its indexes and its WAL."""
    if settings.url is None:
        file = settings.file()
        beside = (file.with_name(file.name + ending) for ending in ("", "-wal"))
        return sum(each.stat().st_size for each in beside if each.exists())
    tables = ", ".join(f"'{name}'" for name in schema.RETENTION)
    query = (
        f"SELECT COALESCE(SUM(pg_total_relation_size(relid)), 0) FROM pg_stat_user_tables WHERE relname IN ({tables})"  # noqa: S608 - our own names
    )
    return int(connection.execute(text(query)).scalar_one())


def _problem(engine: Engine, error: DBAPIError) -> str:
    if engine.dialect.name != "sqlite":
        return (
            f"The ledger's PostgreSQL cannot be used ({type(error.orig).__name__}). Check url under [ledger], and that the "
            "server runs and knows the user and the database."
        )
    reason = str(error.orig)
    if "not a database" in reason or "malformed" in reason:
        return "The ledger's file is damaged or no database. Restart the daemon: it sets a damaged file aside and begins a new one."
    if "readonly" in reason or "unable to open" in reason:
        return "The ledger's file may not be read by this user. Run the command as the user that runs the daemon."
    return f"The ledger cannot be read: {reason}. Try again, or run `lava-proxy ledger check`."


def faults(connection: Connection) -> list[str]:
    """Return what SQLite's ``integrity_check`` finds; empty if all is well, and for PostgreSQL, which has no such check."""
    if connection.dialect.name != "sqlite":
        return []
    found = connection.exec_driver_sql("PRAGMA integrity_check(100)").scalars()
    return [each for each in found if each != "ok"]
