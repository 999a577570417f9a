"""The strict HTTP/1 protocol, which is used as uvicorn's protocol class.

Theory of this file
-------------------

Neither of uvicorn's parsers is safe alone. They accept a missing or doubled Host, megabytes of headers, trailers as
headers, and ``gzip, chunked``. They start the application before the body's framing is known, and have no deadlines.
Checks around such a parser do not help: to check a pipelined second head, one must know the end of the first body, and
that requires reading the chunked framing. So this protocol reads the framing itself, once, and there is no second parser
that could disagree with it. ``tests/test_connection.py`` compares it with httptools as an oracle.

* ``framing.py`` is pure: heads and bodies, bytes in and bytes out.
* ``HTTPExchange`` is one request and its response (``http/exchange.py``).
* ``StrictProtocol`` is one connection: one exchange at a time; pipelined bytes wait unread in
  ``_pending``. An application that takes exchanges (``asgi.TakesExchanges``) gets each by a plain call, any other ASGI
  application through ``asgi.run``.
* ``ConnectionSet`` holds the connections of one server: the limits, and one timer for all of them (no timer per request).

uvicorn provides ``Config``, the lifespan, ``ServerState`` and its ``FlowControl``.

Disconnects. A FIN counts as a disconnect, whether the client closed its socket or only its sending half: the two look the
same here, and an abandoned response costs money. A FIN is seen at once while the connection is read. That is always, except
when more than 64 KiB of body or of pipelined requests wait for the application. In that state Linux still reports the
disconnect by ``TCP_INFO``, which every sweep queries, unless the client's socket still holds bytes that do not fit into
ours. In that case, on other systems, and on unix sockets, the application's own limits (write stall, idle) apply.
"""

from __future__ import annotations

import asyncio
import functools
import http
import itertools
import logging
import math
import socket
import struct
import sys
import time
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.utils import get_local_addr, get_remote_addr

from proxy.http import asgi
from proxy.http.exchange import ClientDisconnected
from proxy.http.framing import (
    ChunkedBody,
    Head,
    LengthBody,
    Limits,
    RefusalError,
    RequestHeads,
    method_and_path,
    only_origin,
    origin_of,
    refuse_early,
    tokens,
)
from proxy.protocol import errors
from proxy.protocol.tasks import Signal

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvicorn import Config
    from uvicorn.server import ServerState

    from proxy.http.exchange import Pairs

_NEVER = math.inf
_DECIDED_HERE = frozenset((b"content-length", b"transfer-encoding", b"keep-alive", b"connection"))


# --- one request and its response ---------------------------------------------------------------------------


