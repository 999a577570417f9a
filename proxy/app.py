"""Wiring: ``create_app(settings)`` makes the ASGI application of one daemon."""

from __future__ import annotations

from asyncio import CancelledError
from contextlib import suppress
from typing import TYPE_CHECKING

from starlette.applications import Starlette

from proxy.gateway import pages
from proxy.gateway.destinations.account_probe import ProbeSender
from proxy.gateway.gateway import Gateway
from proxy.http.asgi import ASGIExchange
from proxy.ledger.budgeting import LedgerPricer, LedgerSpending
from proxy.ledger.outbox import Outbox
from proxy.ledger.reconciling import Reconciling
from proxy.ledger.stopping import LedgerStops
from proxy.observe.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import Receive, Scope, Send

    from proxy.config.settings import Settings
    from proxy.gateway.gateway import RequestLog
    from proxy.http.exchange import Exchange
    from proxy.lava.client import ApiSender
    from proxy.ledger.accounts import BillingAccount
    from proxy.ledger.writer import Ledger


class Application(Starlette):
    """Serves every request with ``gateway.serve``; the control pages are its ordinary routes.

    The strict protocol of this package calls ``take_exchange``, any other ASGI server calls ``__call__``, with the same
    responses. The daemon uses ``runtime``: drain, cut, reload.
    """

    def __init__(self, settings: Settings, log: RequestLog | None, ledger: Ledger | None) -> None:
        metrics = Metrics(
            lambda: len(gateway.registry),
            ledger.status if ledger is not None else None,
            (lambda: self._outbox.status) if ledger is not None else None,
            (lambda: self._reconciling.reconciled) if ledger is not None else None,
        )
        spending = LedgerSpending(ledger, shared=settings.ledger.url is not None) if ledger is not None else None
        stops = LedgerStops(ledger, settings.ledger) if ledger is not None else None
        pricer = LedgerPricer(ledger.prices if ledger is not None else None)
        gateway = self.runtime = Gateway(settings, log, metrics, stops, spending, pricer)
        self._ledger = ledger
        if ledger is not None:
            gateway.observers.append(ledger.observe)
            gateway.registry.watch = ledger.watch
            self._reconciling = Reconciling(ledger, lambda: gateway.settings, self._sender)
            gateway.intents = self._outbox = Outbox(ledger, lambda: gateway.settings, self._sender)
        super().__init__(routes=pages.routes(gateway))
        # Without Starlette's middleware, which would respond to a fault of ours itself, in no client's dialect.
        gateway.routes = self.router
        self.take_exchange: Callable[[Exchange], None] = gateway.take_exchange
        """Start serving an exchange; see ``http.asgi.TakesExchanges``."""

    def _sender(self, account: BillingAccount) -> ApiSender:
        """Return what carries the reconciler's calls: the engine, so that no second HTTP client is loaded."""
        config = self.runtime.config
        return ProbeSender(config.engine, config.destination.address(account.projects[0]))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "http":
            await ASGIExchange(scope, receive, send).serve(self.runtime.take_exchange)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        # Starlette's own would log a traceback if it is cancelled, as it is when a second signal ends the daemon at once.
        with suppress(CancelledError):
            await receive()
            if self._ledger is not None:
                self._ledger.start()
                self._outbox.start()
                self._reconciling.start()
                self.runtime.stops.start()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await self.runtime.aclose()
            if self._ledger is not None:
                await self._reconciling.aclose()
                await self._outbox.aclose()
                await self._ledger.aclose()
            await send({"type": "lifespan.shutdown.complete"})


def create_app(
    settings: Settings | None = None, *, log: RequestLog | None = None, ledger: Ledger | None = None
) -> Application:
    """Return the application of a daemon with these settings, or with those of the user's configuration.

    It opens nothing before the first request, but for the ``ledger``, if one is given: that starts with the application. ``uvicorn --factory proxy.app:create_app`` runs it.
    """
    if settings is None:
        from proxy.config.settings import load

        settings = load()
    return Application(settings, log, ledger)
