"""Connections to the running daemon of a configuration, without an HTTP library."""

from __future__ import annotations

import http.client
import socket
from typing import TYPE_CHECKING

from proxy.cli import addresses

if TYPE_CHECKING:
    from collections.abc import Iterator

    from proxy.config.settings import Server


class SocketConnection(http.client.HTTPConnection):
    """A connection to a unix socket."""

    def __init__(self, path: str, seconds: float) -> None:
        super().__init__("localhost", timeout=seconds)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def ways(server: Server, seconds: float) -> Iterator[tuple[str, http.client.HTTPConnection]]:
    """Yield the connections to try, in order. All of them reach the same daemon. ``seconds`` limits each wait."""
    if server.port:
        for host in addresses.hosts(server):
            yield addresses.url(host, server.port), http.client.HTTPConnection(host, server.port, timeout=seconds)
    if server.unix_socket and hasattr(socket, "AF_UNIX"):
        yield f"unix:{server.unix_socket}", SocketConnection(server.unix_socket, seconds)


def headers(connection: http.client.HTTPConnection, server: Server | None = None) -> dict[str, str]:
    """Return the headers of a request, with a key of ``server`` if it has one."""
    # The daemon accepts this name on every address.
    alone = isinstance(connection, SocketConnection) or connection.port == 80
    found = {"Host": "localhost" if alone else f"localhost:{connection.port}", "Connection": "close"}
    if server is not None and server.keys:
        found["Authorization"] = f"Bearer {server.keys[0].reveal()}"
    return found
