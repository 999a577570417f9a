"""The parts put together: ``create_app(settings)`` makes the ASGI application of one daemon.

A forwarded request meets the gate and then the forwarder, nothing else: no regex routing, no middleware. Only the few
control addresses are ordinary Starlette. Whatever was refused, forwarded or broken is recorded here, once.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from email.utils import formatdate
from functools import partial
from html import escape
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, Router

from proxy import HOMEPAGE, __version__, dialects, errors, gate, headers, routing
from proxy.errors import Fault
from proxy.express import Express, Ride
from proxy.flights import Flights
from proxy.forward import Admitted, Broken, Call, Forwarder, Receive, Scope, Send, shutting_down
from proxy.generation import Generation
from proxy.metrics import Metrics
from proxy.record import Outcome, Record
from proxy.redaction import Redactor
from proxy.routing import Kind
from proxy.upstream import create_engine

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request

    from proxy.settings import Settings
    from proxy.upstream import Engine

CONTROL = frozenset({b"/", b"/healthz", b"/readyz", b"/metrics"})
_LAVA_CODES = frozenset({"lava_unauthorized", "lava_insufficient_balance", "lava_spend_limit", "lava_forbidden"})
_LAVA_CODES |= frozenset({"lava_unsupported_target", "lava_error"})
_PROVIDER_CODES = frozenset({"provider_key_rejected", "provider_payment_required"})
_GENERATIONS_MASKED = 8
"""Configurations whose secrets are masked in the log: requests that began with an old one are still being told about."""
LAVA_DOCS = "https://www.lava.so/docs"


class Log(Protocol):
    """Where requests and faults are told (``logs.py``)."""

    def request(self, record: Any) -> None: ...
    def error(self, event: str, **fields: Any) -> None: ...
    def set_redactor(self, redactor: Redactor) -> None: ...
    def set_level(self, level: str) -> None: ...


class Runtime:
    """What lives as long as the daemon: the configuration in use, the requests in flight, the way down."""

    def __init__(self, settings: Settings, log: Log | None) -> None:
        self.generation = Generation(settings, _engine(settings))
        self.flights = Flights()
        self.draining = False
        self.log = log
        self.metrics = Metrics()
        self.retired: list[Generation] = []
        self._told = deque([settings], _GENERATIONS_MASKED)

    @property
    def settings(self) -> Settings:
        """The configuration that new requests get."""
        return self.generation.settings

    @property
    def in_flight(self) -> int:
        """Forwarded requests that are not over."""
        return len(self.flights)

    def begin_drain(self) -> None:
        """From now on new requests are refused; those in flight go on."""
        self.draining = self.flights.draining = True

    def cut(self) -> None:
        """End every request in flight: a stream gets an error in its own dialect, then a broken connection."""
        self.flights.end_all("shutdown")

    def reload(self, settings: Settings) -> None:
        """New requests get ``settings``; those in flight keep what they began with."""
        old = self.generation
        same = (
            settings.upstream == old.settings.upstream
            and settings.server.max_concurrent == old.settings.server.max_concurrent
        )
        engine = old.engine if same else _engine(settings)
        self.generation = Generation(settings, engine, old.inquiries)
        if not same:
            self.retired.append(old)
        self.metrics.config_reload(True)
        self._told.append(settings)
        if self.log is not None:
            self.log.set_redactor(Redactor(dict.fromkeys(secret for each in self._told for secret in each.secrets())))
            self.log.set_level(settings.log.level)

    def readable_by(self, origin: bytes, answer: headers.Pairs) -> headers.Pairs:
        """The headers of a refusal that was made before there was a request, for a page of this origin."""
        return gate.readable_by(origin, answer) if gate.is_listed(origin, self.generation) else answer

    def reload_failed(self, fault: Exception) -> None:
        """A new configuration was not good; the old one stays in use."""
        self.metrics.config_reload(False)

    async def close_retired(self, *, everything: bool = False) -> None:
        """Close the connections of configurations that no request uses any more."""
        for old in list(self.retired):
            if everything or old.in_flight == 0:
                self.retired.remove(old)
                await old.engine.aclose()

    async def aclose(self) -> None:
        """The end: close what was opened."""
        self.flights.close()
        await self.close_retired(everything=True)
        await self.generation.engine.aclose()


def _engine(settings: Settings) -> Engine:
    return create_engine(settings.upstream, settings.server.max_concurrent)


class App:
    """The ASGI application: gate, then control addresses or the forwarder."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self._forward = Forwarder(runtime.flights)
        self._control = _control(runtime)
        self._ids = errors.RequestIds()
        self._over: list[Record] = []
        self._express = Express(runtime, self._ids, self._record)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        if scope["type"] != "http":
            return
        runtime = self.runtime
        generation = runtime.generation
        connection = scope["extensions"].get("lava_proxy.connection") if "extensions" in scope else None
        # A tool sends the same head over and over: what was found out about it then is true now.
        admitted: Admitted | None = connection.memory.application if connection is not None else None
        ride: Ride | None = connection.ride if connection is not None else None
        if ride is not None:  # it has begun already, and only goes on here
            admitted, generation = ride.admitted, ride.admitted.generation
        elif admitted is not None and admitted.generation is not generation:
            admitted = None
        received = headers.read(scope["headers"]) if admitted is None else admitted.received
        raw_path: bytes = scope.get("raw_path") or b"/"
        if ride is not None:
            record = ride.record
        else:
            record = Record(self._ids.next(), scope["method"], raw_path.decode("ascii", "replace"), monotonic())
            runtime.metrics.started()
        call = Call(scope, receive, send, generation, received, record, connection)
        # Health probes are asked every few seconds: only what went wrong with one is worth a line.
        recorded = raw_path not in CONTROL
        try:
            if admitted is None:
                admitted = await self._admit(call, raw_path)
            if admitted is not None:
                call.admission, call.dialect = admitted.admission, admitted.place.dialect
                if runtime.draining and ride is None:
                    raise shutting_down()
                await self._forward(call, admitted)
        except Fault as fault:
            recorded = True
            await self._refuse(call, fault)
        except Broken:
            self._break_off(call)
        except Exception as error:  # noqa: BLE001  (the border: a fault of ours must not look like anybody else's)
            recorded = True
            await self._fail(call, error)
        finally:
            self._record(record) if recorded else runtime.metrics.passed()
            if call.opened is not None:  # after the record: nobody can end the flight any more
                await call.opened.aclose()
            if runtime.retired:
                await runtime.close_retired()

    async def _admit(self, call: Call, path: bytes) -> Admitted | None:
        """Gate and router. ``None`` where the request is not to be forwarded: then it is answered. Raises ``Fault``."""
        received, generation = call.received, call.generation
        origin = gate.listed_origin(received, generation)
        if origin is not None:  # before anything is judged: its page may read refusals, too
            call.send, call.direct = _readable_by(origin, call.send), None
        host = gate.check_host(received, path, call.scope.get("server"), generation)
        if origin is None:
            gate.check_origin(received, host)
        elif call.record.method == "OPTIONS" and b"access-control-request-method" in received.noted:
            await _answer(call, 204, [*gate.preflight(received), *_ours()])
            return None
        query: bytes = call.scope.get("query_string", b"")
        admission = call.admission = gate.check_key(received, path, generation, method=call.record.method, query=query)
        if call.connection is not None and path not in gate.OPEN_PATHS:
            call.connection.passed_gate()
        if path in CONTROL:
            await self._at_control(call, path)
            return None
        if self.runtime.draining:
            raise shutting_down()
        place = generation.locate(call.record.method, path, received.noted)
        call.dialect = place.dialect
        project = routing.choose_project(
            admission.project, place.project, received.noted.get(headers.PROXY_PROJECT), generation.table
        )
        if place.kind is Kind.INFO:
            await _send_response(call, _info(call))
            return None
        admitted = Admitted(
            generation, received, admission, place, project, call.record.method, call.record.path, query
        )
        if call.connection is not None and origin is None:  # a page's answers need its headers each time
            memory = call.connection.memory
            memory.application = admitted
            memory.shortcut = partial(self._express.take, admitted) if admitted.repeats else None
        return admitted

    async def _at_control(self, call: Call, path: bytes) -> None:
        if call.record.method not in ("GET", "HEAD"):
            raise Fault(
                "method_not_allowed",
                f"Only GET is served at {path.decode('ascii')}.",
                "Use GET; API requests go to /v1/… or /<provider>/….",
                headers=[(b"allow", b"GET, HEAD")],
            )
        if path == b"/metrics" and call.admission.project is not None:
            raise Fault(
                "project_not_allowed",
                f'This local key belongs to project "{call.admission.project}"; the metrics are of all projects.',
                "Use a key under [server].",
            )
        if path == b"/":
            await _send_response(call, _info(call))
            return
        await self._control(call.scope, call.receive, _completed(call.send))

    async def _refuse(self, call: Call, fault: Fault) -> None:
        """Answer with a fault, in the client's dialect."""
        record = call.record
        record.error_code, record.status = fault.code, fault.status
        if record.outcome is Outcome.OK:
            record.outcome = _outcome(fault.code)
        if call.answering:  # a fault after the head was sent cannot be told any more
            self._break_off(call)
            return
        dialect = call.dialect or dialects.of_path(call.path, call.generation.table.providers, record.method)
        # A message may quote the request, and a key may stand in the wrong place of it; tools log our messages.
        fault.mask(call.generation.redactor_of_all().text)
        reply = errors.render(
            fault,
            dialect or dialects.of_headers(call.received.noted),
            record.request_id,
            project=record.project,
            provider=record.provider,
        )
        record.bytes_out = len(reply.body)
        await _answer(call, reply.status, reply.headers, reply.body)

    async def _fail(self, call: Call, error: Exception) -> None:
        """A fault of our own code: said plainly, logged with its place but never with values."""
        if self.runtime.log is not None:
            self.runtime.log.error("internal error", request_id=call.record.request_id, exc_info=error)
        call.record.outcome = Outcome.REFUSED
        fault = Fault(
            "internal_error",
            "lava-proxy itself failed on this request.",
            "Look into its log for this request id, and report it.",
        )
        await self._refuse(call, fault)

    def _break_off(self, call: Call) -> None:
        """Leave the answer without its end."""
        if call.connection is not None:
            call.connection.abort()

    def _record(self, record: Record) -> None:
        """A request is over. It is counted and told when the loop turns, after the answers of this turn have left, together
        with all others that end in it: the same work done in a row takes half the time."""
        record.duration_s = monotonic() - record.started
        if not self._over:
            asyncio.get_running_loop().call_soon(self._tell)
        self._over.append(record)

    def _tell(self) -> None:
        over, self._over = self._over, []
        finished, log = self.runtime.metrics.finished, self.runtime.log
        for record in over:
            finished(
                record.project,
                record.provider,
                record.status,
                record.outcome,
                record.first_byte_s,
                record.duration_s,
            )
            if log is not None:
                log.request(record)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            try:
                message = await receive()
            except asyncio.CancelledError:
                return  # an end at once; uvicorn would log the cancellation as a fault, with its traceback
            if message["type"] == "lifespan.startup":
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                await self.runtime.aclose()
                await send({"type": "lifespan.shutdown.complete"})
                return


