"""What the gateway's budgets need from the ledger: sums of stored requests, room for a request, and prices.

The gateway defines all of them as protocols and does not import this module; ``app.py`` passes them in. SQLAlchemy is imported
in the writer's thread.
"""

from __future__ import annotations

import asyncio
import contextlib
from time import time
from typing import TYPE_CHECKING, Final, NamedTuple

from proxy.ledger.pricing import Prices
from proxy.ledger.writer import LedgerUnavailableError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection

    from proxy.ledger.holds import Claims
    from proxy.ledger.store import Stored
    from proxy.ledger.writer import Ledger
    from proxy.protocol.token_classes import TokenClasses

CLAIM_SECONDS: Final = 2.0
"""How long a request waits for the database of several daemons."""
EXTEND_SECONDS: Final = 10.0
"""A third of a lease."""

Sums = tuple[int, int, int]
"""Requests, tokens, and billionths of a dollar."""


class ClaimLimit(NamedTuple):
    """A limit: the beginning of its period, the index of its unit in ``Sums``, and the most."""

    since_us: int
    unit: int
    most: int


class Claimed(NamedTuple):
    """Whether there was room; and what was used, held, and held by other daemons before, by the beginning of the period."""

    granted: bool
    sums: dict[int, tuple[Sums, Sums, Sums]]


class Claim(NamedTuple):
    """A request that waits for room in its project's budget."""

    project: str
    request_id: str
    at_us: int
    amount: Sums
    limits: tuple[ClaimLimit, ...]
    answer: asyncio.Future[Claimed | None]


class LedgerSpending:
    """Sums from the ledger's rows, and the holds of several daemons on one database."""

    def __init__(self, ledger: Ledger, *, shared: bool) -> None:
        self._ledger = ledger
        self.shared = shared
        """Whether other daemons write there, too."""
        self._waiting: list[Claim] = []
        self._claiming: asyncio.Task[None] | None = None
        self._claims: Claims | None = None
        """Used in the writer's thread."""
        self._held: set[str] = set()
        """Requests in flight that have claimed something."""
        self._extending: asyncio.Task[None] | None = None
        ledger.in_batch.append(self._on_batch)

    async def spent(self, project: str, since_us: int) -> Sums:
        """Return requests that were sent, tokens, and billionths of a dollar, of requests received since then.

        Raises ``OSError`` if the ledger cannot be read now.
        """

        def read(connection: Connection) -> Sums:
            from proxy.ledger import queries

            return queries.spent(connection, project, since_us)[:3]

        try:
            return await self._ledger.run(read)
        except LedgerUnavailableError as error:
            raise OSError(str(error)) from None

    async def claim(
        self, project: str, request_id: str, at_us: int, amount: Sums, limits: Sequence[tuple[int, int, int]]
    ) -> tuple[bool, dict[int, tuple[Sums, Sums, Sums]]]:
        """Hold ``amount`` for a request if it fits into all ``limits``, in one step for all daemons.

        Raises ``OSError`` if the database does not answer in time. ``release`` is to be called at the request's end.
        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Claimed | None] = loop.create_future()
        asked = tuple(ClaimLimit(*limit) for limit in limits)
        self._held.add(request_id)
        self._waiting.append(Claim(project, request_id, at_us, amount, asked, answer))
        if self._claiming is None:
            self._claiming = loop.create_task(self._claim_all())
        timer = loop.call_later(CLAIM_SECONDS, _give_up, answer)
        try:
            found = await answer
        finally:
            timer.cancel()
            answer.cancel()  # the request does not wait any more
        if found is None:
            raise OSError("the ledger did not answer")
        return found

    async def _claim_all(self) -> None:
        """Answer what waits, all of it in one transaction; what comes meanwhile in the next one."""
        try:
            while self._waiting:
                claims, self._waiting = self._waiting, []
                await self._claim_once(claims)
        finally:
            self._claiming = None
        if self._extending is None:
            self._extending = asyncio.get_running_loop().create_task(self._extend())

    async def _claim_once(self, claims: list[Claim]) -> None:
        def work(connection: Connection) -> list[Claimed | None]:
            from proxy.ledger import holds

            if self._claims is None:
                self._claims = holds.Claims(self._ledger.daemon)
            return self._claims.grant(connection, claims)

        answers: list[Claimed | None] = [None] * len(claims)
        try:
            answers = await self._ledger.run(work)
        except LedgerUnavailableError:
            self._claims = None  # what it remembers may be undone; each request is decided without the ledger
        finally:
            for each, answer in zip(claims, answers, strict=True):
                if not each.answer.done():
                    each.answer.set_result(answer)

    async def _extend(self) -> None:
        """Extend the leases of the requests in flight, while there are any."""

        def work(connection: Connection) -> None:
            from proxy.ledger import holds

            holds.extend(connection, held)

        try:
            while self._held:
                await asyncio.sleep(EXTEND_SECONDS)
                held = list(self._held)
                if held:
                    with contextlib.suppress(LedgerUnavailableError):
                        await self._ledger.run(work)
        finally:
            self._extending = None

    def release(self, request_id: str) -> None:
        """End the claim of a request: its row goes when the request's own is written, or expires."""
        self._held.discard(request_id)

    def _on_batch(self, connection: Connection, stored: Sequence[Stored]) -> None:
        # In the writer's thread, in the transaction of the rows.
        ended = [each for each in stored if each.record.estimate_kept is not None]
        if ended:
            from proxy.ledger import holds

            holds.settle(connection, ended)


def _give_up(answer: asyncio.Future[Claimed | None]) -> None:
    if not answer.done():
        answer.set_result(None)


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
