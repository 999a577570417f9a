"""Billing of usage that Lava cannot see: each request of such a provider is reported to Lava, once.

Theory. Before the upstream call an *intent* is committed; if that fails, nothing is sent. With the request's row its usage is
written beside the intent, and from then on it is a letter that is delivered until Lava has it: ``POST requests`` with our request
id, which is the ``Idempotency-Key``, too. Whatever happens in between, a letter is tried again; so before a try is repeated, Lava
is asked whether it has the record (what its answer to a repeated id means is not documented). A letter is marked as tried before
it is sent. So a daemon that is killed anywhere loses none and has none billed twice; an intent that it leaves behind is a dead
letter, because what its call used is not known.

Letters of a project are delivered in their order. A fault of Lava or of the network holds all of them; a letter that Lava refuses
is tried eight times, and lets the others pass meanwhile. Dead letters stay until they are replayed or deleted by hand
(``lava-proxy ledger dead-letters``).
"""

from __future__ import annotations

import asyncio
import contextlib
from importlib import import_module
from time import monotonic, time
from typing import TYPE_CHECKING, Final, NamedTuple

from proxy.ledger.writer import LedgerUnavailableError
from proxy.protocol.tasks import BackgroundTask

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy import Connection

    from proxy.config.settings import Settings
    from proxy.lava.client import ApiSender
    from proxy.ledger.accounts import BillingAccount
    from proxy.ledger.delivery import Delivery
    from proxy.ledger.outbox_rows import Waiting
    from proxy.ledger.store import Stored
    from proxy.ledger.writer import Ledger
    from proxy.protocol.record import Record

COMMIT_SECONDS: Final = 5.0
START_SECONDS: Final = 1.0
AGAIN_SECONDS: Final = 2.0
"""Pause after the ledger was away."""
COUNT_SECONDS: Final = 10.0
"""Counting a million rows takes the writer a tenth of a second."""
LOOK_SECONDS: Final = 60.0
"""How often it looks for letters that a command has replayed, once the outbox is used."""


class RequestEndedError(Exception):
    """The request ended before its intent was committed."""


class OutboxStatus(NamedTuple):
    """How many requests are to be reported, and how many are not reported by themselves any more."""

    waiting: int = 0
    dead: int = 0


class Outbox:
    """The outbox on the event loop's side. All methods but ``on_batch`` are called in its thread.

    ``settings`` returns the current ones; ``sender`` carries the calls to an account.
    """

    def __init__(
        self,
        ledger: Ledger,
        settings: Callable[[], Settings],
        sender: Callable[[BillingAccount], ApiSender | None] = lambda account: None,
    ) -> None:
        self.status = OutboxStatus()
        self._ledger = ledger
        self._settings = settings
        self._sender = sender
        self._wake = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._running = BackgroundTask(self._run)
        self._counted = -COUNT_SECONDS
        self._delivery: Delivery | None = None
        ledger.in_batch.append(self.on_batch)

    def start(self) -> None:
        """Begin to deliver. Do nothing if it runs."""
        self._loop = asyncio.get_running_loop()
        self._running.start()

    async def aclose(self) -> None:
        """End at once: what is not delivered is delivered after the next start."""
        await self._running.aclose()

    async def begin(self, record: Record) -> None:
        """Commit that the usage of this request will be reported. Raises ``OSError`` if that is impossible now."""
        record.intent = True
        project = self._settings().projects.get(record.project or "")
        payer = {
            "customer_id": (project.customer_id or project.connection_id) if project is not None else None,
            "meter_slug": project.meter if project is not None else None,
        }
        daemon, now = self._ledger.daemon, int(time() * 1e6)

        def add(connection: Connection) -> None:
            from proxy.ledger.outbox_rows import add_intent

            if record.outcome is not None:  # nothing would complete its intent
                raise RequestEndedError
            add_intent(connection, record, daemon, payer, now)

        try:
            async with asyncio.timeout(COMMIT_SECONDS):
                await self._ledger.run(add)
        except TimeoutError:
            raise OSError(f"no commit within {COMMIT_SECONDS:g} s") from None
        except LedgerUnavailableError as error:
            raise OSError(str(error)) from None
        except RequestEndedError:
            raise OSError("the request has ended") from None

    def on_batch(self, connection: Connection, stored: Sequence[Stored]) -> None:
        """Write the usage of these requests. In the writer's thread, in the transaction of their rows."""
        if any(each.record.intent for each in stored):
            from proxy.ledger.outbox_rows import complete

            if complete(connection, stored):
                self._notify()

    def _notify(self) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._wake.set)

    async def _run(self) -> None:
        await asyncio.sleep(START_SECONDS)
        shared = self._settings().ledger.url is not None
        recovered, used = -LOOK_SECONDS, shared
        while True:
            self._wake.clear()
            pause: float | None = AGAIN_SECONDS
            with contextlib.suppress(LedgerUnavailableError):
                # Again and again where other daemons may end.
                if recovered < 0 or (shared and monotonic() - recovered >= LOOK_SECONDS):
                    await self._recover()
                    recovered = monotonic()
                pause = await self._deliver()
                used = used or self.status != OutboxStatus() or pause is not None
                if pause is None or pause > LOOK_SECONDS:
                    pause = LOOK_SECONDS if used else None
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), pause)
                used = True

    async def _recover(self) -> None:
        await asyncio.to_thread(import_module, "proxy.ledger.outbox_rows")
        from proxy.ledger import outbox_rows

        daemon = self._ledger.daemon
        dead = await self._ledger.run(lambda connection: outbox_rows.recover(connection, daemon))
        if dead:
            self._ledger.say(
                f"The usage of {dead:,} requests is not known, because the daemon ended during them: see `lava-proxy ledger dead-letters`."
            )

    async def _deliver(self) -> float | None:
        from proxy.ledger import outbox_rows

        pause = None
        if await self._ledger.run(outbox_rows.projects):
            pause = await self._deliver_all()
        if monotonic() - self._counted >= COUNT_SECONDS or pause is None:
            await self._count()
        return pause

    async def _count(self) -> None:
        from proxy.ledger import outbox_rows

        waiting: Waiting = await self._ledger.run(outbox_rows.waiting)
        self._counted = monotonic()
        if waiting.dead > self.status.dead:
            self._ledger.say(
                f"{waiting.dead:,} usage records cannot be reported to Lava: see `lava-proxy ledger dead-letters`."
            )
        self.status = OutboxStatus(waiting.intents + waiting.ready, waiting.dead)

    async def _deliver_all(self) -> float | None:
        if self._delivery is None:
            await asyncio.to_thread(import_module, "proxy.ledger.delivery")
            from proxy.ledger.delivery import Delivery

            self._delivery = Delivery(self._ledger, self._settings, self._sender, self._ledger.say, self._ledger.mask)
        return await self._delivery.deliver()
