"""A scriptable raw upstream: it answers, stalls, drips, cuts, lies and counts.

It is bytes on sockets in threads, with no HTTP library between, so that it can say what no HTTP library
would, and so that the event loop of a test is the tested program's alone. A script is a function of one
``Peer``, run once per connection::

    def script(peer: Peer) -> None:
        peer.request()
        peer.send(answer(body=b"hello"))
        peer.rst()

    with Upstream(script) as upstream:
        ...                                   # talk to upstream.origin or upstream.url
        assert upstream.requests[0].raw == b"..."

A script that fails on a socket (the client left) just ends; any other exception fails the test when the
``with`` block ends.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from ports import listening

from proxy.upstream import Origin

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

Pairs = Iterable[tuple[bytes, bytes]]
Script = Callable[["Peer"], None]

_OWN_PAIR = re.compile(rb',?"lava_proxy_id":"req_[0-9a-f]{24}"')

PATIENCE = 20.0
"""Seconds after which anything that waits here gives up."""


def answer(status: int = 200, body: bytes = b"", headers: Pairs = (), *, length: bool = True) -> bytes:
    """One whole response. ``length=False`` leaves out the content-length."""
    lines = [b"HTTP/1.1 %d Whatever" % status, *(b"%b: %b" % pair for pair in headers)]
    if length:
        lines.append(b"content-length: %d" % len(body))
    return b"\r\n".join([*lines, b"", body])


def chunked(*parts: bytes, end: bool = True) -> bytes:
    """``parts`` in the chunked coding, one chunk each, with the last chunk unless ``end`` is false."""
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + (b"0\r\n\r\n" if end else b"")


def serve(*answers: bytes) -> Script:
    """A script that answers request after request, with the last of ``answers`` again and again."""

    def script(peer: Peer) -> None:
        turn = 0
        while peer.request() is not None:
            peer.send(answers[min(turn, len(answers) - 1)])
            turn += 1

    return script


@dataclass(slots=True)
class Received:
    """One request as it came: ``raw`` is every byte, ``body`` is without its transfer coding."""

    connection: int
    raw: bytes
    head: bytes
    body: bytes = b""
    method: bytes = field(init=False)
    target: bytes = field(init=False)
    version: bytes = field(init=False)
    headers: list[tuple[bytes, bytes]] = field(init=False)

    def __post_init__(self) -> None:
        first, *lines = self.head.removesuffix(b"\r\n\r\n").split(b"\r\n")
        self.method, self.target, self.version = first.split(b" ")
        pairs = (line.partition(b":") for line in lines)
        self.headers = [(name, value.strip(b" \t")) for name, _, value in pairs]

    def header(self, name: bytes) -> bytes | None:
        """The value of the only header of that name, None without one."""
        values = [value for key, value in self.headers if key.lower() == name.lower()]
        assert len(values) < 2, f"{name!r} came {len(values)} times"
        return values[0] if values else None

    def metadata(self) -> dict[str, str]:
        """The pairs of ``x-lava-metadata``, the proxy's own among them."""
        pairs: dict[str, str] = json.loads(self.header(b"x-lava-metadata") or b"{}")
        return pairs

    def others(self) -> list[tuple[bytes, bytes]]:
        """The headers, with ``x-lava-metadata`` as it is without the id of the request, which differs each time."""
        return [pair for name, value in self.headers if (pair := (name, _OWN_PAIR.sub(b"", value)))[1] != b"{}"]