class HTTPExchange:
    """One request and its response on a ``StrictProtocol``; see ``http.exchange.Exchange``.

    It has no reference cycles: the reference count alone frees it.
    """

    __slots__ = (
        "_bodiless",
        "_body_ended",
        "_callbacks",
        "_changed",
        "_chunked",
        "_chunks",
        "_end_given",
        "_head",
        "_http10",
        "_left",
        "_protocol",
        "_waiting",
        "awaiting_continue",
        "client_error",
        "complete",
        "gone",
        "head",
        "keep_alive",
        "started",
    )

    def __init__(self, protocol: StrictProtocol, head: Head, body: bytes | None) -> None:
        """``body`` is given if it has already arrived completely."""
        self.client_error: str | None = None
        self.head = head
        self.keep_alive = head.keep_alive
        self.started = False
        self.complete = False
        self.gone = False
        self._protocol = protocol
        self._http10 = head.version == "1.0"
        self.awaiting_continue = head.expects_continue and body is None
        """Whether the client waits for ``100 Continue``, which the first ``read`` sends."""
        self._chunks: list[bytes] = [body] if body else []
        self._waiting = 0  # bytes in _chunks
        self._body_ended = body is not None
        self._end_given = False
        self._changed: Signal[None] | None = None
        self._callbacks: list[Callable[[], object]] | None = None
        self._chunked = False
        self._bodiless = False
        self._head = b""  # of the response, if not yet written
        self._left: int | None = None  # bytes of a declared Content-Length that are not yet written

    @property
    def server(self) -> tuple[str, int | None] | None:
        """Our own address and port; see ``Exchange``."""
        return self._protocol.server

    @property
    def client(self) -> tuple[str, int] | None:
        """The client's address and port; ``None`` on a unix socket."""
        return self._protocol.client

    @property
    def has_no_deadline(self) -> bool:
        """Whether nothing else ends it if the client does not read: an unstarted response has no deadline yet."""
        return not (self.started and self._callbacks)

    def on_disconnect(self, callback: Callable[[], object]) -> None:
        """Call ``callback`` once, synchronously, if the client disconnects or violates the protocol from now on.

        It is called at once if that has already happened. It is never called after the response or for our own ``abort``.
        """
        if self.gone:
            callback()
        elif not self.complete:
            if self._callbacks is None:
                self._callbacks = []
            self._callbacks.append(callback)

    def passed_access(self) -> None:
        """Mark the client's connection as permitted: it is not among the first to be evicted."""
        self._protocol.passed_access()

    def abort(self) -> None:
        """Abort the connection and leave the response incomplete, so that no client mistakes it for complete.

        Bytes already written are sent first if the client is reading, because an error event just before must arrive. A
        response that only the end of the connection delimits is reset.
        """
        if self.complete:
            return
        self.send_head()
        self._silence()
        self._protocol.abort_response(reset=self.ends_by_close)

    def leave(self, client_error: str | None = None) -> None:
        """Mark the client as gone and call the callbacks at once. ``client_error`` is its protocol violation."""
        if self.gone or self.complete:
            return
        self.client_error = client_error
        callbacks = self._callbacks
        self._silence()
        for callback in callbacks or ():
            try:
                callback()
            except Exception:  # noqa: BLE001 -- a connection's teardown must not be stopped by one watcher's bug
                _log().exception("a disconnect callback failed")

    def _silence(self) -> None:
        self.gone = True
        self._head = b""
        self._callbacks = None
        self._chunks.clear()
        self._wake()
        self._protocol.flow.resume_writing()

    @property
    def ends_by_close(self) -> bool:
        return self.started and self._http10 and not self._chunked and self._left is None

    # called by the protocol

    def feed(self, piece: bytes, ended: bool) -> None:
        """Add a chunk of the body; ``ended``: it is the last one."""
        if self.complete or self.gone:
            return
        if ended:
            self._body_ended = True
        if piece:
            self._chunks.append(piece)
            self._waiting += len(piece)
            if self._waiting > self._protocol.limits.read_ahead_bytes:
                self._protocol.pause_reading()
        elif not ended:
            return
        self.awaiting_continue = False
        self._wake()

    def _wake(self) -> None:
        changed, self._changed = self._changed, None
        if changed is not None:
            changed.set_result(None)

    # called by the application

    def fail(self) -> None:
        """Respond with 500, or abort a started response: the application failed or left it incomplete."""
        if self.gone or self.complete:
            return
        if self.started:
            self.abort()
            return
        self.started = self.complete = True
        self._callbacks = None
        try:
            self._protocol.answer_and_close(
                RefusalError("internal_error", "The proxy failed on this request; its log says why."),
                only_origin(self.head.headers),
            )
        except Exception:  # noqa: BLE001 -- what fails may be the making of error bodies: then no body, but no hanging client
            _log().exception("the answer to a failure failed as well")
            self._protocol.abort_response(reset=True)

    def whole_body(self) -> bytes | None:
        if not self._body_ended or self._end_given or self.gone or self.complete:
            return None
        return self._taken()

    def _taken(self) -> bytes:
        """Return and clear the buffered body bytes."""
        body = b"".join(self._chunks)
        self._chunks.clear()
        self._waiting = 0
        self._end_given = self._body_ended
        if self._protocol.flow.read_paused:
            self._protocol.resume_reading()
        return body

    @property
    def ready(self) -> bool:
        """Whether more may be written without waiting. True as well after a disconnect."""
        return self.gone or not self._protocol.flow.write_paused

    def start(self, status: int, headers: Pairs) -> None:
        if not self.gone:
            self._start(status, headers)
            # Held until the next turn of the loop: what is written without waiting is sent together with it.
            self._protocol.hold(self)

    def respond(self, status: int, headers: Pairs, body: bytes) -> None:
        if not self.gone:
            self._start(status, headers)
            self._continue(body, False)

    def write(self, piece: bytes) -> bool:
        if not self.gone:
            self._continue(piece, True)
        return not self._protocol.flow.write_paused

    async def drain(self) -> None:
        await self._protocol.flow.drain()

    def finish(self) -> None:
        if not self.gone:
            self._continue(b"", False)

    async def read(self) -> bytes:
        # The first call sends "100 Continue".
        if self.awaiting_continue and not self.gone:
            self.awaiting_continue = False
            self._protocol.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        while not (self.gone or self.complete):
            if self._chunks:
                return self._taken()
            if self._body_ended:
                self._end_given = True
                return b""
            if self._changed is None:
                self._changed = Signal(self._protocol.loop)
            await self._changed
        raise ClientDisconnected

    def _start(self, status: int, headers: Pairs) -> None:
        if self.started:
            raise RuntimeError("a response can be started only once")
        # A body that the application sends with these is dropped.
        bodiless = self._bodiless = self.head.method == "HEAD" or status in (204, 304)
        onward = headers
        for name, value in headers:
            if name in _DECIDED_HERE:
                if name == b"content-length" and status != 204:
                    if not bodiless:
                        self._left = int(value)
                    continue
                if name == b"connection" and b"close" in tokens(value):
                    self.keep_alive = False
                onward = [pair for pair in onward if pair[0] != name]
        lines = [_status_line(status), *map(b": ".join, onward)]
        if self._left is None and not bodiless and not self._http10:
            self._chunked = True
            lines.append(b"transfer-encoding: chunked")
        if not self._protocol.can_serve_on(self):
            self.keep_alive = False
            lines.append(b"connection: close")
        lines += (b"", b"")
        head = b"\r\n".join(lines)
        # A header value from an upstream must not split the response: these are the only line ends.
        if len(head) - len(head.translate(None, b"\r\n\0")) != 2 * (len(lines) - 1):
            raise RuntimeError("a response header is malformed")
        if bodiless:
            self._left = 0
        self.started = True
        self.awaiting_continue = False
        self._head = head

    def send_head(self) -> None:
        """Send the head, if it was not sent with the body."""
        if self._head and not self.gone:
            head, self._head = self._head, b""
            self._protocol.write(head)

    def _continue(self, body: bytes, more: bool) -> None:
        if not self.started or self.complete:
            raise RuntimeError("a body belongs to a response that was started and is not complete")
        protocol = self._protocol
        if self._bodiless:
            body = b""
        if self._chunked:
            if body:
                tail = b"\r\n" if more else b"\r\n0\r\n\r\n"
                if len(body) < _COPY_BELOW:
                    protocol.write(b"".join((self._head, _size_line(len(body)), body, tail)))
                else:
                    protocol.write(self._head + _size_line(len(body)), body, tail)
                self._head = b""
            elif not more:
                protocol.write(self._head + b"0\r\n\r\n")
                self._head = b""
        else:
            if self._left is not None:
                if len(body) > self._left:
                    self.abort()
                    raise RuntimeError("the body is longer than its Content-Length")
                self._left -= len(body)
            if body or not more:
                if len(body) < _COPY_BELOW:
                    protocol.write(self._head + body)
                else:
                    protocol.write(self._head, body)
                self._head = b""
        if more:
            return
        if self._left:
            self.abort()
            raise RuntimeError("the body is shorter than its Content-Length")
        self.complete = True
        self._callbacks = None
        self._chunks.clear()
        self._wake()
        protocol.finish(self)


