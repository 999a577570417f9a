"""Where the gateway's stops are kept. The gateway defines a protocol for it; ``app.py`` passes it in."""

from __future__ import annotations

import asyncio
from contextlib import closing
from typing import TYPE_CHECKING, Final

from proxy.ledger.writer import LedgerUnavailableError
from proxy.protocol.stop import Stop

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from sqlalchemy import Connection

    from proxy.config.settings import LedgerSettings
    from proxy.ledger.writer import Ledger

ALL: Final = "SELECT project, tool, session FROM stops ORDER BY stopped_us, project, tool, session"
_BUSY_SECONDS: Final = 1.0


class LedgerStops:
    """The rows of ``stops``, written in the writer's thread, where SQLAlchemy is imported."""

    def __init__(self, ledger: Ledger, settings: LedgerSettings) -> None:
        self.shared = settings.url is not None
        """Whether other daemons write there, too."""
        self._ledger = ledger
        self._glanced_at = settings.file() if settings.url is None else None

    async def sync(self, changes: Mapping[Stop, bool]) -> list[Stop]:
        """Store what was stopped (True) and resumed (False). Return all stops. Raises ``OSError`` if that is impossible now."""
        path, self._glanced_at = self._glanced_at, None
        if path is not None and not changes:
            found = await asyncio.to_thread(_glance, path)
            if found is not None:
                return found

        def work(connection: Connection) -> list[Stop]:
            from proxy.ledger import stop_rows

            return stop_rows.sync(connection, changes)

        try:
            return await self._ledger.run(work)
        except LedgerUnavailableError as error:
            raise OSError(str(error)) from None


def _glance(path: Path) -> list[Stop] | None:
    """Read the stops of a file without SQLAlchemy: the first request waits for them, not for its import.

    Return ``None`` if the writer's thread has to look.
    """
    import sqlite3

    try:
        if not path.exists():
            return []
        uri = f"{path.absolute().as_uri()}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True, timeout=_BUSY_SECONDS)) as connection:
            return [Stop(*row) for row in connection.execute(ALL)]
    except (sqlite3.Error, OSError):
        return None
