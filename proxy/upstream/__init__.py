"""The seam to the network: one request out, one answer in.

The engine is ``native``: HTTP/1.1 on a bare asyncio protocol, with a keep-alive pool and outbound proxies. A second one, on
the connections of httpx2, is its oracle: both must give the same bytes (``tests/test_upstream.py``).

An engine follows no redirect, keeps no cookie, decodes no body, adds no header that nobody asked for, reads no variable of
the environment, and sends no request twice once a byte of it was written.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Literal, Protocol

from proxy.redaction import Unshown

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

Framing = Literal["length", "chunked", "close", "none"]
"""How the end of a body is known."""

Kind = Literal["unreachable", "proxy", "tls", "connect_timeout", "protocol", "closed"]

MAX_INFORMATIONAL = 20
"""Informational (1xx) responses taken before a final one; stock clients swallow any number."""

MAX_HEAD_BYTES = 65_536
"""Bytes of one response head, status line and blank line included."""

MAX_HEADERS = 200
"""Header lines of one response head."""


MAX_CONNECTIONS = 1000
"""Connections that may be open, unless the engine is given another number."""

_POOL_KEYS = secrets.token_bytes(32)


def pool_key(project: str, credential: bytes) -> bytes:
    """The key of the connections of ``project`` with ``credential``; nothing can be learned from it about either."""
    return blake2b(b"%b\0%b" % (project.encode(), credential), digest_size=16, key=_POOL_KEYS).digest()


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a connection goes: ``scheme`` is ``http`` or ``https``, ``host`` an ASCII name or a bare IP address.

    Requests share connections only if their ``pool_key`` is the same (see the function).
    """

    scheme: str
    host: str
    port: int
    pool_key: bytes = field(default=b"", repr=False)


class Wire(Unshown):
    """What an engine made of method, target and headers, for the next request that has the same ones."""

    __slots__ = ("lines",)

    def __init__(self) -> None:
        self.lines: bytes | None = None


@dataclass(slots=True, repr=False)  # the headers hold the credential
class Outgoing:
    """One request, exactly as it shall stand on the wire.

    ``target`` is the raw request-target. ``headers`` are sent as they are, in order: ``host`` and
    ``authorization`` among them, but never ``content-length``, ``transfer-encoding`` or ``connection``, which
    belong to the engine. ``body`` as bytes is sent with its length; as an iterator with ``content_length``,
    or chunked where that is None. An iterator that yields more or less than ``content_length`` is a
    ``ValueError``. ``wire`` is shared by requests whose method, target and headers are the very same.
    """

    method: bytes
    origin: Origin
    target: bytes
    # Not for anybody's message: the credential and the prompt.
    headers: list[tuple[bytes, bytes]] = field(repr=False)
    body: bytes | AsyncIterator[bytes] | None = field(default=None, repr=False)
    content_length: int | None = None
    wire: Wire | None = field(default=None, repr=False)


class Answer(Protocol):
    """The final response: its head at once, its body as it arrives.

    ``headers`` have lower-case names and are otherwise as received. A body that stands where none may
    (HEAD, 204, 304) is not delivered.
    """

    status: int
    headers: list[tuple[bytes, bytes]]
    framing: Framing

    async def read(self) -> bytes:
        """The next bytes of the body as they came, transfer coding removed, content coding not.

        ``b""`` only at a proper end, or at the end of the connection where ``framing`` is ``close``; again
        and again after that. Raises ``UpstreamError`` when the body breaks off, its framing is wrong, or it was closed
        before its end.
        """

    async def pour(self, take: Callable[[bytes], bool]) -> bool:
        """Give the body to ``take`` as it comes, until its end (True) or until ``take`` has enough for now (False).

        Ends and raises as ``read`` does; what ``take`` raises passes through.
        """

    def now(self) -> bytes:
        """What is here of the body; ``b""`` where there is nothing yet, or no more."""

    def whole(self) -> bytes | None:
        """The rest of the body, where it is there to its proper end already; else ``None``, and nothing is taken."""

    async def aclose(self) -> None:
        """Give the connection back or drop it. May be called twice, early, and under cancellation."""


class Waiter(Protocol):
    """Who is told, as a future is, how a request that has begun went on: with an ``Answer`` or an ``UpstreamError``."""

    def done(self) -> bool: ...
    def set_result(self, result: Any, /) -> None: ...
    def set_exception(self, exception: Any, /) -> None: ...


class Begun(Protocol):
    """A request on its way, of which nothing is known yet."""

    def abandon(self, waiter: Any) -> None:
        """``waiter`` waits no more: the request is broken off, and it is told nothing."""


class Engine(Protocol):
    """Opens requests. Keeps the connect timeout only; the other times belong to whoever cancels the task."""

    def begin(self, origin: Origin, wire: Wire, body: bytes, waiter: Waiter) -> Begun | None:
        """Send at once what ``open`` would send for an ``Outgoing`` with this ``wire`` and a small ``body``.

        ``None``, and nothing was sent, where that would take any waiting, or ``wire`` is not known yet. ``waiter`` is told
        when the final head is there, after as much of the body as came with it was put into the answer.
        """

    async def open(self, out: Outgoing) -> Answer:
        """Send ``out`` and return at the final response head.

        Raises ``UpstreamError``; a fault of ``out.body``'s own iterator passes through unchanged.
        """

    async def aclose(self) -> None:
        """Close every connection."""


class UpstreamError(Exception):
    """The other side, or the way to it, failed.

    ``unreachable``, ``tls``, ``connect_timeout``, and ``proxy`` for every fault of the outbound proxy: before any byte of
    the request was written. ``closed``: the
    connection ended too early. ``protocol``: what came is not the HTTP that it should be. ``sent`` says
    whether any byte of the request was written (money may be spent); ``detail`` is for people and holds
    nothing that either side sent.
    """

    def __init__(self, kind: Kind, sent: bool, detail: str) -> None:
        super().__init__(kind, sent, detail)
        self.kind: Kind = kind
        self.sent = sent
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail}"


class UpstreamSettings(Protocol):
    """What an engine needs of the ``[upstream]`` table: seconds, a path or "", and which proxy to use."""

    @property
    def connect(self) -> float: ...
    @property
    def ca_file(self) -> str: ...
    def proxy_for(self, scheme: str, host: str, port: int) -> str:
        """The URL of the outbound proxy for this address, with its credentials; ``""`` for none."""


def create_engine(settings: UpstreamSettings, max_connections: int = MAX_CONNECTIONS) -> Engine:
    """The engine that these settings ask for. Opens nothing, and imports nothing that the first request may
    load. With ``max_connections`` open, a new connection takes the place of the one that is idle longest.
    """
    from proxy.upstream.native import NativeEngine

    return NativeEngine(settings, max_connections=max_connections)
