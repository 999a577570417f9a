"""What the gateway's budgets need from the ledger: sums of stored requests, and prices.

The gateway defines both as protocols and does not import this module; ``app.py`` passes them in. SQLAlchemy is imported in the
writer's thread.
"""

from __future__ import annotations

import asyncio
from time import time
from typing import TYPE_CHECKING

from proxy.ledger.pricing import Prices
from proxy.ledger.writer import LedgerUnavailableError

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from proxy.ledger.writer import Ledger
    from proxy.protocol.token_classes import TokenClasses


class LedgerSpending:
    """Sums from the ledger's rows."""

    def __init__(self, ledger: Ledger, *, shared: bool) -> None:
        self._ledger = ledger
        self.shared = shared
        """Whether other daemons write there, too."""

    async def spent(self, project: str, since_us: int) -> tuple[int, int, int]:
        """Return requests that may have been sent, tokens, and billionths of a dollar, of requests received since then.

        Refused requests are left out. Raises ``OSError`` if the ledger cannot be read now.
        """

        def read(connection: Connection) -> tuple[int, int, int]:
            from proxy.ledger import queries

            found = queries.spent(connection, project, since_us)
            try:
                refused = queries.sums(
                    connection, queries.Filter(project=project, outcome="refused", since_us=since_us)
                ).requests
            except queries.UnknownNameError:
                refused = 0
            return found.requests - refused, found.tokens, found.nano

        try:
            return await self._ledger.run(read)
        except LedgerUnavailableError as error:
            raise OSError(str(error)) from None


class LedgerPricer:
    """Estimates by the prices that the ledger's rows are estimated by. ``load`` reads the tables in another thread."""

    def __init__(self, prices: Prices | None = None) -> None:
        self._prices = prices or Prices()

    async def load(self) -> None:
        """Read the price tables, if they have not been read."""
        await asyncio.to_thread(self._prices.load)

    def nano(self, provider: str, model: str | None, tokens: TokenClasses) -> int | None:
        """Return the cost in billionths of a dollar; ``None`` if it is unknown."""
        found = self._prices.estimate(provider, model, tokens, int(time() * 1_000_000))
        return None if found is None else found.nano

    def dearest(self, provider: str) -> int | None:
        """Return the highest known price of a provider, in billionths of a dollar per million tokens."""
        return self._prices.highest(provider)
