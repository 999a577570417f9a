"""One ASGI endpoint of the emulator: record the request, read it, decide, respond."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

from proxy.emulator import credentials
from proxy.emulator.exchange import EmulatedReply, RequestRefusedError, lava_error
from proxy.emulator.responder import CONNECTION, ClientConnection, read_body, respond
from proxy.emulator.state import ReceivedRequest, World

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

Handler = Callable[[World, ReceivedRequest], EmulatedReply]
"""Decides the reply to a request whose body has come; raises ``RequestRefusedError``."""


class EmulatorEndpoint:
    def __init__(self, world: World, handler: Handler) -> None:
        self._world = world
        self._handler = handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        connection: ClientConnection | None = (scope.get("extensions") or {}).get(CONNECTION)
        target, headers = _head(scope, connection)
        history, behaviour = self._world.history, self._world.behaviour
        received = history.add(scope["method"], target, headers, behaviour.keep)
        whole = await read_body(receive, received, behaviour.max_body_bytes)
        if received.cancelled:
            history.touch()
            return
        if whole:
            reply = self._decide(received)
        else:
            reply = lava_error(413, "request_too_large", "The request body is too large.")
            reply.headers.append(("connection", "close"))
        await respond(history, behaviour.pace, received, reply, receive, send, connection)

    def _decide(self, received: ReceivedRequest) -> EmulatedReply:
        try:
            return self._handler(credentials.environment(self._world, received, query_of(received)), received)
        except RequestRefusedError as refused:
            return refused.reply
        except Exception as error:  # noqa: BLE001 - an error of the emulator shows in its response, not in a log
            return lava_error(500, "emulator_failed", f"The emulator failed: {type(error).__name__}: {error}")


def _head(scope: Scope, connection: ClientConnection | None) -> tuple[str, list[tuple[bytes, bytes]]]:
    if connection is not None:
        return connection.target.decode("latin-1"), list(connection.headers)
    query = scope["query_string"]
    target = scope["raw_path"] + (b"?" + query if query else b"")
    return target.decode("latin-1"), list(scope["headers"])


def query_of(received: ReceivedRequest) -> dict[str, str]:
    """Return the query of the request target, decoded."""
    return dict(parse_qsl(received.target.partition("?")[2], keep_blank_values=True))


def not_found(world: World, received: ReceivedRequest) -> EmulatedReply:
    """Answer for an address that Lava does not have."""
    return lava_error(404, "not_found", f"{received.method} {received.path} does not exist.")


def wrong_method(received: ReceivedRequest) -> EmulatedReply:
    return lava_error(405, "method_not_allowed", f"{received.method} is not served here.")
