"""Both engines keep the promises of ``proxy.upstream``, against an upstream that does anything.

Every test runs on each engine (and the native one on both event loops); where the engines may differ, the test says
which one is right.
"""

from __future__ import annotations

import asyncio
import gc
import gzip
import itertools
import os
import random
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
from conversations import conversation, mutated
from httpx_oracle import HttpxEngine
from upstream import Certificate, Peer, Script, Upstream, answer, certificate, chunked

from proxy.config.settings import Upstream as UpstreamTable
from proxy.upstream import Body, Engine, Origin, UpstreamError, UpstreamRequest, UpstreamSettings
from proxy.upstream.heads import MAX_LINE_BYTES, MAX_LINES, ResponseHeads

if TYPE_CHECKING:
    from pathlib import Path

    from proxy.upstream.native import NativeEngine

T = TypeVar("T")
Use = Callable[[Engine], Awaitable[T]]

HEADERS = [(b"Host", b"api.test"), (b"Authorization", b"Bearer t"), (b"x-Twice", b"1"), (b"X-twice", b"2")]


@dataclass(frozen=True)
class Settings:
    """The ``[upstream]`` table as far as an engine reads it."""

    connect: float = 10.0
    ca_file: str = ""

    def proxy_for(self, scheme: str, host: str, port: int) -> str:
        """None; ``test_outbound.py`` has them."""
        return ""


@dataclass(frozen=True)
class Kind:
    """An engine on an event loop."""

    engine: str
    loop: str

    @property
    def native(self) -> bool:
        return self.engine == "native"

    def make(self, settings: UpstreamSettings, **more: Any) -> Engine:
        if self.native:
            from proxy.upstream.native import NativeEngine

            return NativeEngine(settings, **more)
        return HttpxEngine(settings)

    def run(self, use: Use[T], more: dict[str, Any] | None = None, patience: float = 45.0, **settings: Any) -> T:
        """``await use(engine)`` on a loop of its own, which must be left as it was found."""

        async def main() -> T:
            # With a proxy the real table, which says for what it is used.
            table = UpstreamTable(**settings) if settings.get("proxy") else Settings(**settings)
            engine = self.make(table, **(more or {}))
            try:
                async with asyncio.timeout(patience):
                    return await use(engine)
            finally:
                await engine.aclose()
                await settled()

        factory = None
        if self.loop == "uvloop":
            factory = pytest.importorskip("uvloop").new_event_loop
        with asyncio.Runner(loop_factory=factory) as runner:
            return runner.run(main())


HTTPX = Kind("httpx", "asyncio")
NATIVE = [Kind("native", "asyncio"), Kind("native", "uvloop")]


def named(kind: Kind) -> str:
    return f"{kind.engine}-{kind.loop}"


# The engine on httpx2 is no part of the program: it is what the native one is compared with. That it is right itself is in
# the full tier; the comparisons are in the default tier.
ORACLE = [pytest.param(kind, marks=pytest.mark.full) for kind in (HTTPX, Kind("httpx", "uvloop"))]
every_engine = pytest.mark.parametrize("kind", [*ORACLE, *NATIVE], ids=named)
native_engine = pytest.mark.parametrize("kind", NATIVE, ids=named)
httpx_engine = pytest.mark.parametrize("kind", ORACLE, ids=named)


async def settled() -> None:
    """Wait until no other task runs."""
    async with asyncio.timeout(10):
        while len(asyncio.all_tasks()) > 1:  # noqa: ASYNC110 - nothing tells when a task ends
            await asyncio.sleep(0.001)


Asked = tuple[UpstreamRequest, Body, int | None]


def get(
    origin: Origin,
    target: bytes = b"/",
    method: bytes = b"GET",
    body: Body = None,
    content_length: int | None = None,
) -> Asked:
    """What ``Engine.open`` takes."""
    return UpstreamRequest(method, origin, target, list(HEADERS)), body, content_length


@dataclass
class Outcome:
    """What came of one request: ``end`` is ok, or the kind of error, before or after the head."""

    end: str
    status: int = 0
    headers: list[tuple[bytes, bytes]] | None = None
    framing: str = ""
    body: bytes = b""
    sent: bool = True


WAYS = itertools.cycle(["read", "pour", "pour with pauses", "whole"])


async def fetch(engine: Engine, asked: Asked) -> Outcome:
    """Make the request and take all that comes, in one way after the other: each must give the same."""
    way, pieces = next(WAYS), 0

    def take(data: bytes) -> bool:
        nonlocal pieces
        assert data
        outcome.body += data
        pieces += 1
        return way == "pour" or pieces % 2 == 0

    try:
        got = await engine.open(*asked)
    except UpstreamError as exc:
        return Outcome("refused " + exc.kind, sent=exc.sent)
    outcome = Outcome("ok", got.status, got.headers, got.framing)
    try:
        if way == "whole":
            outcome.body = got.whole() or b""
        while way.startswith("pour") and not await got.pour(take):
            pass
        while data := await got.read():
            outcome.body += data
        assert await got.read() == b""
        assert await got.pour(take)
        assert not got.whole()
    except UpstreamError as exc:
        outcome.end = "broken " + exc.kind
        outcome.sent = exc.sent
    finally:
        got.close()
        got.close()
    return outcome


def fetch_one(kind: Kind, script: Script | bytes, method: bytes = b"GET", **settings: Any) -> Outcome:
    """One request to one upstream."""
    with Upstream(script) as upstream:
        outcome = kind.run(lambda engine: fetch(engine, get(upstream.origin, method=method)), **settings)
        upstream.wait(lambda: upstream.connected == 0)
        return outcome


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        await asyncio.sleep(0)
        yield part


# What is sent.

TARGETS = [b"/", b"/a/../b//c/./%2e?x=%2F&y=a+b&z={}|", b"/v1/forward?u=https%3A%2F%2Fapi.test%2Fv1", b"/%ff%00'\"<>"]


@every_engine
@pytest.mark.parametrize("target", TARGETS)
def test_the_target_is_sent_as_it_is(kind: Kind, target: bytes) -> None:
    """No byte of the request-target is normalised, encoded or collapsed."""
    with Upstream(answer()) as upstream:
        kind.run(lambda engine: fetch(engine, get(upstream.origin, target)))
        assert upstream.requests[0].target == target


def body_cases() -> list[tuple[str, dict[str, Any], bytes, bytes]]:
    big = bytes(range(256)) * 4096
    return [
        ("nothing", {}, b"", b""),
        ("nothing, length 0", {"content_length": 0}, b"content-length: 0\r\n", b""),
        ("no bytes", {"body": b""}, b"content-length: 0\r\n", b""),
        ("few bytes", {"body": b"{}"}, b"content-length: 2\r\n", b"{}"),
        ("many bytes", {"body": big}, b"content-length: 1048576\r\n", big),
        ("iterator with length", {"body": (b"ab", b"", b"c"), "content_length": 3}, b"content-length: 3\r\n", b"abc"),
        ("iterator without bytes", {"body": (), "content_length": 0}, b"content-length: 0\r\n", b""),
        ("big iterator", {"body": (big,) * 3, "content_length": 3 << 20}, b"content-length: 3145728\r\n", big * 3),
        (
            "chunked",
            {"body": (b"ab", b"", b"\xff" * 17)},
            b"transfer-encoding: chunked\r\n",
            b"2\r\nab\r\n11\r\n" + b"\xff" * 17 + b"\r\n0\r\n\r\n",
        ),
        ("chunked, nothing", {"body": ()}, b"transfer-encoding: chunked\r\n", b"0\r\n\r\n"),
    ]


