"""The HTTP connection: what becomes a request, what is refused, and what the application learns of its client."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import re
import socket
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httptools
import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st
from profiles import examples
from uvicorn.server import ServerState

from proxy.config.settings import Server, Settings
from proxy.daemon import Daemon, background
from proxy.http import asgi
from proxy.http.connection import ConnectionSet, StrictProtocol
from proxy.http.framing import ChunkedBody, Head, Limits, RefusalError, RequestHeads, read_head, refuse_early

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from proxy.http.asgi import Message, Scope
    from proxy.http.exchange import Exchange

HOST = b"Host: 127.0.0.1\r\n"
QUICK = Limits(
    header_seconds=0.6,
    keep_alive_seconds=30.0,
    body_grace_seconds=0.6,
    linger_seconds=2.0,
    flush_seconds=5.0,
    sweep_seconds=0.05,
)


# --- a server and its application ------------------------------------------------------------------------------


@dataclass
class Seen:
    """One request as the application saw it."""

    scope: Scope
    body: bytes = b""
    whole: bool = False
    disconnects: int = 0
    connection: Any = None
    done: threading.Event = field(default_factory=threading.Event)


class TinyApp:
    """Answers by path. Its own ``runtime``."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.release = threading.Event()
        self.tasks: set[asyncio.Task[None]] = set()

    @property
    def runtime(self) -> TinyApp:
        return self

    def begin_drain(self) -> None: ...

    def cut(self) -> None: ...

    def reload(self, settings: Settings) -> None: ...

    def take_exchange(self, exchange: Exchange) -> None:
        """Serves each exchange through ASGI, and keeps the exchange itself at hand."""

        async def application(scope: Scope, receive: Any, send: Any) -> None:
            await self.serve(exchange, scope, receive, send)

        task = asyncio.get_running_loop().create_task(asgi.run(application, exchange))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        assert scope["type"] == "lifespan"
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})

    async def serve(self, exchange: Exchange, scope: Scope, receive: Any, send: Any) -> None:
        seen = Seen(scope, connection=exchange)
        self.seen.append(seen)

        def count() -> None:
            seen.disconnects += 1

        seen.connection.on_disconnect(count)
        try:
            await getattr(self, scope["path"].strip("/").split("/")[0] or "echo", self.echo)(seen, receive, send)
        finally:
            seen.done.set()

    async def echo(self, seen: Seen, receive: Any, send: Any) -> None:
        if await read_all(seen, receive):
            await answer(send, 200, seen.body)

    async def early(self, seen: Seen, receive: Any, send: Any) -> None:
        """Answers without looking at the body."""
        await answer(send, 413, b"too large")

    async def held(self, seen: Seen, receive: Any, send: Any) -> None:
        """Does nothing until the test says so, then reads and answers. Whoever asks has passed the gate."""
        seen.connection.passed_access()
        while not self.release.is_set():
            if seen.disconnects:
                return
            await asyncio.sleep(0.01)
        await self.echo(seen, receive, send)

    async def announced(self, seen: Seen, receive: Any, send: Any) -> None:
        """Announces a length where no body may be; the status is in the query."""
        await start(send, int(seen.scope["query_string"]), (b"content-length", b"5"))
        await send({"type": "http.response.body", "body": b"xxxxx", "more_body": False})

    async def known(self, seen: Seen, receive: Any, send: Any) -> None:
        """Whoever asks has passed the gate."""
        seen.connection.passed_access()
        await self.echo(seen, receive, send)

    async def big(self, seen: Seen, receive: Any, send: Any) -> None:
        """More than a client's and our own socket take up."""
        await answer(send, 200, b"x" * 8_000_000)

    async def wait(self, seen: Seen, receive: Any, send: Any) -> None:
        """Waits for the client to leave before a byte was answered."""
        await read_all(seen, receive)
        while (await receive())["type"] != "http.disconnect":
            pass

    async def stream(self, seen: Seen, receive: Any, send: Any) -> None:
        """Chunks until the client leaves."""
        await start(send, 200)
        while not seen.disconnects:
            await send({"type": "http.response.body", "body": b"data: x\n\n", "more_body": True})
            await asyncio.sleep(0.01)

    async def flood(self, seen: Seen, receive: Any, send: Any) -> None:
        """Megabytes, as fast as they are taken; ends itself when the client stalls."""
        await start(send, 200)

        async def watch() -> None:
            stalled = 0.0
            while stalled < 0.3:
                await asyncio.sleep(0.02)
                since = seen.connection._protocol.stalled_since
                stalled = 0.0 if since is None else time.monotonic() - since
            self.release.set()
            seen.connection.abort()

        watcher = asyncio.get_running_loop().create_task(watch())
        for _ in range(200):
            await send({"type": "http.response.body", "body": b"x" * 1_000_000, "more_body": True})
            seen.body += b"."
        watcher.cancel()

    async def abort(self, seen: Seen, receive: Any, send: Any) -> None:
        await start(send, 200)
        await send({"type": "http.response.body", "body": b"data: said before\n\n", "more_body": True})
        seen.connection.abort()
        await send({"type": "http.response.body", "body": b"never", "more_body": False})

    async def short(self, seen: Seen, receive: Any, send: Any) -> None:
        await start(send, 200, (b"content-length", b"100"))
        await send({"type": "http.response.body", "body": b"ten bytes.", "more_body": False})

    async def split(self, seen: Seen, receive: Any, send: Any) -> None:
        await start(send, 200, (b"x-evil", b"1\r\nset-cookie: a=b"))

    async def pondering(self, seen: Seen, receive: Any, send: Any) -> None:
        """Sends its head, and the body when the test says so."""
        await start(send, 200, (b"content-length", b"4"))
        while not self.release.is_set():  # noqa: ASYNC110 - the test is a thread
            await asyncio.sleep(0.01)
        await send({"type": "http.response.body", "body": b"done", "more_body": False})

    async def crash(self, seen: Seen, receive: Any, send: Any) -> None:
        raise ValueError("a bug")

    async def crash_late(self, seen: Seen, receive: Any, send: Any) -> None:
        await start(send, 200)
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise ValueError("a bug")

    async def status(self, seen: Seen, receive: Any, send: Any) -> None:
        code = int(seen.scope["path"].rsplit("/", 1)[1])
        await start(send, code)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def read_all(seen: Seen, receive: Callable[[], Any]) -> bool:
    while True:
        message: Message = await receive()
        if message["type"] == "http.disconnect":
            return False
        seen.body += message["body"]
        if not message["more_body"]:
            seen.whole = True
            return True


async def start(send: Any, status: int, *headers: tuple[bytes, bytes]) -> None:
    await send({"type": "http.response.start", "status": status, "headers": list(headers)})


async def answer(send: Any, status: int, body: bytes) -> None:
    await start(send, status, (b"content-length", b"%d" % len(body)))
    await send({"type": "http.response.body", "body": body, "more_body": False})


