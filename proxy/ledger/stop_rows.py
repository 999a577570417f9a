"""The rows of ``stops``: what is stopped until it is resumed."""

from __future__ import annotations

from time import time
from typing import TYPE_CHECKING, Final

from sqlalchemy import text

from proxy.ledger.stopping import ALL
from proxy.protocol.stop import Stop

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Connection

_ADD: Final = text(
    "INSERT INTO stops (project, tool, session, stopped_us) VALUES (:project, :tool, :session, :now) "
    "ON CONFLICT (project, tool, session) DO NOTHING"
)
_REMOVE: Final = text("DELETE FROM stops WHERE project = :project AND tool = :tool AND session = :session")
_ALL: Final = text(ALL)


def sync(connection: Connection, changes: Mapping[Stop, bool]) -> list[Stop]:
    """Store what was stopped (True) and resumed (False). Return all stops."""
    for stop, is_stopped in changes.items():
        if is_stopped:
            connection.execute(_ADD, {**stop._asdict(), "now": int(time() * 1_000_000)})
        else:
            connection.execute(_REMOVE, stop._asdict())
    return [Stop(*row) for row in connection.execute(_ALL)]