@every_engine
@pytest.mark.parametrize(("given", "framing", "wire"), [c[1:] for c in body_cases()], ids=[c[0] for c in body_cases()])
def test_the_request_on_the_wire_is_exactly_what_was_asked(
    kind: Kind, given: dict[str, Any], framing: bytes, wire: bytes
) -> None:
    """Headers keep order, case, doubles and bytes that are no UTF-8; framing is added and nothing else (HOP-08, -11)."""
    headers = [*HEADERS, (b"X-Bin", b"\xff\xfe\x80"), (b"X-Empty", b"")]

    async def use(engine: Engine) -> None:
        arguments = dict(given)
        if isinstance(arguments.get("body"), tuple):
            arguments["body"] = pieces(*arguments["body"])
        out = UpstreamRequest(b"POST", upstream.origin, b"/x", headers)
        await fetch(engine, (out, arguments.get("body"), arguments.get("content_length")))

    head = b"POST /x HTTP/1.1\r\n" + b"".join(b"%b: %b\r\n" % pair for pair in headers)
    with Upstream(answer()) as upstream:
        kind.run(use)
        assert upstream.requests[0].raw == head + framing + b"\r\n" + wire


@every_engine
@pytest.mark.parametrize(
    "broken",
    [
        {"method": b"GET /evil HTTP/1.1\r\nX: y\r\n\r\nGET"},
        {"target": b"/ HTTP/1.1\r\nX: y\r\n\r\nGET /"},
        {"target": b"/a b"},
        {"target": b""},
        {"headers": [(b"Host", b"a"), (b"X", b"a\r\nY: b")]},
        {"headers": [(b"Host", b"a"), (b"X", b"a\nY: b")]},
        {"headers": [(b"Host", b"a"), (b"X", b"a\0b")]},
        {"headers": [(b"Host", b"a"), (b"X: y\r\nZ", b"a")]},
    ],
)
def test_a_request_that_would_become_another_is_not_sent(kind: Kind, broken: dict[str, Any]) -> None:
    """A line end or NUL in method, target or header is a ValueError, and the upstream sees nothing of it."""

    async def use(engine: Engine) -> None:
        fields: dict[str, Any] = {
            "method": b"GET",
            "origin": upstream.origin,
            "target": b"/",
            "headers": HEADERS,
        } | broken
        with pytest.raises(ValueError, match="cannot be written"):
            await engine.open(UpstreamRequest(**fields))

    with Upstream(answer()) as upstream:
        kind.run(use)
    assert upstream.requests == []


@every_engine
def test_the_environment_changes_nothing(
    kind: Kind, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, good: Certificate
) -> None:
    """Proxy variables, a netrc and SSLKEYLOGFILE are ignored; ALL_PROXY=socks5 breaks nothing (HOP-13)."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "socks5://127.0.0.1:9")
    netrc, keylog = tmp_path / "netrc", tmp_path / "keylog"
    netrc.write_text("machine 127.0.0.1 login user password word\n")
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("SSLKEYLOGFILE", str(keylog))
    with Upstream(answer(body=b"x"), tls=good.server) as upstream:
        outcome = kind.run(lambda engine: fetch(engine, get(upstream.origin)), ca_file=good.ca_file)
        assert outcome.body == b"x"
        assert upstream.requests[0].header(b"authorization") == b"Bearer t"
    assert not keylog.exists()


@every_engine
def test_no_cookie_travels_from_one_answer_to_another_request(kind: Kind) -> None:
    """A Set-Cookie is never sent back (HOP-07)."""

    async def use(engine: Engine) -> None:
        for _ in range(3):
            await fetch(engine, get(upstream.origin))

    with Upstream(answer(headers=[(b"Set-Cookie", b"a=b; Path=/")])) as upstream:
        kind.run(use)
        assert [one.header(b"cookie") for one in upstream.requests] == [None] * 3


@every_engine
@pytest.mark.parametrize("status", [200, 201, 301, 302, 303, 307, 308, 400, 401, 402, 404, 429, 500, 503, 529, 599])
def test_a_status_is_passed_on_and_nothing_is_followed_or_tried_again(kind: Kind, status: int) -> None:
    """Redirects are not followed, errors are not retried: one request, one answer (UPS-24, -29 to -31)."""
    headers = [(b"Location", b"http://127.0.0.1:1/"), (b"Retry-After", b"-1")]
    with Upstream(answer(status, b"<html>\xff", headers)) as upstream:
        outcome = kind.run(lambda engine: fetch(engine, get(upstream.origin)))
        assert (outcome.end, outcome.status, outcome.body) == ("ok", status, b"<html>\xff")
        assert len(upstream.requests) == upstream.accepted == 1


class ClientGoneError(Exception):
    """A fault of the caller's own."""


@every_engine
@pytest.mark.parametrize("length", [None, 10])
def test_a_fault_of_the_callers_iterator_passes_unchanged(kind: Kind, length: int | None) -> None:
    """The very exception comes out of open(), and the upstream sees a broken request, not a finished one."""
    fault = ClientGoneError()
    ended = threading.Event()

    async def body() -> AsyncIterator[bytes]:
        yield b"abc"
        raise fault

    def script(peer: Peer) -> None:
        with pytest.raises(OSError, match=r"inside a request|reset"):
            peer.request()
        ended.set()

    async def use(engine: Engine) -> None:
        with pytest.raises(ClientGoneError) as caught:
            await engine.open(*get(upstream.origin, method=b"POST", body=body(), content_length=length))
        assert caught.value is fault

    with Upstream(script) as upstream:
        kind.run(use)
        upstream.wait(ended.is_set)


@every_engine
@pytest.mark.parametrize("parts", [(b"abc",), (b"abcde", b"f")])
def test_a_body_of_another_length_than_said_is_refused(kind: Kind, parts: tuple[bytes, ...]) -> None:
    """Fewer or more bytes than content_length are a ValueError; the excess never reaches the wire."""

    async def use(engine: Engine) -> None:
        with pytest.raises(ValueError, match="content_length"):
            await engine.open(*get(upstream.origin, body=pieces(*parts), content_length=5))

    def script(peer: Peer) -> None:
        peer.head()
        peer.gone()
        assert peer.seen.partition(b"\r\n\r\n")[2] in {b"", b"abc", b"abcde"}

    with Upstream(script) as upstream:
        kind.run(use)


@every_engine
def test_an_upload_goes_no_faster_than_the_upstream_reads(kind: Kind) -> None:
    """Back-pressure: of an endless body only what sockets and one buffer hold is taken (then the caller gives up)."""
    taken = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal taken
        while True:
            taken += 65_536
            yield b"\0" * 65_536

    async def use(engine: Engine) -> None:
        task = asyncio.ensure_future(engine.open(*get(upstream.origin, body=endless())))
        before = -1
        while before != taken:
            before = taken
            await asyncio.sleep(0.3)
        assert taken < 64 << 20
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    hold = threading.Event()

    def script(peer: Peer) -> None:
        peer.head()
        hold.wait(30)

    with Upstream(script) as upstream:
        try:
            kind.run(use)
        finally:
            hold.set()


@native_engine
@pytest.mark.parametrize("complete", [True, False])
def test_an_early_answer_comes_while_the_request_is_still_being_sent(kind: Kind, complete: bool) -> None:
    """A 413 before the end of the body is returned at once, sending stops, and the connection is not used again.

    The httpx engine cannot do this: it reads nothing before all is sent.
    """
    stopped = []

    async def stalls() -> AsyncIterator[bytes]:
        try:
            yield b"first"
            await asyncio.Event().wait()
        finally:
            stopped.append(True)

    def script(peer: Peer) -> None:
        peer.head()
        # Only a body that has begun can be stopped.
        peer._until(b"first")
        peer.send(b"HTTP/1.1 413 Too Large\r\ncontent-length: 4\r\n\r\n", b"nope" if complete else b"no")
        peer.gone()

    async def use(engine: Engine) -> None:
        got = await engine.open(*get(upstream.origin, body=stalls()))
        assert got.status == 413
        assert (await got.read()).startswith(b"no")
        got.close()
        await settled()
        assert stopped == [True]
        await asyncio.to_thread(upstream.wait, lambda: upstream.connected == 0)
        assert native(engine).idle == 0

    with Upstream(script) as upstream:
        kind.run(use)