@dataclass
class Front:
    """A running front, its application, and a way to talk to it."""

    app: TinyApp
    daemon: Daemon
    clients: list[socket.socket] = field(default_factory=list)

    @property
    def port(self) -> int:
        return int(self.daemon.addresses[0].rsplit(":", 1)[1])

    def connect(self, receive_buffer: int | None = None) -> socket.socket:
        client = socket.socket()
        self.clients.append(client)
        if receive_buffer is not None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        client.settimeout(10)
        client.connect(("127.0.0.1", self.port))
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return client

    def exchange(self, *pieces: bytes) -> bytes:
        """Send ``pieces`` on a new connection; everything that comes back until it closes."""
        client = self.connect()
        for piece in pieces:
            client.sendall(piece)
        return read_to_end(client)


def read_to_end(client: socket.socket) -> bytes:
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while data := client.recv(65536):
            received += data
    return received


def read_response(client: socket.socket, received: bytes = b"") -> tuple[int, dict[bytes, bytes], bytes, bytes]:
    """Status, headers, body (by Content-Length) and what came after it."""
    while b"\r\n\r\n" not in received:
        data = client.recv(65536)
        assert data, f"closed inside a head: {received!r}"
        received += data
    head, _, rest = received.partition(b"\r\n\r\n")
    status_line, *lines = head.split(b"\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
    length = int(headers.get(b"content-length", b"0"))
    while len(rest) < length:
        data = client.recv(65536)
        assert data, "closed inside a body"
        rest += data
    return int(status_line.split()[1]), headers, rest[:length], rest[length:]


def eventually(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def code_of(response: bytes) -> tuple[int, str]:
    """Status and code of a refusal, after checking its form."""
    head, _, body = response.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 "), response[:200]
    lines = head.lower().split(b"\r\n")
    assert any(line.startswith(b"connection:") and b"close" in line for line in lines), head
    error = json.loads(body)["error"]
    assert f"x-lava-proxy-error: {error['lava_proxy']['code']}".encode() in lines
    return int(head.split()[1]), error["lava_proxy"]["code"]


@contextlib.contextmanager
def running(limits: Limits = QUICK, **server: Any) -> Iterator[Front]:
    app = TinyApp()
    where = {"host": ("127.0.0.1",), "port": 0, "drain_seconds": 2.0, **server}
    with background(Settings(server=Server(**where)), create_app=lambda _: app, limits=limits) as daemon:
        front = Front(app, daemon)
        try:
            yield front
        finally:
            app.release.set()
            for client in front.clients:
                client.close()


@pytest.fixture(scope="module")
def shared() -> Iterator[Front]:
    """One front for the tests that leave nothing behind."""
    with running() as front:
        yield front


@pytest.fixture
def front(shared: Front) -> Front:
    shared.app.seen.clear()
    shared.app.release.clear()
    return shared


# --- heads -----------------------------------------------------------------------------------------------------

SMUGGLED = b"0\r\n\r\nGET /smuggled HTTP/1.1\r\n" + HOST + b"\r\n"


def post(*lines: bytes, body: bytes = b"hello") -> bytes:
    return b"POST /echo HTTP/1.1\r\n" + HOST + b"".join(line + b"\r\n" for line in lines) + b"\r\n" + body


def get(*lines: bytes, first: bytes = b"GET /echo HTTP/1.1", host: bytes = HOST) -> bytes:
    return first + b"\r\n" + host + b"".join(line + b"\r\n" for line in lines) + b"\r\n"


REFUSED: dict[str, tuple[bytes, set[int]]] = {
    "PAR-01 length and chunked": (post(b"Content-Length: 5", b"Transfer-Encoding: chunked", body=SMUGGLED), {400}),
    "PAR-01 chunked and length": (post(b"Transfer-Encoding: chunked", b"Content-Length: 5", body=SMUGGLED), {400}),
    "PAR-03 two lengths": (post(b"Content-Length: 5", b"Content-Length: 6"), {400}),
    "PAR-03 one length twice": (post(b"Content-Length: 5", b"Content-Length: 5"), {400}),
    "PAR-03 a list of lengths": (post(b"Content-Length: 5, 5"), {400}),
    "PAR-05 plus": (post(b"Content-Length: +5"), {400}),
    "PAR-05 minus": (post(b"Content-Length: -5"), {400}),
    "PAR-05 hexadecimal": (post(b"Content-Length: 0x5"), {400}),
    "PAR-05 underscore": (post(b"Content-Length: 1_0"), {400}),
    "PAR-05 space": (post(b"Content-Length: 5 5"), {400}),
    "PAR-05 empty": (post(b"Content-Length:"), {400}),
    "PAR-05 23 digits": (post(b"Content-Length: " + b"1" * 23), {400}),
    "PAR-05 not ASCII": (post(b"Content-Length: \xb2"), {400}),
    "PAR-06 xchunked": (post(b"Transfer-Encoding: xchunked", body=SMUGGLED), {400, 501}),
    "PAR-06 a coding before chunked": (post(b"Transfer-Encoding: gzip, chunked", body=SMUGGLED), {501}),
    "PAR-06 identity": (post(b"Transfer-Encoding: identity", body=b""), {400, 501}),
    "PAR-06 empty coding": (post(b"Transfer-Encoding:", body=b""), {400}),
    "PAR-06 comma": (post(b"Transfer-Encoding: ,chunked", body=SMUGGLED), {400}),
    "PAR-06 parameter": (post(b"Transfer-Encoding: chunked;q=1", body=SMUGGLED), {400}),
    "PAR-06 quoted": (post(b'Transfer-Encoding: "chunked"', body=SMUGGLED), {400}),
    "PAR-06 vertical tab": (post(b"Transfer-Encoding: \x0bchunked", body=SMUGGLED), {400}),
    "PAR-06 not ASCII": (post(b"Transfer-Encoding: chunked\xa0", body=SMUGGLED), {400}),
    "PAR-08 chunked, identity": (post(b"Transfer-Encoding: chunked, identity", body=SMUGGLED), {400}),
    "PAR-08 chunked, chunked": (post(b"Transfer-Encoding: chunked, chunked", body=SMUGGLED), {400}),
    "PAR-08 two headers": (
        post(b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity", body=SMUGGLED),
        {400},
    ),
    "PAR-10 space before the colon": (post(b"Transfer-Encoding : chunked", b"Content-Length: 5", body=SMUGGLED), {400}),
    "PAR-10 tab before the colon": (post(b"Content-Length\t: 5"), {400}),
    "PAR-12 folded": (get(b"X-A: one\r\n two"), {400}),
    "PAR-12 folded with a tab": (get(b"X-A: one\r\n\ttwo"), {400}),
    "PAR-12 folded first line": (get(host=b" Host: 127.0.0.1\r\n"), {400}),
    "PAR-14 HTTP/1.0 chunked": (
        get(b"Transfer-Encoding: chunked", first=b"POST /echo HTTP/1.0") + b"5\r\nhello\r\n0\r\n\r\n",
        {400, 505},
    ),
    "PAR-24 only LF": (b"GET /echo HTTP/1.1\nHost: 127.0.0.1\n\n", {400}),
    "PAR-24 one LF": (b"GET /echo HTTP/1.1\r\nHost: 127.0.0.1\nX: y\r\n\r\n", {400}),
    "PAR-24 LF in the empty line": (b"GET /echo HTTP/1.1\r\nHost: 127.0.0.1\r\n\n", {400}),
    "PAR-25 CR in a value": (get(b"X-A: one\rtwo"), {400}),
    "PAR-25 only CR": (b"GET /echo HTTP/1.1\rHost: 127.0.0.1\r\r", {400}),
    "PAR-26 NUL in the path": (get(first=b"GET /ec\0ho HTTP/1.1"), {400}),
    "PAR-26 NUL in a name": (get(b"X-\0A: b"), {400}),
    "PAR-26 NUL in a value": (get(b"X-A: b\0c"), {400}),
    "PAR-26 DEL in a value": (get(b"X-A: b\x7fc"), {400}),
    "PAR-30 no Host": (get(host=b""), {400}),
    "PAR-30 no Host in HTTP/1.0": (get(host=b"", first=b"GET /echo HTTP/1.0"), {400}),
    "PAR-31 two Hosts": (get(b"Host: evil.example"), {400}),
    "PAR-31 the same Host twice": (get(b"Host: 127.0.0.1"), {400}),
    "PAR-32 empty Host": (get(host=b"Host:\r\n"), {400}),
    "PAR-33 absolute form": (get(first=b"GET http://evil.example/a HTTP/1.1"), {400}),
    "PAR-33 absolute form of our own": (get(first=b"GET http://127.0.0.1/echo HTTP/1.1"), {400}),
    "PAR-33 asterisk": (get(first=b"OPTIONS * HTTP/1.1"), {400}),
    "PAR-33 no slash": (get(first=b"GET echo HTTP/1.1"), {400}),
    "PAR-33 fragment": (get(first=b"GET /echo#x HTTP/1.1"), {400}),
    "PAR-33 not ASCII": (get(first=b"GET /\xc3\xa9 HTTP/1.1"), {400}),
    "PAR-35 CONNECT": (get(first=b"CONNECT evil.example:443 HTTP/1.1"), {400, 405}),
    "PAR-37 TRACE": (get(b"X-Echo: me", first=b"TRACE /echo HTTP/1.1"), {405}),
    "PAR-37 an unknown method": (get(first=b"BREW /echo HTTP/1.1"), {405}),
    "PAR-37 a method in small letters": (get(first=b"get /echo HTTP/1.1"), {405}),
    "PAR-37 no token": (get(first=b"G@T /echo HTTP/1.1"), {400}),
    "PAR-37 no method": (get(first=b" /echo HTTP/1.1"), {400}),
    "PAR-40 websocket": (get(b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Version: 13"), {426}),
    "PAR-40 websocket in a list": (get(b"Connection: Upgrade", b"Upgrade: h2c, WebSocket"), {426}),
    "PAR-43 HTTP/2.0": (get(first=b"GET /echo HTTP/2.0"), {505}),
    "PAR-43 HTTP/1.2": (get(first=b"GET /echo HTTP/1.2"), {505}),
    "PAR-43 HTTP/0.9": (get(first=b"GET /echo HTTP/0.9"), {505}),
    "PAR-43 no version": (get(first=b"GET /echo"), {400}),
    "PAR-43 HTTP/1.1x": (get(first=b"GET /echo HTTP/1.1x"), {400, 505}),
    "PAR-43 http/1.1": (get(first=b"GET /echo http/1.1"), {400, 505}),
    "PAR-43 HTTP/01.1": (get(first=b"GET /echo HTTP/01.1"), {400, 505}),
    "PAR-43 the preface of HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {505}),
    "PAR-43 two spaces": (get(first=b"GET  /echo HTTP/1.1"), {400}),
    "PAR-43 a tab": (get(first=b"GET\t/echo HTTP/1.1"), {400}),
    "PAR-46 another expectation": (post(b"Expect: 200-ok", b"Content-Length: 5"), {417}),
    "PAR-48 a header of 66 KB": (get(b"X-A: " + b"a" * 66_000), {431}),
    "PAR-48 a header of 1 MB": (get(b"X-A: " + b"a" * 1_000_000), {431}),
    "PAR-48 33 KiB in all": (get(*[b"X-%d: " % i + b"a" * 1000 for i in range(33)]), {431}),
    "PAR-49 5,000 headers": (get(*[b"X-%d: a" % i for i in range(5000)]), {431}),
    "PAR-49 101 headers": (get(*[b"X-%d: a" % i for i in range(100)]), {431}),
    "PAR-51 space in a name": (get(b"X A: b"), {400}),
    "PAR-51 no colon": (get(b"X-A"), {400}),
    "PAR-51 no name": (get(b": b"), {400}),
    "PAR-51 a separator in a name": (get(b"X(A): b"), {400}),
    "a target of 9 KiB": (get(first=b"GET /" + b"a" * 9216 + b" HTTP/1.1"), {414}),
    "a target of 1 MB": (get(first=b"GET /" + b"a" * 1_000_000 + b" HTTP/1.1"), {414}),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x0a\x0d\x00" * 100, {400}),
    "a long line that is no request": (b"A" * 20_000, {400}),
    "two empty lines first": (b"\r\n\r\n" + get(), {400}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_head_that_is_not_beyond_doubt_is_refused_and_never_dispatched(front: Front, name: str) -> None:
    """Every malformed, ambiguous or oversized head gets its status, a body in our shape, and the connection closes."""
    sent, statuses = REFUSED[name]
    status, _ = code_of(front.exchange(sent))
    assert status in statuses
    assert front.app.seen == []


@pytest.mark.parametrize("name", [name for name, (sent, _) in REFUSED.items() if len(sent) < 400])
def test_the_outcome_does_not_depend_on_how_the_bytes_arrive(name: str) -> None:
    """A head that comes byte by byte is judged like one that comes whole, or earlier."""
    sent, _ = REFUSED[name]

    def judge() -> str:
        for end in range(1, len(sent) + 1):
            whole = sent.find(b"\r\n\r\n", 0, end)
            try:
                if whole >= 0:
                    read_head(sent[: whole + 2], Limits())
                    return "accepted"
                refusal = refuse_early(sent[:end], end - 1, Limits())
                if refusal is not None:
                    raise refusal
            except RefusalError as refusal:
                return refusal.code
        return "waiting"

    assert judge() not in ("accepted", "waiting") or sent.startswith(b"\r\n")


def test_websocket_refusals_say_why(front: Front) -> None:
    """The 426 says which tools it meets, and what they can use instead."""
    response = front.exchange(REFUSED["PAR-40 websocket"][0])
    for word in (b"realtime", b"live API", b"plain HTTP", b"streaming", b"Codex"):
        assert word in response
    assert b"\r\nupgrade: HTTP/1.1\r\n" in response


def test_a_tls_client_is_told_to_use_http(front: Front) -> None:
    """Somebody who wrote https:// learns it from the answer."""
    assert b"http://" in front.exchange(REFUSED["TLS"][0])


def test_sound_requests_pass_with_their_bytes_unchanged(front: Front) -> None:
    """Target, header order, duplicates, case of values and high bytes reach the application as they came."""
    client = front.connect()
    client.sendall(
        b"\r\nGET /echo/%2F%41?a=%zz&b=\\'\" HTTP/1.1\r\n" + HOST + b"X-A:  one \t\r\nx-a: \xff\xfe\r\n"
        b"X_Api_Key: twin\r\nX-Empty:\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n"
    )
    assert read_response(client)[0] == 200
    scope = front.app.seen[0].scope
    assert scope["raw_path"] == b"/echo/%2F%41"
    assert scope["path"] == "/echo//A"
    assert scope["query_string"] == b"a=%zz&b=\\'\""
    assert scope["headers"] == [
        (b"host", b"127.0.0.1"),
        (b"x-a", b"one"),
        (b"x-a", b"\xff\xfe"),
        (b"x_api_key", b"twin"),
        (b"x-empty", b""),
        (b"upgrade", b"h2c"),
        (b"http2-settings", b"AAMAAABkAAQAAP__"),
    ]


def test_the_largest_allowed_head_passes(front: Front) -> None:
    """8 KiB of target and 100 headers are served: the limits are not off by one."""
    client = front.connect()
    first = b"GET /echo/" + b"a" * (8192 - 6) + b" HTTP/1.1"
    client.sendall(get(*[b"X-%d: a" % i for i in range(99)], first=first))
    assert read_response(client)[0] == 200


def test_every_method_of_the_contract_passes(front: Front) -> None:
    """GET, HEAD, POST, PUT, PATCH, DELETE and OPTIONS reach the application."""
    client = front.connect()
    for method in (b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS"):
        client.sendall(get(first=method + b" /echo HTTP/1.1"))
        assert read_response(client)[0] == 200
    assert [seen.scope["method"] for seen in front.app.seen] == [
        "GET",
        "HEAD",
        "POST",
        "PUT",
        "PATCH",
        "DELETE",
        "OPTIONS",
    ]


def test_requests_are_the_same_wherever_the_segments_split(front: Front) -> None:
    """Two pipelined requests, one chunked, cut in two at every byte: always the same two requests, in order."""
    sent = (
        b"POST /echo/1 HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n"
        b"5;x=y\r\nhello\r\n006\r\n world\r\n0\r\nX-Trailer: 1\r\n\r\n"
        b"POST /echo/2 HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\n\r\nend"
    )
    for position in range(1, len(sent)):
        client = front.connect()
        client.sendall(sent[:position])
        client.sendall(sent[position:])
        status, _, body, rest = read_response(client)
        assert (status, body) == (200, b"hello world"), position
        status, _, body, rest = read_response(client, rest)
        assert (status, body, rest) == (200, b"end", b""), position
        client.close()
    assert all(seen.whole for seen in front.app.seen)


# --- bodies ----------------------------------------------------------------------------------------------------

CHUNKED = b"POST /echo HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n"

BROKEN_BODIES = {
    "PAR-16 zz": b"zz\r\nhello\r\n0\r\n\r\n",
    "PAR-16 0x5": b"0x5\r\nhello\r\n0\r\n\r\n",
    "PAR-16 -5": b"-5\r\nhello\r\n0\r\n\r\n",
    "PAR-16 empty": b"\r\nhello\r\n0\r\n\r\n",
    "PAR-16 space": b"5 \r\nhello\r\n0\r\n\r\n",
    "PAR-16 huge": b"F" * 16 + b"\r\nhello\r\n0\r\n\r\n",
    "PAR-16 LF": b"5\nhello\r\n0\r\n\r\n",
    "PAR-16 CR in an extension": b"5;a\rb\r\nhello\r\n0\r\n\r\n",
    "PAR-18 data longer than its size": b"5\r\nhelloworld\r\n0\r\n\r\n",
    "PAR-18 LF after the data": b"5\r\nhello\n0\r\n\r\n",
    "PAR-20 an extension of 5 KiB": b"5;a=" + b"b" * 5000 + b"\r\nhello\r\n0\r\n\r\n",
    "PAR-20 an extension without end": b"5;a=" + b"b" * 100_000,
    "PAR-20 5 KiB of extensions": b"1;abcd\r\nx\r\n" * 1024 + b"0\r\n\r\n",
    "PAR-23 folded trailer": b"5\r\nhello\r\n0\r\nX-A: b\r\n c\r\n\r\n",
    "PAR-23 trailer without a colon": b"5\r\nhello\r\n0\r\nnothing\r\n\r\n",
}


@pytest.mark.parametrize("name", BROKEN_BODIES)
def test_a_broken_body_is_the_clients_fault_and_the_application_learns_it(front: Front, name: str) -> None:
    """400 and close; the application sees a disconnect with ``client_error``, never a complete body."""
    client = front.connect()
    client.sendall(CHUNKED)
    assert eventually(lambda: len(front.app.seen) == 1)
    client.sendall(BROKEN_BODIES[name])
    assert code_of(read_to_end(client)) == (400, "bad_request")
    (seen,) = front.app.seen
    assert seen.done.wait(5)
    assert not seen.whole
    assert seen.disconnects == 1
    assert seen.connection.client_error


def test_a_body_that_is_broken_from_the_start_starts_nothing(front: Front) -> None:
    """Where head and bad body come together, the application never runs."""
    assert code_of(front.exchange(CHUNKED + b"zz\r\n")) == (400, "bad_request")
    assert code_of(front.exchange(get(host=b""))) == (400, "bad_request")
    assert front.app.seen == []


def test_trailers_larger_than_headers_may_be_are_refused(front: Front) -> None:
    """Trailers are dropped, but not without limit."""
    response = front.exchange(CHUNKED + b"0\r\n" + b"X-A: b\r\n" * 5000 + b"\r\n")
    assert code_of(response) == (431, "headers_too_large")


def test_a_body_that_breaks_after_the_answer_began_breaks_the_answer(front: Front) -> None:
    """There is no second status line: the connection ends without the last chunk."""
    client = front.connect()
    client.sendall(CHUNKED.replace(b"/echo", b"/stream") + b"5\r\nhello\r\n")
    received = client.recv(65536)
    client.sendall(b"zz\r\n")
    received += read_to_end(client)
    assert received.startswith(b"HTTP/1.1 200")
    assert received.count(b"HTTP/1.1") == 1
    assert not received.endswith(b"0\r\n\r\n")
    assert front.app.seen[0].connection.client_error


def test_extensions_are_dropped(front: Front) -> None:
    """PAR-20: a small extension is not an error, and no part of the body."""
    client = front.connect()
    client.sendall(CHUNKED + b'5;a=b;c="d"\r\nhello\r\n0;x\r\n\r\n')
    assert read_response(client)[2] == b"hello"


def test_trailers_never_become_headers(front: Front) -> None:
    """PAR-23: whatever a trailer is called, the header section alone is what the application sees."""
    client = front.connect()
    client.sendall(
        CHUNKED + b"5\r\nhello\r\n0\r\nAuthorization: Bearer x\r\nHost: evil\r\nContent-Length: 9\r\n"
        b"Connection: close\r\n\r\n" + get()
    )
    status, _, body, rest = read_response(client)
    assert (status, body) == (200, b"hello")
    assert read_response(client, rest)[0] == 200
    names = [name for name, _ in front.app.seen[0].scope["headers"]]
    assert names == [b"host", b"transfer-encoding"]


def test_100_continue_is_sent_when_the_application_reads_and_not_before(front: Front) -> None:
    """PAR-46: one 100, then the answer."""
    client = front.connect()
    client.sendall(post(b"Expect: 100-continue", b"Content-Length: 5", body=b""))
    assert client.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.sendall(b"hello")
    assert read_response(client)[:3:2] == (200, b"hello")


def test_an_answer_before_the_body_sends_no_100_and_closes(front: Front) -> None:
    """PAR-45: whoever is refused before reading gets no 100, and the connection cannot be misread."""
    head = post(b"Expect: 100-continue", b"Content-Length: 5", body=b"").replace(b"/echo", b"/early")
    response = front.exchange(head)
    assert response.startswith(b"HTTP/1.1 413")
    assert b"connection: close" in response


def test_an_early_answer_arrives_although_the_body_is_still_coming(front: Front) -> None:
    """BOD-04: a 413 in the middle of 20 MB is read by the client, not lost in a reset."""
    client = front.connect()
    client.sendall(b"POST /early HTTP/1.1\r\n" + HOST + b"Content-Length: 20000000\r\n\r\n")
    for _ in range(20):
        client.sendall(b"x" * 1_000_000)
    status, headers, body, _ = read_response(client)
    assert (status, body) == (413, b"too large")
    assert headers[b"connection"] == b"close"


def test_after_an_early_answer_the_rest_of_a_small_body_is_not_a_request(front: Front) -> None:
    """PAR-55, CLI-08: the connection serves on, and no body byte is read as a request line."""
    client = front.connect()
    body = b"GET /smuggled HTTP/1.1\r\n" + HOST + b"\r\n"
    client.sendall(b"POST /early HTTP/1.1\r\n" + HOST + b"Content-Length: %d\r\n\r\n" % len(body))
    status, headers, _, rest = read_response(client)
    assert status == 413
    assert b"connection" not in headers
    client.sendall(body + get(first=b"GET /echo/next HTTP/1.1"))
    assert read_response(client, rest)[0] == 200
    assert [seen.scope["path"] for seen in front.app.seen] == ["/early", "/echo/next"]


def test_pipelined_requests_are_answered_in_order_one_at_a_time(front: Front) -> None:
    """PAR-55: the second is dispatched when the first is answered; after an error nothing more is."""
    client = front.connect()
    client.sendall(get(first=b"GET /held HTTP/1.1") + post(b"Content-Length: 3", body=b"two") + get(host=b"") + get())
    assert eventually(lambda: len(front.app.seen) == 1)
    front.app.release.set()
    received = read_to_end(client)
    statuses = [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", received)]
    assert statuses == [200, 200, 400]
    assert len(front.app.seen) == 2


@pytest.mark.parametrize(("method", "status"), [(b"HEAD", b"200"), (b"GET", b"204"), (b"GET", b"304")])
def test_a_length_announced_without_a_body_is_followed_by_none(front: Front, method: bytes, status: bytes) -> None:
    """A 204 has no length at all; the next answer on the connection follows the head at once."""
    received = front.exchange(
        get(first=method + b" /announced?" + status + b" HTTP/1.1")
        + get(b"Connection: close", first=b"GET /echo HTTP/1.1")
    )
    first, _, rest = received.partition(b"\r\n\r\n")
    assert first.startswith(b"HTTP/1.1 " + status)
    assert (b"content-length: 5" in first) == (status != b"204")
    assert b"transfer-encoding" not in first
    assert rest.startswith(b"HTTP/1.1 200")


def test_connection_close_is_kept(front: Front) -> None:
    """A client that asks for it gets its answer and the end of the connection."""
    response = front.exchange(get(b"Connection: close") + get())
    assert response.count(b"HTTP/1.1 200") == 1
    assert b"connection: close" in response


def test_uploads_wait_for_the_application() -> None:
    """BOD-06: with nobody reading, some megabytes stay with the client instead of in our memory."""
    with running(Limits(sweep_seconds=0.05)) as front:
        client = front.connect()
        client.settimeout(0.7)
        client.sendall(b"POST /held HTTP/1.1\r\n" + HOST + b"Content-Length: 100000000\r\n\r\n")
        sent = 0
        with contextlib.suppress(TimeoutError):
            while sent < 100_000_000:
                sent += client.send(b"x" * 65536)
        assert sent < 20_000_000
        (seen,) = front.app.seen
        assert seen.connection._waiting < 1_000_000
        client.close()


# --- deadlines -------------------------------------------------------------------------------------------------


def test_a_connection_that_sends_nothing_is_closed(front: Front) -> None:
    """BOD-10: no bytes, no answer, closed at the header deadline."""
    began = time.monotonic()
    assert front.exchange() == b""
    assert time.monotonic() - began < 5


def test_a_head_that_does_not_end_gets_408(front: Front) -> None:
    """BOD-09: slow headers are closed at the header deadline, however steadily they drip."""
    client = front.connect()
    stop = time.monotonic() + 8
    with contextlib.suppress(OSError):
        client.sendall(b"GET /echo HTTP/1.1\r\n" + HOST)
        client.settimeout(0.05)
        while time.monotonic() < stop:
            client.sendall(b"X")
            with contextlib.suppress(TimeoutError):
                response = client.recv(65536)
                break
    assert code_of(response) == (408, "request_timeout")
    assert front.app.seen == []


def test_the_second_head_has_the_same_deadline(front: Front) -> None:
    """Slow headers on a kept connection are no way around it."""
    client = front.connect()
    client.sendall(get())
    _, _, _, rest = read_response(client)
    client.sendall(b"GET /echo")
    assert code_of(rest + read_to_end(client)) == (408, "request_timeout")


def test_a_body_that_drips_gets_408_and_frees_the_application(front: Front) -> None:
    """BOD-08: below the minimum rate after the grace: 408, close, and the application sees it go."""
    response = front.exchange(b"POST /echo HTTP/1.1\r\n" + HOST + b"Content-Length: 1000\r\n\r\nx")
    assert code_of(response) == (408, "request_timeout")
    (seen,) = front.app.seen
    assert seen.done.wait(5)
    assert seen.connection.client_error


def test_a_body_that_keeps_the_rate_is_not_hurried(front: Front) -> None:
    """Several graces long, but fast enough: served."""
    client = front.connect()
    client.sendall(b"POST /echo HTTP/1.1\r\n" + HOST + b"Content-Length: 40000\r\n\r\n")
    for _ in range(10):
        client.sendall(b"x" * 4000)
        time.sleep(0.15)  # the rate is the subject
    assert read_response(client)[0] == 200


def test_time_in_which_the_application_does_not_read_is_not_the_clients(front: Front) -> None:
    """An upload held back by a slow upstream is never 408."""
    client = front.connect()
    client.sendall(b"POST /held HTTP/1.1\r\n" + HOST + b"Content-Length: 400000\r\n\r\n" + b"x" * 400_000)
    assert eventually(lambda: len(front.app.seen) == 1)
    time.sleep(1.5)  # more than two graces
    front.app.release.set()
    status, _, body, _ = read_response(client)
    assert (status, len(body)) == (200, 400_000)


def test_after_a_pause_of_ours_the_client_has_its_whole_time_again() -> None:
    """However late in a span we read on, the next look at its rate is a whole grace away."""
    with running(Limits(body_grace_seconds=3.0, sweep_seconds=0.05)) as front:
        client = front.connect()
        client.sendall(b"POST /held HTTP/1.1\r\n" + HOST + b"Content-Length: 400000\r\n\r\n" + b"x" * 300_000)
        assert eventually(lambda: len(front.app.seen) == 1)
        protocol = front.app.seen[0].connection._protocol
        assert eventually(lambda: protocol.flow.read_paused)
        assert eventually(lambda: 0 < protocol.deadline - protocol.loop.time() < 1.0)
        released = protocol.loop.time()
        front.app.release.set()
        assert eventually(lambda: protocol.deadline >= released + 3.0, 0.9)
        client.sendall(b"x" * 100_000)
        assert read_response(client)[0] == 200


def test_idle_connections_are_closed_after_the_keep_alive_time() -> None:
    """A kept connection ends after its own time, not at the header deadline."""
    with running(Limits(header_seconds=0.1, keep_alive_seconds=0.8, sweep_seconds=0.05)) as front:
        client = front.connect()
        client.sendall(get())
        began = time.monotonic()
        assert read_response(client)[0] == 200
        assert read_to_end(client) == b""
        assert time.monotonic() - began > 0.5


# --- clients that leave or stall -------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [b"/wait", b"/stream"])
@pytest.mark.parametrize("how", ["close", "half-close", "reset"])
def test_a_client_that_leaves_is_noticed_at_once(front: Front, path: bytes, how: str) -> None:
    """CLI-01, 02, 05: before the first byte and in mid-stream; a half-close counts as leaving."""
    client = front.connect()
    client.sendall(get(first=b"GET " + path + b" HTTP/1.1"))
    assert eventually(lambda: len(front.app.seen) == 1)
    (seen,) = front.app.seen
    if path == b"/stream":
        assert client.recv(65536).startswith(b"HTTP/1.1 200")
    if how == "half-close":
        client.shutdown(socket.SHUT_WR)
    else:
        if how == "reset":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()
    assert seen.done.wait(5)
    assert seen.disconnects == 1
    assert seen.connection.client_error is None


def test_a_body_cut_by_the_client_is_never_complete(front: Front) -> None:
    """BOD-12: fewer bytes than declared, then FIN."""
    client = front.connect()
    client.sendall(b"POST /echo HTTP/1.1\r\n" + HOST + b"Content-Length: 10\r\n\r\nfive!")
    client.shutdown(socket.SHUT_WR)
    assert read_to_end(client) == b""
    (seen,) = front.app.seen
    assert seen.done.wait(5)
    assert not seen.whole
    assert seen.disconnects == 1


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells of a FIN behind unread bytes")
def test_a_client_that_leaves_while_its_upload_is_held_back_is_noticed(front: Front) -> None:
    """Reading is paused, so no callback tells; the watch finds out."""
    client = front.connect()
    client.sendall(b"POST /held HTTP/1.1\r\n" + HOST + b"Content-Length: 9000000\r\n\r\n" + b"x" * 100_000)
    assert eventually(lambda: len(front.app.seen) == 1)
    (seen,) = front.app.seen
    client.close()
    assert seen.done.wait(5)
    assert seen.disconnects == 1


def test_whoever_asks_too_late_is_told_at_once(front: Front) -> None:
    """A callback given after the client left is called, so that nobody waits for ever."""
    client = front.connect()
    client.sendall(get(first=b"GET /wait HTTP/1.1"))
    assert eventually(lambda: len(front.app.seen) == 1)
    client.close()
    (seen,) = front.app.seen
    assert seen.done.wait(5)
    told: list[int] = []
    seen.connection.on_disconnect(lambda: told.append(1))
    assert told == [1]


def test_a_complete_answer_is_no_disconnect(front: Front) -> None:
    """A client that closes after its answer has not left."""
    front.exchange(get(b"Connection: close"))
    (seen,) = front.app.seen
    assert seen.done.wait(5)
    assert seen.disconnects == 0


def test_a_reader_that_stops_is_visible_and_can_be_cut(front: Front) -> None:
    """CLI-07: the stall is noted, sending waits, and ``abort`` ends the connection at once."""
    client = front.connect(receive_buffer=4096)
    client.sendall(get(first=b"GET /flood HTTP/1.1"))
    assert front.app.release.wait(10)
    (seen,) = front.app.seen
    assert seen.done.wait(10)
    assert seen.disconnects == 0


def test_abort_breaks_the_answer_after_what_was_said(front: Front) -> None:
    """An in-band error sent just before arrives, and no terminating chunk follows."""
    received = front.exchange(get(first=b"GET /abort HTTP/1.1"))
    assert b"data: said before" in received
    assert b"never" not in received
    assert not received.endswith(b"0\r\n\r\n")


def test_http_1_0_gets_no_chunks(front: Front) -> None:
    """An answer of unknown length to HTTP/1.0 ends with the connection."""
    client = front.connect()
    client.sendall(get(first=b"GET /stream HTTP/1.0"))
    received = b""
    while b"data: x\n\ndata: x\n\n" not in received:
        received += client.recv(65536)
    assert b"transfer-encoding" not in received
    assert b"connection: close" in received


def test_a_broken_answer_to_http_1_0_is_a_reset_not_an_end(front: Front) -> None:
    """Where only the end of the connection delimits, a clean end would be a lie."""
    client = front.connect()
    client.sendall(get(first=b"GET /abort HTTP/1.0"))
    received = client.recv(65536)
    with pytest.raises(ConnectionResetError):
        received += client.recv(65536) + client.recv(65536)


# --- answers of a faulty application ---------------------------------------------------------------------------


def test_a_crash_before_the_answer_is_a_500_in_our_shape(front: Front) -> None:
    """Never a bare text, and the connection closes."""
    assert code_of(front.exchange(get(first=b"GET /crash HTTP/1.1"))) == (500, "internal_error")


@pytest.mark.parametrize("path", [b"/crash_late", b"/short"])
def test_a_crash_in_the_answer_breaks_it(front: Front, path: bytes) -> None:
    """Half an answer is never made to look whole."""
    received = front.exchange(get(first=b"GET " + path + b" HTTP/1.1"))
    assert received.startswith(b"HTTP/1.1 200")
    assert not received.endswith(b"0\r\n\r\n")


def test_a_header_cannot_split_the_answer(front: Front) -> None:
    """CR or LF in a header value, from wherever, never reaches the wire."""
    received = front.exchange(get(first=b"GET /split HTTP/1.1"))
    assert b"set-cookie" not in received
    assert received.startswith(b"HTTP/1.1 500")


def test_a_head_does_not_wait_for_its_body(front: Front) -> None:
    """A response head leaves in the turn in which it was sent, on every connection, though no body byte follows."""
    clients = [front.connect() for _ in range(20)]
    for client in clients:
        client.sendall(get(first=b"GET /pondering HTTP/1.1"))
    heads = []
    for client in clients:
        received = b""
        while b"\r\n\r\n" not in received:
            received += client.recv(65536)
        heads.append(received)
    assert all(head.endswith(b"content-length: 4\r\n\r\n") for head in heads)
    front.app.release.set()
    assert [read_response(client, head)[2] for client, head in zip(clients, heads, strict=True)] == [b"done"] * 20


def test_small_answers_leave_in_one_piece(front: Front) -> None:
    """Head and body that are sent without waiting between them come in one segment."""
    client = front.connect()
    for _ in range(20):
        client.sendall(post(b"Content-Length: 5"))
        assert client.recv(65536).endswith(b"\r\n\r\nhello")


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 65_537, 200_000])
def test_a_body_in_the_segment_of_its_head_is_the_body(front: Front, size: int) -> None:
    """Head, body and the next request in one write: two requests, with their bytes, whatever the size."""
    client = front.connect()
    body = b"x" * size
    client.sendall(post(b"Content-Length: %d" % size, body=body) + post(b"Content-Length: 3", body=b"end"))
    status, _, received, rest = read_response(client)
    assert (status, received) == (200, body)
    assert read_response(client, rest)[:3:2] == (200, b"end")


@pytest.mark.parametrize(
    "request_line", [b"HEAD /echo HTTP/1.1", b"GET /status/204 HTTP/1.1", b"GET /status/304 HTTP/1.1"]
)
def test_answers_without_a_body_have_none(front: Front, request_line: bytes) -> None:
    """HEAD, 204 and 304: neither chunks nor bytes, and the connection serves on."""
    client = front.connect()
    client.sendall(get(first=request_line))
    _, headers, _, rest = read_response(client)
    assert b"transfer-encoding" not in headers
    assert rest == b""
    client.sendall(get())
    assert read_response(client)[0] == 200


# --- many connections ------------------------------------------------------------------------------------------


class ResetTransport(asyncio.Transport):
    """A transport of asyncio's own loop whose client resets the connection right after the refusal is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.closed = False

    def write(self, data: Any) -> None:
        self.written += data

    def get_write_buffer_size(self) -> int:
        return 0

    def can_write_eof(self) -> bool:
        return True

    def is_closing(self) -> bool:
        return False

    def write_eof(self) -> None:
        raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")

    def close(self) -> None:
        self.closed = True


def test_a_reset_during_a_refusal_closes_the_connection() -> None:
    """asyncio's own loop shuts the socket down at once, and raises if the client has reset it meanwhile."""

    async def main() -> ResetTransport:
        transport, app = ResetTransport(), TinyApp()
        connections = ConnectionSet(Limits())
        protocol = StrictProtocol(
            uvicorn.Config(app, lifespan="off", log_config=None), ServerState(), {}, watch=connections
        )
        protocol.connection_made(transport)
        protocol.data_received(b"no request\r\n\r\n")
        assert app.seen == []
        return transport

    transport = asyncio.run(main())
    assert code_of(transport.written) == (400, "bad_request")
    assert transport.closed


def is_closed(client: socket.socket) -> bool:
    """Whether the front has ended this connection. An answer before the end is dropped."""
    client.settimeout(0.2)
    try:
        while client.recv(65_536):
            pass
        return True
    except TimeoutError:
        return False
    except ConnectionResetError:
        return True
    finally:
        client.settimeout(10)


def test_connections_over_the_limit_are_told_so() -> None:
    """All of them inside a request: 503 ``overloaded`` with Retry-After, then closed; when there is room again, served."""
    with running(Limits(connections=2, sweep_seconds=0.05)) as front:
        kept = [front.connect(), front.connect()]
        for client in kept:
            client.sendall(get(first=b"GET /held HTTP/1.1"))
        assert eventually(lambda: len(front.app.seen) == 2)
        for _ in range(3):
            response = front.exchange(get())
            assert code_of(response) == (503, "overloaded")
            assert b"retry-after: 1" in response
        kept[0].close()
        assert eventually(lambda: front.exchange(get(b"Connection: close")).startswith(b"HTTP/1.1 200"))


def test_the_connection_idle_longest_gives_way_to_a_new_one() -> None:
    """In the order of their last requests, one for each newcomer; nobody is refused."""
    with running(Limits(connections=3, sweep_seconds=0.05)) as front:
        first, second, third = (front.connect() for _ in range(3))
        for client in (first, second, third, first):
            client.sendall(get(first=b"GET /known HTTP/1.1"))
            assert read_response(client)[0] == 200
        newcomer = front.connect()
        newcomer.sendall(get(first=b"GET /known HTTP/1.1"))
        assert read_response(newcomer)[0] == 200
        assert is_closed(second)
        assert not is_closed(third)
        assert front.exchange(get(b"Connection: close")).startswith(b"HTTP/1.1 200")
        assert is_closed(third)
        first.sendall(get())
        assert read_response(first)[0] == 200


@pytest.mark.parametrize("way", ["silent", "half a head", "answered", "refused", "half a body"])
def test_strangers_give_way_first(way: str) -> None:
    """Those that never passed the gate, whatever they do, go before one that has and is idle for longer."""
    said = {
        "silent": b"",
        "half a head": b"GET / HTTP/1.1\r\nHost: x",
        "answered": get(),
        "refused": b"nonsense\r\n\r\n",
        "half a body": b"POST /early HTTP/1.1\r\n" + HOST + b"Content-Length: 1000\r\n\r\nhalf",
    }[way]
    with running(Limits(connections=4, sweep_seconds=0.05)) as front:
        known = front.connect()
        known.sendall(get(first=b"GET /known HTTP/1.1"))
        assert read_response(known)[0] == 200
        for _ in range(20):
            front.connect().sendall(said)
        newcomer = front.connect()
        newcomer.sendall(get())
        assert read_response(newcomer)[0] == 200
        known.sendall(get())
        assert read_response(known)[0] == 200
        assert eventually(lambda: sum(is_closed(client) for client in front.clients[1:-1]) >= 17)


def test_an_answer_that_a_client_still_reads_is_not_given_up() -> None:
    """It rests as far as we go, but the end of its answer has not left."""
    with running(Limits(connections=2, sweep_seconds=0.05)) as front:
        reader = front.connect(receive_buffer=4096)
        reader.sendall(get(first=b"GET /known HTTP/1.1") + get(first=b"GET /big HTTP/1.1"))
        assert eventually(lambda: len(front.app.seen) == 2 and front.app.seen[1].done.is_set())
        for _ in range(5):
            assert front.exchange(get(b"Connection: close")).startswith(b"HTTP/1.1 200")
        _, _, _, rest = read_response(reader)
        assert len(read_response(reader, rest)[2]) == 8_000_000


def test_a_client_that_never_reads_is_ended_whatever_it_is_answered() -> None:
    """Answers that no forwarder watches over: at the limit of a flush, although the next request came in time."""
    with running(Limits(flush_seconds=0.3, sweep_seconds=0.05)) as front:
        client = front.connect(receive_buffer=4096)
        client.sendall(get(first=b"GET /big HTTP/1.1") * 3)
        assert eventually(lambda: len(front.app.seen) == 2 and front.app.seen[1].disconnects == 1)
        assert front.app.seen[1].done.wait(10)
        assert len(front.app.seen) == 2


def test_slow_heads_do_not_hinder_others(front: Front) -> None:
    """BOD-09, short form: 200 half heads, and a good client is served; all of the slow ones are closed."""
    slow = [front.connect() for _ in range(200)]
    for client in slow:
        client.sendall(b"GET /echo HTTP/1.1\r\n")
    client = front.connect()
    client.sendall(get())
    assert read_response(client)[0] == 200
    for client in slow:
        assert code_of(read_to_end(client)) == (408, "request_timeout")


# --- the oracle ------------------------------------------------------------------------------------------------


class Oracle:
    """What httptools reads in the same bytes."""

    def __init__(self, head: bytes) -> None:
        self.target = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.complete = False
        parser = httptools.HttpRequestParser(self)
        parser.feed_data(head)
        self.method = parser.get_method().decode()
        self.version = parser.get_http_version()

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self.complete = True


ODD = [b"\r", b"\n", b"\r\n", b"\0", b" ", b"\t", b":", b"\x7f", b"\x80", b",", b"\x0b", b"\r\n ", b"#", b"chunked"]
NAMES = [b"Host", b"Content-Length", b"Transfer-Encoding", b"Connection", b"X-A", b"x_b", b"Expect", b"Accept"]
VALUES = [b"127.0.0.1", b"0", b"7", b"chunked", b"close", b"keep-alive", b"a b", b"", b"100-continue", b"caf\xe9"]


@st.composite
def heads(draw: st.DrawFn) -> bytes:
    """Mostly sound heads, with up to three insertions of what parsers quarrel about."""
    method = draw(st.sampled_from([b"GET", b"POST", b"PUT", b"OPTIONS", b"TRACE"]))
    target = draw(st.sampled_from([b"/", b"/v1/chat?x=1", b"//a", b"*", b"http://h/p", b"/%2e%2E/"]))
    version = draw(st.sampled_from([b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0"]))
    lines = [b"Host: h"] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(0, 4))):
        lines.append(draw(st.sampled_from(NAMES)) + b": " + draw(st.sampled_from(VALUES)))
    head = bytearray(method + b" " + target + b" " + version + b"\r\n" + b"".join(line + b"\r\n" for line in lines))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(head)))
        head[at:at] = draw(st.sampled_from(ODD))
    return bytes(head)


@given(heads())
@examples(1500)
def test_what_is_accepted_httptools_reads_in_the_same_way(head: bytes) -> None:
    """No head passes here that the parser everybody else uses refuses or reads differently."""
    if b"\r\n\r\n" in head or not head.endswith(b"\r\n"):
        return  # the protocol cuts elsewhere
    try:
        accepted = read_head(head, Limits())
    except RefusalError:
        return
    oracle = Oracle(head + b"\r\n")
    assert oracle.complete
    assert oracle.method == accepted.method
    assert oracle.target == accepted.target
    assert oracle.version == accepted.version
    assert [(name, value.strip(b" \t")) for name, value in oracle.headers] == accepted.headers


LENGTHS = [b"0", b"7", b"12345", b"007", b"-7", b"7 ", b"", b"7, 7", b"9" * 15, b"9" * 16, b"0x7", b"7\r\nHost: evil"]


@st.composite
def heads_in_a_row(draw: st.DrawFn) -> list[bytes]:
    """What one connection brings: heads much alike, of which some differ in the length, in one byte, or altogether."""
    base = draw(heads())
    if draw(st.booleans()):
        base = base.replace(b"\r\n", b"\r\nContent-Length: 5\r\n", 1)
    row = []
    for _ in range(draw(st.integers(2, 6))):
        kind, head = draw(st.integers(0, 4)), base
        if kind == 1:
            head = base.replace(b"Content-Length: 5", b"Content-Length: " + draw(st.sampled_from(LENGTHS)))
        elif kind == 2 and base:
            at = draw(st.integers(0, len(base) - 1))
            head = base[:at] + draw(st.sampled_from([b"", b"0", b"5", b"x", b"\r\n", b" "])) + base[at + 1 :]
        elif kind == 3:
            head = draw(heads())
        row.append(head)
    return row


@given(heads_in_a_row())
@examples(1500)
def test_a_head_is_judged_the_same_whatever_came_before_it(row: list[bytes]) -> None:
    """What is remembered of the heads of a connection never makes one pass, fail, or read otherwise than on its own."""

    def judged(read: Callable[[bytes], Head], head: bytes) -> object:
        try:
            found = read(head)
        except RefusalError as refusal:
            return refusal.code, refusal.message
        return found._replace(memory=None)  # type: ignore[arg-type]  # what was worked out is not what was said

    heads_of_one = RequestHeads(Limits())
    memories: dict[int, tuple[object, ...]] = {}
    for head in row:
        assert judged(heads_of_one.read, head) == judged(lambda raw: read_head(raw, Limits()), head)
        with contextlib.suppress(RefusalError):
            found = heads_of_one.read(head)
            # Heads share a memory only where all but the length is the same.
            alike = [pair for pair in found.headers if pair[0] != b"content-length"]
            same = memories.setdefault(
                id(found.memory), (found.memory, found.method, found.target, found.version, alike)
            )
            assert same[1:] == (found.method, found.target, found.version, alike)


@given(
    body=st.binary(max_size=300),
    sizes=st.lists(st.integers(1, 40), max_size=20),
    segments=st.lists(st.integers(1, 30), max_size=40),
)
@examples(400)
def test_a_chunked_body_is_read_whole_however_it_is_cut(body: bytes, sizes: list[int], segments: list[int]) -> None:
    """Whatever the chunk sizes and the segments: the same bytes, and what follows is left unread."""
    wire, left = b"", body
    for size in [*sizes, len(body) or 1]:
        if left:
            wire += b"%x\r\n" % len(left[:size]) + left[:size] + b"\r\n"
            left = left[size:]
    wire += b"0\r\nX-T: 1\r\n\r\n"
    reader, received, position = ChunkedBody(Limits()), b"", 0
    for size in [*segments, len(wire)]:
        data = wire[position : position + size]
        position += len(data)
        consumed, piece = reader.feed(data, 0)
        received += piece
        assert consumed == len(data)
    assert reader.done
    assert received == body
    assert reader.feed(b"GET / HTTP/1.1", 0) == (0, b"")


@given(st.binary(max_size=200))
@examples(800)
def test_arbitrary_bytes_never_raise_anything_but_a_refusal(data: bytes) -> None:
    """Noise gets an answer, not a traceback."""
    for judge in (
        lambda: read_head(data + b"\r\n", Limits()),
        lambda: refuse_early(data or b"x", 0, Limits()),
        lambda: ChunkedBody(Limits()).feed(data, 0),
    ):
        with contextlib.suppress(RefusalError):
            result = judge()
            assert result is None or isinstance(result, Head | RefusalError | tuple)
