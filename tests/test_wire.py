"""Real sockets on both sides of a real daemon: what arrives, when it arrives, and what happens when a side breaks."""

from __future__ import annotations

import base64
import gzip
import hashlib
import http.client
import json
import os
import signal
import threading
import time
from typing import TYPE_CHECKING
from urllib.parse import unquote

import pytest
from rawclient import RawClient, Response, ask, listening, post
from upstream import Peer, Upstream, answer, chunked, serve

from proxy.lava.tokens import mint_token

if TYPE_CHECKING:
    from collections.abc import Callable

    from daemons import Daemon, StartDaemon

KEY = "aks_live_" + "w" * 24
CHAT = {"model": "gpt-4o", "messages": [{"role": "user", "content": "Hello"}]}
SSE = [(b"Content-Type", b"text/event-stream")]
DELTA = b'data: {"choices":[{"index":0,"delta":{"content":"x"}}]}\n\n'
DONE = b"data: [DONE]\n\n"


def config(upstream: Upstream, more: str = "") -> str:
    """A daemon whose Lava is the scripted upstream."""
    return f'[lava]\nsecret_key = "env:KEY"\nbase_url = "{upstream.url}"\n{more}'


@pytest.fixture
def start(daemon: StartDaemon) -> Callable[..., Daemon]:
    """Start a daemon in front of an upstream; ``more`` is further TOML."""

    def run(upstream: Upstream, more: str = "") -> Daemon:
        return daemon(config(upstream, more), env={"KEY": KEY}, secrets=[KEY])

    return run


def sse_head(framing: str) -> bytes:
    """The head of an event stream: chunked, with a length that is never reached, or delimited by the close."""
    pairs = {"chunked": b"transfer-encoding: chunked\r\n", "length": b"content-length: 100000\r\n", "close": b""}
    return b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n" + pairs[framing] + b"\r\n"


def event(data: bytes, framing: str) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data) if framing == "chunked" else data


# --- bytes and their time --------------------------------------------------------------------------------------------


def test_each_event_leaves_before_the_next_one_is_made(start: Callable[..., Daemon]) -> None:
    """A stream is not buffered: the upstream makes an event only after the client has the one before."""
    seen = threading.Semaphore(0)

    def script(peer: Peer) -> None:
        peer.request()
        peer.send(sse_head("chunked"))
        for _ in range(20):
            peer.send(event(DELTA, "chunked"))
            assert seen.acquire(timeout=10)
        peer.send(event(DONE, "chunked"), b"0\r\n\r\n")

    with Upstream(script) as upstream, RawClient(start(upstream).port) as client:
        client.post_json("/v1/chat/completions", {**CHAT, "stream": True})
        assert client.head().status == 200
        for _ in range(20):
            assert client.chunk() == DELTA
            seen.release()
        assert client.chunk() == DONE
        assert client.line() == b"0"


def test_the_head_leaves_before_the_body_comes(start: Callable[..., Daemon]) -> None:
    """The answer's head is sent on as soon as it is there: clients measure their first byte by it."""
    go = threading.Event()

    def script(peer: Peer) -> None:
        peer.request()
        peer.send(sse_head("chunked"))
        assert go.wait(10)
        peer.send(event(DONE, "chunked"), b"0\r\n\r\n")

    with Upstream(script) as upstream, RawClient(start(upstream).port) as client:
        client.post_json("/v1/chat/completions", {**CHAT, "stream": True})
        assert client.head().status == 200
        go.set()
        assert client.chunk() == DONE


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
@pytest.mark.parametrize("encoding", [None, "gzip", "br", "zstd"])
def test_answers_travel_byte_for_byte(start: Callable[..., Daemon], framing: str, encoding: str | None) -> None:
    """Whatever the framing and the content coding: the same bytes with the same Content-Encoding come out."""
    content = os.urandom(300_000) if encoding is None else gzip.compress(os.urandom(200_000))
    pairs = [(b"Content-Type", b"application/octet-stream")]
    if encoding is not None:
        pairs.append((b"Content-Encoding", encoding.encode()))
    if framing == "chunked":
        pieces = [content[start : start + 7000] for start in range(0, len(content), 7000)]
        raw = answer(200, b"", [*pairs, (b"Transfer-Encoding", b"chunked")], length=False) + chunked(*pieces)
    else:
        raw = answer(200, content, pairs, length=framing == "length")

    def script(peer: Peer) -> None:
        while peer.request() is not None:
            peer.send(raw)
            if framing == "close":
                return

    with Upstream(script) as upstream:
        came = ask(start(upstream).port, "GET", "/elevenlabs/v1/audio", headers={"Accept-Encoding": "br"})
        assert came.complete
        assert came.header("content-encoding") == encoding
        assert hashlib.sha256(came.body).digest() == hashlib.sha256(content).digest()
        assert upstream.requests[0].header(b"accept-encoding") == b"br"


def test_an_upload_is_streamed_and_arrives_whole(start: Callable[..., Daemon]) -> None:
    """On an address that names its provider, the upstream gets the first half before the client has sent the second."""
    half = os.urandom(200_000)
    got_half = threading.Event()

    def script(peer: Peer) -> None:
        received = peer.head()
        assert received is not None
        while len(peer.seen) < len(half):
            assert peer._fill()
        got_half.set()
        peer.body(received)
        peer.send(answer(body=b"ok"))
        peer.gone()

    with Upstream(script) as upstream, RawClient(start(upstream).port) as client:
        client.send(
            b"POST /openai/v1/files HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Length: %d\r\n\r\n"
            % (client.port, 2 * len(half))
        )
        client.send(half)
        assert got_half.wait(10)
        client.send(half)
        assert client.response().body == b"ok"
        assert upstream.requests[0].body == half + half
        assert upstream.requests[0].header(b"content-length") == b"%d" % (2 * len(half))