# What is received.

SIZES = [0, 1, 2, 1000, 65_535, 65_536, 300_000]


def framed(framing: str, body: bytes, piece: int = 7000) -> bytes:
    """A whole response with ``body`` in that framing."""
    if framing == "length":
        return answer(body=body)
    if framing == "close":
        return answer(body=body, length=False)
    parts = [body[start : start + piece] for start in range(0, len(body), piece)]
    return answer(headers=[(b"Transfer-Encoding", b"chunked")], length=False) + chunked(*parts)


@every_engine
@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
@pytest.mark.parametrize("size", SIZES)
def test_every_body_arrives_whole_in_every_framing_and_chunking(kind: Kind, framing: str, size: int) -> None:
    """Framing × size × chunk size × segment size: the same bytes, and a proper end."""
    body = random.Random(size).randbytes(size)
    for piece in (1, 5, 4096, 70_000):
        if size / piece > 2000:
            continue
        wire = framed(framing, body, piece)
        for segment in (1, 7, 1000, len(wire)):
            if len(wire) / segment > 400:
                continue

            def script(peer: Peer, wire: bytes = wire, segment: int = segment) -> None:
                peer.request()
                peer.drip(wire, segment, 0.00005)
                if framing == "close":
                    peer.fin()
                peer.gone()

            outcome = fetch_one(kind, script)
            assert (outcome.end, outcome.framing, outcome.body) == ("ok", framing, body)
        if framing != "chunked":
            break


@every_engine
@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
@pytest.mark.parametrize("how", ["fin", "rst"])
def test_a_cut_at_any_byte_is_told(kind: Kind, framing: str, how: str) -> None:
    """A cut in the head is ``closed`` from open(), in the body ``closed`` from read(), after what came (UPS-05 to -08).

    Only the end of a close-delimited body may look like a proper one: nothing else marks it (UPS-09).
    """
    wire = framed(framing, b"0123456789abcdef", 5)
    start = wire.index(b"\r\n\r\n") + 4

    def script(peer: Peer) -> None:
        received = peer.request()
        assert received is not None
        peer.send(wire[: int(received.target[1:])])
        peer.fin() if how == "fin" else peer.rst()

    async def use(engine: Engine) -> None:
        for cut in range(len(wire)):
            outcome = await fetch(engine, get(upstream.origin, b"/%d" % cut))
            assert outcome.sent
            if cut < start:
                assert outcome.end == "refused closed", cut
            elif how == "rst":
                # A reset may take what was sent before it along.
                assert outcome.end in {"refused closed", "broken closed"}, cut
            elif framing == "close":
                assert (outcome.end, outcome.body) == ("ok", wire[start:cut])
            else:
                assert outcome.end == "broken closed", cut
                assert b"0123456789abcdef".startswith(outcome.body)
        assert len(upstream.requests) == len(wire)

    with Upstream(script) as upstream:
        kind.run(use)


@every_engine
def test_response_headers_are_passed_on_in_order_with_their_bytes(kind: Kind) -> None:
    """Doubles, order, odd names and bytes beyond ASCII stay; names come in lower case, spaces around values go."""
    head = (
        b"HTTP/1.1 200 \xe4\xf6\r\nX-B: 2\r\nX-A:  1 \t\r\nX-b:\r\nx!#$%&'*+-.^_`|~9: \xff\xfe \x80\r\n"
        b"Set-Cookie: a=1\r\nSet-Cookie: b=2\r\nContent-Length: 2\r\n\r\nok"
    )
    outcome = fetch_one(kind, head)
    assert outcome.headers == [
        (b"x-b", b"2"),
        (b"x-a", b"1"),
        (b"x-b", b""),
        (b"x!#$%&'*+-.^_`|~9", b"\xff\xfe \x80"),
        (b"set-cookie", b"a=1"),
        (b"set-cookie", b"b=2"),
        (b"content-length", b"2"),
    ]


@every_engine
def test_an_encoded_body_stays_encoded(kind: Kind) -> None:
    """gzip, whole, truncated or a lie, is passed on as it is (UPS-25, -26)."""
    packed = gzip.compress(b"x" * 100_000)
    for body in (packed, packed[:-9], b"plain"):
        outcome = fetch_one(kind, answer(body=body, headers=[(b"Content-Encoding", b"gzip")]))
        assert (outcome.end, outcome.body) == ("ok", body)


OK = b"HTTP/1.1 200 OK\r\n"
BROKEN_HEADS = {
    "ssh banner": b"SSH-2.0-OpenSSH_9.2p1\r\n",
    "status line": b"HTTP/1.1 20 OK\r\ncontent-length: 0\r\n\r\n",
    "status of four digits": b"HTTP/1.1 2000 OK\r\ncontent-length: 0\r\n\r\n",
    "status 000": b"HTTP/1.1 000 OK\r\ncontent-length: 0\r\n\r\n",
    "status 099": b"HTTP/1.1 099 OK\r\ncontent-length: 0\r\n\r\n",
    "status 600": b"HTTP/1.1 600 OK\r\ncontent-length: 0\r\n\r\n",
    "two spaces": b"HTTP/1.1  200 OK\r\ncontent-length: 0\r\n\r\n",
    "control in reason": b"HTTP/1.1 200 O\x01K\r\ncontent-length: 0\r\n\r\n",
    "version 2.0": b"HTTP/2.0 200 OK\r\ncontent-length: 0\r\n\r\n",
    "version 0.9": b"HTTP/0.9 200 OK\r\ncontent-length: 0\r\n\r\n",
    "version 1.2": b"HTTP/1.2 200 OK\r\ncontent-length: 0\r\n\r\n",
    "lower case": b"http/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
    "icy": b"ICY 200 OK\r\ncontent-length: 0\r\n\r\n",
    "line end first": b"\r\n" + OK + b"content-length: 0\r\n\r\n",
    "bare line feeds": b"HTTP/1.1 200 OK\ncontent-length: 0\n\n",
    "one bare line feed": OK + b"a: b\ncontent-length: 0\r\n\r\n",
    "bare carriage return": OK + b"a: b\rc\r\ncontent-length: 0\r\n\r\n",
    "folded line": OK + b"a: b\r\n c\r\ncontent-length: 0\r\n\r\n",
    "folded first line": OK + b" a: b\r\ncontent-length: 0\r\n\r\n",
    "NUL": OK + b"a: b\0c\r\ncontent-length: 0\r\n\r\n",
    "control": OK + b"a: b\x01c\r\ncontent-length: 0\r\n\r\n",
    "space before colon": OK + b"a : b\r\ncontent-length: 0\r\n\r\n",
    "no name": OK + b": b\r\ncontent-length: 0\r\n\r\n",
    "no colon": OK + b"abc\r\ncontent-length: 0\r\n\r\n",
    "bad name": OK + b"a(b: c\r\ncontent-length: 0\r\n\r\n",
    "big head": OK + b"a: " + b"b" * 200_000 + b"\r\ncontent-length: 0\r\n\r\n",
    "head just too big": OK + b"a: " + b"b" * 65_600 + b"\r\ncontent-length: 0\r\n\r\n",
    "endless head": OK + b"a: b\r\n" * 40_000,
    "201 headers": OK + b"a: b\r\n" * 200 + b"content-length: 0\r\n\r\n",
    "two lengths": OK + b"content-length: 5\r\nContent-Length: 6\r\n\r\nhello!",
    "the same length twice": OK + b"content-length: 5\r\nContent-Length: 5\r\n\r\nhello",
    "list of lengths": OK + b"content-length: 5, 5\r\n\r\nhello",
    "length with sign": OK + b"content-length: +5\r\n\r\nhello",
    "negative length": OK + b"content-length: -5\r\n\r\nhello",
    "empty length": OK + b"content-length: \r\n\r\nhello",
    "huge length": OK + b"content-length: 99999999999999999999\r\n\r\nhello",
    "two codings": OK + b"transfer-encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "gzip, chunked": OK + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunked, chunked": OK + b"transfer-encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "xchunked": OK + b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
    "identity": OK + b"transfer-encoding: identity\r\n\r\nx",
    "length and coding": OK + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "coding and length": OK + b"transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n",
    "coding in HTTP/1.0": b"HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "switching protocols": b"HTTP/1.1 101 Switch\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n\0\0\0",
    "switching protocols, bare": b"HTTP/1.1 101 Switch\r\n\r\n",
    "21 informational": b"HTTP/1.1 100 Continue\r\n\r\n" * 21 + answer(),
    "5000 informational": b"HTTP/1.1 103 Hints\r\nlink: x\r\n\r\n" * 5000 + answer(),
    "broken informational": b"HTTP/1.1 100 Continue\r\na b\r\n\r\n" + answer(),
}


