"""Bytes in: the strict HTTP/1 front that sits in uvicorn's protocol seat.

Theory of this file
-------------------

Neither of uvicorn's parsers is safe alone: they accept missing or doubled Host, megabytes of headers,
trailers as headers, ``gzip, chunked``; they start the application before the body's framing is known, and
have no deadline. Watching over them from outside does not work either: to judge a pipelined second head one
must know where the first body ends, and that means reading the chunked framing oneself. So this protocol
reads the framing itself, once, and nothing else does: there is no second parser that it could disagree
with. ``tests/test_guard.py`` keeps httptools beside it as an oracle.

* ``framing.py`` is pure: heads and bodies, bytes in and bytes out.
* ``Exchange`` is one request and its response as the application sees them: ``receive``, ``send``, and, as
  ``scope["extensions"]["lava_proxy.connection"]``, the object by which the forwarder learns that the client
  left.
* ``GuardedProtocol`` is one connection: one exchange at a time; pipelined bytes wait unread in
  ``_pending``.
* ``Watch`` is one server: the limits, and one timer that looks at all connections (no timer per request).

uvicorn keeps ``Config``, the lifespan, ``ServerState`` and its ``FlowControl``.

What is promised about a client that leaves: a FIN counts as leaving, whether the client closed its socket
or only its sending half (the two look the same here, and an abandoned answer costs money). It is seen at
once while the connection is being read: always, except when more than 64 KiB of body or of pipelined
requests wait for the application. In that state Linux still tells by ``TCP_INFO``, which the watch asks at
every sweep, unless the client's own socket still holds bytes that do not fit into ours; then, on other
systems and on unix sockets, the caller's own limits (write stall, idle) must strike.
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
import urllib.parse
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any, cast

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.utils import get_local_addr, get_remote_addr

from proxy import errors
from proxy.framing import (
    ChunkedBody,
    Head,
    Heads,
    LengthBody,
    Limits,
    Memory,
    Refusal,
    asked_for,
    origin_of,
    refuse_early,
    tokens,
)

if TYPE_CHECKING:
    from uvicorn import Config
    from uvicorn.server import ServerState

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Application = Callable[[Scope, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]]

EXTENSION = "lava_proxy.connection"
_NEVER = math.inf
_DECIDED_HERE = frozenset((b"content-length", b"transfer-encoding", b"keep-alive", b"connection"))


# --- one request and its response ---------------------------------------------------------------------------


class Exchange:
    """One request and its response: what the application calls, and what the forwarder watches.

    As ``scope["extensions"]["lava_proxy.connection"]`` it offers ``on_disconnect``, ``abort``,
    ``write_stalled_since``, ``client_error``, ``length``, ``task``, ``memory``, ``ride``, ``ready`` and ``passed_gate``, and the short
    ways ``take_body``, ``start``, ``respond``, ``pass_on``, ``drain`` and ``call``. It holds no scope: both die by reference count alone.
    """

    __slots__ = (
        "_awaiting_continue",
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
        "_method",
        "_protocol",
        "_waiting",
        "client_error",
        "complete",
        "gone",
        "keep_alive",
        "length",
        "memory",
        "ride",
        "started",
        "task",
    )

    def __init__(self, protocol: GuardedProtocol, head: Head, body: bytes | None) -> None:
        """``body`` is given where it is there already, whole."""
        self.client_error: str | None = None
        """What the client did wrong, where its own protocol fault is why ``receive`` says disconnect."""
        self.keep_alive = head.keep_alive
        self.length: int | None = head.length
        """Bytes of the body as declared, 0 where there is none, ``None`` where it is chunked."""
        self.memory: Memory = head.memory
        """Where the application keeps what holds for every head like this one."""
        self.ride: Any = None
        """Where the application began with it outside a task (``Memory.shortcut``): what it keeps of that."""
        self.task: asyncio.Task[None] | None = None
        """What runs the application for this exchange, until it is through."""
        self.started = False
        self.complete = False
        self.gone = False
        self._protocol = protocol
        self._method = head.method
        self._http10 = head.version == "1.0"
        self._awaiting_continue = head.expects_continue and body is None
        self._chunks: list[bytes] = [body] if body else []
        self._waiting = 0  # bytes in _chunks
        self._body_ended = body is not None
        self._end_given = False
        self._changed: asyncio.Event | None = None
        self._callbacks: list[Callable[[], object]] | None = None
        self._chunked = False
        self._bodiless = False
        self._head = b""  # of the response, not yet written
        self._left: int | None = None  # bytes still owed of a declared Content-Length

    # what the forwarder watches

    @property
    def write_stalled_since(self) -> float | None:
        """``time.monotonic()`` of when unsent bytes passed the high-water mark, or of progress since."""
        return self._protocol.stalled_since

    @property
    def unwatched(self) -> bool:
        """Whether nobody else ends it where its client does not read: it is answered here, or was not begun to be answered."""
        return not (self.started and self._callbacks)

    @property
    def awaiting_continue(self) -> bool:
        return self._awaiting_continue

    def on_disconnect(self, callback: Callable[[], object]) -> None:
        """Call ``callback`` once, synchronously, if the client leaves or breaks the protocol from here on.

        At once where that has happened already; never after the response, nor for our own ``abort``.
        """
        if self.gone:
            callback()
        elif not self.complete:
            if self._callbacks is None:
                self._callbacks = []
            self._callbacks.append(callback)

    def passed_gate(self) -> None:
        """This client may ask for what not everybody may: its connection is not among the first to be given up."""
        self._protocol.pass_gate()

    def abort(self) -> None:
        """Break the connection off and leave the response incomplete, in a way no client takes for its end.

        Bytes already sent go out first where the client is reading (an in-band error just before must
        arrive); a response that only the end of the connection delimits is reset. Later ``send`` calls do
        nothing.
        """
        if self.complete:
            return
        self.send_head()
        self._silence()
        self._protocol.break_off(reset=self.ends_by_close)

    def leave(self, client_error: str | None = None) -> None:
        """The client is gone (or as good as gone): tell everybody who asked, at once."""
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

    # what the protocol gives

    def feed(self, piece: bytes) -> None:
        if self.complete or self.gone:
            return
        self._awaiting_continue = False
        self._chunks.append(piece)
        self._waiting += len(piece)
        if self._waiting > self._protocol.limits.read_ahead_bytes:
            self._protocol.pause_reading()
        self._wake()

    def end_body(self) -> None:
        self._body_ended = True
        self._awaiting_continue = False
        self._wake()

    def _wake(self) -> None:
        if self._changed is not None:
            self._changed.set()

    # what the application calls

    def call(self, head: Head) -> None:
        """Run the application for this exchange, in a task of its own; ``head`` is the exchange's."""
        self._protocol.call_application(self, head)

    async def run(self, app: Application, scope: Scope) -> None:
        try:
            if self.gone and self.ride is None:
                return  # over before it began: the first body bytes came with the head, and were wrong
            await app(scope, self.receive, self.send)
        except Exception:  # noqa: BLE001 -- the last border: a fault of ours becomes a 500 or a broken connection
            _log().exception("the application failed")
            self._end_badly()
        except BaseException:  # cancelled, by us at the end of a drain: nothing is invented
            self.abort()
            raise
        else:
            if not (self.complete or self.gone):
                _log().error("the application ended without a complete response")
                self._end_badly()
        finally:
            self._protocol.ended(self.task)
            self.task = None  # or each would keep the other alive

    def _end_badly(self) -> None:
        if self.gone or self.complete:
            return
        if self.started:
            self.abort()
            return
        self.started = self.complete = True
        self._callbacks = None
        try:
            self._protocol.answer_and_close(
                Refusal("internal_error", "The proxy failed on this request; its log says why.")
            )
        except Exception:  # noqa: BLE001 -- what fails may be the making of error bodies: then no body, but no hanging client
            _log().exception("the answer to a failure failed as well")
            self._protocol.break_off(reset=True)

    def take_body(self) -> bytes | None:
        """The whole body, where it is there and nothing of it was received: what ``receive`` would give, without waiting."""
        if not self._body_ended or self._end_given or self.gone or self.complete:
            return None
        return self._taken()

    def _taken(self) -> bytes:
        """The body bytes that wait, which no longer do."""
        body = b"".join(self._chunks)
        self._chunks.clear()
        self._waiting = 0
        self._end_given = self._body_ended
        if self._protocol.flow.read_paused:
            self._protocol.resume_reading()
        return body

    @property
    def ready(self) -> bool:
        """Whether the client has read so much that it may be given more; so has one that is gone."""
        return self.gone or not self._protocol.flow.write_paused

    def start(self, status: int, headers: Any) -> None:
        """Start a response, as ``send`` would, at once."""
        if not self.gone:
            self._start(status, headers)
            self._protocol.hold(self)

    def respond(self, status: int, headers: Any, body: bytes) -> None:
        """Send a whole response, as two ``send`` would, at once."""
        if not self.gone:
            self._start(status, headers)
            self._continue(body, False)

    def pass_on(self, piece: bytes) -> bool:
        """Send a piece of the body of a response that was started. False where the client has to read first: ``drain``."""
        if not self.gone:
            self._continue(piece, True)
        return not self._protocol.flow.write_paused

    async def drain(self) -> None:
        """Wait until the client has read enough, or is gone."""
        await self._protocol.flow.drain()

    async def receive(self) -> Message:
        """Body, its end, then, when the client leaves or the response is complete, ``http.disconnect``.

        The first call is what releases ``100 Continue``. May be awaited by several tasks.
        """
        if self._awaiting_continue and not self.gone:
            self._awaiting_continue = False
            self._protocol.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        while not (self.gone or self.complete):
            if self._chunks or (self._body_ended and not self._end_given):
                return {"type": "http.request", "body": self._taken(), "more_body": not self._body_ended}
            if self._changed is None:
                self._changed = asyncio.Event()
            self._changed.clear()
            await self._changed.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """Send one ASGI message; waits while the client reads too slowly. Raises ``RuntimeError`` on misuse.

        ``Transfer-Encoding``, ``Keep-Alive`` and ``Connection`` (but for ``close``) are decided here. Names of headers are
        in lower case, as ASGI has them.
        """
        flow = self._protocol.flow
        if flow.write_paused and not self.gone:
            await flow.drain()
        if self.gone:
            return
        if not self.started:
            if message["type"] != "http.response.start":
                raise RuntimeError("a response must be started first")
            self._start(message["status"], message.get("headers") or ())
            # Held until the loop turns: what the application sends without waiting leaves in one piece with it.
            self._protocol.hold(self)
        elif not self.complete:
            if message["type"] != "http.response.body":
                raise RuntimeError("a response can be started only once")
            self._continue(message.get("body", b""), message.get("more_body", False))
        else:
            raise RuntimeError("the response is already complete")

    def _start(self, status: int, headers: Any) -> None:
        # Whatever body the application sends with these is dropped.
        bodiless = self._bodiless = self._method == "HEAD" or status in (204, 304)
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
        # What an upstream put into a header must not split the response: there are these line ends, and no others.
        if len(head) - len(head.translate(None, b"\r\n\0")) != 2 * (len(lines) - 1):
            raise RuntimeError("a response header is malformed")
        if bodiless:
            self._left = 0
        self.started = True
        self._awaiting_continue = False
        self._head = head

    def send_head(self) -> None:
        """Send the head, if the body has not taken it along."""
        if self._head and not self.gone:
            head, self._head = self._head, b""
            self._protocol.write(head)

    def _continue(self, body: bytes, more: bool) -> None:
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


