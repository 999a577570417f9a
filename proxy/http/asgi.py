"""Adapters between ``Exchange`` and ASGI, in both directions.

``run`` serves an exchange of the strict protocol with an ASGI application: the control pages, or any other application.
``ASGIExchange`` is the other direction: an exchange on any ASGI server, which makes the gateway an ordinary ASGI application.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable
from urllib.parse import unquote

from proxy.http.exchange import ClientDisconnected, Exchange
from proxy.http.framing import Head, HeadMemory
from proxy.protocol.tasks import Signal

if TYPE_CHECKING:
    from proxy.http.exchange import Pairs

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

HIGH_WATER_BYTES = 65_536
"""Bytes of a body buffered in either direction before the faster side has to wait (back-pressure)."""


@runtime_checkable
class TakesExchanges(Protocol):
    """An ASGI application that also serves exchanges directly."""

    def take_exchange(self, exchange: Exchange) -> None:
        """Start serving ``exchange`` and return at its first wait."""


def exchange_handler(
    app: Application, state: Mapping[str, object], tasks: set[asyncio.Task[None]]
) -> Callable[[Exchange], None]:
    """Return the function that serves an exchange with ``app``: directly if it can, else by ASGI in a task of ``tasks``."""
    if isinstance(app, TakesExchanges):
        return app.take_exchange

    def take(exchange: Exchange) -> None:
        task = asyncio.get_running_loop().create_task(run(app, exchange, state))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    return take


# --- an ASGI application serves an exchange ------------------------------------------------------------------------


async def run(app: Application, exchange: Exchange, state: Mapping[str, object] | None = None) -> None:
    """Serve ``exchange`` with ``app``. A failed or incomplete response becomes a 500 or an aborted connection."""
    messages = _Messages(exchange)
    try:
        if not exchange.gone:
            await app(_scope(exchange, state), messages.receive, messages.send)
    except Exception:  # noqa: BLE001 -- the last border: a fault of ours becomes a 500 or a broken connection
        _log().exception("the application failed")
        exchange.fail()
    except BaseException:  # cancelled at the end of a drain: no response is made up
        exchange.abort()
        raise
    else:
        if not (exchange.complete or exchange.gone):
            _log().error("the application ended without a complete response")
            exchange.fail()


def _scope(exchange: Exchange, state: Mapping[str, object] | None) -> Scope:
    head = exchange.head
    raw_path, _, query = head.target.partition(b"?")
    path = raw_path.decode("ascii")
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": head.version,
        "server": exchange.server,
        "client": exchange.client,
        "scheme": "http",
        "method": head.method,
        "root_path": "",
        "path": unquote(path) if "%" in path else path,
        "raw_path": raw_path,
        "query_string": query,
        "headers": head.headers,
        "state": dict(state or {}),
    }


class _Messages:
    """``receive`` and ``send`` of one exchange."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._reading = asyncio.Lock()  # several tasks may wait for the next message
        self._body_ended = False
        self._over = asyncio.Event()
        self._head: tuple[int, Pairs] | None = None
        exchange.on_disconnect(self._over.set)

    async def receive(self) -> Message:
        """Return the next body message; ``http.disconnect`` after a disconnect or a complete response."""
        async with self._reading:
            if not (self._body_ended or self._exchange.complete):
                try:
                    whole = self._exchange.whole_body()
                    piece = whole if whole is not None else await self._exchange.read()
                except ClientDisconnected:
                    return {"type": "http.disconnect"}
                self._body_ended = whole is not None or not piece
                return {"type": "http.request", "body": piece, "more_body": not self._body_ended}
        await self._over.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """Send one message. Waits while the client reads too slowly. Raises ``RuntimeError`` on misuse."""
        exchange = self._exchange
        if not exchange.ready:
            await exchange.drain()
        if exchange.gone:
            return
        if exchange.complete:
            raise RuntimeError("the response is already complete")
        if message["type"] == "http.response.start":
            if self._head is not None:
                raise RuntimeError("a response can be started only once")
            self._head = message["status"], list(message.get("headers") or ())
            exchange.start(*self._head)
            return
        if self._head is None:
            raise RuntimeError("a response must be started first")
        body = message.get("body", b"")
        if body:
            exchange.write(body)
        if not message.get("more_body", False):
            exchange.finish()
            self._over.set()


# --- an exchange on an ASGI server ---------------------------------------------------------------------------------


