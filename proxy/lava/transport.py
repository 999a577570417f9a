"""The connections of the account client: one request and its answer, through httpx2's transport.

The transport is used without its client: ``httpx2.AsyncClient`` would log whole URLs (which may contain a provider's key),
send cookies, read proxy variables and normalise the target. Failures become ``Unreachable`` and its subclasses, with new
texts: httpx2's exceptions contain the request, and with it the key.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from proxy.lava.errors import Interrupted, TimedOut, UnexpectedAnswer, Unreachable
from proxy.lava.replies import ApiReply
from proxy.protocol.wording import counted

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import httpx2

MAX_REPLY_BYTES = 64 * 1024 * 1024
"""Much more than a page of 100 records. A longer answer is not Lava's."""

KEEP_SECONDS = 5.0
"""How long an idle connection is kept: shorter than the limits of servers, so that few are closed when reused."""


class Transport:
    """Connections to one base address. ``connect`` is in seconds; ``ca_file`` names further trusted certificates; ``proxy``
    is an outbound proxy's URL. No variable of the environment is read."""

    def __init__(self, base_url: str, *, connect: float = 10.0, ca_file: str = "", proxy: str = "") -> None:
        parts = urlsplit(base_url)
        self._origin = f"{parts.scheme}://{parts.netloc}"
        self._path = parts.path.rstrip("/") + "/"
        self._connect = connect
        self._ca_file = ca_file
        self._proxy = proxy
        self._made: tuple[asyncio.AbstractEventLoop, asyncio.Task[httpx2.AsyncHTTPTransport]] | None = None

    async def send(
        self, method: str, target: str, headers: dict[str, str], body: bytes | None, limit: float
    ) -> ApiReply:
        """Send a request and read the complete answer within `limit` seconds, including the connection.

        ``target`` follows the last slash of the base address, and is sent as it is. Raises ``Unreachable``.
        """
        sent: list[bool] = []
        try:
            async with (
                asyncio.timeout(limit),
                self.open(method, target, headers, body, silence=None, sent=sent) as answer,
            ):
                return ApiReply(answer.status, answer.headers, await answer.read())
        except TimeoutError:
            raise TimedOut(f"no whole answer within {counted(limit, 'second')}", sent=bool(sent)) from None

    @asynccontextmanager
    async def open(
        self,
        method: str,
        target: str,
        headers: dict[str, str],
        body: bytes | None,
        *,
        silence: float | None,
        sent: list[bool] | None = None,
    ) -> AsyncIterator[ApiAnswer]:
        """Send a request and yield the answer at its head; the body is still to be read.

        ``silence`` is how many seconds may pass without a byte. ``sent`` is filled once the request is on its way.
        """
        import httpx2

        begun = [] if sent is None else sent

        async def trace(name: str, info: dict[str, Any]) -> None:
            if name.endswith("send_request_headers.started") and info["request"].method != b"CONNECT":
                begun.append(True)

        transport = await self._transport()
        try:
            request = httpx2.Request(
                method,
                self._origin,
                headers=headers,
                content=body,
                extensions={
                    # The target is sent as it is here: no parser changes it.
                    "target": (self._path + target).encode("ascii"),
                    "timeout": {"connect": self._connect, "read": silence, "write": silence, "pool": self._connect},
                    "trace": trace,
                },
            )
            response = await transport.handle_async_request(request)
        except (httpx2.TransportError, httpx2.InvalidURL, OSError, ValueError, TypeError) as exc:
            raise _failure(exc, bool(begun)) from None
        try:
            yield ApiAnswer(response)
        finally:
            await _finish(response.aclose())

    async def aclose(self) -> None:
        """Close every connection. The transport opens new ones when it is used again."""
        made, self._made = self._made, None
        if made is not None and made[0] is asyncio.get_running_loop():
            transport = await made[1]
            await _finish(transport.aclose())

    async def _transport(self) -> httpx2.AsyncHTTPTransport:
        # Connections belong to the event loop that opened them: a second asyncio.run() gets its own.
        loop = asyncio.get_running_loop()
        if self._made is None or self._made[0] is not loop:
            self._made = (loop, loop.create_task(self._make()))
        making = self._made[1]
        try:
            return await asyncio.shield(making)
        except Unreachable:
            self._made = None
            raise

    async def _make(self) -> httpx2.AsyncHTTPTransport:
        import httpx2

        verify: ssl.SSLContext | bool = False
        if self._origin.startswith("https:") or self._proxy.startswith("https:"):
            try:
                # Reads the system's certificates, which would block the event loop for a tenth of a second.
                verify = await asyncio.to_thread(_context, self._ca_file)
            except OSError as exc:
                raise Unreachable(f"ca_file cannot be used: {exc.strerror or 'no certificates'}") from None
        return httpx2.AsyncHTTPTransport(
            verify=verify,
            trust_env=False,
            limits=httpx2.Limits(max_connections=100, max_keepalive_connections=10, keepalive_expiry=KEEP_SECONDS),
            proxy=self._proxy or None,
        )