class GuardedProtocol(asyncio.Protocol):
    """One connection. Made by uvicorn's or our server with ``watch`` bound by ``functools.partial``."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        watch: Watch,
    ) -> None:
        if not config.loaded:
            config.load()
        self._app: Application = config.loaded_app
        self._app_state = app_state
        self._loop = _loop or asyncio.get_running_loop()
        self._tasks = server_state.tasks
        self._watch = watch
        self.limits = watch.limits
        self._heads = Heads(watch.limits)
        self.flow: FlowControl
        self._transport: asyncio.Transport
        self._server: tuple[str, int | None] | None = None
        self._client: tuple[str, int] | None = None
        self._exchange: Exchange | None = None
        self._body: LengthBody | ChunkedBody | None = None
        self._pending = b""
        self._judged = 0  # bytes of _pending that refuse_early has seen
        self._empty_line_skipped = False
        self._closing = False
        self._passed_gate = False
        self._unsent = 0  # size of the write buffer at the last look
        self._body_seen = 0  # body bytes in the current span of the minimum rate
        self.deadline = _NEVER
        """By the loop's clock; the watch calls ``expire`` once it has passed."""
        self.stalled_since: float | None = None

    # asyncio's callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        stream = self._transport = cast("asyncio.Transport", transport)
        self.flow = FlowControl(stream)
        self._server = get_local_addr(stream)
        self._client = get_remote_addr(stream)
        self.deadline = self._loop.time() + self.limits.header_seconds
        self._watch.add(self)
        if not self._watch.make_room(self):
            if self._watch.may_be_polite():
                self.refuse(Refusal("overloaded", "Too many connections are open; try again in a moment."))
            else:
                self._closing = True
                stream.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._watch.discard(self)
        self._closing = True
        self._pending = b""
        self._body = None
        self.flow.resume_writing()
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.leave()

    def eof_received(self) -> bool | None:
        """A FIN: the client has left (see the head of this module). Nothing returned closes the transport."""
        self._peer_left()
        return None

    def pause_writing(self) -> None:
        self.flow.pause_writing()
        self.stalled_since = time.monotonic()
        self._unsent = self._transport.get_write_buffer_size()
        self._watch.attention.add(self)

    def resume_writing(self) -> None:
        self.stalled_since = None
        self.flow.resume_writing()

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return  # lingering: read and thrown away
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
                    # RFC 9112 section 2.2: one empty line before a request is forgiven.
                    self._empty_line_skipped = True
                    position += 2
                    continue
                end = data.find(b"\r\n\r\n", position + max(0, self._judged - 3))
                if end < 0:
                    self._keep_partial(data[position:])
                    return
                self._judged = 0
                self._empty_line_skipped = False
                try:
                    head = self._heads.read(data[position : end + 2])
                except Refusal as refusal:
                    self.refuse(refusal, data[position : end + 2])
                    return
                position = end + 4
                length = head.length
                if length is not None and length <= size - position and length <= self.limits.read_ahead_bytes:
                    # The body came with its head, as small ones do.
                    self._begin(head, data[position : position + length])
                    position += length
                    continue
                self._begin(head, None)
                if position >= size:
                    self._open_span()
                    return

    def _keep_partial(self, partial: bytes) -> None:
        refusal = refuse_early(partial, self._judged, self.limits)
        if refusal is not None:
            self.refuse(refusal, partial)
            return
        if not self._judged:
            self.deadline = self._loop.time() + self.limits.header_seconds
        self._pending = partial
        self._judged = len(partial)

    def _begin(self, head: Head, body: bytes | None) -> None:
        """Start the application: the framing is proven. ``body`` where it is there, whole."""
        exchange = self._exchange = Exchange(self, head, body)
        self.deadline = _NEVER
        if self._passed_gate:
            self._watch.resting.pop(self, None)
        if body is None:
            self._body = ChunkedBody(self.limits) if head.length is None else LengthBody(head.length)
        else:
            shortcut = head.memory.shortcut
            if shortcut is not None and shortcut(exchange, head, body):
                return
        self.call_application(exchange, head)

    def call_application(self, exchange: Exchange, head: Head) -> None:
        memory = head.memory
        if memory.scope is None:
            memory.scope = self._scope(head)
        scope: Scope = memory.scope.copy()  # the application may write into its scope
        scope["headers"] = head.headers
        scope["state"] = self._app_state.copy()
        scope["extensions"] = {EXTENSION: exchange}
        task = exchange.task = self._loop.create_task(exchange.run(self._app, scope))
        self._tasks.add(task)

    def _scope(self, head: Head) -> dict[str, Any]:
        """What the scopes of heads alike have in common."""
        raw_path, _, query = head.target.partition(b"?")
        path = raw_path.decode("ascii")
        if "%" in path:
            path = urllib.parse.unquote(path)
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": head.version,
            "server": self._server,
            "client": self._client,
            "scheme": "http",
            "method": head.method,
            "root_path": "",
            "path": path,
            "raw_path": raw_path,
            "query_string": query,
        }

    def ended(self, task: asyncio.Task[None] | None) -> None:
        """The application is through. (Told by its task itself: a callback would cost another turn of the loop.)"""
        self._tasks.discard(cast("asyncio.Task[None]", task))

    def _read_body(self, body: LengthBody | ChunkedBody, data: bytes, position: int) -> int:
        start = position
        exchange = self._exchange
        try:
            position, piece = body.feed(data, position)
        except Refusal as refusal:
            self._fail(refusal)
            return position
        if exchange is not None and piece:
            exchange.feed(piece)
        if body.done:
            self._body = None
            if exchange is not None:
                exchange.end_body()
                self.deadline = _NEVER
            else:
                self._settle()
        elif self.deadline == _NEVER:
            self._open_span()
        else:
            self._body_seen += position - start
        return position

    def _open_span(self) -> None:
        self._body_seen = 0
        self.deadline = self._loop.time() + self.limits.body_grace_seconds

    def pause_reading(self) -> None:
        self.flow.pause_reading()
        self._watch.attention.add(self)

    def resume_reading(self) -> None:
        """Read again, where nothing speaks against it."""
        if self.flow.read_paused and not self._closing and len(self._pending) <= self.limits.read_ahead_bytes:
            self.flow.resume_reading()
            if self._body is not None:
                self._open_span()  # the time in which we did not read is not the client's

    # writing

    def write(self, data: bytes, *more: bytes) -> None:
        if self._transport.is_closing():
            return
        # Not writelines: asyncio's own does not tell the writer to pause in CPython before 3.12.9 and 3.13.2.
        self._transport.write(b"".join((data, *more)) if more else data)

    def hold(self, exchange: Exchange) -> None:
        """Let ``exchange`` send its head when the loop turns."""
        self._watch.hold(exchange, self._loop)

    def refuse(self, refusal: Refusal, head: bytes = b"") -> None:
        """Answer bytes that will not become a (whole) request, and close. ``head`` is what came of it, for the log."""
        self._watch.refused(refusal, asked_for(head))
        self.answer_and_close(refusal, origin_of(head))

    def answer_and_close(self, refusal: Refusal, origin: bytes | None = None) -> None:
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

    def can_serve_on(self, exchange: Exchange) -> bool:
        """May the connection serve another request after this response?"""
        return (
            exchange.keep_alive
            and not self._watch.draining
            and not exchange.awaiting_continue
            and (self._body is None or self._body.worth_draining)
        )

    def finish(self, exchange: Exchange) -> None:
        """The response is complete: on to the next request, or the end."""
        if self._exchange is not exchange:
            return
        self._exchange = None
        if self._closing:
            return
        self._watch.rest(self, known=self._passed_gate)
        if not exchange.keep_alive or self._watch.draining:
            self._close(linger=self._body is not None or bool(self._pending))
        elif self._body is None:
            self._settle()
        else:
            self.resume_reading()

    def pass_gate(self) -> None:
        """See ``Exchange.passed_gate``."""
        if not self._passed_gate:
            self._passed_gate = True
            self._watch.strangers.pop(self, None)

    def give_up(self) -> bool:
        """End at once, for a new connection; False, and nothing was done, where a client waits for the end of its answer."""
        if self._passed_gate and self._transport.get_write_buffer_size():
            return False
        self.cut()
        return True

    def _settle(self) -> None:
        """Between two requests: serve what is pending, or wait."""
        self.deadline = self._loop.time() + self.limits.keep_alive_seconds
        pending, self._pending = self._pending, b""
        if self.flow.read_paused:
            self.resume_reading()
        if pending:
            self._advance(pending)

    # ends

    def _fail(self, refusal: Refusal) -> None:
        """The client broke the protocol in the body: answer where none was begun; tell the application."""
        exchange, self._exchange = self._exchange, None
        self._body = None
        if exchange is None:
            self._close(linger=True)
        elif exchange.started:
            exchange.leave(refusal.message)
            self.break_off(reset=exchange.ends_by_close, linger=True)
        else:
            self.refuse(refusal)
            exchange.leave(refusal.message)

    def _peer_left(self) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.leave()
            self.break_off(reset=exchange.ends_by_close, now=True)
        else:
            self._close(linger=False)

    def break_off(self, *, reset: bool, now: bool = False, linger: bool = False) -> None:
        """End the connection inside a response: by ``reset``, at once, or after what was written has left."""
        if reset or now or self.stalled_since is not None:
            self._closing = True
            if reset:
                # A close-delimited response that ends in a FIN looks complete.
                _linger_zero(self._transport)
            self._transport.abort()
        else:
            self._close(linger=linger or self._body is not None)

    def _close(self, *, linger: bool) -> None:
        """Flush and close; with ``linger`` read on for a while, as a close with bytes unread is a reset."""
        if self._closing:
            return
        self._closing = True
        self._watch.ending.add(self)
        self._pending = b""
        self._body = None
        unsent = self._unsent = self._transport.get_write_buffer_size()
        self.deadline = self._loop.time() + (self.limits.flush_seconds if unsent else self.limits.linger_seconds)
        if linger and self._transport.can_write_eof() and not self._transport.is_closing():
            self._transport.write_eof()
            self.flow.resume_reading()
        else:
            self._transport.close()

    @property
    def serving(self) -> bool:
        """Inside a request that has not its whole answer."""
        return self._exchange is not None

    @property
    def busy(self) -> bool:
        """Inside a request or a head, or with bytes unsent."""
        inside = self._exchange is not None or self._body is not None or bool(self._pending)
        return inside or self._transport.get_write_buffer_size() > 0

    def shutdown(self) -> None:
        """A drain has begun: idle connections close now, the others after their response."""
        if self._exchange is None and self._body is None and not self._pending:
            self._close(linger=False)
        elif self._exchange is not None:
            self._exchange.keep_alive = False

    def cut(self) -> None:
        """The end of everything: no flush, no waiting."""
        self._closing = True
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.leave()
            if exchange.ends_by_close:
                _linger_zero(self._transport)
        self._transport.abort()

    # the watch's calls

    def expire(self) -> None:
        """The deadline has passed."""
        now = self._loop.time()
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
                self._fail(Refusal("request_timeout", "The request body came too slowly."))
        elif self._pending:
            self.refuse(Refusal("request_timeout", "The request head took too long."), self._pending)
        else:
            self._close(linger=False)

    def _may_be_slow(self) -> bool:
        return self.flow.read_paused or (self._exchange is not None and self._exchange.awaiting_continue)

    def look(self) -> bool:
        """See what no callback tells: a stalled writer's progress, a peer that left. True: look again."""
        if self.stalled_since is not None:
            unsent = self._transport.get_write_buffer_size()
            if unsent < self._unsent:
                self.stalled_since = time.monotonic()
            self._unsent = unsent
            if self._exchange is not None and self._exchange.unwatched and self._stalls_too_long():
                self.cut()
                return False
        if self.flow.read_paused and not self._closing and _peer_has_left(self._transport):
            self._peer_left()
        return self.stalled_since is not None or self.flow.read_paused

    def _stalls_too_long(self) -> bool:
        return self.stalled_since is not None and time.monotonic() - self.stalled_since > self.limits.flush_seconds


