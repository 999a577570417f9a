"""The daemon's reconciler: every ``ledger.reconcile_seconds`` while a cost is pending, for each account, by the ledger's writer.

It asks Lava for nothing while no request waits for its bill. Of several daemons on one PostgreSQL one does so. It is quiet while
Lava is away: one line when that begins, one when it is over, and longer pauses in between.
"""

from __future__ import annotations

import asyncio
import random
from importlib import import_module
from time import time
from typing import TYPE_CHECKING, Final

from proxy.config.settings import seconds_of
from proxy.ledger.accounts import LIST_RETRIES, accounts_of
from proxy.ledger.writer import LedgerUnavailableError
from proxy.protocol.tasks import BackgroundTask

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection

    from proxy.config.settings import Settings
    from proxy.lava.client import ApiSender
    from proxy.ledger.accounts import BillingAccount
    from proxy.ledger.reconcile import Progress
    from proxy.ledger.writer import Ledger

MAX_PAUSE_SECONDS: Final = 3600.0
PROGRESS_RECORDS: Final = 10_000


def pause(seconds: float, failures: int, luck: float) -> float:
    """Return the seconds to the next time, after so many failures in a row. ``luck`` is in [0, 1)."""
    longer = min(seconds * 2.0 ** min(failures, 16), max(seconds, MAX_PAUSE_SECONDS))
    # Spread, so that many daemons do not ask at once.
    return longer * (0.9 + 0.2 * luck)


class Reconciling:
    """Runs in the event loop. ``settings`` returns the current ones; ``sender`` carries the calls of an account."""

    def __init__(
        self,
        ledger: Ledger,
        settings: Callable[[], Settings],
        sender: Callable[[BillingAccount], ApiSender | None] = lambda account: None,
    ) -> None:
        self._ledger = ledger
        self._settings = settings
        self._sender = sender
        self._failures = 0
        self.reconciled = 0.0
        """When all accounts were read, or no request waited for its bill."""
        self._running = BackgroundTask(self._run)

    def start(self) -> None:
        """Begin. Do nothing if it runs."""
        self._running.start()

    async def aclose(self) -> None:
        """End at once: what a page was booked for stays, and the next start goes on."""
        await self._running.aclose()

    async def _run(self) -> None:
        while True:
            seconds = self._settings().ledger.reconcile_seconds
            await asyncio.sleep(pause(seconds, self._failures, random.random()))  # noqa: S311 - spreads
            settings = self._settings()
            if settings.ledger.reconcile and await self._is_due():
                await self._cycle(settings)

    async def _is_due(self) -> bool:
        """Whether a request waits for its bill, as far as the ledger can be read."""
        try:
            due = await self._ledger.run(_has_pending)
        except LedgerUnavailableError:
            return False
        if not due:
            self.reconciled = time()
        return due

    async def _cycle(self, settings: Settings) -> None:
        accounts = accounts_of(settings)
        if not accounts:
            return
        from proxy.lava.errors import LavaError

        await asyncio.to_thread(_load)
        problem = None
        leads = False
        for account in accounts:
            try:
                leads = await self._ledger.run(_leads)
                if leads:
                    await self._reconcile(settings, account)
            except (LavaError, LedgerUnavailableError) as error:
                problem = f"{account.scope}: {error}"
            except Exception as error:  # noqa: BLE001  (the border of the task: the next cycle tries again)
                problem = f"{account.scope}: {type(error).__name__}"
        if problem is not None:
            self._failures += 1
            if self._failures == 1:
                self._ledger.say(f"Costs cannot be read from Lava now, and are asked for again later ({problem}).")
            return
        if leads:
            self.reconciled = time()
        if self._failures:
            self._failures = 0
            self._ledger.say("Costs are read from Lava again.")

    async def _reconcile(self, settings: Settings, account: BillingAccount) -> None:
        from proxy.ledger.reconcile import Reconciler

        since = int((time() - seconds_of(settings.ledger.reconcile_since)) * 1e6)
        client = account.client(settings, self._sender(account), retries=LIST_RETRIES)
        shown = 0

        def show(progress: Progress) -> None:
            nonlocal shown
            if progress.records // PROGRESS_RECORDS > shown:
                shown = progress.records // PROGRESS_RECORDS
                self._ledger.say(f"{progress.records:,} records of {account.scope} are read so far.")

        async with client as lava:
            reconciler = Reconciler(
                lava, account, self._ledger, correlate=settings.ledger.correlate, learn=self._ledger.learn
            )
            await reconciler.cycle(since, show)


def _leads(connection: Connection) -> bool:
    from proxy.ledger.leases import Duty, leads

    return leads(connection, Duty.RECONCILE)


def _has_pending(connection: Connection) -> bool:
    from proxy.ledger.reconcile import has_pending

    return has_pending(connection)


def _load() -> None:
    """Import what a reconciliation needs, in a thread: it takes a fifth of a second the first time."""
    import_module("proxy.ledger.reconcile")
    import_module("proxy.lava.client")
