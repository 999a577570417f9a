"""The oracle of the native engine: an engine on the connections of httpx2, which no daemon uses.

It stands on httpcore2, the transport inside httpx2, and not on ``httpx2.AsyncClient``: a client normalises
the target, adds headers of its own, replays cookies and logs whole URLs, and each of these would have to be
undone.

No HTTP/1.1 connection is used twice. httpcore2 hands bytes that follow a response in the same segment to the
next request on that connection, so a second response that an upstream sends unasked would reach another
project.

What h11 forgives (bare line feeds, folded lines, a repeated length, any number of informational responses) is
refused here before h11 sees it: ``_HeadCheck`` reads the bytes of the head on their way in. What it forgives
inside a chunked body (a bare line feed after a chunk size, a space before it) stays forgiven; nothing can be
smuggled through it, as the connection ends with the response.

One thing this engine cannot do: it reads no answer before the whole request is sent.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from typing import TYPE_CHECKING, Any, TypeVar

from proxy.upstream import (
    MAX_HEAD_BYTES,
    MAX_HEADERS,
    MAX_INFORMATIONAL,
    Body,
    Framing,
    Origin,
    UpstreamError,
    UpstreamErrorKind,
    UpstreamRequest,
    UpstreamSettings,
    trust,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterable

    import httpcore2

STATUS_LINE = re.compile(rb"HTTP/1\.[01] [1-5][0-9]{2}(?: [\t\x20-\x7e\x80-\xff]*)?\r\n")
BARE_LF = re.compile(rb"(?<!\r)\n")
FOLD_OR_CONTROL = re.compile(rb"\n[ \t]|\r(?!\n)|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
LENGTH = re.compile(rb"\ncontent-length:[ \t]*([^\r]*?)[ \t]*\r", re.IGNORECASE)
INFORMATIONAL = re.compile(rb"HTTP/1\.[01] 1")

_E = TypeVar("_E", bound=BaseException)


class HttpxEngine:
    """Knows no outbound proxy."""

    def __init__(self, settings: UpstreamSettings) -> None:
        self._settings = settings
        self._pools: dict[str, httpcore2.AsyncConnectionPool] = {}
        self._trust: asyncio.Future[ssl.SSLContext] | None = None
        self._closing: set[asyncio.Task[None]] = set()

    async def open(self, out: UpstreamRequest, body: Body = None, content_length: int | None = None) -> HttpxAnswer:
        import httpcore2

        exchange = _Exchange(out, body, content_length)
        timeout = self._settings.connect
        try:
            # Name lookup, TCP and TLS share one deadline; the first byte written lifts it.
            async with asyncio.timeout(timeout) as exchange.deadline:
                pool = await self._pool(out.origin)
                response = await pool.handle_async_request(exchange.request(httpcore2))
        except asyncio.CancelledError:
            raise
        except Exception as exc:
            if exchange.body_fault is not None:
                raise exchange.body_fault from None
            raise exchange.error(exc, timeout) from exc
        try:
            return HttpxAnswer(self, exchange, response)
        except BaseException:
            self.finish(response.aclose())
            raise

    def finish(self, work: Coroutine[Any, Any, None]) -> None:
        """Begin a clean-up, which ``aclose`` waits for."""
        task = asyncio.ensure_future(work)
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def close(self) -> None:
        pools, self._pools = list(self._pools.values()), {}
        for pool in pools:
            self.finish(pool.aclose())

    async def aclose(self) -> None:
        self.close()
        if self._closing:
            await asyncio.wait(set(self._closing))

    async def _pool(self, origin: Origin) -> httpcore2.AsyncConnectionPool:
        import httpcore2

        pool = self._pools.get(origin.scheme)
        if pool is None:
            made = httpcore2.AsyncConnectionPool(
                ssl_context=await self._context() if origin.scheme == "https" else None,
                max_connections=None,
                max_keepalive_connections=0,
                network_backend=_backend(httpcore2),
            )
            pool = self._pools.setdefault(origin.scheme, made)
        return pool

    async def _context(self) -> ssl.SSLContext:
        if self._trust is None:
            loop = asyncio.get_running_loop()
            self._trust = loop.run_in_executor(None, trust.context, self._settings.ca_file)
        # Shared by every request that waits for it, so the cancellation of one must not reach it.
        try:
            return await asyncio.shield(self._trust)
        except OSError as exc:  # ssl.SSLError is one
            raise UpstreamError("tls", False, f"ca_file cannot be used: {exc.strerror}") from exc


class HttpxAnswer:
    """See ``proxy.upstream.Answer``."""

    __slots__ = (
        "_chunks",
        "_closed",
        "_ended",
        "_engine",
        "_exchange",
        "_fault",
        "_response",
        "framing",
        "headers",
        "status",
    )

    def __init__(self, engine: HttpxEngine, exchange: _Exchange, response: httpcore2.Response) -> None:
        self._engine = engine
        self._exchange = exchange
        self._response = response
        self._closed = self._ended = False
        self._fault: UpstreamError | None = None
        self._chunks: AsyncIterator[bytes] | None = None
        self.status = response.status
        self.headers = [(name.lower(), value) for name, value in response.headers]
        version = response.extensions["http_version"]
        self.framing: Framing = _framing(exchange.out.method, self.status, self.headers, version)

    async def read(self) -> bytes:
        if self._fault is not None:
            raise self._fault
        if self._ended or self.framing == "none":
            return b""
        if self._closed:
            raise UpstreamError("closed", True, "the answer was closed before its end")
        if self._chunks is None:
            self._chunks = aiter(self._response.stream)  # type: ignore[arg-type]  # the async pool's is async
        try:
            async for chunk in self._chunks:
                if chunk:
                    return chunk
        except asyncio.CancelledError:
            raise
        except Exception as exc:
            self._fault = self._exchange.error(exc, 0.0)
            raise self._fault from exc
        self._ended = True
        return b""

    async def pour(self, take: Callable[[bytes], bool]) -> bool:
        while chunk := await self.read():
            if not take(chunk):
                return False
        return True

    def whole(self) -> bytes | None:
        return None  # it comes piece by piece

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._engine.finish(self._close())

    async def _close(self) -> None:
        try:
            if self._chunks is not None:
                await self._chunks.aclose()  # type: ignore[attr-defined]  # an async generator
        finally:
            await self._response.aclose()


class _Exchange:
    """One request under way: how far it came, told by httpcore2's trace, and what a failure then means."""

    __slots__ = ("body", "body_fault", "content_length", "deadline", "out", "sent", "stream")

    def __init__(self, out: UpstreamRequest, body: Body, content_length: int | None) -> None:
        self.out = out
        self.body = body
        self.content_length = content_length
        self.sent = False
        self.body_fault: BaseException | None = None
        self.deadline: asyncio.Timeout | None = None
        self.stream: Any = None

    def request(self, httpcore: Any) -> httpcore2.Request:
        out = self.out
        headers = list(out.headers)
        body = self.body
        length = len(body) if isinstance(body, bytes) else self.content_length
        if length is not None:
            headers.append((b"content-length", b"%d" % length))
        elif body is not None:
            headers.append((b"transfer-encoding", b"chunked"))
        origin = out.origin
        # This URL class is four fields and no parser: the target stays as it is.
        url = httpcore.URL(
            scheme=origin.scheme.encode(),
            host=origin.host.encode("idna"),
            port=origin.port,
            target=out.target,
        )
        made: httpcore2.Request = httpcore.Request(
            method=out.method,
            url=url,
            headers=headers,
            content=self.content(),
            extensions={"trace": self.trace},
        )
        return made

    async def content(self) -> AsyncIterator[bytes]:
        body, expected = self.body, self.content_length
        if body is None:
            return
        if isinstance(body, bytes):
            yield body
            return
        try:
            given = 0
            async for chunk in body:
                given += len(chunk)
                if expected is not None and given > expected:
                    raise ValueError("the request body is longer than its content_length")
                if chunk:
                    yield chunk
            if expected is not None and given < expected:
                raise ValueError("the request body is shorter than its content_length")
        except GeneratorExit:
            raise
        except BaseException as exc:
            self.body_fault = exc
            raise

    async def trace(self, name: str, info: dict[str, Any]) -> None:
        if name.endswith(("connect_tcp.complete", "start_tls.complete")):
            self.stream = info["return_value"]
        elif name.endswith("send_request_headers.started"):
            self.sent = True
            if self.deadline is not None:
                self.deadline.reschedule(None)

    def error(self, exc: Exception, timeout: float) -> UpstreamError:
        """What a failure of httpcore2 means here. Its texts may quote what came, so none is passed on."""
        import httpcore2

        kind: UpstreamErrorKind
        if isinstance(exc, UpstreamError):
            return exc
        if isinstance(exc, httpcore2.LocalProtocolError):
            raise ValueError("the request cannot be written as HTTP") from exc
        if not self.sent:
            if isinstance(exc, TimeoutError | httpcore2.TimeoutException):
                return UpstreamError("connect_timeout", False, f"no connection within {timeout:g} s")
            tls = _cause(exc, ssl.SSLError)
            if tls is not None:
                return UpstreamError("tls", False, _tls_detail(tls))
            if isinstance(exc, OSError | httpcore2.NetworkError | httpcore2.ProtocolError):
                cause = _cause(exc, OSError)
                return UpstreamError("unreachable", False, (cause and cause.strerror) or "no connection")
            raise exc
        if isinstance(exc, httpcore2.NetworkError | OSError):
            return UpstreamError("closed", True, "the connection broke")
        if isinstance(exc, httpcore2.ProtocolError):
            kind = "closed" if getattr(self.stream, "ended", False) else "protocol"
            detail = "the connection ended too early" if kind == "closed" else "the answer is not proper HTTP"
            return UpstreamError(kind, True, detail)
        raise exc