_COPY_BELOW = 16 * 1024  # below this one copy is cheaper than a vector write
_MOST_LOOKED_AT = 8  # of those that might be given up, for each new connection
_MOST_ENDING = 32  # while so many connections are being ended, one too many is closed without an answer
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


@functools.lru_cache(maxsize=1024)  # the pieces of a stream have few sizes
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
    return logging.getLogger("proxy.guard")


# --- all connections ----------------------------------------------------------------------------------------


class Watch:
    """All connections of one server, and the one timer that keeps their deadlines."""

    def __init__(
        self,
        limits: Limits,
        on_refusal: Callable[[str], object] | None = None,
        readable_by: Callable[[bytes, errors.Headers], errors.Headers] | None = None,
    ) -> None:
        self.limits = limits
        self.readable_by = readable_by or (lambda _, headers: headers)
        """The headers of an answer to a page of this origin: what lets it read the answer is in them where it may."""
        self.draining = False
        self.connections: set[GuardedProtocol] = set()
        self.attention: set[GuardedProtocol] = set()
        """Those whose reading is paused or whose writing stalls: looked at in every sweep."""
        self.ending: set[GuardedProtocol] = set()
        """Those that only flush or linger."""
        self.strangers: dict[GuardedProtocol, None] = {}
        """Those that never passed the gate, the one whose last request is longest ago first."""
        self.resting: dict[GuardedProtocol, None] = {}
        """The others that are between two requests, the one that has been so longest first."""
        self._on_refusal = on_refusal
        self._holding: list[Exchange] = []
        self._timer: asyncio.TimerHandle | None = None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = loop.call_later(self.limits.sweep_seconds, self._sweep, loop)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def add(self, connection: GuardedProtocol) -> None:
        self.connections.add(connection)
        self.strangers[connection] = None

    def rest(self, connection: GuardedProtocol, *, known: bool) -> None:
        """``connection`` has its answer, and nothing to do from now on."""
        order = self.resting if known else self.strangers
        order.pop(connection, None)
        order[connection] = None

    def discard(self, connection: GuardedProtocol) -> None:
        self.connections.discard(connection)
        self.strangers.pop(connection, None)
        self.resting.pop(connection, None)
        self.attention.discard(connection)
        self.ending.discard(connection)

    def hold(self, exchange: Exchange, loop: asyncio.AbstractEventLoop) -> None:
        """Call ``exchange.send_head`` when the loop turns. One callback for all: each costs more than a response head."""
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

    def make_room(self, newcomer: GuardedProtocol) -> bool:
        """End as many as there are too many: strangers, then those that rest. False where ``newcomer`` is still one too many."""
        while 0 < self.limits.connections < len(self.connections):
            if not self._give_up_one(newcomer):
                return False
        return True

    def _give_up_one(self, newcomer: GuardedProtocol) -> bool:
        for order in (self.strangers, self.resting):
            for connection in list(itertools.islice(order, _MOST_LOOKED_AT)):
                if connection is not newcomer and connection.give_up():
                    self.discard(connection)
                    return True
                self.rest(connection, known=order is self.resting)
        return False

    def may_be_polite(self) -> bool:
        """Are there descriptors to spare for an answer to a connection too many?"""
        return len(self.ending) < _MOST_ENDING

    def refused(self, refusal: Refusal, request: str) -> None:
        code = refusal.code
        what = f"{code} ({request})" if request else code
        _log().info("refused before routing: %s: %s", what, refusal.message)
        if self._on_refusal is not None:
            self._on_refusal(code)

    @property
    def requests(self) -> int:
        """How many have begun and have not their whole answer."""
        return sum(connection.serving for connection in self.connections)

    def busy(self) -> bool:
        """Is there a connection that still owes or is owed something?"""
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
        for connection in list(self.attention):
            if not connection.look():
                self.attention.discard(connection)
        now = loop.time()
        for connection in [connection for connection in self.connections if connection.deadline <= now]:
            connection.expire()