@every_engine
@pytest.mark.parametrize("wire", BROKEN_HEADS.values(), ids=BROKEN_HEADS)
def test_an_answer_that_is_not_proper_http_is_refused(kind: Kind, wire: bytes) -> None:
    """``protocol``, at once: no waiting for more of it, and the connection is gone (UPS-17, -23)."""

    def script(peer: Peer) -> None:
        peer.request()
        peer.send(wire)
        assert peer.gone()

    outcome = fetch_one(kind, script)
    assert outcome.end == "refused protocol"


@native_engine
@pytest.mark.parametrize("name", [name for name, wire in BROKEN_HEADS.items() if len(wire) < 200])
def test_a_head_in_single_bytes_is_refused_like_a_whole_one(kind: Kind, name: str) -> None:
    """Where its bytes are cut makes no difference."""

    def script(peer: Peer) -> None:
        peer.request()
        peer.drip(BROKEN_HEADS[name])
        assert peer.gone()

    assert fetch_one(kind, script).end == "refused protocol"


UNFINISHED = [
    b"HTTP/1.1 2x",
    b"HTTP/1.1 200 O\x01",
    b"HTTP/1.1 200\rX",
    OK + b"a(b",
    OK + b"a b",
    OK + b": b",
    OK + b"a: b\x01",
    OK + b"a: b\rc",
    OK + b"a: b\r\n c",
    OK + b"a: b\r\n\rc",
]


@native_engine
@pytest.mark.parametrize("wire", UNFINISHED)
@pytest.mark.parametrize("size", [1, 200])
def test_a_line_that_can_only_become_wrong_is_not_waited_for(kind: Kind, wire: bytes, size: int) -> None:
    """Nobody waits for the rest of what is no proper head already."""

    def script(peer: Peer) -> None:
        peer.request()
        peer.drip(wire, size)
        assert peer.gone()

    assert fetch_one(kind, script).end == "refused protocol"


@every_engine
def test_an_upstream_that_speaks_first_is_refused(kind: Kind) -> None:
    """A banner before the request is no HTTP either."""

    def script(peer: Peer) -> None:
        peer.send(b"220 mail.test ESMTP\r\n")
        peer.gone()

    assert fetch_one(kind, script).end == "refused protocol"


BROKEN_CHUNKS = {
    "no number": b"zz\r\nabc\r\n0\r\n\r\n",
    "sign": b"+3\r\nabc\r\n0\r\n\r\n",
    "0x": b"0x3\r\nabc\r\n0\r\n\r\n",
    "empty": b"\r\nabc\r\n0\r\n\r\n",
    "too long": b"2\r\nabc\r\n0\r\n\r\n",
    "no line end": b"3\r\nabcd\r\n0\r\n\r\n",
    "line feed in extension": b"3;a\nb\r\nabc\r\n0\r\n\r\n",
    "bad trailer": b"3\r\nabc\r\n0\r\nbad trailer\r\n\r\n",
}


@every_engine
@pytest.mark.parametrize("wire", BROKEN_CHUNKS.values(), ids=BROKEN_CHUNKS)
def test_a_broken_chunk_breaks_the_body(kind: Kind, wire: bytes) -> None:
    """Never a proper end, never a byte that is not of the body."""
    outcome = fetch_one(kind, answer(headers=[(b"transfer-encoding", b"chunked")], length=False) + b"1\r\n>\r\n" + wire)
    assert outcome.end == "broken protocol"
    assert b">abcd".startswith(outcome.body)


LAX_CHUNKS = {
    "bare line feeds": b"3\nabc\r\n0\n\n",
    "space after size": b"3 \r\nabc\r\n0\r\n\r\n",
    "length in trailer": b"3\r\nabc\r\n0\r\ncontent-length: 5\r\n\r\n",
}


@native_engine
@pytest.mark.parametrize("wire", LAX_CHUNKS.values(), ids=LAX_CHUNKS)
def test_the_native_engine_refuses_chunks_that_h11_forgives(kind: Kind, wire: bytes) -> None:
    """Framing on which two readers might disagree is no framing; httpx forgives it on a connection that it drops."""
    wire = answer(headers=[(b"transfer-encoding", b"chunked")], length=False) + wire
    assert fetch_one(kind, wire).end == "broken protocol"


@every_engine
def test_extensions_and_trailers_are_dropped(kind: Kind) -> None:
    """Chunk extensions and trailers never show, neither in the body nor among the headers."""
    wire = b'3;a="b c"\r\nabc\r\n000\r\nx-trailer: 1\r\nauthorization: evil\r\n\r\n'
    outcome = fetch_one(kind, answer(headers=[(b"transfer-encoding", b"chunked")], length=False) + wire)
    assert (outcome.end, outcome.body) == ("ok", b"abc")
    assert outcome.headers == [(b"transfer-encoding", b"chunked")]


@every_engine
def test_twenty_informational_responses_pass_unseen(kind: Kind) -> None:
    """1xx answers before the real one are taken, up to twenty, and not shown."""
    hint = b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\ncontent-length: 3\r\n\r\n"
    outcome = fetch_one(kind, hint * 20 + answer(body=b"real"))
    assert (outcome.status, outcome.body) == (200, b"real")
    assert outcome.headers == [(b"content-length", b"4")]


@every_engine
def test_http_1_0_and_close_delimited_answers_work(kind: Kind) -> None:
    """An old server's answer, with a length or ended by the close, arrives."""
    wire = b"HTTP/1.0 200 OK\r\ncontent-length: 3\r\n\r\nabc"
    assert fetch_one(kind, wire).body == b"abc"

    def closes(peer: Peer) -> None:
        peer.request()
        peer.send(b"HTTP/1.0 200 OK\r\n\r\nabc")

    outcome = fetch_one(kind, closes)
    assert (outcome.end, outcome.framing, outcome.body) == ("ok", "close", b"abc")


EMPTY_ANSWERS = {
    "HEAD with length": (b"HEAD", answer(body=b"12345")[:-5], b""),
    "HEAD with a body": (b"HEAD", answer(body=b"12345"), b"discard"),
    "HEAD chunked": (b"HEAD", answer(headers=[(b"transfer-encoding", b"chunked")], length=False), b""),
    "HEAD without framing": (b"HEAD", answer(length=False), b""),
    "204": (b"POST", answer(204, length=False), b""),
    "204 with a body": (b"POST", answer(204, b"hello", length=False), b"discard"),
    "204 with a length and a body": (b"POST", answer(204, b"hello"), b"discard"),
    "304": (b"GET", answer(304, length=False), b""),
    "304 with length": (b"GET", answer(304, b"hello")[:-5], b""),
    "304 with a body": (b"GET", answer(304, b"hello"), b"discard"),
}


