"""The native engine: HTTP/1.1 on a bare asyncio protocol, with httptools for what needs a parser.

Each request costs one write and one future, and the segments of the body are passed on as they arrive. The theory, in the
order of the code:

**One exchange at a time.** A connection is IDLE (in the pool), in HEAD (request written, no final head yet) or in BODY.
Every exchange ends in ``_finish`` (the message is complete) or ``_fail`` (it is not), and only a ``_finish`` without any
doubt puts the connection back into the pool. Bytes on an IDLE connection, bytes beyond the end of a message, a body that must
not exist, an incompletely sent request: each closes the connection, so that no byte of one response can reach another
request.

**Framing.** ``heads.py`` parses every byte of the head, or refuses it. ``_response_head`` decides the framing of the body.
(One callback per header, as in other parsers, costs more than parsing all lines at once.) Lengths are counted here, so a large
body is passed on without a copy, and the end of a message is exact to the byte. httptools parses the chunked coding, and
nothing else.

**Outbound proxies.** A tunnel is requested first (``CONNECT``), and the head of the proxy's response is parsed like every
other. The result is a connection like any other.

**No lock and no await in a clean-up.** Closing, failing and releasing are plain function calls, so cancellation can occur only
where this module waits: name lookup, connect, head, body, and the drain of a request body. Each of these closes the connection
or leaves it to the response, which closes it.

**The pools.** Each origin has a stack of idle connections, and an origin includes the credential as well as the address
(``Origin.pool_key``): bytes that an upstream sends too late, on a reused connection, cannot reach another project. The limits
hold for all pools together, and a pool is removed with its last connection. A connection is checked before use: one that the
upstream closed in the meantime is replaced before anything is written. A request of which a byte was written is never sent
again.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import select
import socket
import ssl
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final, cast

from httptools import HttpParserError, HttpResponseParser

from proxy.protocol.tasks import Signal, in_task
from proxy.protocol.threads import signals_left_to_main
from proxy.upstream import (
    MAX_CONNECTIONS,
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
from proxy.upstream.heads import ResponseHeads, may_begin
from proxy.upstream.outbound import OutboundProxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    Address = tuple[str, int]

MAX_IDLE: Final = 512
"""Idle connections of all pools together."""

IDLE_SECONDS: Final = 15.0
"""Below the idle limits of servers, and of NATs that drop connections silently."""

CLOCK_JUMP_SECONDS: Final = 5.0
"""A larger difference between wall and monotonic clock means that the machine slept and the idle connections are dead."""

USER_TIMEOUT_MS: Final = 20_000
"""Unacknowledged bytes abort a connection after this time (Linux), not after a quarter of an hour."""

HIGH_WATER: Final = 32_768
"""Bytes of a body buffered for a slow reader before reading pauses."""

ONE_READ: Final = 49_152
"""Size of the read buffer; uvloop's own takes 256 KB. A slow reader costs about four of these: one buffered here, one in
transit, and the rest in the client's transport. Below the client's write limit (64 KiB), so that a fast reader never waits
for it."""

ONE_WRITE: Final = 65_536
"""A request body up to this size is sent in one write with its head."""

SLICE: Final = 262_144
"""A larger body given as bytes is sent in slices of this size, so that TLS does not block the loop."""

EYEBALLS_SECONDS: Final = 0.25
"""Delay between the connection attempts to two addresses (RFC 8305, section 8)."""

TLS_TURNS: Final = 8
"""Turns of the loop that an idle TLS connection gets to read its pending bytes before it is closed."""

CHUNKED_HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
"""The head that the parser gets before a chunked body."""

_IDLE, _HEAD, _BODY, _DEAD = range(4)


class NativeEngine:
    """The engine. With ``max_connections`` open, a new connection replaces the longest idle one.

    ``wall`` and ``monotonic`` are the clocks, in seconds.
    """

    def __init__(
        self,
        settings: UpstreamSettings,
        *,
        max_connections: int = MAX_CONNECTIONS,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._wall = wall
        self._monotonic = monotonic
        self._drift = wall() - monotonic()
        self._max_connections = max_connections
        self._pools: dict[Origin, _Pool] = {}
        # The pool that was used last.
        self._origin: Origin | None = None
        self._pool: _Pool | None = None
        self._idle: dict[_Connection, None] = {}
        """All idle connections, in the order of their release."""
        self._live: set[_Connection] = set()
        self._sweeper: asyncio.TimerHandle | None = None
        self._lookups: dict[str, asyncio.Future[list[Address]]] = {}
        self._trust: asyncio.Future[ssl.SSLContext] | None = None
        self._emptied: asyncio.Future[None] | None = None
        self.buffer = memoryview(bytearray(ONE_READ))
        self.heads = ResponseHeads()

    @property
    def idle(self) -> int:
        """Number of idle connections in all pools."""
        return len(self._idle)

    @property
    def pools(self) -> int:
        """Number of pools with a connection, idle or in use."""
        return len(self._pools)

    @property
    def live(self) -> int:
        """Number of open connections, idle or in use."""
        return len(self._live)

    async def open(self, out: UpstreamRequest, body: Body = None, content_length: int | None = None) -> NativeResponse:
        first, source, content_length = _encode(out, body, content_length)
        del body  # not referenced while the response is awaited
        connection = self._take(out.origin)
        if connection is None or not connection.peek():
            connection = await self._usable(out.origin, connection)
        waiter: Signal[NativeResponse] = Signal(connection.loop)
        connection.ask(first, source, content_length, out.method == b"HEAD", waiter)
        del first, source
        try:
            return await waiter
        except BaseException:
            connection.abandon(waiter)
            raise

    async def _usable(self, origin: Origin, connection: _Connection | None) -> _Connection:
        """Return a usable connection: ``connection`` if it is still usable, else a new one."""
        while connection is not None:
            state = connection.peek()
            turns = 0
            while state is None and turns < TLS_TURNS:
                # A session ticket, or a close_notify: known after some turns of the loop.
                turns += 1
                try:
                    await asyncio.sleep(0)
                except BaseException:
                    connection.kill()
                    raise
                state = connection.peek()
            if state:
                return connection
            connection.kill()
            connection = self._take(origin)
        connection = await in_task(self._connect(origin), discard=_Connection.kill)
        if not connection.usable:  # a turn of the loop has passed since it was made
            connection.kill()
            raise connection.not_usable()
        return connection

    def close(self) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        for connection in list(self._live):
            connection.cut("the engine was closed")

    async def aclose(self) -> None:
        self.close()
        if self._live:
            self._emptied = asyncio.get_running_loop().create_future()
            # The loop closes sockets in its next turn. If it misses one, that must not delay the exit.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await self._emptied

    # The pool.

    def _take(self, origin: Origin) -> _Connection | None:
        pool = self._pool
        if origin is not self._origin:
            # Nearly every request uses the origin of the last one, and hashing an origin is slow.
            self._origin = origin
            pool = self._pool = self._pools.get(origin)
        if not pool:
            return None
        now = self._monotonic()
        if abs(self._wall() - now - self._drift) > CLOCK_JUMP_SECONDS:
            self._drop_all()
            return None
        connection = pool.pop()
        del self._idle[connection]
        if now - connection.idle_since <= IDLE_SECONDS:
            return connection
        connection.kill()
        # The one released last is too old, so all of them are.
        while pool:
            self._drop(pool[-1])
        return None

    def release(self, connection: _Connection) -> None:
        """Keep ``connection`` for a later request. It replaces the longest idle one if there are too many."""
        if len(self._idle) >= MAX_IDLE:
            self._drop_oldest()
        connection.idle_since = self._monotonic()
        connection.pool.append(connection)
        self._idle[connection] = None
        if self._sweeper is None:
            self._sweeper = connection.loop.call_later(IDLE_SECONDS, self._sweep)

    def made(self, connection: _Connection) -> None:
        """Count a new connection. If there are too many, the longest idle one is closed."""
        if len(self._live) >= self._max_connections and self._idle:
            self._drop_oldest()
        self._live.add(connection)
        pool = self._pools.get(connection.origin)
        if pool is None:
            pool = self._pools[connection.origin] = _Pool(connection.origin)
            self._origin = self._pool = None
        pool.open += 1
        connection.pool = pool

    def lost(self, connection: _Connection) -> None:
        """Forget a closed connection, and its pool with the last one."""
        if connection in self._live:
            self._live.discard(connection)
            if connection in self._idle:
                self._drop(connection)
            pool = connection.pool
            pool.open -= 1
            if not pool.open:
                del self._pools[pool.origin]
                self._origin = self._pool = None
        if not self._live and self._emptied is not None and not self._emptied.done():
            self._emptied.set_result(None)

    def _drop(self, connection: _Connection) -> None:
        """Close an idle connection."""
        del self._idle[connection]
        connection.pool.remove(connection)
        connection.kill()

    def _drop_oldest(self) -> None:
        self._drop(next(iter(self._idle)))

    def _drop_all(self) -> None:
        self._drift = self._wall() - self._monotonic()
        for connection in list(self._idle):
            self._drop(connection)

    def _sweep(self) -> None:
        self._sweeper = None
        now = self._monotonic()
        if abs(self._wall() - now - self._drift) > CLOCK_JUMP_SECONDS:
            self._drop_all()
        for connection in [one for one in self._idle if now - one.idle_since >= IDLE_SECONDS]:
            self._drop(connection)
        if self._idle:
            oldest = min(one.idle_since for one in self._idle)
            loop = asyncio.get_running_loop()
            self._sweeper = loop.call_later(max(0.01, oldest + IDLE_SECONDS - now), self._sweep)

    # A new connection.

    async def _connect(self, origin: Origin) -> _Connection:
        loop = asyncio.get_running_loop()
        seconds = self._settings.connect
        url = self._settings.proxy_for(origin.scheme, origin.host, origin.port)
        proxy = OutboundProxy(url) if url else None
        connection: _Connection | None = None
        try:
            # One deadline for name lookup, TCP, the outbound proxy and TLS.
            async with asyncio.timeout(seconds):
                secured = origin.scheme == "https" or (proxy is not None and proxy.origin.scheme == "https")
                context = await self._context(loop) if secured else None
                if proxy is not None:
                    connection = await self._dial(loop, origin, proxy.origin)
                    if context is not None and proxy.origin.scheme == "https":
                        await connection.secure(context, proxy.origin.host, seconds)
                    await connection.tunnel(proxy)
                    proxy = None  # the tunnel is open
                else:
                    connection = await self._dial(loop, origin, origin)
                if context is not None and origin.scheme == "https":
                    await connection.secure(context, origin.host, seconds)
        except BaseException as exc:
            if connection is not None:
                connection.kill()
                self.lost(connection)
            fault = _connect_error(exc, seconds, proxy is not None)
            if fault is not None:
                raise fault from exc
            raise
        if connection.usable:
            return connection
        connection.kill()
        raise connection.not_usable()

    async def _context(self, loop: asyncio.AbstractEventLoop) -> ssl.SSLContext:
        if self._trust is None:
            self._trust = loop.run_in_executor(None, self._make_context)
        try:
            # Shared by all waiting requests: the cancellation of one must not cancel it.
            return await asyncio.shield(self._trust)
        except OSError as exc:  # ssl.SSLError is one
            raise UpstreamError("tls", False, f"ca_file cannot be used: {exc.strerror}") from exc

    def _make_context(self) -> ssl.SSLContext:
        context = trust.context(self._settings.ca_file)
        context.set_alpn_protocols(["http/1.1"])
        return context

    async def _dial(self, loop: asyncio.AbstractEventLoop, origin: Origin, peer: Origin) -> _Connection:
        """Return a TCP connection to ``peer``, for ``origin``."""
        addresses = _literal(peer) or await self._resolve(loop, peer)
        if len(addresses) == 1:
            return await self._attempt(loop, origin, addresses[0])
        # The first connection that succeeds; each address starts a little after the one before (RFC 8305).
        waiting = deque(addresses)
        running: set[asyncio.Task[_Connection]] = set()
        fault: BaseException | None = None
        try:
            while waiting or running:
                if waiting:
                    running.add(loop.create_task(self._attempt(loop, origin, waiting.popleft())))
                delay = EYEBALLS_SECONDS if waiting else None
                done, _ = await asyncio.wait(running, timeout=delay, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    fault = task.exception()
                    if fault is None:
                        running.discard(task)
                        return task.result()
                running -= done
        finally:
            for task in running:
                task.add_done_callback(_discard)
                task.cancel()
        raise fault or OSError(0, "the name has no address")

    async def _attempt(self, loop: asyncio.AbstractEventLoop, origin: Origin, address: Address) -> _Connection:
        connection = _Connection(self, origin, loop)
        try:
            await loop.create_connection(lambda: connection, *address)
        except BaseException:
            # uvloop calls ``connection_made`` for a cancelled connection, but never ``connection_lost``.
            self.lost(connection)
            raise
        return connection

    async def _resolve(self, loop: asyncio.AbstractEventLoop, origin: Origin) -> list[Address]:
        # One lookup per name at a time, in its own daemon thread: neither a hanging resolver nor a burst of requests
        # can fill a thread pool or delay the exit.
        key = f"{origin.host}:{origin.port}"
        lookup = self._lookups.get(key)
        if lookup is None:
            lookup = self._lookups[key] = loop.create_future()
            lookup.add_done_callback(lambda _: self._lookups.pop(key, None))
            args = (loop, lookup, origin)
            with signals_left_to_main():
                threading.Thread(target=_look_up, args=args, name="lookup", daemon=True).start()
        return await asyncio.shield(lookup)


class _Pool(list["_Connection"]):
    """The stack of idle connections of one origin, and the number of its open ones."""

    __slots__ = ("open", "origin")

    def __init__(self, origin: Origin) -> None:
        super().__init__()
        self.origin = origin
        self.open = 0


class NativeResponse:
    """See ``proxy.upstream.UpstreamResponse``."""

    __slots__ = (
        "_connection",
        "_ended",
        "_fault",
        "_size",
        "_take",
        "_waiter",
        "chunks",
        "framing",
        "headers",
        "status",
    )

    def __init__(
        self, connection: _Connection, status: int, headers: list[tuple[bytes, bytes]], framing: Framing
    ) -> None:
        self.status = status
        self.headers = headers
        self.framing: Framing = framing
        self._connection: _Connection | None = connection
        self.chunks: list[bytes] = []
        self._size = 0
        self._ended = False
        self._fault: BaseException | None = None
        self._waiter: Signal[bool] | None = None
        self._take: Callable[[bytes], bool] | None = None

    async def read(self) -> bytes:
        while not self.chunks:
            if self._over():
                return b""
            await self._more(None)
        return self._taken()

    async def pour(self, take: Callable[[bytes], bool]) -> bool:
        while True:
            if self.chunks:
                if not take(self._taken()):
                    return False
            elif self._over():
                return True
            elif not await self._more(take):
                return False

    def _over(self) -> bool:
        """Whether the body has ended. Raises the error that ended it, if any."""
        if self._fault is not None:
            raise self._fault
        return self._ended or self._connection is None

    async def _more(self, take: Callable[[bytes], bool] | None) -> bool:
        """Wait for more, or for the end. New bytes go to ``take`` at once. Return False if ``take`` did."""
        connection: _Connection = self._connection  # type: ignore[assignment]  # set until the end
        self._take = take
        self._waiter = Signal(connection.loop)
        try:
            return await self._waiter
        finally:
            self._take = self._waiter = None

    def _taken(self) -> bytes:
        chunks = self.chunks
        if len(chunks) == 1:
            data = chunks.pop()
        else:
            data = b"".join(chunks)
            chunks.clear()
        if self._size > HIGH_WATER and self._connection is not None:
            self._connection.resume()
        self._size = 0
        return data

    def whole(self) -> bytes | None:
        if not self._ended or self.framing == "close":
            return None
        data = b"".join(self.chunks)
        self.chunks.clear()
        return data

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.kill()
            self.chunks.clear()
            self.fail(UpstreamError("closed", True, "the answer was closed before its end"))

    # Called by the connection.

    def grew(self, size: int) -> bool:
        """Handle new ``chunks``, received as ``size`` bytes. Return False if reading should pause."""
        self._size += size
        waiter, take = self._waiter, self._take
        if waiter is None:
            return self._size <= HIGH_WATER
        if take is None or waiter.done():
            self._wake()
            return self._size <= HIGH_WATER
        # A reader is waiting in ``pour``: no turn of the loop is needed, and no task is woken.
        self._size = 0
        try:
            if not take(self._taken()):
                waiter.set_result(False)
        except Exception as exc:  # noqa: BLE001 - raised again where the taker waits
            waiter.set_exception(exc)
        return True

    def end(self) -> None:
        self._ended = True
        self._connection = None
        self._wake()

    def fail(self, exc: BaseException) -> None:
        self._fault = exc
        self._connection = None
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(True)


class _Connection(asyncio.BufferedProtocol):
    """One connection; see the module docstring."""

    __slots__ = (
        "_buffer",
        "_checked",
        "_drained",
        "_framing",
        "_head_only",
        "_held",
        "_informational",
        "_left",
        "_parser",
        "_paused",
        "_phase",
        "_proxy",
        "_raw",
        "_readable",
        "_response",
        "_reusable",
        "_sender",
        "_sent",
        "_tail",
        "_tls",
        "_transport",
        "_waiter",
        "_whole",
        "engine",
        "idle_since",
        "loop",
        "on_body",
        "origin",
        "pool",
        "spoke_first",
    )

    def __init__(self, engine: NativeEngine, origin: Origin, loop: asyncio.AbstractEventLoop) -> None:
        self.engine = engine
        self.origin = origin
        self.loop = loop
        self.pool: _Pool  # set by ``made``
        self._buffer = engine.buffer
        self._transport: asyncio.Transport
        self.idle_since = 0.0
        self.spoke_first = False
        self._phase = _IDLE
        self._sent = False
        self._tls = False
        self._proxy: OutboundProxy | None = None
        self._response: NativeResponse | None = None
        self._waiter: Signal[NativeResponse] | None = None
        self._drained: asyncio.Future[None] | None = None
        self._sender: asyncio.Task[None] | None = None
        self._parser: HttpResponseParser | None = None
        self._paused = self._held = False
        self.on_body: Callable[[bytes], None] | None = None
        self._raw = self._tail = b""
        self._checked = self._informational = 0
        self._whole = False

    # Before and after an exchange.

    @property
    def usable(self) -> bool:
        return self._phase == _IDLE and not self._transport.is_closing()

    def peek(self) -> bool | None:
        """Whether an idle connection may be used: True, False, or None if TLS has bytes to read first."""
        if self._phase != _IDLE or self._transport.is_closing():
            return False
        if not self._readable():
            return True
        # Without TLS, readable means a FIN, a reset, or an unrequested response.
        return None if self._tls else False

    def not_usable(self) -> UpstreamError:
        """Return why a new connection cannot be used."""
        if self.spoke_first:
            return UpstreamError("protocol", False, "the upstream spoke before it was asked")
        return UpstreamError("unreachable", False, "the upstream closed the connection at once")

    async def tunnel(self, proxy: OutboundProxy) -> None:
        """Request a tunnel to the origin from the proxy at the other end."""
        if not self.usable:
            raise self.not_usable()
        # An exchange without a sent request, see ``_fail`` and ``_opened``.
        self._phase = _HEAD
        self._proxy = proxy
        opened: Signal[None] = Signal(self.loop)
        self._waiter = cast("Signal[NativeResponse]", opened)  # set by ``_opened``, without a response
        self._transport.write(proxy.request(self.origin))
        await opened

    def _opened(self, status: int, rest: bytes) -> None:
        """Handle the proxy's response to CONNECT. Its content-length means nothing (RFC 9110, section 9.3.6)."""
        proxy: OutboundProxy = self._proxy  # type: ignore[assignment]  # set by ``tunnel``
        if status >= 300:
            return self._end(UpstreamError("proxy", False, proxy.refusal(status)))
        if rest:
            return self._fail("protocol", "bytes after its answer")
        opened = cast("Signal[None]", self._waiter)
        self._phase = _IDLE
        self._waiter = self._proxy = None
        self._raw = b""
        self._checked = self._informational = 0
        opened.set_result(None)
        return None

    async def secure(self, context: ssl.SSLContext, host: str, seconds: float) -> None:
        """Start TLS with ``host`` on this connection."""
        if not self.usable:
            raise self.not_usable()
        self._tls = True
        transport = await self.loop.start_tls(
            self._transport,
            self,
            context,
            server_hostname=host,
            # The caller enforces the deadline; the loop's own must not expire before it.
            ssl_handshake_timeout=seconds + 1,
        )
        if transport is None:
            raise ConnectionError(0, "the connection ended during the TLS handshake")
        self._transport = transport

    def kill(self) -> None:
        """Close now and drop unsent bytes, without notifying the exchange."""
        if self._phase != _DEAD:
            self._phase = _DEAD
            self._response = self._waiter = self._parser = None
            self._raw = b""
            self._stop_sending()
            self._transport.abort()

    def cut(self, why: str) -> None:
        """Close now, and fail the exchange."""
        self._fail("closed", why)

    def resume(self) -> None:
        """Resume reading."""
        if self._held and self._phase != _DEAD:
            self._held = False
            self._transport.resume_reading()

    def _hold(self) -> None:
        if not self._held:
            self._held = True
            self._transport.pause_reading()

    # One exchange.

    def ask(
        self,
        first: bytes,
        source: AsyncIterator[bytes] | None,
        length: int | None,
        head_only: bool,
        waiter: Signal[NativeResponse],
    ) -> None:
        """Write the request: ``first``, then ``source``. ``waiter`` gets the response at its final head."""
        self._phase = _HEAD
        self._sent = True
        self._head_only = head_only
        self._waiter = waiter
        self._transport.write(first)
        if source is not None:
            self._sender = self.loop.create_task(self._send(source, length))

    def abandon(self, waiter: Signal[NativeResponse]) -> None:
        """Close the connection of a cancelled ``waiter``."""
        if waiter.succeeded:
            # Cancelled in the turn in which the head arrived; another request may already use the connection.
            waiter.result().close()
        elif self._waiter is waiter:
            self.kill()

    async def _send(self, source: AsyncIterator[bytes], length: int | None) -> None:
        """Send a request body chunk by chunk, as fast as the upstream accepts it."""
        transport = self._transport
        given = 0
        try:
            async for chunk in source:
                if not chunk:
                    continue
                given += len(chunk)
                if length is None:
                    transport.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))  # not writelines: see StrictProtocol.write
                elif given > length:
                    raise ValueError("the request body is longer than its content_length")
                else:
                    transport.write(chunk)
                if self._paused:
                    self._drained = self.loop.create_future()
                    await self._drained
            if length is None:
                transport.write(b"0\r\n\r\n")
            elif given < length:
                raise ValueError("the request body is shorter than its content_length")
        except asyncio.CancelledError:
            raise
        except BaseException as exc:  # noqa: BLE001 - raised again where the caller waits
            self._sender = None
            self._end(exc)
        else:
            self._sender = None

    def _stop_sending(self) -> None:
        sender, self._sender = self._sender, None
        if sender is not None:
            sender.cancel()

    def _finish(self, clean: bool) -> None:
        """End a complete message. ``clean``: it was exact to the byte, and the connection can be reused."""
        response: NativeResponse = self._response  # type: ignore[assignment]  # there is one in BODY
        self._response = self._parser = None
        response.end()
        if clean and self._sender is None and not self._transport.is_closing():
            self._phase = _IDLE
            if self._held:
                self.resume()
            self.engine.release(self)
        else:
            self.kill()

    def _fail(self, kind: UpstreamErrorKind, detail: str) -> None:
        if self._proxy is not None:
            kind, detail = "proxy", f"the outbound proxy did not answer properly: {detail}"
        self._end(UpstreamError(kind, self._sent, detail))

    def _end(self, exc: BaseException) -> None:
        waiter, response = self._waiter, self._response
        self.kill()
        if response is not None:
            response.fail(exc)
        elif waiter is not None and not waiter.done():
            waiter.set_exception(exc)

    # Called by the transport.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        sock = transport.get_extra_info("socket")
        self._readable = _readable(sock.fileno())
        _configure(sock)
        self.engine.made(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        # One buffer for all: the loop gets it, reads into it and reports in one step.
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        data = bytes(self._buffer[:nbytes])
        if self._phase == _BODY:
            self._body(data)
        elif self._phase == _HEAD:
            self._head(data)
        else:
            self.spoke_first = True
            self.kill()

    def eof_received(self) -> None:
        if self._phase == _BODY and self._framing == "close":
            self._finish(clean=False)
        elif self._phase != _DEAD:
            self._fail("closed", "the connection ended too early")

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is None:
            # TLS without close_notify ends here and not in eof_received.
            self.eof_received()
        else:
            self._fail("closed", "the connection broke")
        self.engine.lost(self)

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    # The response.

    def _head(self, data: bytes) -> None:
        """Collect head bytes until the final head is complete; pass what follows to ``_body``."""
        start = 0
        if self._raw:
            start = max(0, len(self._raw) - 3)
            data = self._raw + data
        while True:
            end = data.find(b"\r\n\r\n", start) + 2
            if end < 2:
                return self._partial(data)
            if end + 2 > MAX_HEAD_BYTES:
                return self._fail("protocol", "the response head is too large")
            head, rest = data[: end - 2], data[end + 2 :]
            try:
                http11, status, headers = self.engine.heads.read(head)
            except ValueError as wrong:
                return self._fail("protocol", str(wrong))
            if status >= 200:
                if not self._sent:
                    return self._opened(status, rest)
                return self._response_head(http11, status, headers, rest)
            self._informational += 1
            if status == 101:
                return self._fail("protocol", "the upstream switched protocols")
            if self._informational > MAX_INFORMATIONAL:
                return self._fail("protocol", "too many informational responses")
            data, self._raw = rest, b""
            start = self._checked = 0
            if not data:
                return None

    def _partial(self, data: bytes) -> None:
        """Keep the beginning of a head, unless it cannot become a valid one."""
        if len(data) > MAX_HEAD_BYTES:
            return self._fail("protocol", "the response head is too large")
        if not b"HTTP/1.".startswith(data[:7]):
            return self._fail("protocol", "the answer is not HTTP/1")
        # The complete lines that were not checked before, then the incomplete one, as if it ended here.
        start, end = self._checked, data.rfind(b"\n") + 1
        unfinished = data[end:].removesuffix(b"\r")
        if not end:
            unfinished += b"HTTP/1.1 200"[len(unfinished) :]
        elif unfinished and b":" not in unfinished:
            unfinished += b":"
        lines = data[start:end] + unfinished if unfinished else data[start:end].removesuffix(b"\r\n")
        wrong = may_begin(lines.split(b"\r\n"), first=not start) if lines else None
        if wrong is not None:
            return self._fail("protocol", wrong)
        self._raw, self._checked = data, end
        return None

    def _response_head(self, http11: bool, status: int, headers: list[tuple[bytes, bytes]], rest: bytes) -> None:
        fields = dict(headers)
        announced = fields.get(b"content-length")
        coding = fields.get(b"transfer-encoding")
        connection = fields.get(b"connection")
        if len(fields) != len(headers):
            names = [name for name, _ in headers]
            if names.count(b"content-length") > 1 or names.count(b"transfer-encoding") > 1:
                return self._fail("protocol", "more than one content-length or transfer-encoding")
            if len(names) > MAX_HEADERS:
                return self._fail("protocol", "too many response headers")
            connection = b",".join([value for name, value in headers if name == b"connection"])
        elif len(fields) > MAX_HEADERS:
            return self._fail("protocol", "too many response headers")
        length = 0
        if announced is not None:
            if not announced.isdigit() or len(announced) > 18:
                return self._fail("protocol", "a content-length that is no number")
            length = int(announced)
        if coding is not None:
            if coding.lower() != b"chunked":
                return self._fail("protocol", "a transfer coding other than chunked")
            if announced is not None or not http11:
                return self._fail("protocol", "transfer-encoding beside content-length, or in HTTP/1.0")
        clean = http11 and (connection is None or connection.lower().find(b"close") < 0)
        framing: Framing
        if self._head_only or status == 204 or status == 304:
            framing = "none"
            # An upstream that announces a body may still send it, late.
            clean = clean and not length and coding is None
        elif announced is not None:
            framing = "length"
            self._left = length
        elif coding is None:
            framing = "close"
        else:
            framing = "chunked"
        self._framing = framing
        self._reusable = clean
        if self._raw or self._informational:
            self._raw = b""
            self._checked = self._informational = 0
        self._response = response = NativeResponse(self, status, headers, framing)
        if framing == "chunked":
            self._whole = False
            self._tail = b""
            # The parser appends directly to the response.
            self.on_body = response.chunks.append
            self._parser = HttpResponseParser(self)
            self._parser.feed_data(CHUNKED_HEAD)
        self._phase = _BODY
        waiter: Signal[NativeResponse] = self._waiter  # type: ignore[assignment]  # there is one in HEAD
        self._waiter = None
        if waiter.done():
            # Cancelled in this turn: its coroutine has not run yet, and no other request may get this connection.
            return self.kill()
        if framing == "none" or (framing == "length" and not length):
            self._finish(clean and not rest)
        elif rest:
            self._body(rest)
        # Last, because the waiting request may continue in this call, and even use this connection again.
        return waiter.set_result(response)

    def _body(self, data: bytes) -> None:
        response: NativeResponse = self._response  # type: ignore[assignment]  # there is one in BODY
        if self._framing == "length":
            left = self._left = self._left - len(data)
            if left > 0:
                response.chunks.append(data)
                if not response.grew(len(data)):
                    self._hold()
            else:
                response.chunks.append(data if left == 0 else data[:left])
                self._finish(left == 0 and self._reusable)
        elif self._framing == "chunked":
            self._chunked(response, data)
        else:
            response.chunks.append(data)
            if not response.grew(len(data)):
                self._hold()

    def _chunked(self, response: NativeResponse, data: bytes) -> None:
        parser: HttpResponseParser = self._parser  # type: ignore[assignment]  # there is one for a chunked body
        try:
            parser.feed_data(data)
            broken = False
        except HttpParserError:
            broken = True
        if response.chunks and not response.grew(len(data)) and not (self._whole or broken):
            self._hold()
        # Only its last five bytes matter; it is cut when it is checked.
        self._tail = tail = data if len(data) >= 5 else self._tail[-4:] + data
        if self._whole:
            # The parser skips line ends after a message, so they are checked here: a message ends in exactly two.
            exact = tail.endswith(b"\r\n\r\n") and tail[-5:-4] not in b"\r\n"
            self._tail = b""
            self.on_body = None
            self._finish(exact and not broken and self._reusable)
        elif broken:
            self._fail("protocol", "malformed chunked body")

    # Called by the parser for a chunked body, beside ``on_body``. Extensions and trailers are not used.

    def on_message_begin(self) -> None:
        if self._phase == _BODY:
            raise ValueError("a second response")

    def on_message_complete(self) -> None:
        self._whole = True


def _encode(
    out: UpstreamRequest, body: Body, length: int | None
) -> tuple[bytes, AsyncIterator[bytes] | None, int | None]:
    """Return (what is written first, what follows it, the length of what follows or None for chunked).

    Raises ``ValueError`` for anything that would add a line to the request.
    """
    lines = out.lines()
    if body is None:
        return lines + (b"\r\n" if length is None else b"content-length: %d\r\n\r\n" % length), None, None
    if isinstance(body, bytes):
        length = len(body)
        if length <= ONE_WRITE:
            return b"%bcontent-length: %d\r\n\r\n%b" % (lines, length, body), None, None
        body = _slices(body)
    if length is None:
        return lines + b"transfer-encoding: chunked\r\n\r\n", body, None
    return b"%bcontent-length: %d\r\n\r\n" % (lines, length), body, length


async def _slices(body: bytes) -> AsyncIterator[bytes]:
    view = memoryview(body)
    for start in range(0, len(body), SLICE):
        yield cast("bytes", view[start : start + SLICE])


def _readable(number: int) -> Callable[[], object]:
    """Return a function that polls the socket: truthy if it has bytes, an end or an error to read."""
    if not hasattr(select, "poll"):  # Windows
        return lambda: select.select([number], [], [], 0)[0]
    poll = select.poll()
    poll.register(number, select.POLLIN)
    return functools.partial(poll.poll, 0)


def _configure(sock: Any) -> None:
    # The socket of a transport has these methods on either loop, but no common type.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("USER_TIMEOUT", USER_TIMEOUT_MS), ("KEEPIDLE", 45), ("KEEPINTVL", 15)):
        option = getattr(socket, f"TCP_{name}", None)
        if option is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)


