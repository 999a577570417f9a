"""How a ledger is opened: the SQLite file with its modes and pragmas, or PostgreSQL; a damaged file is set aside.

A connection of SQLite is in autocommit mode; ``BEGIN IMMEDIATE`` is ours, so that a transaction that reads first cannot fail
when it writes.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import create_engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from proxy.ledger import schema
from proxy.ledger.lock import make_folder

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy import Connection, Engine

BUSY_SECONDS: Final = 2.0
"""How long one statement waits for another program's lock; the transaction is tried again afterwards."""
CONNECT_SECONDS: Final = 3
STATEMENT_SECONDS: Final = 30
MAX_CHECKED_AT_ONCE: Final = 64 * 1024 * 1024
"""Bytes of a file that is checked before it is used. Checking a larger one takes seconds; it happens beside the recording."""
_DAMAGED: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_SUFFIXES: Final = ("", "-wal", "-shm")


class DamagedError(Exception):
    """The file is no sound SQLite database. The message says what was found."""


def is_damage(error: BaseException) -> bool:
    """Whether a database's error says that its file is damaged."""
    origin = error.orig if isinstance(error, DBAPIError) else error
    code = getattr(origin, "sqlite_errorcode", None)
    return isinstance(error, DamagedError) or (code is not None and code & 0xFF in _DAMAGED)


def sqlite_engine(path: Path) -> Engine:
    """Return an engine of the file ``path``, which is made if it is missing: for this user alone, under any umask.

    Raises ``OSError``.
    """
    make_folder(path.parent)
    if path.exists():
        with contextlib.suppress(PermissionError):  # another user's that we may write
            path.chmod(0o600)
    else:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o600)
        with contextlib.suppress(AttributeError):  # Windows has none before 3.13
            os.fchmod(descriptor, 0o600)
        os.close(descriptor)

    def connect() -> sqlite3.Connection:
        return sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, cached_statements=64)

    engine = create_engine("sqlite://", creator=connect, poolclass=NullPool, hide_parameters=True)
    event.listen(engine, "connect", _set_pragmas)
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    return engine


def _set_pragmas(connection: Any, _: object) -> None:
    cursor = connection.cursor()
    # Takes effect in an empty database only: a file that is pruned then shrinks.
    cursor.execute("PRAGMA auto_vacuum=INCREMENTAL")
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "temp_store=MEMORY", "journal_size_limit=16777216"):
        cursor.execute(f"PRAGMA {pragma}").fetchall()
    cursor.close()


def postgres_engine(url: str) -> Engine:
    """Return an engine of PostgreSQL. A statement takes 30 seconds at most: a server that hangs is one that is away."""
    try:
        import psycopg  # noqa: F401  (only whether it is there)
    except ImportError:
        raise ModuleNotFoundError(
            "ledger.url needs psycopg. Install lava-proxy with its extra: pip install 'lava-proxy[postgres]'."
        ) from None
    options = f"-c statement_timeout={STATEMENT_SECONDS * 1000} -c idle_in_transaction_session_timeout=60000"
    arguments = {
        "connect_timeout": CONNECT_SECONDS,
        "options": options,
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 20_000,
        "application_name": "lava-proxy",
    }
    return create_engine(url, poolclass=NullPool, connect_args=arguments, hide_parameters=True)


def check(path: Path) -> None:
    """Run SQLite's ``quick_check`` with a connection of its own. Raises ``DamagedError``, and ``sqlite3.Error`` of other faults."""
    connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
    try:
        found = connection.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.DatabaseError as error:
        if is_damage(error):
            raise DamagedError(str(error)) from None
        raise
    finally:
        connection.close()
    if found is None or found[0] != "ok":
        raise DamagedError(str(found[0]).partition("\n")[0] if found else "the check has no result")


def set_aside(path: Path) -> Path:
    """Rename a damaged file and what belongs to it. Return its new name. Raises ``OSError``."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%fZ")
    aside = path.with_name(f"{path.name}.damaged-{stamp}")
    for suffix in _SUFFIXES:
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + suffix).rename(aside.with_name(aside.name + suffix))
    return aside


def migrate(connection: Connection) -> None:
    """Bring the schema up to date in one transaction. Raises ``columns.NewerSchemaError``."""
    with connection.begin():
        if connection.dialect.name == "postgresql":
            # One daemon at a time: two that start together on an empty database would both create the tables.
            connection.exec_driver_sql("SELECT pg_advisory_xact_lock(5282, 1)")
        schema.migrate(connection)
