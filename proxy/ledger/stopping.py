"""Where the gateway's stops are kept. The gateway defines a protocol for it; ``app.py`` passes it in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.ledger.writer import LedgerUnavailableError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Connection

    from proxy.ledger.writer import Ledger
    from proxy.protocol.stop import Stop


class LedgerStops:
    """The rows of ``stops``, written in the writer's thread, where SQLAlchemy is imported."""

    def __init__(self, ledger: Ledger, *, shared: bool) -> None:
        self._ledger = ledger
        self.shared = shared
        """Whether other daemons write there, too."""

    async def sync(self, changes: Mapping[Stop, bool]) -> list[Stop]:
        """Store what was stopped (True) and resumed (False). Return all stops. Raises ``OSError`` if that is impossible now."""

        def work(connection: Connection) -> list[Stop]:
            from proxy.ledger import stop_rows

            return stop_rows.sync(connection, changes)

        try:
            return await self._ledger.run(work)
        except LedgerUnavailableError as error:
            raise OSError(str(error)) from None