# --- one connection -----------------------------------------------------------------------------------------


class StrictProtocol(asyncio.Protocol):
    """One connection. Our server binds ``watch`` by ``functools.partial``.

    It stands in uvicorn's own server as well, ``uvicorn.Config(app, http=StrictProtocol)``: then all connections of that
    server share a watch with the usual limits.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        watch: ConnectionSet | None = None,
    ) -> None:
        if not config.loaded:
            config.load()
        self._take = asgi.exchange_handler(config.loaded_app, app_state, server_state.tasks)
        self.loop = _loop or asyncio.get_running_loop()
        self._server_state = server_state
        if watch is None:
            watch = _watch_of(server_state, self.loop)
        self._watch = watch
        self.limits = watch.limits
        self._heads = RequestHeads(watch.limits)
        self.flow: FlowControl
        self._transport: asyncio.Transport
        self.server: tuple[str, int | None] | None = None
        self.client: tuple[str, int] | None = None
        self._exchange: HTTPExchange | None = None
        self._body: LengthBody | ChunkedBody | None = None
        self._pending = b""
        self._checked = 0  # bytes of _pending that refuse_early has checked
        self._empty_line_skipped = False
        self._closing = False
        self._access_passed = False
        self._unsent = 0  # size of the write buffer at the last check
        self._body_seen = 0  # body bytes in the current span of the minimum rate
        self.deadline = _NEVER
        """By the loop's clock. The sweep calls ``expire`` after it."""
        self.stalled_since: float | None = None

    # asyncio's callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        stream = self._transport = cast("asyncio.Transport", transport)
        self.flow = FlowControl(stream)
        self.server = get_local_addr(stream)
        self.client = get_remote_addr(stream)
        self.deadline = self.loop.time() + self.limits.header_seconds
        self._server_state.connections.add(cast("Any", self))
        self._watch.add(self)
        if not self._watch.evict_for(self):
            if self._watch.has_spare_descriptors():
                self.refuse(RefusalError("overloaded", "Too many connections are open; try again in a moment."))
            else:
                self._closing = True
                stream.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._server_state.connections.discard(cast("Any", self))
        self._watch.discard(self)
        self._closing = True
        self._pending = b""
        self._body = None
        self.flow.resume_writing()
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.leave()

    def eof_received(self) -> bool | None:
        """A FIN means that the client disconnected (see the module docstring). ``None`` closes the transport."""
        self._peer_left()
        return None

    def pause_writing(self) -> None:
        self.flow.pause_writing()
        self.stalled_since = time.monotonic()
        self._unsent = self._transport.get_write_buffer_size()
        self._watch.to_check.add(self)

    def resume_writing(self) -> None:
        self.stalled_since = None
        self.flow.resume_writing()

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return  # lingering: read and discarded
        if self._pending:
            data = self._pending + data
            self._pending = b""
        self._advance(data)

    # reading

    def _advance(self, data: bytes) -> None:
        position = 0
        size = len(data)
        while not self._closing:
            if self._body is not None:
                position = self._read_body(self._body, data, position)
                if self._body is not None:
                    return
            elif position >= size:
                return
            elif self._exchange is not None:
                self._pending = data[position:] if position else data
                if len(self._pending) > self.limits.read_ahead_bytes:
                    self.pause_reading()
                return
            else:
                if not self._empty_line_skipped and data.startswith(b"\r\n", position):
                    # RFC 9112 section 2.2: one empty line before a request is accepted.
                    self._empty_line_skipped = True
                    position += 2
                    continue
                end = data.find(b"\r\n\r\n", position + max(0, self._checked - 3))
                if end < 0:
                    self._keep_partial(data[position:])
                    return
                self._checked = 0
                self._empty_line_skipped = False
                try:
                    head = self._heads.read(data[position : end + 2])
                except RefusalError as refusal:
                    self.refuse(refusal, data[position : end + 2])
                    return
                position = end + 4
                length = head.length
                if length is not None and length <= size - position and length <= self.limits.read_ahead_bytes:
                    # The body arrived with its head, as small ones do.
                    exchange = self._open(head, data[position : position + length])
                    position += length
                else:
                    exchange = self._open(head, None)
                    if position < size:
                        # Read before the request is served: if these bytes are invalid, nothing has started.
                        position = self._read_body(cast("LengthBody | ChunkedBody", self._body), data, position)
                    else:
                        self._open_span()
                if self._exchange is exchange:
                    self._serve(exchange)
                if position >= size:
                    return

    def _keep_partial(self, partial: bytes) -> None:
        refusal = refuse_early(partial, self._checked, self.limits)
        if refusal is not None:
            self.refuse(refusal, partial)
            return
        if not self._checked:
            self.deadline = self.loop.time() + self.limits.header_seconds
        self._pending = partial
        self._checked = len(partial)

    def _open(self, head: Head, body: bytes | None) -> HTTPExchange:
        """Return the exchange of a request with validated framing. ``body`` is given if it is complete."""
        self.deadline = _NEVER
        if self._access_passed:
            self._watch.idle.pop(self, None)
        if body is None:
            self._body = ChunkedBody(self.limits) if head.length is None else LengthBody(head.length)
        exchange = self._exchange = HTTPExchange(self, head, body)
        return exchange

    def _serve(self, exchange: HTTPExchange) -> None:
        try:
            self._take(exchange)
        except Exception:  # noqa: BLE001 -- the last border: a fault of ours becomes a 500 or a broken connection
            _log().exception("the application failed")
            exchange.fail()

    def _read_body(self, body: LengthBody | ChunkedBody, data: bytes, position: int) -> int:
        start = position
        exchange = self._exchange
        try:
            position, piece = body.feed(data, position)
        except RefusalError as refusal:
            self._fail(refusal)
            return position
        if body.done:
            self._body = None
            self.deadline = _NEVER
        elif self.deadline == _NEVER:
            self._open_span()
        else:
            self._body_seen += position - start
        # Last, because it may serve the request to its end and close the connection.
        if exchange is not None:
            exchange.feed(piece, body.done)
        elif body.done:
            self._next_request()
        return position

    def _open_span(self) -> None:
        self._body_seen = 0
        self.deadline = self.loop.time() + self.limits.body_grace_seconds

    def pause_reading(self) -> None:
        self.flow.pause_reading()
        self._watch.to_check.add(self)

    def resume_reading(self) -> None:
        """Resume reading, unless the connection is closing or too many bytes are pending."""
        if self.flow.read_paused and not self._closing and len(self._pending) <= self.limits.read_ahead_bytes:
            self.flow.resume_reading()
            if self._body is not None:
                self._open_span()  # the time without reading does not count against the client

    # writing

    def write(self, data: bytes, *more: bytes) -> None:
        if self._transport.is_closing():
            return
        # Not writelines: asyncio's own does not pause the writer in CPython before 3.12.9 and 3.13.2.
        self._transport.write(b"".join((data, *more)) if more else data)

    def hold(self, exchange: HTTPExchange) -> None:
        """Let ``exchange`` send its head in the next turn of the loop."""
        self._watch.hold(exchange, self.loop)

    def refuse(self, refusal: RefusalError, head: bytes = b"") -> None:
        """Respond to bytes that are no (complete) request, and close. ``head`` is its received part, for the log."""
        self._watch.refused(refusal, method_and_path(head))
        self.answer_and_close(refusal, origin_of(head))

    def answer_and_close(self, refusal: RefusalError, origin: bytes | None = None) -> None:
        status, headers, body = errors.refusal(refusal.code, refusal.message)
        if origin is not None:
            headers = self._watch.readable_by(origin, headers)
        options = [b"close"]
        lines = [_status_line(status)]
        for name, value in (*headers, *refusal.headers):
            if name == b"connection":
                options.append(value)
            elif name not in (b"content-length", b"transfer-encoding"):
                lines.append(b"%b: %b" % (name, value))
        lines += (b"content-length: %d" % len(body), b"connection: " + b", ".join(options), b"", body)
        self.write(b"\r\n".join(lines))
        self._close(linger=True)

    def can_serve_on(self, exchange: HTTPExchange) -> bool:
        """Whether the connection may serve another request after this response."""
        return (
            exchange.keep_alive
            and not self._watch.draining
            and not exchange.awaiting_continue
            and (self._body is None or self._body.worth_draining)
        )

    def finish(self, exchange: HTTPExchange) -> None:
        """Continue after a complete response: with the next request, or by closing."""
        if self._exchange is not exchange:
            return
        self._exchange = None
        if self._closing:
            return
        self._watch.add_idle(self, permitted=self._access_passed)
        if not exchange.keep_alive or self._watch.draining:
            self._close(linger=self._body is not None or bool(self._pending))
        elif self._body is None:
            self._next_request()
        else:
            self.resume_reading()

    def passed_access(self) -> None:
        """See ``Exchange.passed_access``."""
        if not self._access_passed:
            self._access_passed = True
            self._watch.unverified.pop(self, None)

    def evict(self) -> bool:
        """Close at once in favour of a new connection. Return False, and do nothing, if a response is still being sent."""
        if self._access_passed and self._transport.get_write_buffer_size():
            return False
        self.cut()
        return True

    def _next_request(self) -> None:
        """Serve what is pending between two requests, or wait for the next one."""
        self.deadline = self.loop.time() + self.limits.keep_alive_seconds
        pending, self._pending = self._pending, b""
        if self.flow.read_paused:
            self.resume_reading()
        if pending:
            self._advance(pending)

    # closing

    def _fail(self, refusal: RefusalError) -> None:
        """Handle a protocol violation in the body: refuse if no response was started, and notify the application."""
        exchange, self._exchange = self._exchange, None
        self._body = None
        if exchange is None:
            self._close(linger=True)
        elif exchange.started:
            exchange.leave(refusal.message)
            self.abort_response(reset=exchange.ends_by_close, linger=True)
        else:
            self._watch.refused(refusal, "")
            self.answer_and_close(refusal, only_origin(exchange.head.headers))
            exchange.leave(refusal.message)

    def _peer_left(self) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.leave()
            self.abort_response(reset=exchange.ends_by_close, now=True)
        else:
            self._close(linger=False)

    def abort_response(self, *, reset: bool, now: bool = False, linger: bool = False) -> None:
        """Close the connection inside a response: by ``reset``, at once (``now``), or after the written bytes are sent."""
        if reset or now or self.stalled_since is not None:
            self._closing = True
            if reset:
                # A close-delimited response that ends in a FIN looks complete.
                _linger_zero(self._transport)
            self._transport.abort()
        else:
            self._close(linger=linger or self._body is not None)

    def _close(self, *, linger: bool) -> None:
        """Flush and close. With ``linger``, keep reading for a while, because a close with unread bytes is a reset."""
        if self._closing:
            return
        self._closing = True
        self._watch.ending.add(self)
        self._pending = b""
        self._body = None
        unsent = self._unsent = self._transport.get_write_buffer_size()
        self.deadline = self.loop.time() + (self.limits.flush_seconds if unsent else self.limits.linger_seconds)
        if linger and self._transport.can_write_eof() and not self._transport.is_closing():
            try:
                self._transport.write_eof()
            except OSError:  # asyncio's own loop shuts the socket down at once, and the client may have reset it
                self._transport.close()
            else:
                self.flow.resume_reading()
        else:
            self._transport.close()

    @property
    def serving(self) -> bool:
        """Whether a request has no complete response yet."""
        return self._exchange is not None

    @property
    def busy(self) -> bool:
        """Whether a request or a head is incomplete, or bytes are unsent."""
        inside = self._exchange is not None or self._body is not None or bool(self._pending)
        return inside or self._transport.get_write_buffer_size() > 0

    def shutdown(self) -> None:
        """Start the drain: an idle connection closes now, another one after its response."""
        if self._exchange is None and self._body is None and not self._pending:
            self._close(linger=False)
        elif self._exchange is not None:
            self._exchange.keep_alive = False

    def cut(self) -> None:
        """Close at once, without a flush."""
        self._closing = True
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.leave()
            if exchange.ends_by_close:
                _linger_zero(self._transport)
        self._transport.abort()

    # called by the sweep

    def expire(self) -> None:
        """Handle a passed deadline."""
        now = self.loop.time()
        if self._closing:
            unsent = self._transport.get_write_buffer_size()
            if unsent and unsent != self._unsent:
                self._unsent = unsent
                self.deadline = now + self.limits.flush_seconds
            else:
                self._transport.abort()
        elif self._body is not None:
            if self._may_be_slow() or self._body_seen >= self.limits.body_rate * self.limits.body_grace_seconds:
                self._open_span()
            else:
                self._fail(RefusalError("request_timeout", "The request body came too slowly."))
        elif self._pending:
            self.refuse(RefusalError("request_timeout", "The request head took too long."), self._pending)
        else:
            self._close(linger=False)

    def _may_be_slow(self) -> bool:
        return self.flow.read_paused or (self._exchange is not None and self._exchange.awaiting_continue)

    def check(self) -> bool:
        """Check what no callback reports: progress of a stalled write, a disconnect. Return True to be checked again."""
        if self.stalled_since is not None:
            unsent = self._transport.get_write_buffer_size()
            if unsent < self._unsent:
                self.stalled_since = time.monotonic()
            self._unsent = unsent
            if self._exchange is not None and self._exchange.has_no_deadline and self._stalls_too_long():
                self.cut()
                return False
        if self.flow.read_paused and not self._closing and _peer_has_left(self._transport):
            self._peer_left()
        return self.stalled_since is not None or self.flow.read_paused

    def _stalls_too_long(self) -> bool:
        return self.stalled_since is not None and time.monotonic() - self.stalled_since > self.limits.flush_seconds


