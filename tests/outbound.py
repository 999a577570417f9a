"""An outbound proxy for tests: real ``CONNECT`` on real sockets, or whatever a script says in its place."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import TYPE_CHECKING

from upstream import Peer, Script, Upstream

if TYPE_CHECKING:
    import ssl

OPENED = b"HTTP/1.1 200 Connection established\r\n\r\n"


class OutboundProxy(Upstream):
    """Connects every ``CONNECT`` to ``port`` on loopback, whatever the name: that is what names like api.test resolve to.

    ``asked`` has the head of each ``CONNECT``, and nothing of what goes through the tunnels.
    """

    def __init__(self, port: int, *, answer: bytes = OPENED, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(self._tunnel, tls=tls)
        self._target = port
        self._answer = answer

    @property
    def asked(self) -> list[bytes]:
        return [one.raw for one in self.requests]

    @property
    def address(self) -> str:
        """Host and port."""
        return f"127.0.0.1:{self.port}"

    def _tunnel(self, peer: Peer) -> None:
        received = peer.head()
        if received is None:
            return
        assert received.method == b"CONNECT"
        assert peer.seen == received.raw, "something was sent before the proxy had answered"
        with socket.create_connection(("127.0.0.1", self._target), 20) as target:
            peer.send(self._answer)
            back = threading.Thread(target=carry, args=(target, peer.sock), daemon=True)
            back.start()
            carry(peer.sock, target)
            back.join(20)


def carry(source: socket.socket, sink: socket.socket) -> None:
    """Copy bytes until one side ends."""
    with contextlib.suppress(OSError):
        while data := source.recv(65_536):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


def refusing(reply: bytes, *, then: str = "fin") -> Script:
    """A proxy that answers a ``CONNECT`` with ``reply``, then closes, resets or waits."""

    def script(peer: Peer) -> None:
        peer.head()
        peer.send(reply)
        if then == "rst":
            peer.rst()
        elif then == "wait":
            peer.gone()

    return script