def test_a_chunked_upload_stays_chunked_and_loses_its_trailers(start: Callable[..., Daemon]) -> None:
    """A body without a length goes on without one; extensions and trailers end here."""
    with Upstream(answer(body=b"ok")) as upstream, RawClient(start(upstream).port) as client:
        client.send(
            b"POST /openai/v1/files HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"5;a=b\r\nhello\r\n6\r\n world\r\n0\r\nAuthorization: Bearer evil\r\nX-Late: 1\r\n\r\n" % client.port
        )
        assert client.response().status == 200
        received = upstream.requests[0]
        assert received.body == b"hello world"
        assert received.header(b"x-late") is None
        assert received.header(b"authorization") not in (None, b"Bearer evil")


def test_an_early_answer_reaches_a_client_that_is_still_sending(start: Callable[..., Daemon]) -> None:
    """An upstream that refuses in the middle of an upload is heard at once."""

    def script(peer: Peer) -> None:
        peer.head()
        peer.send(answer(413, b'{"error":{"message":"too big","type":"x","param":null}}'))
        peer.gone()

    with Upstream(script) as upstream, RawClient(start(upstream).port) as client:
        client.send(
            b"POST /openai/v1/files HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Length: 1000000\r\n\r\n" % client.port
        )
        client.send(b"x" * 100_000)
        response = client.response()
        assert response.status == 413
        assert b"too big" in response.body


def test_head_204_and_304_have_no_body(start: Callable[..., Daemon]) -> None:
    """Answers that have no body by their nature end with their head, also when the upstream sends one."""

    def script(peer: Peer) -> None:
        received = peer.request()
        assert received is not None
        status = {b"HEAD": 200, b"DELETE": 204}.get(received.method, 304)
        peer.send(answer(status, b"" if status == 304 else b"body that must not be", length=status == 200))

    with Upstream(script) as upstream:
        port = start(upstream).port
        assert ask(port, "HEAD", "/openai/v1/files").status == 200
        assert ask(port, "DELETE", "/openai/v1/files/x").status == 204
        assert ask(port, "GET", "/openai/v1/files/x", headers={"If-None-Match": "a"}).status == 304


# --- a client that leaves --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["fin", "reset"])
@pytest.mark.parametrize("moment", ["before the head", "after the head", "in mid-stream"])
@pytest.mark.parametrize("stream", [True, False])
def test_leaving_cancels_the_request_upstream(
    start: Callable[..., Daemon], how: str, moment: str, stream: bool
) -> None:
    """When the client leaves, the upstream's connection is closed within a second (measured from its own side)."""
    asked, gone = threading.Event(), threading.Event()
    left = [0.0]

    def script(peer: Peer) -> None:
        peer.request()
        if moment != "before the head":
            peer.send(
                sse_head("chunked") if stream else answer(200, b"", [(b"Transfer-Encoding", b"chunked")], length=False)
            )
        if moment == "in mid-stream":
            peer.send(event(DELTA, "chunked"))
        asked.set()
        if peer.gone():
            left[0] = time.monotonic()
            gone.set()

    with Upstream(script) as upstream:
        client = RawClient(start(upstream).port)
        client.post_json("/v1/chat/completions", {**CHAT, "stream": stream})
        assert asked.wait(10)
        if moment != "before the head":
            client.head()
        if moment == "in mid-stream":
            client.chunk()
        begun = time.monotonic()
        client.close() if how == "fin" else client.reset()
        assert gone.wait(10)
        assert left[0] - begun < 1.0
        assert len(upstream.requests) == 1


def test_leaving_in_the_middle_of_an_upload_never_completes_it(start: Callable[..., Daemon]) -> None:
    """A body shorter than its length reaches the upstream as a broken request, never as a whole one."""
    ended = threading.Event()

    def script(peer: Peer) -> None:
        received = peer.head()
        try:
            peer.body(received)  # type: ignore[arg-type]  # the head came, or the test fails below
        except ConnectionError:
            ended.set()

    with Upstream(script) as upstream:
        with RawClient(start(upstream).port) as client:
            client.send(
                b"POST /openai/v1/files HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Length: 1000\r\n\r\nhalf"
                % client.port
            )
            upstream.wait(lambda: len(upstream.requests) == 1)
        assert ended.wait(10)


def test_a_client_that_stops_reading_is_cut_off(start: Callable[..., Daemon]) -> None:
    """Past the write-stall limit both sides are closed; until then the upstream is held back, not buffered."""
    cut = threading.Event()

    def script(peer: Peer) -> None:
        peer.request()
        peer.send(answer(200, b"", [(b"Transfer-Encoding", b"chunked")], length=False))
        try:
            for _ in range(3000):
                peer.send(chunked(b"x" * 65_536, end=False))
        except OSError:
            cut.set()

    with Upstream(script) as upstream:
        running = start(upstream, "[upstream]\nwrite_stall = 1.0\n")
        before = running.rss()
        with RawClient(running.port, receive_buffer=8192) as client:
            client.request("GET", "/openai/v1/files/x/content")
            assert client.head().status == 200
            assert cut.wait(15)
            assert running.rss() - before < 24 << 20


# --- an upstream that breaks -----------------------------------------------------------------------------------------

ANTHROPIC_DELTA = b'event: content_block_delta\ndata: {"type":"content_block_delta","delta":{"text":"x"}}\n\n'
GOOGLE_DELTA = b'data: {"candidates":[{"content":{"parts":[{"text":"x"}]}}]}\r\n\r\n'
DIALECTS: dict[str, tuple[str, bytes]] = {
    "openai": ("/v1/chat/completions", DELTA),
    "responses": (
        "/v1/responses",
        b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta"}\n\n',
    ),
    "anthropic": ("/v1/messages", ANTHROPIC_DELTA),
    "google": ("/v1beta/models/gemini-2.5-flash:streamGenerateContent?alt=sse", GOOGLE_DELTA),
}


