"""The control address: ``lava-proxy stop`` and ``resume`` ask it of the running daemon.

It is for the owner of this daemon alone: over the unix socket, or with a key under [server]. A body is one JSON object of texts:
``project``, ``tool`` and ``session``, at least one of them.
"""

from __future__ import annotations

import json
from difflib import get_close_matches
from typing import TYPE_CHECKING, Final

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Route

from proxy.gateway import routing
from proxy.protocol import errors
from proxy.protocol.dialects import Dialect
from proxy.protocol.errors import ProxyError
from proxy.protocol.stop import Stop

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.requests import Request

    from proxy.gateway.access import Caller
    from proxy.gateway.gateway import Gateway
    from proxy.protocol.headers import RequestHeaders

MAX_BODY_BYTES: Final = 4096
_FIELDS: Final = Stop._fields


def check_caller(received: RequestHeaders, caller: Caller, *, by_socket: bool) -> None:
    """Check that the request is from the owner. Raises ``ProxyError``. Other origins were refused before."""
    if b"origin" in received.noted or b"sec-fetch-site" in received.noted:
        hint = "Use `lava-proxy stop` and `lava-proxy resume`."
        raise ProxyError("origin_not_allowed", f"No web page may use the control address. {hint}", hint)
    if caller.project is not None:
        hint = "Use a key under [server], or the unix socket."
        what = f'This local key belongs to project "{caller.project}"; the control address is for the owner of all.'
        raise ProxyError("project_not_allowed", f"{what} {hint}", hint)
    if caller.key_header is None and not by_socket:
        hint = "Add keys or unix_socket under [server]."
        what = "The control address wants a local key under [server], and this daemon has none."
        raise ProxyError("local_key_required", f"{what} {hint}", hint, headers=[(b"www-authenticate", b"Bearer")])


def routes(gateway: Gateway) -> list[Route]:
    """Return the routes of the control address."""
    stops = gateway.stops

    async def stop(request: Request) -> dict[str, object]:
        wanted = await _stop_in(request)
        table = gateway.config.table
        if wanted.project and wanted.project not in table.projects:
            raise routing.unknown_project(wanted.project, table)
        ended = await stops.add(wanted)
        streams = sum(record.streamed for record in ended)
        return {"stopped": wanted.shown(), "ended": len(ended), "streams": streams}

    async def resume(request: Request) -> dict[str, object]:
        wanted = await _stop_in(request)
        resumed = await stops.remove(wanted)
        table = gateway.config.table
        if not resumed and wanted.project and wanted.project not in table.projects:
            raise routing.unknown_project(wanted.project, table)
        return {"resumed": [each.shown() for each in resumed]}

    async def show(request: Request) -> dict[str, object]:
        await stops.refresh()
        return {}

    def route(path: str, work: Callable[[Request], Awaitable[dict[str, object]]], method: str) -> Route:
        async def serve(request: Request) -> Response:
            try:
                answer = await work(request)
            except ProxyError as fault:
                fault.mask(gateway.config.redactor_of_all().text)
                return _refusal(fault, request)
            except ClientDisconnect:
                return Response(status_code=400)
            state = {"stops": [each.shown() for each in stops], "problem": stops.problem, "shared": stops.shared}
            return Response(
                json.dumps(answer | state), media_type="application/json", headers={"cache-control": "no-store"}
            )

        return Route(path, serve, methods=[method])

    return [
        route("/api/stop", stop, "POST"),
        route("/api/resume", resume, "POST"),
        route("/api/stops", show, "GET"),
    ]


def _refusal(fault: ProxyError, request: Request) -> Response:
    reply = errors.render(fault, Dialect.OPENAI, request.scope["state"]["request_id"])
    # ``routed`` adds what every page of ours has.
    added = {b"date", *(name for name, _ in errors.GUARDED)}
    response = Response(reply.body, reply.status)
    response.raw_headers = [pair for pair in reply.headers if pair[0] not in added]
    return response


async def _stop_in(request: Request) -> Stop:
    """Return what the body names. Raises ``ProxyError``."""
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_BODY_BYTES:
            raise ProxyError(
                "body_too_large",
                f"The body is longer than {MAX_BODY_BYTES} bytes.",
                "Send project, tool or session alone.",
            )
    try:
        pairs = json.loads(body, object_pairs_hook=list)
    except (ValueError, RecursionError):
        pairs = None
    if not body.lstrip().startswith(b"{") or not isinstance(pairs, list):
        raise _malformed("The body is not a JSON object.", 'Send {"project": "website"}, for example.')
    found: dict[str, str] = {}
    for name, value in pairs:
        if name not in _FIELDS:
            close = get_close_matches(name, _FIELDS, n=1)
            hint = f'Did you mean "{close[0]}"?' if close else f"Known are {', '.join(_FIELDS)}."
            raise _malformed(f'There is no field "{name[:100]}".', hint)
        if name in found:
            raise _malformed(f"{name} stands twice.", "Name it once.")
        if not isinstance(value, str):
            raise _malformed(f"{name} is not a text.", "Leave it out, or name it.")
        found[name] = value
    try:
        return Stop.named(**found)
    except ValueError as error:
        raise ProxyError("bad_request", str(error), "Leave out what is not meant.") from None


def _malformed(what: str, hint: str) -> ProxyError:
    return ProxyError("bad_request", f"{what} {hint}", hint)
