"""Removal of what is older than ``ledger.keep``, in small steps. Rollups stay."""

from __future__ import annotations

import sqlite3
from time import time
from typing import TYPE_CHECKING, Final

from sqlalchemy import bindparam, text

from proxy.ledger.columns import Kind, State

if TYPE_CHECKING:
    from sqlalchemy import Connection

ROWS_PER_STEP: Final = 500
PAGES_PER_STEP: Final = 200
DAY_US: Final = 86_400_000_000
NAMES_MARGIN_US: Final = 2 * DAY_US
"""``names.used_us`` is right within this time."""

HOLDS_US: Final = 32 * DAY_US
"""Longer than any period of a budget."""

FOREVER: Final = (Kind.PROJECT, Kind.PROVIDER, Kind.MODEL, Kind.TOOL, Kind.OUTCOME)
"""Kinds that rollups refer to."""

_OLD = text("SELECT seq FROM requests WHERE received_us < :before AND state <> :open ORDER BY received_us LIMIT :rows")
_DELETE_ATTEMPTS = text("DELETE FROM attempts WHERE request IN :seqs").bindparams(bindparam("seqs", expanding=True))
_DELETE_REQUESTS = text("DELETE FROM requests WHERE seq IN :seqs").bindparams(bindparam("seqs", expanding=True))
_DELETE_HOLDS = text("DELETE FROM holds WHERE at_us < :before OR expires_us < :expired")
_DELETE_NAMES = text("DELETE FROM names WHERE used_us < :before AND kind NOT IN :forever").bindparams(
    bindparam("forever", expanding=True)
)


def requests_step(connection: Connection, keep_seconds: float) -> int:
    """Delete up to 500 of the oldest requests with their attempts, in the caller's transaction. Return how many."""
    before = int((time() - keep_seconds) * 1e6)
    seqs = connection.execute(_OLD, {"before": before, "open": int(State.OPEN), "rows": ROWS_PER_STEP}).scalars().all()
    if seqs:
        connection.execute(_DELETE_ATTEMPTS, {"seqs": seqs})
        connection.execute(_DELETE_REQUESTS, {"seqs": seqs})
    return len(seqs)


def unused_names(connection: Connection, keep_seconds: float) -> int:
    """Delete the names that no request refers to any more, in the caller's transaction. Return how many."""
    before = int((time() - keep_seconds) * 1e6) - NAMES_MARGIN_US
    forever = [int(kind) for kind in FOREVER]
    return connection.execute(_DELETE_NAMES, {"before": before, "forever": forever}).rowcount


def old_holds(connection: Connection) -> int:
    """Delete the estimates that count against no budget any more, in the caller's transaction. Return how many."""
    now = int(time() * 1e6)
    return connection.execute(_DELETE_HOLDS, {"before": now - HOLDS_US, "expired": now - DAY_US}).rowcount


def shrink_step(connection: Connection) -> bool:
    """Give up to 200 free pages of a SQLite file back, in a transaction of its own. Return whether there are more."""
    database = connection.connection.dbapi_connection
    if not isinstance(database, sqlite3.Connection):
        return False
    free = int(database.execute("PRAGMA freelist_count").fetchone()[0])
    if free:
        # The statement frees a page per step, and ``execute`` makes one step of a statement without rows.
        database.executescript(f"PRAGMA incremental_vacuum({PAGES_PER_STEP})")
    return free > PAGES_PER_STEP