def broken_stream(upstream: Upstream, running: Daemon, path: str) -> Response:
    with RawClient(running.port) as client:
        client.post_json(path, {**CHAT, "stream": True})
        response = client.response()
        assert len(upstream.requests) == 1
        return response


@pytest.mark.parametrize("ending", ["reset", "close"])
@pytest.mark.parametrize("framing", ["chunked", "length", "close"])
@pytest.mark.parametrize("dialect", list(DIALECTS))
def test_a_stream_cut_between_events_ends_with_an_error_event_and_a_break(
    start: Callable[..., Daemon], dialect: str, framing: str, ending: str
) -> None:
    """At an event boundary the client is told, in its dialect; then the connection breaks: never a clean end."""
    path, delta = DIALECTS[dialect]

    def script(peer: Peer) -> None:
        peer.request()
        peer.send(sse_head(framing), event(delta, framing))
        time.sleep(0.2)  # a reset would overtake what was sent just before it
        peer.rst() if ending == "reset" else None

    with Upstream(script) as upstream:
        response = broken_stream(upstream, start(upstream), path)
    assert response.body.startswith(delta)
    said = response.body[len(delta) :]
    if dialect in ("anthropic", "responses"):
        assert said.startswith(b"event: error\n")
    assert said.endswith(b"\n\n")
    document = json.loads(said.partition(b"data: ")[2])
    assert document["error"]["lava_proxy"]["code"] == "upstream_closed"
    if dialect == "google":
        assert said.startswith(b'data: {"error":')
    assert not response.complete


@pytest.mark.parametrize("framing", ["chunked", "length", "close"])
def test_a_stream_cut_inside_an_event_only_breaks(start: Callable[..., Daemon], framing: str) -> None:
    """After half an event nothing is said: SDKs would fail to parse it instead of reporting."""
    half = b'data: {"choices":[{"ind'

    def script(peer: Peer) -> None:
        peer.request()
        peer.send(sse_head(framing), event(DELTA + half, framing))

    with Upstream(script) as upstream:
        response = broken_stream(upstream, start(upstream), "/v1/chat/completions")
    assert response.body == DELTA + half
    assert not response.complete


def test_a_compressed_stream_that_breaks_only_breaks(start: Callable[..., Daemon]) -> None:
    """Nothing readable can be put into a compressed stream."""
    squeezed = gzip.compress(DELTA)

    def script(peer: Peer) -> None:
        peer.request()
        peer.send(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-encoding: gzip\r\n"
            b"transfer-encoding: chunked\r\n\r\n",
            event(squeezed, "chunked"),
        )

    with Upstream(script) as upstream:
        response = broken_stream(upstream, start(upstream), "/v1/chat/completions")
    assert response.body == squeezed
    assert not response.complete


def test_a_proper_end_without_the_end_marker_is_passed_and_recorded(start: Callable[..., Daemon]) -> None:
    """A chunked stream that ends well but never said [DONE] is passed as it is and counts as incomplete."""
    raw = sse_head("chunked") + event(DELTA, "chunked") + b"0\r\n\r\n"
    with Upstream(raw) as upstream:
        running = start(upstream)
        response = broken_stream(upstream, running, "/v1/chat/completions")
        assert response.complete
        assert response.body == DELTA
        wait_for(lambda: '"incomplete"' in running.output())


def test_an_answer_shorter_than_its_length_is_never_complete(start: Callable[..., Daemon]) -> None:
    """A JSON answer cut off short of its Content-Length reaches the client as cut off."""

    def script(peer: Peer) -> None:
        peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{}")

    with Upstream(script) as upstream:
        running = start(upstream)
        response = broken_stream(upstream, running, "/v1/chat/completions")
        assert not response.complete
        wait_for(lambda: '"truncated"' in running.output())