class ASGIExchange:
    """An ``Exchange`` on an ASGI server. The application's ``__call__`` awaits ``serve``."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.head = _head(scope)
        server = scope.get("server")
        self.server: tuple[str, int | None] | None = (server[0], server[1]) if server is not None else None
        client = scope.get("client")
        self.client: tuple[str, int] | None = (client[0], client[1]) if client is not None else None
        self.client_error: str | None = None
        self.complete = False
        self.gone = False
        self._loop = asyncio.get_running_loop()
        self._receive = receive
        self._send = send
        self._receiver: asyncio.Task[None] | None = None
        self._pieces: deque[bytes] = deque()
        self._waiting = 0
        self._body_ended = False
        self._came: Signal[None] | None = None
        self._taken: asyncio.Event | None = None
        self._callbacks: list[Callable[[], object]] = []
        self._started = False
        self._messages: deque[Message] = deque()
        self._unsent = 0
        self._to_send = asyncio.Event()
        self._drained: asyncio.Future[None] | None = None

    async def serve(self, take: Callable[[Exchange], None]) -> None:
        """Serve this exchange with ``take``. Returns when everything was sent, or nothing more can be sent.

        An aborted response is left incomplete. An ASGI server then closes the connection.
        """
        if not self.head.expects_continue:  # the first call of ``receive`` makes the server send "100 Continue"
            self._start_receiving()
        try:
            take(self)
            while not self.gone:
                if self._messages:
                    message = self._messages.popleft()
                    await self._send(message)
                    self._unsent -= len(message.get("body", b""))
                    if self._drained is not None and not self._drained.done() and self.ready:
                        self._drained.set_result(None)
                elif self.complete:
                    break
                else:
                    self._to_send.clear()
                    await self._to_send.wait()
        finally:
            receiver, self._receiver = self._receiver, None  # a task that was cancelled holds what it ran in
            if receiver is not None:
                receiver.cancel()
            self._leave()

    @property
    def ready(self) -> bool:
        return self.gone or self._unsent <= HIGH_WATER_BYTES

    def whole_body(self) -> bytes | None:
        return None  # an ASGI server delivers a body only when it is awaited

    async def read(self) -> bytes:
        self._start_receiving()
        while not self._pieces:
            if self.gone or self.complete:
                raise ClientDisconnected
            if self._body_ended:
                return b""
            self._came = Signal(self._loop)
            await self._came
        piece = self._pieces.popleft()
        self._waiting -= len(piece)
        if self._taken is not None:
            self._taken.set()
        return piece

    def respond(self, status: int, headers: Pairs, body: bytes) -> None:
        self.start(status, headers)
        self._put({"type": "http.response.body", "body": body, "more_body": False})
        self._complete()

    def start(self, status: int, headers: Pairs) -> None:
        if self._started:
            raise RuntimeError("a response can be started only once")
        self._started = True
        self._put({"type": "http.response.start", "status": status, "headers": headers})

    def write(self, piece: bytes) -> bool:
        self._put({"type": "http.response.body", "body": piece, "more_body": True})
        return self.ready

    async def drain(self) -> None:
        if not self.ready:
            self._drained = self._loop.create_future()
            await self._drained

    def finish(self) -> None:
        self._put({"type": "http.response.body", "body": b"", "more_body": False})
        self._complete()

    def abort(self) -> None:
        # The written bytes are sent before the application returns and the server sees an incomplete response.
        self._complete()

    def fail(self) -> None:
        """Respond with 500, or abort a started response."""
        if self._started:
            self.abort()
        else:
            self.respond(
                500, [(b"content-type", b"text/plain")], b"The proxy failed on this request; its log says why.\n"
            )

    def passed_access(self) -> None:
        """Do nothing: the server manages its connections."""

    def on_disconnect(self, callback: Callable[[], object]) -> None:
        if self.gone:
            callback()
        else:
            self._callbacks.append(callback)

    def _put(self, message: Message) -> None:
        if not (self.gone or self.complete):
            self._messages.append(message)
            self._unsent += len(message.get("body", b""))
            self._to_send.set()

    def _complete(self) -> None:
        self.complete = True
        self._callbacks.clear()
        self._to_send.set()

    def _start_receiving(self) -> None:
        if self._receiver is None and not self.gone:
            self._receiver = self._loop.create_task(self._receive_all())

    async def _receive_all(self) -> None:
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self._leave()
                return
            piece = message.get("body", b"")
            if piece:
                self._pieces.append(piece)
                self._waiting += len(piece)
            self._body_ended = not message.get("more_body", False)
            self._wake()
            while self._waiting > HIGH_WATER_BYTES:
                self._taken = asyncio.Event()
                await self._taken.wait()

    def _leave(self) -> None:
        """Mark the client as gone: it disconnected, or nothing more can be sent to it."""
        if self.gone:
            return
        self.gone = True
        callbacks, self._callbacks = self._callbacks, []
        self._to_send.set()
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        self._wake()
        for callback in callbacks:
            callback()

    def _wake(self) -> None:
        came, self._came = self._came, None
        if came is not None:
            came.set_result(None)


def _head(scope: Scope) -> Head:
    path: bytes = scope.get("raw_path") or scope["path"].encode("utf-8")
    query: bytes = scope.get("query_string", b"")
    headers: Pairs = [(bytes(name), bytes(value)) for name, value in scope["headers"]]
    lengths = [value for name, value in headers if name == b"content-length"]
    chunked = any(name == b"transfer-encoding" for name, _ in headers)
    length = int(lengths[0]) if lengths and lengths[0].isdigit() and len(lengths[0]) <= 15 else 0
    expects = any(name == b"expect" and value.lower() == b"100-continue" for name, value in headers)
    return Head(
        scope["method"],
        path + b"?" + query if query else path,
        scope.get("http_version", "1.1"),
        headers,
        True,
        None if chunked else length,
        expects,
        HeadMemory(),
    )


def _log() -> logging.Logger:
    return logging.getLogger("proxy.http")
