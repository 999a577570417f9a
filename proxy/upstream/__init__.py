"""The interface to the network: one request out, one response in.

The engine is ``native``: HTTP/1.1 on a bare asyncio protocol, with a keep-alive pool and outbound proxies. A second one, on
the connections of httpx2, is its oracle: both must give the same bytes (``tests/test_upstream.py``).

An engine follows no redirects, stores no cookies, decodes no body, adds no headers of its own (except for framing), reads no
environment variables, and never sends a request again once a byte of it was written.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, Literal, Protocol

from proxy.protocol.redaction import Unshown

if TYPE_CHECKING:
    from collections.abc import Callable

Framing = Literal["length", "chunked", "close", "none"]
"""How the end of a body is determined."""

UpstreamErrorKind = Literal["unreachable", "proxy", "tls", "connect_timeout", "protocol", "closed"]

MAX_INFORMATIONAL = 20
"""Informational (1xx) responses accepted before a final one. Stock clients accept any number."""

MAX_HEAD_BYTES = 65_536
"""Bytes of one response head, including the status line and the blank line."""

MAX_HEADERS = 200
"""Header lines of one response head."""


MAX_CONNECTIONS = 1000
"""The default limit on open connections."""

_POOL_KEYS = secrets.token_bytes(32)


def pool_key(project: str, credential: bytes) -> bytes:
    """Return the key of the connections of ``project`` with ``credential``. It reveals nothing about either."""
    return blake2b(b"%b\0%b" % (project.encode(), credential), digest_size=16, key=_POOL_KEYS).digest()


@dataclass(frozen=True, slots=True)
class Origin:
    """The other end of a connection: ``scheme`` is ``http`` or ``https``, ``host`` an ASCII name or a bare IP address.

    Requests share connections only if their ``pool_key`` is the same (see the function).
    """

    scheme: str
    host: str
    port: int
    pool_key: bytes = field(default=b"", repr=False)


Body = bytes | AsyncIterator[bytes] | None


class UpstreamRequest(Unshown):
    """One request without its body, exactly as it is sent. It may be sent many times.

    ``target`` is the raw request-target. ``headers`` are sent unchanged and in order. They include ``host`` and
    ``authorization``, but never ``content-length``, ``transfer-encoding`` or ``connection``, which the engine adds.
    """

    __slots__ = ("headers", "lines", "method", "origin", "target")

    def __init__(self, method: bytes, origin: Origin, target: bytes, headers: list[tuple[bytes, bytes]]) -> None:
        self.method = method
        self.origin = origin
        self.target = target
        self.headers = headers
        self.lines: bytes | None = None
        """The serialized head, cached by the engine."""


class UpstreamResponse(Protocol):
    """The final response: its head at once, its body as it arrives.

    ``headers`` have lower-case names and are otherwise as received. A body that must not exist (HEAD, 204, 304) is not
    delivered.
    """

    status: int
    headers: list[tuple[bytes, bytes]]
    framing: Framing

    async def read(self) -> bytes:
        """Return the next bytes of the body, without the transfer coding but with the content coding.

        ``b""`` means a proper end, or the end of the connection if ``framing`` is ``close``; every later call returns it as
        well. Raises ``UpstreamError`` if the body is incomplete, its framing is wrong, or it was closed before its end.
        """

    async def pour(self, take: Callable[[bytes], bool]) -> bool:
        """Pass the body to ``take`` as it arrives, until its end (True) or until ``take`` returns False (False).

        Ends and raises as ``read`` does. An error of ``take`` is not caught.
        """

    def whole(self) -> bytes | None:
        """Return the rest of the body if it has arrived completely; else ``None``, without consuming anything."""

    def close(self) -> None:
        """Close the connection, unless the body was read to its end. May be called at any time, and twice."""


class Engine(Protocol):
    """Opens requests. Enforces only the connect timeout; the caller enforces other limits by ending its coroutine."""

    async def open(
        self, out: UpstreamRequest, body: Body = None, content_length: int | None = None
    ) -> UpstreamResponse:
        """Send ``out`` with ``body`` and return at the final response head.

        ``body`` as bytes is sent with its length; as an iterator with ``content_length``, or chunked if that is ``None``.
        Raises ``UpstreamError``, and ``ValueError`` for a request that cannot be written as HTTP or an iterator that yields
        more or less than ``content_length``. An error of the iterator itself is not caught.
        """

    def close(self) -> None:
        """Close every connection."""

    async def aclose(self) -> None:
        """Close every connection, and wait until they are."""


class UpstreamError(Exception):
    """The upstream, or the connection to it, failed.

    ``unreachable``, ``tls``, ``connect_timeout``, and ``proxy`` for every fault of the outbound proxy: before any byte of
    the request was written. ``closed``: the connection ended too early. ``protocol``: the response is not valid HTTP.
    ``sent`` says whether any byte of the request was written (money may be spent). ``detail`` is for people and contains
    nothing that either side sent.
    """

    def __init__(self, kind: UpstreamErrorKind, sent: bool, detail: str) -> None:
        super().__init__(kind, sent, detail)
        self.kind: UpstreamErrorKind = kind
        self.sent = sent
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail}"


class UpstreamSettings(Protocol):
    """What an engine needs from the ``[upstream]`` table: seconds, a path or "", and which proxy to use."""

    @property
    def connect(self) -> float: ...
    @property
    def ca_file(self) -> str: ...
    def proxy_for(self, scheme: str, host: str, port: int) -> str:
        """Return the URL of the outbound proxy for this address, with its credentials; ``""`` for none."""


def create_engine(settings: UpstreamSettings, max_connections: int = MAX_CONNECTIONS) -> Engine:
    """Return an engine for these settings. It opens nothing, and imports nothing that the first request can import.

    With ``max_connections`` open, a new connection replaces the longest idle one.
    """
    from proxy.upstream.native import NativeEngine

    return NativeEngine(settings, max_connections=max_connections)