def wait_for(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def script_of(*actions: Callable[[Peer], object]) -> Callable[[Peer], None]:
    def script(peer: Peer) -> None:
        for action in actions:
            action(peer)

    return script


BAD_ANSWERS: dict[str, tuple[Callable[[Peer], None], str, str]] = {
    "closes before a head": (script_of(Peer.request), "upstream_closed", "false"),
    "closes inside the head": (
        script_of(Peer.request, lambda peer: peer.send(b"HTTP/1.1 200 OK\r\nCont")),
        "upstream_closed",
        "false",
    ),
    "resets before a head": (script_of(Peer.request, Peer.rst), "upstream_closed", "false"),
    "is not HTTP": (
        script_of(Peer.request, lambda peer: peer.send(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")),
        "upstream_protocol",
        "false",
    ),
    "has two lengths": (
        serve(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nabc"),
        "upstream_protocol",
        "false",
    ),
    "switches protocols": (
        serve(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n"),
        "upstream_protocol",
        "false",
    ),
    "redirects": (serve(answer(302, b"", [(b"Location", b"https://evil.example/")])), "upstream_redirect", "false"),
    "redirects to http": (
        serve(answer(307, b"", [(b"Location", b"http://127.0.0.1:1/")])),
        "upstream_redirect",
        "false",
    ),
    "sends a huge head": (
        serve(b"HTTP/1.1 200 OK\r\nx: " + b"a" * 200_000 + b"\r\ncontent-length: 0\r\n\r\n"),
        "upstream_protocol",
        "false",
    ),
    "never stops informing": (serve(b"HTTP/1.1 102 Processing\r\n\r\n" * 100 + answer()), "upstream_protocol", "false"),
}


@pytest.mark.parametrize("name", list(BAD_ANSWERS))
def test_a_broken_answer_is_a_502_and_never_asked_again(start: Callable[..., Daemon], name: str) -> None:
    """No sound head: 502 with its code, x-should-retry false, and exactly one request upstream."""
    script, code, retry = BAD_ANSWERS[name]
    with Upstream(script) as upstream:
        response = post(start(upstream).port, "/v1/chat/completions", CHAT)
        assert (response.status, response.code) == (502, code)
        assert response.header("x-should-retry") == retry
        assert len(upstream.requests) == 1


def test_nobody_listens(start: Callable[..., Daemon], free_port: int) -> None:
    """A refused connection is 502 upstream_unreachable, and an SDK may try again: nothing was sent."""
    with Upstream(answer()) as upstream:
        running = start(upstream)
    response = post(running.port, "/v1/chat/completions", CHAT)
    assert (response.status, response.code) == (502, "upstream_unreachable")
    assert response.header("x-should-retry") == "true"
    assert response.header("retry-after") is None


# --- limits ----------------------------------------------------------------------------------------------------------


def test_silence_before_the_head_is_504(start: Callable[..., Daemon]) -> None:
    """No head within first_byte: 504, not to be retried, and the upstream is let go."""
    gone = threading.Event()

    def script(peer: Peer) -> None:
        peer.request()
        if peer.gone():
            gone.set()

    with Upstream(script) as upstream:
        response = post(start(upstream, "[upstream]\nfirst_byte = 0.3\n").port, "/v1/chat/completions", CHAT)
        assert (response.status, response.code) == (504, "upstream_timeout")
        assert response.header("x-should-retry") == "false"
        assert gone.wait(5)


@pytest.mark.parametrize(("limit", "outcome"), [("idle", "stalled"), ("total", "timeout")])
def test_a_stream_that_stalls_or_lasts_too_long_ends_in_band(
    start: Callable[..., Daemon], limit: str, outcome: str
) -> None:
    """Past the limit the client gets one error event and a break."""

    def script(peer: Peer) -> None:
        peer.request()
        peer.send(sse_head("chunked"), event(DELTA, "chunked"))
        peer.gone()

    with Upstream(script) as upstream:
        running = start(upstream, f"[upstream]\n{limit} = 0.5\n")
        response = broken_stream(upstream, running, "/v1/chat/completions")
        document = json.loads(response.body[len(DELTA) :].removeprefix(b"data: "))
        assert document["error"]["lava_proxy"]["code"] == "upstream_timeout"
        assert not response.complete
        wait_for(lambda: f'"{outcome}"' in running.output())


def test_a_declared_body_over_the_limit_is_refused_unread(start: Callable[..., Daemon]) -> None:
    """413 before a byte of the body is read, and nothing goes upstream."""
    with Upstream(answer()) as upstream, RawClient(start(upstream, "[server]\nmax_body_bytes = 1000\n").port) as client:
        client.send(
            b"POST /openai/v1/files HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Length: 1001\r\n\r\n" % client.port
        )
        response = client.response()
        assert (response.status, response.code) == (413, "body_too_large")
        assert upstream.accepted == 0


@pytest.mark.parametrize("path", ["/openai/v1/files", "/v1/chat/completions"])
def test_a_chunked_body_over_the_limit_is_refused_and_aborted(start: Callable[..., Daemon], path: str) -> None:
    """413 once the limit is passed; what went upstream is aborted, never completed."""
    whole = threading.Event()

    def script(peer: Peer) -> None:
        if peer.request() is not None:
            whole.set()

    with Upstream(script) as upstream, RawClient(start(upstream, "[server]\nmax_body_bytes = 100000\n").port) as client:
        client.send(
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{client.port}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        )
        for _ in range(3):
            client.send(chunked(b"x" * 50_000, end=False))
        response = client.response()
        assert (response.status, response.code) == (413, "body_too_large")
        upstream.wait(lambda: upstream.connected == 0)
        assert not whole.is_set()


def test_above_max_concurrent_it_says_so(start: Callable[..., Daemon]) -> None:
    """The request above the limit gets 503 with Retry-After at once; the others are not disturbed."""
    go = threading.Event()

    def script(peer: Peer) -> None:
        while peer.request() is not None:  # the last request may come on a kept connection
            assert go.wait(20)
            peer.send(answer(body=b"{}"))

    with Upstream(script) as upstream:
        port = start(upstream, "[server]\nmax_concurrent = 2\n").port
        clients = [RawClient(port) for _ in range(2)]
        for client in clients:
            client.post_json("/v1/chat/completions", CHAT)
        upstream.wait(lambda: len(upstream.requests) == 2)
        refused = post(port, "/v1/chat/completions", CHAT)
        assert (refused.status, refused.code, refused.header("retry-after")) == (503, "overloaded", "1")
        assert refused.header("x-should-retry") == "true"
        go.set()
        assert [client.response().status for client in clients] == [200, 200]
        for client in clients:
            client.close()
        assert post(port, "/v1/chat/completions", CHAT).status == 200


BUSY = "/p/busy/v1/chat/completions"


@pytest.mark.parametrize(
    ("more", "most", "said"),
    [
        ("[projects.busy]\n[projects.other]\n", 4, "[projects.busy]"),  # 80 % of five
        ("[projects.busy]\nmax_concurrent = 2\n[projects.other]\n", 2, "[projects.busy]"),
        ("[projects.busy]\nmax_concurrent = 9\n[projects.other]\n", 5, "[server]"),
        ("[projects.busy]\n", 5, "[server]"),
    ],
    ids=["a share by default", "a share of its own", "no more than the whole", "alone"],
)
def test_a_project_has_no_more_than_its_share(start: Callable[..., Daemon], more: str, most: int, said: str) -> None:
    """Beyond it the project is told so, by its name and what to raise, on new and on known connections; another one is served.
    What ended is given back, however it ended."""
    go = threading.Event()

    def script(peer: Peer) -> None:
        while (received := peer.request()) is not None:
            if b"held" in received.body:
                assert go.wait(30)
            peer.send(answer(body=b"{}"))

    held = {**CHAT, "model": "gpt-4o", "user": "held"}
    with Upstream(script) as upstream:
        port = start(upstream, f"[server]\nmax_concurrent = 5\n{more}").port
        clients = [RawClient(port) for _ in range(most)]
        known = RawClient(port)
        for client in (*clients, known):
            client.post_json(BUSY, CHAT)
            assert client.response().status == 200
        for client in clients:
            client.post_json(BUSY, held)
        upstream.wait(lambda: sum(b"held" in each.body for each in upstream.requests) == most)
        known.post_json(BUSY, CHAT)
        for refused in (known.response(), post(port, BUSY, CHAT)):
            assert (refused.status, refused.code, refused.header("retry-after")) == (503, "overloaded", "1")
            message = refused.json()["error"]["message"]
            assert f"max_concurrent under {said}" in message
            assert ('"busy"' in message) == (said != "[server]")
        if "other" in more and most < 5:
            assert post(port, "/p/other/v1/chat/completions", CHAT).status == 200
        clients.pop().reset()
        wait_for(lambda: post(port, BUSY, CHAT).status == 200)
        go.set()
        assert [client.response().status for client in clients] == [200] * (most - 1)
        for client in (*clients, known):
            client.close()


# --- headers ---------------------------------------------------------------------------------------------------------


def test_what_travels_to_lava(start: Callable[..., Daemon]) -> None:
    """One credential; no key, cookie, forwarding or hop-by-hop header of the client's; everything else as it came."""
    with Upstream(answer(body=b"{}")) as upstream:
        port = start(upstream).port
        came = ask(
            port,
            "POST",
            "/anthropic/v1/messages?beta=true&key=AIzaNotForLava",
            b"{}",
            [
                ("Authorization", "Bearer from-the-tool"),
                ("x-api-key", "also-from-the-tool"),
                ("Cookie", "a=b"),
                ("X-Forwarded-For", "1.2.3.4"),
                ("X-Real-IP", "1.2.3.4"),
                ("Referer", "http://127.0.0.1/app"),
                ("Sec-Fetch-Site", "same-origin"),
                ("X-HTTP-Method-Override", "DELETE"),
                ("Forwarded", "for=1.2.3.4"),
                ("X-Lava-Evil", "1"),
                ("X_Lava_Metadata", "{}"),
                ("TE", "trailers"),
                ("Connection", "close, X-Private, authorization"),
                ("X-Private", "1"),
                ("anthropic-beta", "one"),
                ("anthropic-beta", "two"),
                ("x-lava-metadata", '{"team": "web"}'),
                ("User-Agent", "tool/1"),
            ],
        )
        assert came.status == 200
        received = upstream.requests[0]
        names = [name.lower() for name, _ in received.headers]
        assert names.count(b"authorization") == 1
        assert (received.header(b"authorization") or b"").startswith(b"Bearer ey")
        for banned in (
            b"x-api-key",
            b"cookie",
            b"x-forwarded-for",
            b"x-real-ip",
            b"referer",
            b"sec-fetch-site",
            b"x-http-method-override",
            b"forwarded",
            b"x-lava-evil",
            b"x_lava_metadata",
            b"te",
            b"x-private",
            b"accept-encoding",
        ):
            assert banned not in names
        assert [value for name, value in received.headers if name.lower() == b"anthropic-beta"] == [b"one", b"two"]
        assert received.header(b"anthropic-version") == b"2023-06-01"
        assert (b"x-lava-metadata", b'{"team":"web"}') in received.others()
        assert received.header(b"user-agent") == b"tool/1"
        assert received.header(b"host") == upstream.url.removeprefix("http://").encode()
        assert received.target == b"/v1/forward?u=https%3A%2F%2Fapi.anthropic.com%2Fv1%2Fmessages%3Fbeta%3Dtrue"
        assert b"AIzaNotForLava" not in received.raw
        assert b"from-the-tool" not in received.raw


ACCOUNTS = {"OpenAI-Organization": "org-1", "OpenAI-Project": "proj_1", "x-goog-user-project": "p-1"}


@pytest.mark.parametrize(
    ("project", "path", "travel"),
    [
        ("", "/v1/chat/completions", False),
        ('meter = "m"', "/openai/v1/files", False),
        ('spend_key = "spend-abcdef0123456789"', "/openai/v1/files", False),
        ('byok.openai = "own-0123456789"', "/v1/chat/completions", True),
        ('byok = "client"', "/openai/v1/files", True),
        ('meter = "m"\nbyok.anthropic = "own-0123456789"', "/v1/chat/completions", False),
    ],
)
def test_an_account_of_the_clients_travels_with_a_key_of_the_clients(
    daemon: StartDaemon, project: str, path: str, travel: bool
) -> None:
    """With Lava's managed key the provider would refuse a foreign organization, or learn whose it is."""
    with Upstream(serve(answer(body=b"{}"))) as upstream:
        port = daemon(f"{config(upstream)}[projects.main]\n{project}\n", env={"KEY": KEY}, secrets=[KEY]).port
        for _ in range(2):  # also where the head is known already
            assert post(port, path, CHAT, {"Authorization": "Bearer from-the-tool", **ACCOUNTS}).status == 200
        for received in upstream.requests:
            for name, value in ACCOUNTS.items():
                assert received.header(name.encode()) == (value.encode() if travel else None)


@pytest.mark.parametrize("written", ["google", "google-openai", "googleOpenaiCompatible"])
@pytest.mark.parametrize(
    ("path", "model"),
    [
        ("/v1beta/models/gemini-2.5-flash:generateContent", None),
        ("/google/v1beta/models/gemini-2.5-flash:generateContent", None),
        ("/google-openai/chat/completions", "gemini-2.5-flash"),
        ("/v1/chat/completions", "gemini-2.5-flash"),
    ],
)
def test_one_key_of_googles_is_good_for_both_its_addresses(
    daemon: StartDaemon, written: str, path: str, model: str | None
) -> None:
    """However the provider is spelled in ``byok``, and by whichever address it is asked."""
    own = "AIza-own-" + "g" * 20
    with Upstream(serve(answer(body=b"{}"))) as upstream:
        more = f'[projects.lab.byok]\n{written} = "env:OWN"\n'
        port = daemon(config(upstream, more), env={"KEY": KEY, "OWN": own}, secrets=[KEY, own]).port
        assert post(port, path, {"model": model} if model else {"contents": []}).status == 200
        token = (upstream.requests[0].header(b"authorization") or b"").removeprefix(b"Bearer ")
        assert json.loads(base64.b64decode(token))["provider_key"] == own


def test_metadata_in_single_headers_reaches_lava(daemon: StartDaemon) -> None:
    """``x-lava-metadata-<key>`` becomes a pair of ``x-lava-metadata``; a malformed one is refused and nothing is sent."""
    with Upstream(serve(answer(body=b"{}"))) as upstream:
        more = '[projects.main]\nmetadata = { team = "web" }\n'
        port = daemon(config(upstream, more), env={"KEY": KEY}, secrets=[KEY]).port
        sent = {"X-Lava-Metadata-User": "u1", "x-lava-metadata-team": "mine", "x-lava-metadata-run_id": "7"}
        assert post(port, "/v1/chat/completions", CHAT, sent).status == 200
        (received,) = upstream.requests
        pairs = received.metadata()
        assert pairs.pop("lava_proxy_id").startswith("req_")
        assert pairs == {"user": "u1", "run_id": "7", "team": "web"}
        assert b"x-lava-metadata-" not in received.raw.lower()
        for bad in ({"x-lava-metadata-": "v"}, {"x-lava-metadata-a": ""}, {"x-lava-metadata-a": "v" * 256}):
            refused = post(port, "/v1/chat/completions", CHAT, bad)
            assert (refused.status, refused.code) == (400, "bad_request")
        assert len(upstream.requests) == 1


CORRELATED = {
    "secret key": "",
    "spend key": '[projects.main]\nspend_key = "env:SPEND"\n',
    "forward token": '[projects.main]\nforward_token = "env:TOKEN"\n',
}


@pytest.mark.parametrize("more", CORRELATED.values(), ids=CORRELATED)
def test_each_request_carries_its_id_to_lava(daemon: StartDaemon, more: str) -> None:
    """Also when its head is remembered; after the other pairs, and never a client's."""
    token = mint_token(KEY)
    spend = "lava_sk_" + "s" * 20
    with Upstream(serve(answer(body=b"{}"))) as upstream:
        env = {"KEY": KEY, "SPEND": spend, "TOKEN": token}
        port = daemon(config(upstream, more), env=env, secrets=env.values()).port
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        ids = []
        for headers in [{}, {}, {}, {"x-lava-metadata": '{"lava_proxy_id":"req_forged","a":"b"}'}]:
            client.request(
                "POST", "/v1/chat/completions", json.dumps(CHAT), {"Content-Type": "application/json", **headers}
            )
            response = client.getresponse()
            assert response.read() == b"{}"
            ids.append(response.headers["x-lava-proxy-request-id"])
        client.close()
        assert len(set(ids)) == 4
        assert [each.metadata()["lava_proxy_id"] for each in upstream.requests] == ids
        assert list(upstream.requests[-1].metadata()) == ["a", "lava_proxy_id"]


@pytest.mark.parametrize("more", ["correlate = false", "enabled = false"])
def test_no_id_goes_to_lava_where_it_is_switched_off(daemon: StartDaemon, more: str) -> None:
    with Upstream(serve(answer(body=b"{}"))) as upstream:
        port = daemon(config(upstream, f"[ledger]\n{more}\n"), env={"KEY": KEY}, secrets=[KEY]).port
        assert post(port, "/v1/chat/completions", CHAT).status == 200
        assert upstream.requests[0].header(b"x-lava-metadata") is None


@pytest.mark.parametrize("status", [200, 404, 502])
@pytest.mark.parametrize(
    ("content_type", "sandboxed"),
    [
        (b"text/html; charset=utf-8", True),
        (b"image/svg+xml", True),
        (None, True),
        (b"application/json", False),
        (b"text/event-stream", False),
        (b"audio/mpeg", False),
    ],
)
def test_a_page_of_an_upstream_is_none_of_ours(
    start: Callable[..., Daemon], content_type: bytes | None, sandboxed: bool, status: int
) -> None:
    """What a browser might run comes with ``sandbox``, whatever policy or ``Connection`` the upstream itself sends."""
    pairs = [(b"Content-Security-Policy", b"default-src *"), (b"Connection", b"content-security-policy")]
    pairs += [(b"X-Kept", b"1")] + ([(b"Content-Type", content_type)] if content_type is not None else [])
    with Upstream(serve(answer(status, b"<script>1</script>", pairs))) as upstream:
        came = ask(start(upstream).port, "GET", "/openai/v1/files/x/content")
    assert (came.status, came.body, came.header("x-kept")) == (status, b"<script>1</script>", "1")
    policies = [value for name, value in came.headers if name == "content-security-policy"]
    assert policies == (["sandbox"] if sandboxed else [])


def test_an_upstreams_own_policy_stays_beside_ours(start: Callable[..., Daemon]) -> None:
    """Browsers obey both, so neither weakens the other."""
    pairs = [(b"Content-Security-Policy", b"sandbox allow-scripts"), (b"Content-Type", b"text/html")]
    with Upstream(serve(answer(200, b"<p>", pairs))) as upstream:
        came = ask(start(upstream).port, "GET", "/openai/v1/files/x/content")
    policies = [value for name, value in came.headers if name == "content-security-policy"]
    assert policies == ["sandbox allow-scripts", "sandbox"]


def test_what_travels_to_the_client(start: Callable[..., Daemon]) -> None:
    """Nothing that speaks to browsers or names the connection passes; Lava's own headers do, once each."""
    raw = answer(
        200,
        b"{}",
        [
            (b"Content-Type", b"application/json"),
            (b"Set-Cookie", b"a=b"),
            (b"Access-Control-Allow-Origin", b"*"),
            (b"Clear-Site-Data", b"*"),
            (b"Strict-Transport-Security", b"max-age=1"),
            (b"Alt-Svc", b"h3"),
            (b"Link", b"<x>"),
            (b"Refresh", b"1"),
            (b"Connection", b"X-Secret"),
            (b"X-Secret", b"1"),
            (b"Date", b"Mon, 01 Jan 2024 00:00:00 GMT"),
            (b"Server", b"cloud"),
            (b"x-lava-request-id", b"req_lava"),
            (b"openai-processing-ms", b"7"),
        ],
    )
    with Upstream(raw) as upstream:
        came = post(start(upstream).port, "/v1/chat/completions", CHAT)
    names = [name for name, _ in came.headers]
    assert not {"set-cookie", "access-control-allow-origin", "clear-site-data", "alt-svc", "link", "refresh"} & set(
        names
    )
    assert not {"strict-transport-security", "x-secret"} & set(names)
    assert came.header("date") == "Mon, 01 Jan 2024 00:00:00 GMT"
    assert came.header("server") == "cloud"
    assert came.header("x-lava-request-id") == "req_lava"
    assert came.header("openai-processing-ms") == "7"
    assert came.header("x-lava-proxy-project") == "default"
    assert came.header("x-lava-proxy-provider") == "openai"
    assert (came.header("x-lava-proxy-request-id") or "").startswith("req_")
    assert came.code is None


@pytest.mark.parametrize("status", [401, 402, 403, 429, 503])
def test_an_explained_error_keeps_the_figures_of_a_rate_limit(start: Callable[..., Daemon], status: int) -> None:
    """They and ``Retry-After`` tell an SDK when to come back."""
    figures = [
        (b"x-ratelimit-limit-requests", b"60"),
        (b"X-RateLimit-Reset", b"1790000000"),
        (b"retry-after", b"7"),
        (b"retry-after-ms", b"7000"),
    ]
    body = b'{"error":{"message":"no","code":"x","status":%d}}' % status
    with Upstream(serve(answer(status, body, figures))) as upstream:
        came = post(start(upstream, "diagnose = false\n").port, "/v1/chat/completions", CHAT)
    assert (came.status, came.code is not None) == (status, True)
    for name, value in figures:
        assert came.header(name.decode().lower()) == value.decode()


@pytest.mark.parametrize("encoding", [None, "gzip"])
def test_an_error_that_echoes_our_token_has_it_masked(start: Callable[..., Daemon], encoding: str | None) -> None:
    """Token and key are masked in the body (as many characters) and in headers, also inside a compressed body."""

    def script(peer: Peer) -> None:
        received = peer.request()
        assert received is not None
        token = (received.header(b"authorization") or b"").removeprefix(b"Bearer ")
        said = {"error": {"message": f"bad {token.decode()} and {KEY}", "type": "invalid_request_error", "param": None}}
        body = json.dumps(said).encode()
        pairs = [(b"Content-Type", b"application/json"), (b"X-Echo", token)]
        if encoding is not None:
            body = gzip.compress(body)
            pairs.append((b"Content-Encoding", b"gzip"))
        peer.send(answer(400, body, pairs))

    with Upstream(script) as upstream:
        came = post(start(upstream).port, "/v1/chat/completions", CHAT)
        token = (upstream.requests[0].header(b"authorization") or b"").removeprefix(b"Bearer ")
    assert came.status == 400
    assert came.complete
    message = came.json()["error"]["message"]
    assert message == f"bad {'*' * len(token)} and {'*' * len(KEY)}"
    assert came.header("x-echo") == "*" * len(token)


# --- the way down ----------------------------------------------------------------------------------------------------


def test_sigterm_lets_streams_finish(start: Callable[..., Daemon]) -> None:
    """Draining: the listener closes at once, a stream in flight gets its end, the exit code is 0."""
    go = threading.Event()

    def script(peer: Peer) -> None:
        peer.request()
        peer.send(sse_head("chunked"), event(DELTA, "chunked"))
        assert go.wait(20)
        peer.send(event(DONE, "chunked"), b"0\r\n\r\n")

    with Upstream(script) as upstream:
        running = start(upstream)
        with RawClient(running.port) as client:
            client.post_json("/v1/chat/completions", {**CHAT, "stream": True})
            client.head()
            client.chunk()
            running.process.send_signal(signal.SIGTERM)
            wait_for(lambda: not listening(running.port))
            go.set()
            assert client.chunk() == DONE
            assert client.line() == b"0"
        assert running.process.wait(10) == 0


def test_at_the_deadline_streams_are_told_and_cut(start: Callable[..., Daemon]) -> None:
    """Past drain_seconds a stream gets an error event and a break, a waiting request 503; the exit code is still 0."""

    def script(peer: Peer) -> None:
        received = peer.request()
        assert received is not None
        if b'"stream": true' in received.body:
            peer.send(sse_head("chunked"), event(DELTA, "chunked"))
        peer.gone()

    with Upstream(script) as upstream:
        running = start(upstream, "[server]\ndrain_seconds = 0.5\n")
        with RawClient(running.port) as streaming, RawClient(running.port) as waiting:
            streaming.post_json("/v1/chat/completions", {**CHAT, "stream": True})
            waiting.post_json("/v1/chat/completions", CHAT)
            upstream.wait(lambda: len(upstream.requests) == 2)
            streaming.head()
            assert streaming.chunk() == DELTA
            running.process.send_signal(signal.SIGTERM)
            told = json.loads(streaming.chunk().removeprefix(b"data: "))
            assert told["error"]["lava_proxy"]["code"] == "shutting_down"
            assert streaming.closed(5)
            refused = waiting.response()
            assert (refused.status, refused.code) == (503, "shutting_down")
            assert refused.header("x-should-retry") == "true"
        assert running.process.wait(5) == 0


# --- whose request it is ---------------------------------------------------------------------------------------------


def test_the_same_address_goes_where_each_request_speaks(start: Callable[..., Daemon]) -> None:
    """On one connection, again and again: what the request before spoke decides nothing."""
    speakers = {
        "https://api.anthropic.com/v1/files": {"x-api-key": "k", "anthropic-version": "2023-06-01"},
        "https://api.openai.com/v1/files": {"authorization": "Bearer k"},
        "https://generativelanguage.googleapis.com/v1/files": {"x-goog-api-client": "sdk", "x-goog-api-key": "k"},
    }
    with Upstream(serve(answer(200, b"{}"))) as upstream:
        port = start(upstream).port
        for _ in range(3):
            for url, pairs in speakers.items():
                assert ask(port, "GET", "/v1/files", headers=pairs).status == 200
                assert unquote(upstream.requests[-1].target.decode()).endswith(f"forward?u={url}")


@pytest.mark.parametrize(
    ("path", "base"),
    [
        ("/v1/chat/completions/chat/completions", "/v1"),
        ("/v1/groq/chat/completions", "/groq/v1"),
        ("/v1/messages/v1/messages", "/"),
    ],
)
def test_nothing_is_sent_for_an_address_that_is_a_mistake(start: Callable[..., Daemon], path: str, base: str) -> None:
    """The prompt stays here, and the message has the right base URL."""
    with Upstream(serve(answer(200, b"{}"))) as upstream:
        came = ask(start(upstream).port, "POST", path, json.dumps(CHAT).encode(), {"content-type": "application/json"})
        assert (came.status, came.header("x-lava-proxy-error")) == (404, "path_not_found")
        assert f"use {base} as the base URL" in json.loads(came.body)["error"]["message"]
        assert not upstream.requests


def test_googles_key_in_the_address_is_the_tools_own(start: Callable[..., Daemon]) -> None:
    """byok = "client": it travels inside the token, never in the address; as a local key it opens the door."""
    more = '[server]\nkeys = ["local-key-0123456789"]\n[projects.lab]\nbyok = "client"\n'
    path = "/v1beta/models/gemini-pro:generateContent"
    with Upstream(serve(answer(200, b"{}"))) as upstream:
        port = start(upstream, more).port
        local = {"x-lava-proxy-key": "local-key-0123456789"}
        assert ask(port, "POST", f"{path}?alt=sse&key=AIza-own", b"{}", local).status == 200
        sent = upstream.requests[-1]
        assert b"AIza-own" not in sent.head
        token = (sent.header(b"authorization") or b"").removeprefix(b"Bearer ")
        assert json.loads(base64.b64decode(token))["provider_key"] == "AIza-own"
        # The local key itself in the address: let in, and then there is no key for the provider.
        came = ask(port, "POST", f"{path}?key=local-key-0123456789", b"{}")
        assert (came.status, came.header("x-lava-proxy-error")) == (400, "byok_key_missing")
        wrong = ask(port, "POST", f"{path}?key=AIza-own", b"{}")
        assert (wrong.status, wrong.header("x-lava-proxy-error")) == (401, "local_key_invalid")
        assert json.loads(wrong.body)["error"]["status"] == "UNAUTHENTICATED"


NO_MODEL = {
    "error": {"message": "No such model", "type": "invalid_request_error", "param": None, "code": "model_not_found"}
}


@pytest.mark.parametrize("encoding", [None, "gzip"])
@pytest.mark.parametrize(
    ("model", "hint"),
    [
        ("antropic/claude-opus-4-6", 'did you mean "anthropic/..."?'),
        ("llama3.2:latest", 'write "provider/model"'),
        ("gpt-99", None),
    ],
)
def test_a_model_that_nothing_knows_gets_a_hint(
    start: Callable[..., Daemon], model: str, hint: str | None, encoding: str | None
) -> None:
    """In a header, in the log, and in the message of the provider's 404; a known name's 404 passes byte for byte."""
    body = json.dumps(NO_MODEL, indent=1).encode()
    if encoding is not None:
        body = gzip.compress(body)
    pairs = [(b"Content-Type", b"application/json"), *([(b"Content-Encoding", b"gzip")] if encoding else [])]
    with Upstream(serve(answer(404, body, pairs))) as upstream:
        running = start(upstream, '[log]\nformat = "json"\n')
        for _ in range(2):  # the second goes the short way
            came = post(running.port, "/v1/chat/completions", {**CHAT, "model": model})
            assert came.status == 404
            assert came.complete
            assert came.header("x-lava-proxy-error") is None
            told = came.header("x-lava-proxy-hint")
            if hint is None:
                assert (told, came.body) == (None, body)
                continue
            assert told is not None
            assert hint in told
            assert json.loads(came.body)["error"] == {
                **NO_MODEL["error"],
                "message": f"No such model (lava-proxy: {told})",
            }
        running.stop()
        lines = [json.loads(line) for line in running.output().splitlines() if '"event":"request"' in line]
        assert [line.get("hint") for line in lines] == [told, told]


def test_a_hint_does_not_change_an_answer(start: Callable[..., Daemon]) -> None:
    """A provider that knows the model after all is right: only the header says something."""
    with Upstream(serve(answer(200, b'{"ok": 1}'))) as upstream:
        port = start(upstream).port
        with RawClient(port) as client:
            for _ in range(3):
                client.post_json("/v1/chat/completions", {**CHAT, "model": "meta-llama/llama-4"})
                came = client.response()
                assert (came.status, came.body) == (200, b'{"ok": 1}')
                assert "write" in (came.header("x-lava-proxy-hint") or "")
