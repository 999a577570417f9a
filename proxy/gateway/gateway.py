"""State with the lifetime of the daemon: the config snapshot, the active requests, the observers, the shutdown."""

from __future__ import annotations

import asyncio
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Protocol

from proxy.gateway import access
from proxy.gateway.active_config import ActiveConfig
from proxy.gateway.active_request import ActiveRequest, Registry
from proxy.gateway.admission import Admission
from proxy.gateway.model_list import ModelList
from proxy.gateway.request_body import BodyBudget
from proxy.gateway.serve import serve
from proxy.gateway.stops import Stops
from proxy.protocol import errors
from proxy.protocol.record import Record
from proxy.protocol.redaction import Redactor
from proxy.protocol.tasks import RequestTask
from proxy.upstream import create_engine

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.config.settings import Settings
    from proxy.gateway.admission import Pricer, Spending
    from proxy.gateway.dispatch import Intents
    from proxy.gateway.stops import StopStore
    from proxy.http.asgi import Application
    from proxy.http.exchange import Exchange, Pairs
    from proxy.upstream import Engine

MAX_MASKED_CONFIGS = 8
"""Number of configurations whose secrets are masked in the log: requests of an older one are still logged."""


class RequestLog(Protocol):
    """Logs requests and faults (``observe/logs.py``)."""

    def request(self, record: Record) -> None: ...
    def warning(self, event: str, **fields: object) -> None: ...
    def error(self, event: str, **fields: object) -> None: ...
    def set_redactor(self, redactor: Redactor) -> None: ...
    def set_level(self, level: str) -> None: ...


class RequestMetrics(Protocol):
    """Counts requests and reloads (``observe/metrics.py``)."""

    def observe(self, record: Record) -> None: ...
    def config_reload(self, ok: bool) -> None: ...
    def render(self) -> tuple[bytes, str]: ...


class Gateway:
    """Serves exchanges. ``routes`` are the control pages, as an ASGI application."""

    routes: Application

    def __init__(
        self,
        settings: Settings,
        log: RequestLog | None,
        metrics: RequestMetrics,
        stop_store: StopStore | None = None,
        spending: Spending | None = None,
        pricer: Pricer | None = None,
    ) -> None:
        self.config = ActiveConfig(settings, _engine(settings))
        self.registry = Registry()
        self.stops = Stops(stop_store, self.registry.stop, self._warn)
        self.admission = Admission(self.registry, self.stops, self._warn, spending, pricer)
        self.bodies = BodyBudget()
        self.models = ModelList()
        self.log = log
        self.metrics = metrics
        self.observers: list[Callable[[Record], None]] = [metrics.observe]
        if log is not None:
            self.observers.append(log.request)
        self.intents: Intents | None = None
        """Where requests whose usage is reported afterwards are committed before they are sent."""
        self._ids = errors.RequestIds()
        self._retired: list[ActiveConfig] = []
        self._masked = deque([settings], MAX_MASKED_CONFIGS)
        self._finished: list[Record] = []

    def take_exchange(self, exchange: Exchange) -> None:
        """Start serving ``exchange`` and return at its first wait."""
        task = _ExchangeTask(self, exchange)
        task.start(serve(exchange, self, task))

    # one request

    def open(self, exchange: Exchange, task: RequestTask) -> ActiveRequest:
        """Return the active request of ``exchange``, with the current configuration."""
        record = Record(self._ids.next(), exchange.head.method, "", monotonic())
        active = ActiveRequest(exchange, self.config, record, task, self.registry, self.bodies)
        self.registry.add(active)
        exchange.on_disconnect(active.client_left)
        return active

    def release(self, active: ActiveRequest) -> None:
        """Remove the request from the registry and pass its record to the observers.

        The observers are called in the next turn of the loop, after the responses of this turn have left, for all requests
        that ended in it. Done in one batch, the same work takes half the time.
        """
        if active.budget is not None:
            try:
                active.budget.settle(active)
            except Exception as error:  # noqa: BLE001  (a fault there must not keep the request in the registry)
                self.log_error(error, active.record.request_id)
        self.registry.remove(active)
        record, response = active.record, active.response
        record.duration_s = monotonic() - record.started
        if record.outcome is not None:
            if not self._finished:
                asyncio.get_running_loop().call_soon(self._observe)
            self._finished.append(record)
        if active.body is not None:
            active.body.close()
        if response is not None:
            response.close()
        if self._retired:
            self._close_retired()

    def _observe(self) -> None:
        finished, self._finished = self._finished, []
        for observer in self.observers:
            for record in finished:
                try:
                    observer(record)
                except Exception as error:  # noqa: BLE001  (one observer's fault must not keep a record from the others)
                    self.log_error(error, record.request_id)

    def _warn(self, sentence: str) -> None:
        if self.log is not None:
            self.log.warning(sentence)

    def log_error(self, error: Exception, request_id: str) -> None:
        """Log a fault of our own, with its traceback but never with values."""
        if self.log is not None:
            self.log.error("internal error", request_id=request_id, exc_info=error)

    # the daemon

    @property
    def settings(self) -> Settings:
        """The settings for new requests."""
        return self.config.settings

    def begin_drain(self) -> None:
        """Refuse new requests from now on. Active requests continue."""
        self.registry.draining = True

    def cut(self) -> None:
        """End every active request: a stream gets an error event in its own dialect, then its connection is aborted."""
        self.registry.end_all("shutdown")

    def reload(self, settings: Settings) -> None:
        """Use ``settings`` for new requests. Active requests keep their configuration."""
        old = self.config
        same = (
            settings.upstream == old.settings.upstream
            and settings.server.max_concurrent == old.settings.server.max_concurrent
        )
        self.config = ActiveConfig(settings, old.engine if same else _engine(settings), old.inquiries)
        if not same:
            self._retired.append(old)
            self._close_retired()
        self.metrics.config_reload(True)
        self._masked.append(settings)
        if self.log is not None:
            self.log.set_redactor(Redactor(dict.fromkeys(secret for each in self._masked for secret in each.secrets())))
            self.log.set_level(settings.log.level)

    def readable_by(self, origin: bytes, answer: Pairs) -> Pairs:
        """Return the headers of a refusal without a request, readable for a page of ``origin`` if it is listed."""
        return access.readable_by(origin, answer) if access.is_listed(origin, self.config) else answer

    def reload_failed(self, fault: Exception) -> None:
        """Count a reload that failed. The old configuration stays in use."""
        self.metrics.config_reload(False)

    def _close_retired(self) -> None:
        """Close the connections of configurations without active requests."""
        for old in [old for old in self._retired if not self.registry.uses(old)]:
            self._retired.remove(old)
            old.engine.close()

    async def aclose(self) -> None:
        """Close the engines and stop the registry."""
        await self.stops.aclose()
        self.registry.close()
        for old in self._retired:
            await old.engine.aclose()
        await self.config.engine.aclose()


class _ExchangeTask(RequestTask):
    """Serves one exchange."""

    __slots__ = ("_exchange", "_gateway")

    def __init__(self, gateway: Gateway, exchange: Exchange) -> None:
        super().__init__()
        self._gateway = gateway
        self._exchange = exchange

    def failed(self, error: Exception) -> None:
        self._gateway.log_error(error, "")
        self._exchange.fail()


def _engine(settings: Settings) -> Engine:
    return create_engine(settings.upstream, settings.server.max_concurrent)