def _connect_error(exc: BaseException, seconds: float, at_proxy: bool) -> UpstreamError | None:
    """Return the error for a failed connect; ``at_proxy``: the outbound proxy has not opened the tunnel yet."""
    kind: UpstreamErrorKind
    if isinstance(exc, TypeError) and isinstance(exc.__context__, ssl.SSLError):
        # TLS inside TLS fails like this on asyncio's own loop before Python 3.11.8 and 3.12.2 (gh-113214).
        exc = exc.__context__
    if isinstance(exc, UpstreamError):
        if not at_proxy or exc.kind in {"proxy", "tls"}:  # tls: the ca_file
            return None
        kind, detail = exc.kind, exc.detail
    elif isinstance(exc, TimeoutError):
        kind, detail = "connect_timeout", f"no connection within {seconds:g} s"
    elif isinstance(exc, ssl.SSLError):
        reason = getattr(exc, "verify_message", "") or (exc.reason or "TLS failed").lower().replace("_", " ")
        kind, detail = "tls", reason
    elif isinstance(exc, OSError):
        kind, detail = "unreachable", _reason(exc)
    else:
        return None
    return (
        UpstreamError("proxy", False, f"no way through the outbound proxy: {detail}")
        if at_proxy
        else UpstreamError(kind, False, detail)
    )


