"""A client of bare bytes: it says what no HTTP library would say, and sees exactly what comes back."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

PATIENCE = 20.0


@dataclass(slots=True)
class Response:
    """One response. ``complete`` says whether its framing ended properly; ``body`` is without transfer coding."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes = b""
    complete: bool = False

    def header(self, name: str) -> str | None:
        """The value of the only header of that name."""
        values = [value for key, value in self.headers if key.lower() == name]
        assert len(values) < 2, f"{name} came {len(values)} times"
        return values[0] if values else None

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str | None:
        """Our own error code."""
        return self.header("x-lava-proxy-error")


class RawClient:
    """One connection to the daemon."""

    def __init__(self, port: int, host: str = "127.0.0.1", receive_buffer: int = 0) -> None:
        self.sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        if receive_buffer:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.sock.settimeout(PATIENCE)
        try:
            self.sock.connect((host, port))
        except OSError:
            self.sock.close()
            raise
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.port = port
        self._unread = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def request(
        self,
        method: str,
        target: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | list[tuple[str, str]] | None = None,
        *,
        host: str | None = None,
    ) -> None:
        """Send one well-formed request."""
        pairs = headers if isinstance(headers, list) else list((headers or {}).items())
        lines = [f"{method} {target} HTTP/1.1", f"Host: {host or f'127.0.0.1:{self.port}'}"]
        lines += [f"{name}: {value}" for name, value in pairs]
        if body is not None:
            lines.append(f"Content-Length: {len(body)}")
        self.send("\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b""))

    def post_json(self, target: str, document: object, headers: Mapping[str, str] | None = None) -> None:
        self.request(
            "POST", target, json.dumps(document).encode(), {"Content-Type": "application/json", **(headers or {})}
        )

    def head(self) -> Response:
        """The next response's head (informational ones included)."""
        while b"\r\n\r\n" not in self._unread:
            if not self._fill():
                raise ConnectionError(f"closed before a whole head: {self._unread[:200]!r}")
        head, _, self._unread = self._unread.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        pairs = [line.partition(":") for line in lines]
        return Response(int(first.split(" ")[1]), [(name.lower(), value.strip()) for name, _, value in pairs])

    def response(self, *, head_only: bool = False) -> Response:
        """The next response, to its end or to the end of the connection."""
        response = self.head()
        if head_only or response.status in (204, 304) or response.status < 200:
            response.complete = True
            return response
        length, coding = response.header("content-length"), response.header("transfer-encoding")
        with contextlib.suppress(ConnectionError):
            if coding == "chunked":
                while size := int(self.line(), 16):
                    response.body += self.exactly(size)
                    assert self.exactly(2) == b"\r\n"
                response.complete = self.line() == b""
            elif length is not None:
                response.body = self._up_to(int(length))
                response.complete = len(response.body) == int(length)
            else:
                while self._fill():
                    pass
                response.body, self._unread, response.complete = self._unread, b"", True
        return response

    def chunk(self) -> bytes:
        """The next chunk of a chunked body."""
        size = int(self.line(), 16)
        data = self.exactly(size)
        assert self.exactly(2) == b"\r\n"
        return data

    def line(self) -> bytes:
        while b"\r\n" not in self._unread:
            if not self._fill():
                raise ConnectionError("closed")
        line, _, self._unread = self._unread.partition(b"\r\n")
        return line

    def exactly(self, count: int) -> bytes:
        data = self._up_to(count)
        if len(data) < count:
            raise ConnectionError("closed")
        return data

    def closed(self, seconds: float = PATIENCE) -> bool:
        """Whether the daemon ends this connection within ``seconds`` (what still comes is thrown away)."""
        end = time.monotonic() + seconds
        self._unread = b""
        try:
            while (left := end - time.monotonic()) > 0:
                self.sock.settimeout(left)
                if not self.sock.recv(65_536):
                    return True
        except TimeoutError:
            return False
        except ConnectionError:
            return True
        return False

    def close(self) -> None:
        self.sock.close()

    def reset(self) -> None:
        """Leave with a reset."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def _up_to(self, count: int) -> bytes:
        parts, missing = [self._unread[:count]], count - len(self._unread)
        self._unread = self._unread[count:]
        while missing > 0:
            try:
                data = self.sock.recv(min(missing, 1 << 20))
            except ConnectionError:
                data = b""
            if not data:
                break
            parts.append(data)
            missing -= len(data)
        return b"".join(parts)

    def _fill(self) -> bool:
        try:
            data = self.sock.recv(65_536)
        except ConnectionError:
            data = b""
        self._unread += data
        return bool(data)


def ask(
    port: int,
    method: str,
    target: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | list[tuple[str, str]] | None = None,
    *,
    host: str | None = None,
) -> Response:
    """One request on a connection of its own, and its response."""
    with RawClient(port) as client:
        client.request(method, target, body, headers, host=host)
        return client.response(head_only=method == "HEAD")


def post(port: int, target: str, document: object, headers: Mapping[str, str] | None = None) -> Response:
    """One JSON request and its response."""
    return ask(
        port, "POST", target, json.dumps(document).encode(), {"Content-Type": "application/json", **(headers or {})}
    )


def listening(port: int) -> bool:
    """Whether anybody takes connections there."""
    try:
        RawClient(port).close()
    except OSError:
        return False
    return True