@every_engine
@pytest.mark.parametrize(("method", "wire", "note"), EMPTY_ANSWERS.values(), ids=EMPTY_ANSWERS)
def test_an_answer_without_a_body_has_none_and_harms_no_other(
    kind: Kind, method: bytes, wire: bytes, note: bytes
) -> None:
    """HEAD, 204 and 304 end at their head; what follows them reaches nobody (UPS-21).

    A pooled httpx2 client fails the next request here: "illegal status line helloHTTP/1.1".
    """

    async def use(engine: Engine) -> None:
        for _ in range(2):
            first = await fetch(engine, get(upstream.origin, b"/empty", method))
            assert (first.end, first.framing, first.body) == ("ok", "none", b"")
            second = await fetch(engine, get(upstream.origin, b"/full"))
            assert (second.end, second.status, second.body) == ("ok", 200, b"full")
        if note == b"discard":
            assert len({one.connection for one in upstream.requests}) > 2

    def script(peer: Peer) -> None:
        while received := peer.request():
            peer.send(wire if received.target == b"/empty" else answer(body=b"full"))

    with Upstream(script) as upstream:
        kind.run(use)


EVIL = answer(200, b"EVIL")
LEFTOVERS = [EVIL, b"\r\n", b"\r\n\r\n", b"\n", b"x", b"0\r\n\r\n", EVIL[:9], b"\r\n" + EVIL, EVIL * 3]


@every_engine
@pytest.mark.parametrize("framing", ["length", "chunked", "empty"])
@pytest.mark.parametrize("late", [False, True], ids=["same segment", "segment of its own"])
def test_a_second_response_reaches_no_other_request(kind: Kind, framing: str, late: bool) -> None:
    """Bytes after a message drop the connection: the next request gets its own answer (UPS-20).

    A pooled httpx2 client hands "EVIL" to the next request.
    """

    def script(peer: Peer) -> None:
        turn = 0
        while received := peer.request():
            turn += 1
            assert turn == 1, "a connection with a leftover was used again"
            body = b"" if framing == "empty" else b"good " + received.target
            wire = framed("length" if framing == "empty" else framing, body)
            leftover = LEFTOVERS[int(received.target[1:])]
            if late:
                peer.send(wire)
                peer.send(leftover)
            else:
                peer.send(wire + leftover)

    async def use(engine: Engine) -> None:
        for turn in range(len(LEFTOVERS)):
            outcome = await fetch(engine, get(upstream.origin, b"/%d" % turn))
            assert outcome.end == "ok"
            assert outcome.body == (b"" if framing == "empty" else b"good /%d" % turn)
            if late:
                # Until the second segment is here there is nothing to see.
                await asyncio.to_thread(upstream.wait, lambda: upstream.connected == 0)

    with Upstream(script) as upstream:
        kind.run(use)
        assert len(upstream.requests) == len(LEFTOVERS)


@every_engine
def test_who_takes_a_body_may_fail(kind: Kind) -> None:
    """What ``take`` raises comes out where ``pour`` was awaited, whenever its piece came; the connection goes."""
    go = threading.Event()

    def script(peer: Peer) -> None:
        while peer.request() is not None:
            peer.send(answer(headers=[(b"transfer-encoding", b"chunked")], length=False), b"1\r\nx\r\n")
            assert go.wait(20)
            peer.send(b"1\r\ny\r\n0\r\n\r\n")

    async def use(engine: Engine) -> None:
        for fatal in (b"x", b"y"):
            go.clear()
            seen: list[bytes] = []

            def take(data: bytes, fatal: bytes = fatal, seen: list[bytes] = seen) -> bool:
                seen.append(data)
                go.set()
                if data == fatal:
                    raise LookupError(data)
                return True

            got = await engine.open(*get(upstream.origin))
            with pytest.raises(LookupError):
                await got.pour(take)
            got.close()
            assert seen[-1] == fatal
        assert (await fetch(engine, get(upstream.origin))).body == b"xy"

    with Upstream(script) as upstream:
        kind.run(use)
        assert len(upstream.requests) == 3


@every_engine
def test_bytes_are_delivered_when_they_come(kind: Kind) -> None:
    """Each byte of a slow stream is read before the next is sent; nothing waits for more (UPS-12, -14)."""
    read = [threading.Event() for _ in range(6)]

    def script(peer: Peer) -> None:
        peer.request()
        peer.send(answer(headers=[(b"transfer-encoding", b"chunked")], length=False))
        for event in read:
            assert event.wait(20)
            peer.send(b"1\r\nx\r\n")
        peer.send(b"0\r\n\r\n")

    async def use(engine: Engine) -> None:
        got = await engine.open(*get(upstream.origin))
        for event in read:
            event.set()
            assert await got.read() == b"x"
        assert await got.read() == b""
        got.close()

    with Upstream(script) as upstream:
        kind.run(use)


@every_engine
def test_a_slow_reader_holds_the_upstream_back(kind: Kind) -> None:
    """Back-pressure: unread, an endless answer is taken up to a bound; read again, every byte is there."""
    total = 96 << 20
    sent = [0]

    def script(peer: Peer) -> None:
        peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % total)
        while sent[0] < total:
            peer.send(b"\0" * 65_536)
            sent[0] += 65_536

    async def use(engine: Engine) -> None:
        got = await engine.open(*get(upstream.origin))
        before = -1
        while before != sent[0]:
            before = sent[0]
            await asyncio.sleep(0.3)
        assert sent[0] < total // 2
        size = 0
        while data := await got.read():
            size += len(data)
        assert size == total
        got.close()

    with Upstream(script) as upstream:
        kind.run(use)


@every_engine
def test_closing_in_the_middle_closes_the_connection(kind: Kind) -> None:
    """close() before the end is seen by the upstream at once, may be called again, and is no end of the body."""

    def script(peer: Peer) -> None:
        peer.request()
        peer.send(answer(headers=[(b"transfer-encoding", b"chunked")], length=False) + b"1\r\nx\r\n")
        assert peer.gone()

    async def use(engine: Engine) -> None:
        for read in (True, False):
            got = await engine.open(*get(upstream.origin))
            if read:
                assert await got.read() == b"x"
            got.close()
            got.close()
            with pytest.raises(UpstreamError, match="closed"):
                await got.read()
            await asyncio.to_thread(upstream.wait, lambda: upstream.connected == 0)

    with Upstream(script) as upstream:
        kind.run(use)


# The way there.


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


@every_engine
def test_a_refused_connection_is_unreachable(kind: Kind) -> None:
    """``unreachable``, nothing sent (UPS-01)."""
    origin = Origin("http", "127.0.0.1", free_port())
    outcome = kind.run(lambda engine: fetch(engine, get(origin)))
    assert (outcome.end, outcome.sent) == ("refused unreachable", False)


@every_engine
def test_a_name_that_does_not_resolve_is_unreachable(kind: Kind) -> None:
    """``unreachable``, nothing sent (UPS-02)."""
    origin = Origin("http", "no-such-host.invalid", 80)
    outcome = kind.run(lambda engine: fetch(engine, get(origin)))
    assert (outcome.end, outcome.sent) == ("refused unreachable", False)


