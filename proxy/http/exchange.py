"""``Exchange``: one request and its response, the only interface between the HTTP server side and the gateway.

Two classes implement it: ``connection.HTTPExchange`` on the strict HTTP/1.1 protocol, and ``asgi.ASGIExchange`` on any ASGI
server.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.http.framing import Head

Pairs = list[tuple[bytes, bytes]]


class ClientDisconnected(Exception):
    """The client disconnected, or violated HTTP, while its request was being read."""


class Exchange(Protocol):
    """One request and its response. After a disconnect, every method that sends does nothing.

    Header names are in lower case. The implementation sets ``transfer-encoding``, ``keep-alive`` and ``connection`` (except
    ``close``) of a response.
    """

    @property
    def head(self) -> Head:
        """The head of the request."""

    @property
    def server(self) -> tuple[str, int | None] | None:
        """Our own address and port of this connection; the port is ``None`` on a unix socket."""

    @property
    def client(self) -> tuple[str, int] | None:
        """The client's address and port; ``None`` on a unix socket."""

    @property
    def gone(self) -> bool:
        """Whether the client disconnected, or the response was aborted."""

    @property
    def complete(self) -> bool:
        """Whether the whole response was sent."""

    @property
    def client_error(self) -> str | None:
        """The client's protocol violation, if it ended the request."""

    @property
    def ready(self) -> bool:
        """Whether more may be written without waiting."""

    def whole_body(self) -> bytes | None:
        """Return the whole body if it has arrived and is unread. It then counts as read."""

    async def read(self) -> bytes:
        """Return the next chunk of the body; ``b""`` at its end. Raises ``ClientDisconnected``."""

    def respond(self, status: int, headers: Pairs, body: bytes) -> None:
        """Send a whole response."""

    def start(self, status: int, headers: Pairs) -> None:
        """Start a response. Its head may be sent together with the first chunk of the body."""

    def write(self, piece: bytes) -> bool:
        """Send a chunk of the body. Return False if ``drain`` must be awaited before the next one."""

    async def drain(self) -> None:
        """Wait until the client has read enough, or has disconnected."""

    def finish(self) -> None:
        """End the body of a started response."""

    def abort(self) -> None:
        """Abort the connection and leave the response incomplete, so that no client mistakes it for complete."""

    def fail(self) -> None:
        """Respond with 500, or abort a started response."""

    def passed_access(self) -> None:
        """Mark the client's connection as permitted: it is not among the first to be evicted."""

    def on_disconnect(self, callback: Callable[[], object]) -> None:
        """Call ``callback`` once, if the client disconnects or violates HTTP before the response is complete.

        It is called at once if that has already happened.
        """