class Peer:
    """The upstream's end of one connection: ``number`` counts from 0, ``seen`` is every byte received."""

    def __init__(self, upstream: Upstream, sock: socket.socket, number: int) -> None:
        self.upstream = upstream
        self.sock = sock
        self.number = number
        self.seen = b""
        self._unread = b""

    def head(self) -> Received | None:
        """The next request's head, its body unread. None where the client closed instead."""
        while b"\r\n\r\n" not in self._unread:
            if not self._fill():
                return None
        head, _, self._unread = self._unread.partition(b"\r\n\r\n")
        head += b"\r\n\r\n"
        received = Received(self.number, head, head)
        self.upstream.note(received)
        return received

    def request(self) -> Received | None:
        """The next request with its whole body. None where the client closed instead of sending one."""
        received = self.head()
        if received is not None:
            self.body(received)
        return received

    def body(self, received: Received) -> None:
        """Read the body of ``received`` into it."""
        coding = received.header(b"transfer-encoding")
        length = received.header(b"content-length")
        if coding is not None:
            assert coding == b"chunked"
            assert length is None, "content-length beside transfer-encoding"
            while True:
                line = self._until(b"\r\n")
                data = self._exactly(int(line, 16) + 2)
                assert data.endswith(b"\r\n")
                received.raw += line + b"\r\n" + data
                received.body += data[:-2]
                if len(data) == 2:
                    return
        elif length is not None:
            received.body = self._exactly(int(length))
            received.raw += received.body

    def send(self, *parts: bytes) -> None:
        """Write ``parts`` in one go."""
        self.sock.sendall(b"".join(parts))

    def drip(self, data: bytes, size: int = 1, gap: float = 0.0005) -> None:
        """Write ``data`` in pieces of ``size`` bytes, ``gap`` seconds apart, so that they arrive as such."""
        for start in range(0, len(data), size):
            self.sock.sendall(data[start : start + size])
            time.sleep(gap)

    def fin(self) -> None:
        """End our direction properly."""
        self.sock.shutdown(socket.SHUT_WR)

    def rst(self) -> None:
        """Break the connection with a reset."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def gone(self) -> bool:
        """Wait until the client has closed (True) or the upstream is shut down; ``seen`` has what still
        came."""
        with contextlib.suppress(OSError):
            while self._fill():
                pass
        return not self.upstream.stopping

    def _fill(self) -> bool:
        data = self.sock.recv(65_536)
        self.seen += data
        self._unread += data
        return bool(data)

    def _until(self, mark: bytes) -> bytes:
        while mark not in self._unread:
            if not self._fill():
                raise ConnectionError("the client closed inside a request")
        line, _, self._unread = self._unread.partition(mark)
        return line

    def _exactly(self, count: int) -> bytes:
        parts, missing = [self._unread[:count]], count - len(self._unread)
        self._unread = self._unread[count:]
        while missing > 0:
            data = self.sock.recv(min(missing, 1 << 20))
            if not data:
                raise ConnectionError("the client closed inside a request")
            self.seen += data if count < 1 << 20 else b""
            parts.append(data)
            missing -= len(data)
        return b"".join(parts)


class Upstream:
    """Listens on loopback while the ``with`` block runs. ``tls``: a server's context, see ``certificate``."""

    def __init__(self, script: Script | bytes, *, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> None:
        self.script: Script = serve(script) if isinstance(script, bytes) else script
        self.requests: list[Received] = []
        self.accepted = 0
        self.stopping = False
        self.tls_faults: list[str] = []
        self._tls = tls
        self._host = host
        self._changed = threading.Condition()
        self._live: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._faults: list[BaseException] = []
        self._listener = listening(host, 1024)
        self.port: int = self._listener.getsockname()[1]

    @property
    def origin(self) -> Origin:
        return Origin("http" if self._tls is None else "https", self._host, self.port)

    @property
    def url(self) -> str:
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{self.origin.scheme}://{host}:{self.port}"

    @property
    def connected(self) -> int:
        """Connections whose script still runs."""
        with self._changed:
            return len(self._live)

    def wait(self, condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
        """Wait until ``condition()`` holds; it is asked again whenever something happened here."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "the upstream waited in vain"
            with self._changed:
                self._changed.wait(0.02)

    def hang_up(self) -> None:
        """Close every connection, idle or not; new ones are taken."""
        with self._changed:
            live = list(self._live)
        for sock in live:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        self.wait(lambda: self._live.isdisjoint(live))

    def note(self, received: Received) -> None:
        with self._changed:
            self.requests.append(received)
            self._changed.notify_all()

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self.stopping = True
            live = list(self._live)
        # Closing a listener does not wake its accept() everywhere; a last connection does.
        with contextlib.suppress(OSError), socket.create_connection((self._host, self.port), 1):
            pass
        self._listener.close()
        for sock in live:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive(), "a script of the upstream did not end"
        if exc is None and self._faults:
            raise self._faults[0]

    def _start(self, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            with self._changed:
                if self.stopping:
                    sock.close()
                    return
                number, self.accepted = self.accepted, self.accepted + 1
                self._live.add(sock)
                self._changed.notify_all()
            self._threads = [thread for thread in self._threads if thread.is_alive()]
            self._start(lambda sock=sock, number=number: self._serve(sock, number))  # type: ignore[misc]

    def _serve(self, sock: socket.socket, number: int) -> None:
        plain = sock
        peer: Peer | None = None
        try:
            sock.settimeout(PATIENCE * 2)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls is not None:
                try:
                    sock = self._tls.wrap_socket(sock, server_side=True)
                except (ssl.SSLError, OSError) as exc:
                    self.tls_faults.append(str(exc))
                    return
                with self._changed:
                    self._live.discard(plain)
                    self._live.add(sock)
            peer = Peer(self, sock, number)
            with contextlib.suppress(OSError):
                self.script(peer)
        except BaseException as exc:  # noqa: BLE001 - told to the test's own thread at the end
            self._faults.append(exc)
        finally:
            with contextlib.suppress(OSError):
                (sock if peer is None else peer.sock).close()
            with self._changed:
                self._live.discard(sock)
                self._live.discard(plain)
                self._changed.notify_all()


@dataclass(frozen=True, slots=True)
class Certificate:
    """A server's context and the file of the authority that signed it."""

    server: ssl.SSLContext
    ca_file: str


def certificate(folder: Path, *names: str, expired: bool = False, alpn: Iterable[str] = ()) -> Certificate:
    """A certificate for ``names`` (default: 127.0.0.1 and localhost), by an authority made for it alone."""
    import datetime

    import trustme

    authority = trustme.CA()
    until = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=2) if expired else None
    leaf = authority.issue_cert(*(names or ("127.0.0.1", "localhost")), not_after=until)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    leaf.configure_cert(server)
    if alpn:
        server.set_alpn_protocols(list(alpn))
    ca_file = folder / f"ca-{id(authority):x}.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    return Certificate(server, str(ca_file))