def _reason(exc: OSError) -> str:
    """Return the reason of a failed connect in the system's words: asyncio's own contain the address."""
    if exc.errno and not isinstance(exc, socket.gaierror):
        return os.strerror(exc.errno)
    return exc.strerror or "no connection"


def _literal(origin: Origin) -> list[Address]:
    """Return the host if it is an IP address, else nothing."""
    for family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError, ValueError):
            socket.inet_pton(family, origin.host)
            return [(origin.host, origin.port)]
    return []


def _look_up(loop: asyncio.AbstractEventLoop, lookup: asyncio.Future[list[Address]], origin: Origin) -> None:
    """Look up the addresses of ``origin``, with alternating families (RFC 8305, section 4). Runs in its own thread."""
    fault: BaseException | None = None
    addresses: list[Address] = []
    try:
        found = socket.getaddrinfo(origin.host, origin.port, type=socket.SOCK_STREAM)
        first = [_address(info[4]) for info in found if info[0] == found[0][0]]
        other = [_address(info[4]) for info in found if info[0] != found[0][0]]
        longest = max(len(first), len(other))
        turns = zip(first + [None] * longest, other + [None] * longest, strict=False)
        addresses = [address for turn in turns for address in turn if address is not None]
    except (OSError, UnicodeError) as exc:
        fault = exc if isinstance(exc, OSError) else OSError(0, "not a host name")

    def tell() -> None:
        if lookup.done():
            return
        if fault is not None:
            lookup.set_exception(fault)
        else:
            lookup.set_result(addresses)

    with contextlib.suppress(RuntimeError):  # the loop is closed, and nothing waits
        loop.call_soon_threadsafe(tell)


def _address(found: tuple[Any, ...]) -> Address:
    scope = f"%{found[3]}" if len(found) == 4 and found[3] else ""
    return str(found[0]) + scope, int(found[1])


def _discard(task: asyncio.Task[_Connection]) -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().kill()