_COPY_BELOW = 16 * 1024  # below this size one copy is cheaper than a vector write
_MAX_CANDIDATES = 8  # connections considered for eviction, for each new connection
_MAX_ENDING = 32  # while more connections are closing, an excess connection is closed without a response
_GONE_STATES = frozenset((7, 8, 9, 11))  # CLOSE, CLOSE_WAIT, LAST_ACK, CLOSING in Linux's include/net/tcp_states.h


def _peer_has_left(transport: asyncio.Transport) -> bool:
    sock = transport.get_extra_info("socket")
    if sys.platform != "linux" or sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return False
    try:
        return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] in _GONE_STATES
    except OSError:
        return False


def _linger_zero(transport: asyncio.Transport) -> None:
    sock = transport.get_extra_info("socket")
    if sock is None:
        return
    try:
        sock.setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)
        )
    except OSError:
        _log().debug("could not ask for a reset")


@functools.lru_cache(maxsize=1024)  # the chunks of a stream have few sizes
def _size_line(size: int) -> bytes:
    return b"%x\r\n" % size


@functools.cache
def _status_line(status: int) -> bytes:
    try:
        phrase = http.HTTPStatus(status).phrase
    except ValueError:
        phrase = ""
    return f"HTTP/1.1 {status} {phrase}".encode("ascii")


