"""What the commands write: only while no daemon has the file (``lock.py``), or in a PostgreSQL that many share."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from sqlalchemy import func
from sqlalchemy.exc import DBAPIError

from proxy.ledger import columns, opening, prune, reading, schema, stop_rows
from proxy.ledger.columns import INTENT_BODY, OutboxState
from proxy.ledger.lock import AlreadyRunningError, FileLock
from proxy.ledger.rows import id_bytes
from proxy.ledger.schema import outbox

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from sqlalchemy import ColumnElement, Connection

    from proxy.config.settings import LedgerSettings
    from proxy.protocol.stop import Stop


@contextmanager
def writing(settings: LedgerSettings) -> Iterator[Connection]:
    """A connection that may write.

    Raises ``AlreadyRunningError`` if a daemon has the file, and ``LedgerUnreadableError``.
    """
    try:
        if settings.url is not None:
            with opening.postgres_engine(settings.url.reveal()).connect() as connection:
                yield connection
            return
        path = reading.file_of(settings)
        if not path.is_file():
            raise reading.LedgerUnreadableError(reading.missing(settings))
        lock = FileLock(path)
        try:
            with opening.sqlite_engine(path).connect() as connection:
                yield connection
        finally:
            lock.release()
    except (DBAPIError, OSError, ModuleNotFoundError) as error:
        # The words of the database are left out: they may quote the address, and with it the password.
        reason = type(getattr(error, "orig", None) or error).__name__
    except columns.NewerSchemaError as error:
        raise reading.LedgerUnreadableError(str(error)) from None
    else:
        return
    raise reading.LedgerUnreadableError(
        f"The ledger cannot be written ({reason}). Check path or url under [ledger], and that this user may write there."
    )


def make_missing(settings: LedgerSettings) -> None:
    """Make an empty file where there is none. A daemon that has it makes it by itself. Raises ``LedgerUnreadableError``."""
    path = settings.file()
    if settings.url is not None or path.is_file():
        return
    try:
        lock = FileLock(path)
        try:
            with opening.sqlite_engine(path).connect() as connection:
                opening.migrate(connection)
        finally:
            lock.release()
    except AlreadyRunningError:
        pass
    except (DBAPIError, OSError) as error:
        raise reading.LedgerUnreadableError(
            f"The ledger {path} cannot be made ({type(error).__name__}). Check path under [ledger], and that this user may write there."
        ) from None


def remove_old(connection: Connection, keep_seconds: float) -> int:
    """Remove the requests older than ``keep_seconds``, in small transactions. Return how many."""
    removed = 0
    while True:
        with connection.begin():
            step = prune.requests_step(connection, keep_seconds)
        removed += step
        if step < prune.ROWS_PER_STEP:
            break
    with connection.begin():
        prune.old_holds(connection)
        prune.unused_names(connection, keep_seconds)
    more = True
    while more:
        with connection.begin():
            more = prune.shrink_step(connection)
    return removed


def replay(connection: Connection, ids: Collection[str] | None) -> int:
    """Have these dead letters (``None``: all) delivered again, if their usage is known. Return how many."""
    again = {"state": int(OutboxState.READY), "attempts": 0, "next_us": 0, "problem": None}
    known = func.coalesce(outbox.c.body, "").not_like(INTENT_BODY + "%")
    with connection.begin():
        return connection.execute(outbox.update().where(*_dead(ids), known).values(again)).rowcount


def delete(connection: Connection, ids: Collection[str] | None) -> int:
    """Delete these dead letters (``None``: all): their usage is never billed. Return how many."""
    with connection.begin():
        return connection.execute(outbox.delete().where(*_dead(ids))).rowcount


def _dead(ids: Collection[str] | None) -> list[ColumnElement[bool]]:
    dead = [outbox.c.state == int(OutboxState.DEAD)]
    return dead if ids is None else [*dead, outbox.c.id.in_([id_bytes(each) for each in ids])]


def change_stops(connection: Connection, choose: Callable[[list[Stop]], dict[Stop, bool]]) -> list[Stop]:
    """Store what ``choose`` says of the stops there are: stopped (True) or resumed (False). Return all stops.

    Raises ``columns.NewerSchemaError``.
    """
    with connection.begin():
        found = schema.version_of(connection)
        if found > columns.VERSION:
            raise columns.NewerSchemaError(found)
        return stop_rows.sync(connection, choose(stop_rows.sync(connection, {})))


def migrate(connection: Connection) -> int:
    """Bring the schema up to date. Return the version that was found. Raises ``columns.NewerSchemaError``."""
    with connection.begin():
        there = connection.dialect.has_table(connection, "meta")
        found = schema.version_of(connection) if there else 0
    opening.migrate(connection)
    return found
