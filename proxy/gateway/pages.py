"""Responses without an upstream: control pages, the description of this daemon, preflights."""

from __future__ import annotations

import json
from html import escape
from typing import TYPE_CHECKING

from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from proxy import HOMEPAGE, SUMMARY, __version__
from proxy.gateway import access, control
from proxy.gateway.active_request import Phase
from proxy.http import asgi
from proxy.protocol import errors
from proxy.protocol.errors import ProxyError
from proxy.protocol.headers import http_date
from proxy.protocol.record import Outcome
from proxy.protocol.tasks import in_task

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request

    from proxy.gateway.active_request import ActiveRequest
    from proxy.gateway.gateway import Gateway
    from proxy.gateway.template import Page, Template
    from proxy.http.exchange import Pairs

_READ = ("GET", "HEAD")
CONTROL = {
    b"/": _READ,
    b"/healthz": _READ,
    b"/readyz": _READ,
    b"/metrics": _READ,
    b"/api/stops": _READ,
    b"/api/stop": ("POST",),
    b"/api/resume": ("POST",),
}
"""The methods of each control page."""
_CONTROL_PATHS = frozenset(path.decode("ascii") for path in CONTROL)


def page_at(template: Template, *, by_socket: bool) -> Page | None:
    """Return the control page of a request, or ``None``. Raises ``ProxyError`` if this request may not have it.

    ``by_socket``: it came over the unix socket.
    """
    path, caller = template.path, template.caller
    methods = CONTROL.get(path)
    if methods is None:
        return None
    if path in access.OWNER_PATHS:
        control.check_caller(template.received, caller, by_socket=by_socket)
    if template.method not in methods:
        raise ProxyError(
            "method_not_allowed",
            f"Only {methods[0]} is served at {path.decode('ascii')}.",
            f"Use {methods[0]}; API requests go to /v1/… or /<provider>/….",
            headers=[(b"allow", ", ".join(methods).encode("ascii"))],
        )
    if path == b"/metrics" and caller.project is not None:
        raise ProxyError(
            "project_not_allowed",
            f'This local key belongs to project "{caller.project}"; the metrics are of all projects.',
            "Use a key under [server].",
        )
    return about if path == b"/" else routed


async def preflight(gateway: Gateway, active: ActiveRequest, template: Template) -> bool:
    """Respond to a preflight of a listed origin."""
    _respond(active, 204, [*access.preflight(template.received), *_ours()], b"")
    return True


async def routed(gateway: Gateway, active: ActiveRequest, template: Template) -> bool:
    """Respond with the application's Starlette routes."""
    active.answering = True
    active.wait(Phase.WRITE)  # the page is ready at once; only a client that does not read can take long
    origin, routes = template.origin, gateway.routes

    async def application(scope: asgi.Scope, receive: asgi.Receive, send: asgi.Send) -> None:
        async def amended(message: asgi.Message) -> None:
            if message["type"] == "http.response.start":
                headers = [*message["headers"], *_ours()]
                message["headers"] = headers if origin is None else access.readable_by(origin, headers)
            await send(message)

        await routes(scope, receive, amended)

    await in_task(asgi.run(application, active.exchange, {"request_id": active.record.request_id}))
    return True


async def about(gateway: Gateway, active: ActiveRequest, template: Template) -> bool:
    """Describe this daemon: as JSON, or as a page for a browser."""
    destination = active.config.destination
    if b"text/html" in template.received.noted.get(b"accept", b""):
        rows = "".join(f"<li>{escape(who)}: <code>{escape(path)}</code></li>" for who, path in _BASE_URLS.items())
        page = (
            "<!doctype html><html lang=en><meta charset=utf-8><title>lava-proxy</title><h1>lava-proxy</h1>"
            f"<p>{escape(_WHAT)}.</p><p>Base URLs:</p><ul>{rows}</ul>"
            f'<p><a href="{HOMEPAGE}" rel="noreferrer">The documentation of lava-proxy</a>, '
            f'<a href="{destination.docs}" rel="noreferrer">and {destination.name}\'s</a></p></html>'
        )
        policy = {"content-security-policy": "default-src 'none'", "x-frame-options": "DENY"}
        response = Response(page, media_type="text/html", headers=policy)
    else:
        about = {
            "name": "lava-proxy",
            "version": __version__,
            "what": _WHAT,
            "base_urls": _BASE_URLS,
            "health": ["/healthz", "/readyz"],
            "docs": HOMEPAGE,
            f"{destination.provider}_docs": destination.docs,
        }
        response = Response(json.dumps(about, indent=2) + "\n", media_type="application/json")
    _respond(active, response.status_code, [*response.raw_headers, *_ours()], bytes(response.body))
    return True


def _respond(active: ActiveRequest, status: int, headers: Pairs, body: bytes) -> None:
    """Send the response, and settle the request if it deserves a record: health probes come every few seconds."""
    active.respond(status, headers, body)
    if active.record.path not in _CONTROL_PATHS:
        active.record.status = status
        active.settle(Outcome.OK)


def _ours() -> Pairs:
    return [(b"date", http_date()), *errors.GUARDED]


_WHAT = f"{SUMMARY}; point your tool's base URL here"
_BASE_URLS = {"openai": "/v1", "anthropic": "/", "google": "/", "one provider": "/<provider>/v1"}


def routes(gateway: Gateway) -> list[Route]:
    """Return the control pages that are ordinary Starlette routes."""

    def healthz() -> Response:
        return _json(200, {"status": "ok"})

    def readyz() -> Response:
        reason = "draining" if gateway.registry.draining else gateway.config.usable()
        if reason is not None:
            return _json(503, {"status": "not ready", "reason": reason})
        return _json(200, {"status": "ok"})

    def metrics() -> Response:
        body, content_type = gateway.metrics.render()
        return PlainTextResponse(body, headers={"content-type": content_type})

    def route(path: str, page: Callable[[], Response]) -> Route:
        # A coroutine: Starlette runs a plain function in a thread.
        async def serve(request: Request) -> Response:
            return page()

        return Route(path, serve)

    pages = [route("/healthz", healthz), route("/readyz", readyz), route("/metrics", metrics)]
    return [*pages, *control.routes(gateway)]


def _json(status: int, document: dict[str, str]) -> Response:
    return Response(json.dumps(document), status, media_type="application/json")