@pytest.mark.parametrize("kind", [ORACLE[0], *NATIVE], ids=named)
def test_a_hanging_name_lookup_ends_with_the_connect_timeout(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    """``connect_timeout``, and the loop runs on meanwhile (UPS-02)."""
    release = threading.Event()
    real = socket.getaddrinfo

    def hanging(host: Any, *args: Any, **kwargs: Any) -> Any:
        if host in {"hangs.test", b"hangs.test"}:
            release.wait(30)
        return real("127.0.0.1", *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", hanging)

    async def use(engine: Engine) -> Outcome:
        ticks = 0
        task = asyncio.ensure_future(fetch(engine, get(Origin("http", "hangs.test", 80))))
        while not task.done():
            await asyncio.sleep(0.01)
            ticks += 1
        assert ticks > 5
        release.set()
        return await task

    try:
        outcome = kind.run(use, connect=0.5)
    finally:
        release.set()
    assert (outcome.end, outcome.sent) == ("refused connect_timeout", False)


@every_engine
def test_an_upstream_that_never_accepts_ends_with_the_connect_timeout(kind: Kind) -> None:
    """``connect_timeout``, nothing sent, when TCP gets no reply."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        crowd = [socket.socket() for _ in range(8)]
        try:
            for one in crowd:
                one.setblocking(False)
                one.connect_ex(listener.getsockname())
            origin = Origin("http", *listener.getsockname())
            outcome = kind.run(lambda engine: fetch(engine, get(origin)), connect=0.3)
        finally:
            for one in crowd:
                one.close()
    assert (outcome.end, outcome.sent) == ("refused connect_timeout", False)


@every_engine
def test_a_silent_tls_handshake_ends_with_the_connect_timeout(kind: Kind) -> None:
    """The deadline covers TLS too, and the connection is closed."""

    def silent(peer: Peer) -> None:
        peer.gone()

    with Upstream(silent) as upstream:
        origin = Origin("https", "127.0.0.1", upstream.port)
        outcome = kind.run(lambda engine: fetch(engine, get(origin)), connect=0.3)
        assert (outcome.end, outcome.sent) == ("refused connect_timeout", False)
        upstream.wait(lambda: upstream.connected == 0)


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return certificate(tmp_path_factory.mktemp("tls"))


@every_engine
def test_tls_works_with_the_file_of_an_authority(kind: Kind, good: Certificate) -> None:
    """A certificate that ``ca_file`` vouches for is accepted, large bodies both ways, by name and by address."""
    body = os.urandom(700_000)

    async def use(engine: Engine) -> None:
        for host in ("127.0.0.1", "localhost"):
            out = get(Origin("https", host, upstream.port), method=b"POST", body=body)
            outcome = await fetch(engine, out)
            assert (outcome.end, outcome.body) == ("ok", body)

    with Upstream(answer(body=body), tls=good.server) as upstream:
        kind.run(use, ca_file=good.ca_file)
        assert all(one.body == body for one in upstream.requests)


@every_engine
@pytest.mark.parametrize("fault", ["expired", "wrong host", "unknown authority", "no TLS"])
def test_a_bad_certificate_is_refused_before_anything_is_sent(
    kind: Kind, fault: str, good: Certificate, tmp_path: Path
) -> None:
    """``tls``, nothing sent: the token never reaches whoever that is (UPS-03)."""
    made = good
    if fault == "expired":
        made = certificate(tmp_path, expired=True)
    elif fault == "wrong host":
        made = certificate(tmp_path, "other.test")
    ca_file = "" if fault == "unknown authority" else made.ca_file
    seen: list[bytes] = []

    def script(peer: Peer) -> None:
        peer.sock.settimeout(5)
        seen.append(peer.sock.recv(5))
        peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with Upstream(script, tls=None if fault == "no TLS" else made.server) as upstream:
        origin = Origin("https", "127.0.0.1", upstream.port)
        outcome = kind.run(lambda engine: fetch(engine, get(origin)), ca_file=ca_file)
        assert (outcome.end, outcome.sent) == ("refused tls", False)
        upstream.wait(lambda: upstream.connected == 0)
    assert upstream.requests == []
    assert all(not data or data[0] == 22 for data in seen), "only a TLS handshake may have been sent"


@every_engine
def test_a_bad_ca_file_is_a_tls_fault(kind: Kind, tmp_path: Path) -> None:
    """A file that is missing or holds no certificate: ``tls``, for every request, nothing sent."""
    empty = tmp_path / "empty.pem"
    empty.write_text("nothing")

    async def use(engine: Engine) -> None:
        for _ in range(2):
            outcome = await fetch(engine, get(Origin("https", "127.0.0.1", free_port())))
            assert (outcome.end, outcome.sent) == ("refused tls", False)

    for path in (empty, tmp_path / "missing.pem"):
        kind.run(use, ca_file=str(path))


@every_engine
def test_a_name_with_several_addresses_uses_the_one_that_answers(kind: Kind) -> None:
    """Whatever order ``localhost`` resolves in, the address where someone listens is found; IPv6 literals work."""
    with Upstream(answer(body=b"x")) as upstream:
        origin = Origin("http", "localhost", upstream.port)
        assert kind.run(lambda engine: fetch(engine, get(origin))).body == b"x"
    try:
        six = Upstream(answer(body=b"six"), host="::1")
    except OSError:
        pytest.skip("no IPv6 on this machine")
    with six:
        assert kind.run(lambda engine: fetch(engine, get(six.origin))).body == b"six"


@native_engine
def test_a_dead_address_does_not_delay_a_live_one(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    """An address that never answers costs a quarter of a second, not the connect timeout."""
    with socket.socket() as listener, Upstream(answer(body=b"x")) as upstream:
        listener.bind(("127.0.0.2", upstream.port))
        listener.listen(0)
        crowd = [socket.socket() for _ in range(8)]
        for one in crowd:
            one.setblocking(False)
            one.connect_ex(listener.getsockname())
        found = [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, upstream.port)) for host in ("127.0.0.2", "127.0.0.1")
        ]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: found)
        origin = Origin("http", "two.test", upstream.port)
        try:
            outcome = kind.run(lambda engine: fetch(engine, get(origin)), connect=20.0)
        finally:
            for one in crowd:
                one.close()
    assert outcome.body == b"x"


@every_engine
@pytest.mark.parametrize("how", ["fin", "rst"])
def test_a_connection_that_ends_without_an_answer_is_closed(kind: Kind, how: str) -> None:
    """``closed`` with ``sent``: the money may be spent, so nothing is tried again (UPS-05)."""

    def script(peer: Peer) -> None:
        peer.request()
        peer.fin() if how == "fin" else peer.rst()

    with Upstream(script) as upstream:
        outcome = kind.run(lambda engine: fetch(engine, get(upstream.origin)))
        assert (outcome.end, outcome.sent) == ("refused closed", True)
        assert upstream.accepted == 1


@every_engine
def test_a_connection_closed_before_it_is_asked_fails_and_is_not_tried_again(kind: Kind) -> None:
    """Accepted and closed at once: ``closed`` if a byte was written, ``unreachable`` if not; one attempt (UPS-05)."""
    with Upstream(lambda peer: None) as upstream:
        outcome = kind.run(lambda engine: fetch(engine, get(upstream.origin)))
        assert outcome.end == ("refused closed" if outcome.sent else "refused unreachable")
        assert upstream.accepted == 1


# Both engines against each other.


def compare(seeds: range) -> dict[str, int]:
    """Hold every conversation on both engines. Fails with the seed where they disagree."""
    counts = {"both deliver": 0, "both refuse": 0, "native is stricter": 0}

    def script(peer: Peer) -> None:
        received = peer.request()
        assert received is not None
        for segment in conversation(int(received.target[1:])).segments:
            peer.drip(segment, len(segment), 0.0002)
        peer.fin()
        peer.gone()

    with Upstream(script) as upstream:

        async def use(engine: Engine) -> list[Outcome]:
            outcomes = []
            for seed in seeds:
                outcomes.append(await fetch(engine, get(upstream.origin, b"/%d" % seed, conversation(seed).method)))
                # This upstream closes without a word after each answer; a pooled connection may not know yet.
                await engine.aclose()
            return outcomes

        pairs = zip(NATIVE[1].run(use, patience=800), HTTPX.run(use, patience=800), strict=True)
        for seed, (mine, other) in zip(seeds, pairs, strict=True):
            where = f"seed {seed}"
            if mine.end == other.end == "ok":
                # h11 spells the coding in lower case; it is not passed on.
                mine.headers = [(k, v.lower() if k == b"transfer-encoding" else v) for k, v in mine.headers or []]
                assert mine == other, where
                counts["both deliver"] += 1
            elif mine.end == "ok":
                raise AssertionError(f"{where}: native delivers what httpx refuses: {mine} {other}")
            elif other.end == "ok":
                counts["native is stricter"] += 1
            else:
                assert mine.body.startswith(other.body) or other.body.startswith(mine.body), where
                counts["both refuse"] += 1
            expected = conversation(seed).body
            if expected is not None:
                assert (mine.end, mine.body) == ("ok", expected), where
                assert other.end == "ok", where
    return counts


def test_both_engines_deliver_the_same_or_both_refuse() -> None:
    """Random conversations, well-formed and not: the same status, headers, framing and bytes, or no answer.

    The native engine may refuse what h11 forgives (a bare line feed in the chunked coding, say), and that alone.
    """
    counts = compare(range(300))
    assert counts["both deliver"] > 150
    assert counts["both refuse"] > 30
    assert counts["native is stricter"] < 10


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_both_engines_agree_ten_thousand_times() -> None:
    """The same with 10,000 further seeds."""
    counts = compare(range(1_000, 11_000))
    assert counts["native is stricter"] < 200


# Heads, and what is remembered of them.


def test_a_head_is_read_the_same_whatever_came_before_it() -> None:
    """Sound and damaged heads, read anew and by somebody who has read thousands: the same, or refused for the same reason."""

    def read(by: ResponseHeads, head: bytes) -> object:
        try:
            return by.read(head)
        except ValueError as wrong:
            return str(wrong)

    experienced, verdicts = ResponseHeads(), set()
    for seed in range(2000):
        wire = b"".join(conversation(seed).segments)
        head = wire.partition(b"\r\n\r\n")[0]
        for damaged in (head, mutated(random.Random(seed), head)):
            found = read(ResponseHeads(), damaged)
            assert read(experienced, damaged) == found, seed
            assert read(experienced, damaged) == found, seed
            verdicts.add(found if isinstance(found, str) else "sound")
    assert verdicts == {
        "sound",
        "the answer is not HTTP/1",
        "malformed status line",
        "malformed response head",
    }


def test_what_is_remembered_of_heads_is_bounded() -> None:
    """Lines that are another each time, and long ones, do not fill the memory."""
    heads = ResponseHeads()
    for number in range(5000):
        heads.read(b"HTTP/1.1 200 %d\r\nx-request-id: %d\r\nx-long: %b" % (number, number, b"%d" % number * 100))
    for known in (heads._fields, heads._statuses):
        assert 0 < len(known) <= MAX_LINES
        assert all(len(line) <= MAX_LINE_BYTES for line in known)


# Cancellation.


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def stalling(peer: Peer) -> None:
    """Answers as far as the target says, then waits for the client to leave."""
    received = peer.head()
    if received is None:
        return
    if received.target in {b"/body", b"/full"}:
        peer.body(received)
        peer.send(answer(headers=[(b"transfer-encoding", b"chunked")], length=False) + b"1\r\nx\r\n")
    if received.target == b"/full":
        peer.send(b"0\r\n\r\n")
        stalling(peer)
    else:
        peer.gone()


async def cancelled(engine: Engine, origin: Origin, rng: random.Random) -> None:
    """One request, cancelled at some moment of its life."""
    target = rng.choice([b"/head", b"/body", b"/full", b"/upload"])

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"\0" * 100_000
            await asyncio.sleep(0)

    body = endless() if target == b"/upload" else b"{}"

    async def whole() -> None:
        got = await engine.open(*get(origin, target, b"POST", body=body))
        try:
            while await got.read():
                pass
        finally:
            got.close()

    task = asyncio.ensure_future(whole())
    for _ in range(rng.choice([0, 1, 2, 3, 5, 8, 13, 30])):
        await asyncio.sleep(0 if rng.random() < 0.9 else 0.001)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled() or task.exception() is None


def cancel_many(kind: Kind, count: int, upstream: Upstream, **settings: Any) -> None:
    rng = random.Random(count)

    async def use(engine: Engine) -> None:
        await asyncio.gather(*(cancelled(engine, upstream.origin, rng) for _ in range(20)))
        await settled()
        before = descriptors()
        for _ in range(count // 20):
            await asyncio.gather(*(cancelled(engine, upstream.origin, rng) for _ in range(20)))
        await settled()
        await engine.aclose()
        await asyncio.to_thread(upstream.wait, lambda: upstream.connected == 0)
        gc.collect()
        # The upstream's end of a connection may be accepted, and closed, after ours is gone.
        await asyncio.to_thread(upstream.wait, lambda: descriptors() <= before)
        assert (await fetch(engine, get(upstream.origin, b"/full", b"POST"))).body == b"x"

    kind.run(use, **settings)


@every_engine
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_cancelled_requests_leave_nothing_behind(kind: Kind, scheme: str, good: Certificate) -> None:
    """At any moment of a request: no task, no descriptor, no connection stays, and the engine works on."""
    with Upstream(stalling, tls=good.server if scheme == "https" else None) as upstream:
        cancel_many(kind, 200, upstream, ca_file=good.ca_file)


@pytest.mark.slow
@pytest.mark.timeout(900)
@every_engine
def test_ten_thousand_cancelled_requests_leave_nothing_behind(kind: Kind) -> None:
    """The same, 10,000 times (httpx 0.28.1's pool was dead after 3,600)."""
    with Upstream(stalling) as upstream:
        cancel_many(kind, 10_000, upstream, patience=800)


# The pool of the native engine.


def native(engine: Engine) -> NativeEngine:
    from proxy.upstream.native import NativeEngine

    assert isinstance(engine, NativeEngine)
    return engine


@native_engine
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_connection_is_used_again(kind: Kind, scheme: str, good: Certificate) -> None:
    """One connection for request after request, whatever the framing; the httpx engine opens one for each."""

    def script(peer: Peer) -> None:
        while received := peer.request():
            peer.send(framed(received.target[1:].decode(), b"x" * 300_000))

    async def use(engine: Engine) -> None:
        for framing in ("length", "chunked") * 4:
            outcome = await fetch(engine, get(upstream.origin, b"/" + framing.encode(), b"POST", body=pieces(b"a")))
            assert (outcome.end, len(outcome.body)) == ("ok", 300_000)
            assert native(engine).idle == 1

    with Upstream(script, tls=good.server if scheme == "https" else None) as upstream:
        kind.run(use, ca_file=good.ca_file)
        assert upstream.accepted == 1


@httpx_engine
def test_the_httpx_engine_uses_no_connection_twice(kind: Kind) -> None:
    """What httpx2 leaves in a connection can then reach nobody."""

    async def use(engine: Engine) -> None:
        for _ in range(3):
            assert (await fetch(engine, get(upstream.origin))).body == b"x"

    with Upstream(answer(body=b"x")) as upstream:
        kind.run(use)
        assert upstream.accepted == 3


@native_engine
@pytest.mark.parametrize("header", [b"close", b"Close", b"x, close", b"keep-alive, close"])
def test_a_connection_that_the_upstream_will_close_is_not_kept(kind: Kind, header: bytes) -> None:
    """``Connection: close`` is believed."""

    async def use(engine: Engine) -> None:
        await fetch(engine, get(upstream.origin))
        assert native(engine).idle == 0
        await fetch(engine, get(upstream.origin))

    with Upstream(answer(headers=[(b"Connection", header)])) as upstream:
        kind.run(use)
        assert upstream.accepted == 2


@native_engine
@pytest.mark.parametrize("how", ["fin", "rst"])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_pooled_connection_that_died_is_replaced_in_silence(
    kind: Kind, how: str, scheme: str, good: Certificate
) -> None:
    """Closed by the upstream while idle: the next request gets a new one, even in the very turn of the loop."""

    def script(peer: Peer) -> None:
        peer.request()
        peer.send(answer(body=b"x"))
        peer.fin() if how == "fin" else peer.rst()
        closed.release()

    async def use(engine: Engine) -> None:
        for _ in range(10):
            outcome = await fetch(engine, get(upstream.origin))
            assert outcome.end == "ok"
            # The loop stands still meanwhile: only a look at the socket itself can tell.
            assert closed.acquire(timeout=20)

    closed = threading.Semaphore(0)

    with Upstream(script, tls=good.server if scheme == "https" else None) as upstream:
        kind.run(use, ca_file=good.ca_file)
        assert upstream.accepted == 10


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@native_engine
def test_an_idle_connection_grows_too_old(kind: Kind) -> None:
    """After fifteen seconds unused a connection is not used again."""
    wall, monotonic = Clock(), Clock()

    async def use(engine: Engine) -> None:
        for pause, connections in ((0.0, 1), (14.9, 1), (15.1, 2), (1.0, 2)):
            wall.now += pause
            monotonic.now += pause
            assert (await fetch(engine, get(upstream.origin))).end == "ok"
            assert upstream.accepted == connections

    with Upstream(answer()) as upstream:
        kind.run(use, more={"wall": wall, "monotonic": monotonic})


@native_engine
@pytest.mark.parametrize(("jump", "connections"), [(4.9, 1), (5.1, 2), (-5.1, 2), (86_400.0, 2)])
def test_the_pool_is_dropped_when_the_machine_slept(kind: Kind, jump: float, connections: int) -> None:
    """Wall and monotonic clock more than five seconds apart: no connection from before is used."""
    wall, monotonic = Clock(), Clock()

    async def use(engine: Engine) -> None:
        await fetch(engine, get(upstream.origin))
        wall.now += jump
        await fetch(engine, get(upstream.origin))
        await fetch(engine, get(upstream.origin))
        assert upstream.accepted == connections

    with Upstream(answer()) as upstream:
        kind.run(use, more={"wall": wall, "monotonic": monotonic})


@native_engine
def test_the_last_connection_given_back_is_the_first_used(kind: Kind) -> None:
    """A stack: a burst's surplus connections stay unused and grow old."""

    async def use(engine: Engine) -> None:
        answers = [await engine.open(*get(upstream.origin, b"/%d" % turn)) for turn in range(3)]
        for got in answers:
            # Small bodies are here with the head, and the connection free with them; these are held back.
            assert await got.read() == b"x"
        for turn in (1, 2, 0):
            release[turn].set()
            assert await answers[turn].read() == b"y"
            assert await answers[turn].read() == b""
        assert native(engine).idle == 3
        for _ in range(3):
            await fetch(engine, get(upstream.origin, b"/"))
        assert [one.connection for one in upstream.requests[3:]] == [0, 0, 0]

    release = [threading.Event() for _ in range(3)]

    def script(peer: Peer) -> None:
        while received := peer.request():
            if received.target != b"/":
                peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nx")
                release[int(received.target[1:])].wait(20)
                peer.send(b"y")
            else:
                peer.send(answer())

    with Upstream(script) as upstream:
        kind.run(use)


@native_engine
def test_the_pool_is_bounded(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than the limit are kept; the rest is closed."""
    monkeypatch.setattr("proxy.upstream.native.MAX_IDLE", 4)

    async def use(engine: Engine) -> None:
        outcomes = await asyncio.gather(*(fetch(engine, get(upstream.origin)) for _ in range(12)))
        assert {one.end for one in outcomes} == {"ok"}
        assert native(engine).idle <= 4
        await asyncio.to_thread(upstream.wait, lambda: upstream.connected <= 4)

    with Upstream(answer()) as upstream:
        kind.run(use)


@native_engine
def test_idle_connections_are_closed_without_being_asked_for(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pool empties itself when nothing comes any more."""
    monkeypatch.setattr("proxy.upstream.native.IDLE_SECONDS", 0.2)

    async def use(engine: Engine) -> None:
        await asyncio.gather(*(fetch(engine, get(upstream.origin)) for _ in range(3)))
        await asyncio.to_thread(upstream.wait, lambda: upstream.connected == 0)
        async with asyncio.timeout(10):
            while native(engine).live:  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0.01)
        assert native(engine).idle == 0

    with Upstream(answer()) as upstream:
        kind.run(use)


@native_engine
def test_closing_the_engine_ends_what_is_under_way(kind: Kind) -> None:
    """Requests and bodies under way fail with ``closed``; nothing stays open."""

    async def use(engine: Engine) -> None:
        head = asyncio.ensure_future(fetch(engine, get(upstream.origin, b"/head")))
        body = asyncio.ensure_future(fetch(engine, get(upstream.origin, b"/body")))
        await asyncio.to_thread(upstream.wait, lambda: len(upstream.requests) == 2)
        await asyncio.sleep(0.05)
        await engine.aclose()
        assert ((await head).end, (await body).end) in {
            ("refused closed", "broken closed"),
            ("refused closed", "refused closed"),
        }
        assert native(engine).live == 0

    with Upstream(stalling) as upstream:
        kind.run(use)


@native_engine
def test_sockets_have_their_options(kind: Kind) -> None:
    """No delay, and on Linux a limit of 20 s on bytes that nobody acknowledges."""

    async def use(engine: Engine) -> None:
        await fetch(engine, get(upstream.origin))
        (connection,) = native(engine)._live
        sock = connection._transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 20_000

    with Upstream(answer()) as upstream:
        kind.run(use)


def test_errors_quote_nobody() -> None:
    """``detail`` holds no byte that the upstream sent: it might echo a token."""
    with Upstream(b"HTTP/1.1 200 OK\r\nbad header sesame\r\n\r\n") as upstream:

        async def use(engine: Engine) -> None:
            with pytest.raises(UpstreamError) as caught:
                await engine.open(*get(upstream.origin))
            assert "sesame" not in str(caught.value) + repr(caught.value)

        for kind in (HTTPX, *NATIVE):
            kind.run(use)


@native_engine
def test_an_answer_in_the_turn_of_its_cancellation_costs_nobody_else_a_connection(kind: Kind) -> None:
    """Cancelled and answered at once: the connection goes, and the request that comes next has one of its own.

    It was given back to the pool, taken by the next request and then killed under it by the cancelled one, in silence.
    """

    def script(peer: Peer) -> None:
        peer.request()
        if peer.number == 0:
            peer.gone()
        else:
            peer.send(answer(body=b"mine"))
            peer.gone()

    async def use(engine: Engine) -> None:
        first = asyncio.create_task(engine.open(*get(upstream.origin)))
        await asyncio.to_thread(upstream.wait, lambda: len(upstream.requests) == 1)
        (connection,) = native(engine)._live
        # It is the second one's turn before the first one hears that it was cancelled.
        second = asyncio.create_task(fetch(engine, get(upstream.origin)))
        first.cancel()
        late = answer(body=b"late")
        connection.get_buffer(-1)[: len(late)] = late
        connection.buffer_updated(len(late))
        with pytest.raises(asyncio.CancelledError):
            await first
        assert (await second).body == b"mine"

    with Upstream(script) as upstream:
        kind.run(use, patience=10.0)