def create_app(settings: Settings, *, log: Log | None = None) -> App:
    """The application of a daemon with these settings. Opens nothing before the first request.

    ``.runtime`` is its handle for the server: draining, cutting, reloading.
    """
    return App(Runtime(settings, log))


def _outcome(code: str) -> Outcome:
    if code in _LAVA_CODES:
        return Outcome.LAVA_ERROR
    if code in _PROVIDER_CODES:
        return Outcome.PROVIDER_ERROR
    if code.startswith("upstream_"):
        return Outcome.TIMEOUT if code == "upstream_timeout" else Outcome.UPSTREAM_ERROR
    return Outcome.REFUSED


async def _answer(call: Call, status: int, pairs: headers.Pairs, body: bytes = b"") -> None:
    call.answering = True
    call.record.status = status
    await call.send({"type": "http.response.start", "status": status, "headers": pairs})
    await call.send({"type": "http.response.body", "body": body, "more_body": False})


def _readable_by(origin: bytes, send: Send) -> Send:
    """``send`` for a page of a listed origin: every answer says that this page may read it."""

    async def readable(message: Any) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": gate.readable_by(origin, message["headers"])}
        await send(message)

    return readable


def _ours() -> headers.Pairs:
    return [(b"date", formatdate(usegmt=True).encode("ascii")), *errors.GUARDED]