class ApiAnswer:
    """An answer whose body is not read yet. ``headers`` have lower-case names, the last value of each."""

    def __init__(self, response: httpx2.Response) -> None:
        self.status: int = response.status_code
        self.headers: dict[str, str] = {name.lower(): value for name, value in response.headers.multi_items()}
        self._response = response

    async def raw(self) -> AsyncIterator[bytes]:
        """Yield the body as it arrives, not decoded."""
        async for chunk in self._guarded(self._response.aiter_raw()):
            yield chunk

    async def plain(self) -> AsyncIterator[bytes]:
        """Yield the body as it arrives, decoded if it has a ``Content-Encoding``."""
        async for chunk in self._guarded(self._response.aiter_bytes()):
            yield chunk

    async def read(self) -> bytes:
        """Return the whole body, decoded. Raises ``UnexpectedAnswer`` if it is too long to be Lava's."""
        parts: list[bytes] = []
        size = 0
        async for chunk in self.plain():
            parts.append(chunk)
            size += len(chunk)
            if size > MAX_REPLY_BYTES:
                raise UnexpectedAnswer(f"the answer is longer than {MAX_REPLY_BYTES} bytes", status=self.status)
        return b"".join(parts)

    async def _guarded(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        import httpx2

        request_id = self.headers.get("x-lava-request-id")
        try:
            async for chunk in chunks:
                if chunk:
                    yield chunk
        except httpx2.TimeoutException:
            raise TimedOut("the answer stopped coming", sent=True, request_id=request_id, status=self.status) from None
        except (httpx2.TransportError, httpx2.DecodingError, httpx2.StreamError):
            detail = "the connection broke in the middle of the answer"
            raise Interrupted(detail, sent=True, request_id=request_id, status=self.status) from None


async def _finish(work: Any) -> None:
    """Complete the close, even if the caller is cancelled."""
    await asyncio.shield(asyncio.ensure_future(work))


def _context(ca_file: str) -> ssl.SSLContext:
    import httpx2

    context = httpx2.create_ssl_context(trust_env=False)
    if ca_file:
        context.load_verify_locations(ca_file)
    return context


def _failure(exc: Exception, sent: bool) -> Exception:
    """Return the error for a failure before the answer's head. The texts of httpx2 may contain the request."""
    import httpx2

    if isinstance(exc, httpx2.LocalProtocolError | httpx2.InvalidURL | TypeError | ValueError):
        return ValueError("the request cannot be written as HTTP: a header holds characters that none may hold")
    if isinstance(exc, httpx2.TimeoutException):
        return TimedOut("no answer in time" if sent else "no connection in time", sent=sent)
    if isinstance(exc, httpx2.ProxyError) and not sent:
        return Unreachable("the outbound proxy refused the connection")
    if sent:
        return Unreachable("the connection broke before an answer", sent=True)
    reason = _reason(exc)
    return Unreachable(f"no connection: {reason}" if reason else "no connection")


def _reason(exc: BaseException | None) -> str:
    """Return why there is no connection, from the system error that caused httpx2's."""
    while exc is not None:
        if isinstance(exc, ssl.SSLCertVerificationError):
            return f"the server's certificate is not trusted ({exc.verify_message})"
        if isinstance(exc, ssl.SSLError):
            return "TLS failed"
        if isinstance(exc, socket.gaierror):
            return "the host's name is not known"
        if isinstance(exc, OSError) and exc.errno:
            return os.strerror(exc.errno)  # its own text may be asyncio's, with an address in it
        exc = exc.__cause__ or exc.__context__
    return ""