def _log() -> logging.Logger:
    return logging.getLogger("proxy.http.connection")


# --- all connections ----------------------------------------------------------------------------------------


class ConnectionSet:
    """All connections of one server, and the one timer that keeps their deadlines."""

    def __init__(
        self,
        limits: Limits,
        on_refusal: Callable[[str], object] | None = None,
        readable_by: Callable[[bytes, errors.Headers], errors.Headers] | None = None,
    ) -> None:
        self.limits = limits
        self.readable_by = readable_by or (lambda _, headers: headers)
        """Adds the headers that let a page of an origin read a response, if it may."""
        self.draining = False
        self.connections: set[StrictProtocol] = set()
        self.to_check: set[StrictProtocol] = set()
        """Connections with paused reading or a stalled write. Every sweep checks them."""
        self.ending: set[StrictProtocol] = set()
        """Connections that only flush or linger."""
        self.unverified: dict[StrictProtocol, None] = {}
        """Connections without a request that passed access, the one with the oldest last request first."""
        self.idle: dict[StrictProtocol, None] = {}
        """Other connections between two requests, the longest idle one first."""
        self._on_refusal = on_refusal
        self._holding: list[HTTPExchange] = []
        self._timer: asyncio.TimerHandle | None = None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = loop.call_later(self.limits.sweep_seconds, self._sweep, loop)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def add(self, connection: StrictProtocol) -> None:
        self.connections.add(connection)
        self.unverified[connection] = None

    def add_idle(self, connection: StrictProtocol, *, permitted: bool) -> None:
        """Mark ``connection`` as idle after a complete response."""
        order = self.idle if permitted else self.unverified
        order.pop(connection, None)
        order[connection] = None

    def discard(self, connection: StrictProtocol) -> None:
        self.connections.discard(connection)
        self.unverified.pop(connection, None)
        self.idle.pop(connection, None)
        self.to_check.discard(connection)
        self.ending.discard(connection)

    def hold(self, exchange: HTTPExchange, loop: asyncio.AbstractEventLoop) -> None:
        """Call ``exchange.send_head`` in the next turn of the loop.

        There is one callback for all, because each costs more than a response head.
        """
        if not self._holding:
            loop.call_soon(self._send_heads)
        self._holding.append(exchange)

    def _send_heads(self) -> None:
        holding, self._holding = self._holding, []
        for exchange in holding:
            try:
                exchange.send_head()
            except Exception:  # noqa: BLE001 -- one connection's fault must not keep the others' heads back
                _log().exception("a response head was not sent")

    def evict_for(self, newcomer: StrictProtocol) -> bool:
        """Close the excess connections: unverified ones, then idle ones. Return False if ``newcomer`` is still in excess."""
        while 0 < self.limits.connections < len(self.connections):
            if not self._evict_one(newcomer):
                return False
        return True

    def _evict_one(self, newcomer: StrictProtocol) -> bool:
        for order in (self.unverified, self.idle):
            for connection in list(itertools.islice(order, _MAX_CANDIDATES)):
                if connection is not newcomer and connection.evict():
                    self.discard(connection)
                    return True
                self.add_idle(connection, permitted=order is self.idle)
        return False

    def has_spare_descriptors(self) -> bool:
        """Whether there are spare descriptors for a response on an excess connection."""
        return len(self.ending) < _MAX_ENDING

    def refused(self, refusal: RefusalError, request: str) -> None:
        code = refusal.code
        what = f"{code} ({request})" if request else code
        _log().info("refused before routing: %s: %s", what, refusal.message)
        if self._on_refusal is not None:
            self._on_refusal(code)

    @property
    def requests(self) -> int:
        """Number of requests without a complete response."""
        return sum(connection.serving for connection in self.connections)

    def busy(self) -> bool:
        """Whether a connection has an incomplete request or unsent bytes."""
        return any(connection.busy for connection in self.connections)

    def begin_drain(self) -> None:
        self.draining = True
        for connection in list(self.connections):
            connection.shutdown()

    def cut(self) -> None:
        for connection in list(self.connections):
            connection.cut()

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        self.start(loop)
        for connection in list(self.to_check):
            if not connection.check():
                self.to_check.discard(connection)
        now = loop.time()
        for connection in [connection for connection in self.connections if connection.deadline <= now]:
            connection.expire()


_watches: WeakKeyDictionary[ServerState, ConnectionSet] = WeakKeyDictionary()


def _watch_of(state: ServerState, loop: asyncio.AbstractEventLoop) -> ConnectionSet:
    """The watch of all connections of one uvicorn server."""
    watch = _watches.get(state)
    if watch is None:
        watch = _watches[state] = ConnectionSet(Limits())
        watch.start(loop)
    return watch