class _HeadCheck:
    """Reads the bytes of HTTP/1 response heads beside h11, until the final head is complete."""

    __slots__ = ("_held", "_informational", "_total")

    def __init__(self) -> None:
        self._held = b""
        self._informational = 0
        self._total = 0

    def feed(self, data: bytes) -> bool:
        """True once the final head is complete and sound. Raises ``UpstreamError`` for one that is not."""
        self._held += data
        while True:
            held = self._held
            if not b"HTTP/1.".startswith(held[:7]):
                raise _refused("the answer is not HTTP/1")
            end = held.find(b"\r\n\r\n") + 4
            head = held if end < 4 else held[:end]
            if BARE_LF.search(head):
                raise _refused("a bare line feed in the response head")
            if len(head) > MAX_HEAD_BYTES:
                raise _refused("the response head is too large")
            if end < 4:
                return False
            self._one(head)
            if not INFORMATIONAL.match(head):
                return True
            self._informational += 1
            if self._informational > MAX_INFORMATIONAL:
                raise _refused("too many informational responses")
            self._held = held[end:]
            if not self._held:
                return False

    def _one(self, head: bytes) -> None:
        if not STATUS_LINE.match(head):
            raise _refused("malformed status line")
        if head.count(b"\n") - 2 > MAX_HEADERS:
            raise _refused("too many response headers")
        if FOLD_OR_CONTROL.search(head):
            raise _refused("malformed response header")
        lengths = LENGTH.findall(head)
        if len(lengths) > 1 or not all(value.isdigit() and len(value) <= 18 for value in lengths):
            raise _refused("more than one content-length, or one that is no number")