def _completed(send: Send) -> Send:
    async def completed(message: Any) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], *_ours()]}
        await send(message)

    return completed


# --- control addresses -----------------------------------------------------------------------------------------------


_WHAT = "a local forwarding proxy for the Lava AI gateway; point your tool's base URL here"
_BASE_URLS = {"openai": "/v1", "anthropic": "/", "google": "/", "one provider": "/<provider>/v1"}


def _info(call: Call) -> Response:
    """What this is, for whoever asks a base address: JSON, or a page where a browser asks."""
    if b"text/html" in call.received.noted.get(b"accept", b""):
        rows = "".join(f"<li>{escape(who)}: <code>{escape(path)}</code></li>" for who, path in _BASE_URLS.items())
        page = (
            "<!doctype html><html lang=en><meta charset=utf-8><title>lava-proxy</title><h1>lava-proxy</h1>"
            f"<p>{escape(_WHAT)}.</p><p>Base URLs:</p><ul>{rows}</ul>"
            f'<p><a href="{HOMEPAGE}" rel="noreferrer">The documentation of lava-proxy</a>, '
            f'<a href="{LAVA_DOCS}" rel="noreferrer">and Lava\'s</a></p></html>'
        )
        policy = {"content-security-policy": "default-src 'none'", "x-frame-options": "DENY"}
        return Response(page, media_type="text/html", headers=policy)
    about = {
        "name": "lava-proxy",
        "version": __version__,
        "what": _WHAT,
        "base_urls": _BASE_URLS,
        "health": ["/healthz", "/readyz"],
        "docs": HOMEPAGE,
        "lava_docs": LAVA_DOCS,
    }
    return Response(json.dumps(about, indent=2) + "\n", media_type="application/json")


async def _send_response(call: Call, response: Response) -> None:
    await _answer(call, response.status_code, [*response.raw_headers, *_ours()], bytes(response.body))


def _control(runtime: Runtime) -> Callable[..., Any]:
    def healthz(request: Request) -> Response:
        return _json(200, {"status": "ok"})

    def readyz(request: Request) -> Response:
        reason = "draining" if runtime.draining else runtime.generation.usable()
        if reason is not None:
            return _json(503, {"status": "not ready", "reason": reason})
        return _json(200, {"status": "ok"})

    def metrics(request: Request) -> Response:
        body, content_type = runtime.metrics.render()
        return PlainTextResponse(body, headers={"content-type": content_type})

    # Coroutines, or Starlette would run each in a thread of its own.
    async def serve(request: Request) -> Response:
        return {"/healthz": healthz, "/readyz": readyz, "/metrics": metrics}[request.scope["path"]](request)

    # The bare router: a whole Starlette application answers a fault of ours itself, in a form that is nobody's.
    return Router([Route(path, serve) for path in ("/healthz", "/readyz", "/metrics")])


def _json(status: int, document: dict[str, str]) -> Response:
    return Response(json.dumps(document), status, media_type="application/json")