def _framing(method: bytes, status: int, headers: Iterable[tuple[bytes, bytes]], version: bytes) -> Framing:
    """How the body ends. Raises ``UpstreamError`` where the head leaves it in doubt."""
    if status < 200:
        raise UpstreamError("protocol", True, "the upstream switched protocols")
    length = coding = False
    for name, _ in headers:
        length = length or name == b"content-length"
        coding = coding or name == b"transfer-encoding"
    if coding and (length or version == b"HTTP/1.0"):
        raise UpstreamError("protocol", True, "transfer-encoding beside content-length, or in HTTP/1.0")
    if method == b"HEAD" or status in {204, 304}:
        return "none"
    if length:
        return "length"
    return "chunked" if coding else "close"


def _refused(detail: str) -> UpstreamError:
    return UpstreamError("protocol", True, detail)


def _cause(exc: BaseException | None, kind: type[_E]) -> _E | None:
    """The first ``kind`` in the chain of causes: httpcore2 and anyio wrap what the socket or TLS said."""
    seen = 0
    while exc is not None and seen < 12:
        if isinstance(exc, kind):
            return exc
        exc, seen = exc.__cause__ or exc.__context__, seen + 1
    return None


def _tls_detail(exc: ssl.SSLError) -> str:
    return getattr(exc, "verify_message", "") or (exc.reason or "TLS failed").lower().replace("_", " ")


def _backend(httpcore: Any) -> httpcore2.AsyncNetworkBackend:
    """anyio's sockets with a head check on each. Made here because its bases are imported late."""
    stream_base: Any = httpcore.AsyncNetworkStream
    backend_base: Any = httpcore.AnyIOBackend

    class Stream(stream_base):  # type: ignore[misc]  # a base that is only known at run time
        def __init__(self, inner: Any) -> None:
            self.inner = inner
            self.check: _HeadCheck | None = _HeadCheck()
            self.ended = False

        async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109 - httpcore2's interface
            data: bytes = await self.inner.read(max_bytes, timeout)
            if not data:
                self.ended = True
            elif self.check is not None and self.check.feed(data):
                self.check = None
            return data

        async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109 - httpcore2's interface
            await self.inner.write(buffer, timeout)

        async def aclose(self) -> None:
            await self.inner.aclose()

        async def start_tls(self, ssl_context: Any, *args: Any, **kwargs: Any) -> Stream:
            try:
                inner = await self.inner.start_tls(ssl_context, *args, **kwargs)
            except BaseException:
                # httpcore2 2.16.2 closes the socket for an Exception, and leaks it for a cancellation.
                await self.inner.aclose()
                raise
            return Stream(inner)

        def get_extra_info(self, info: str) -> Any:
            return self.inner.get_extra_info(info)

    class Backend(backend_base):  # type: ignore[misc]  # a base that is only known at run time
        async def connect_tcp(self, *args: Any, **kwargs: Any) -> Stream:
            return Stream(await super().connect_tcp(*args, **kwargs))

    made: httpcore2.AsyncNetworkBackend = Backend()
    return made
