"""Clients that leave, stall or misuse a connection, and what they cost the others."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest
from security_stand import (
    CHAT,
    CLOSE_SSE_HEAD,
    DELTA,
    DONE,
    FULL,
    SSE_HEAD,
    STREAM,
    Client,
    Stand,
    Together,
    answers,
    case,
    echo,
    event,
    head,
    made_up,
    opened,
    rss,
    settled,
    until,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rawclient import Response
    from upstream import Peer, Received


def _waits(sent: bytes, gone: threading.Event, times: list[float]) -> Callable[[Peer, Received], bool]:
    """An upstream that says so much and then waits for the daemon to leave; notes when it did."""

    def play(peer: Peer, received: Received) -> bool:
        peer.body(received)
        if sent:
            peer.send(sent)
        if peer.gone():
            times.append(time.monotonic())
            gone.set()
        return False

    return play


def leave(stand: Stand, sent: bytes, how: str, document: object) -> str:
    """A client asks, the upstream has said ``sent``, the client leaves: the outcome. The upstream is let go in a second."""
    word = stand.nonce()
    gone, times = threading.Event(), list[float]()
    before = len(stand.upstream.requests)
    with stand.playing(_waits(sent, gone, times)):
        client = stand.client()
        client.post_json(f"/openai/v1/{word}/chat/completions", document)
        stand.upstream.wait(lambda: len(stand.upstream.requests) == before + 1)
        if sent:
            assert client.head().status == 200
        if sent.endswith(b"\r\n") and DELTA in sent:
            assert client.chunk() == DELTA
        begun = time.monotonic()
        {"close": client.close, "reset": client.reset, "half": client.half_close}[how]()
        opened(gone)
        assert times[0] - begun < 1.0
        client.close()
    assert len(stand.upstream.requests) == before + 1
    return stand.outcome(word)


@case("CLI-01")
def test_leaves_in_a_stream(stand: Stand) -> None:
    for how in ("close", "reset"):
        assert leave(stand, SSE_HEAD + event(DELTA), how, STREAM) == "client_gone"
    # No slot is kept: as many again as there may be at once.
    for _ in range(5):
        gone = threading.Event()
        with stand.playing(_waits(SSE_HEAD + event(DELTA), gone, [])):
            clients = [stand.client("brief") for _ in range(4)]
            for client in clients:
                client.post_json("/v1/chat/completions", STREAM)
                assert client.head().status == 200
            for client in clients:
                client.reset()
        until(lambda: stand.post("/v1/chat/completions", at="brief").status == 200, 5)


@case("CLI-02")
def test_leaves_before_the_first_byte(stand: Stand) -> None:
    for how in ("close", "reset"):
        for document in (CHAT, STREAM):
            assert leave(stand, b"", how, document) == "client_gone"


@case("CLI-04")
def test_leaves_while_all_slots_are_taken(stand: Stand) -> None:
    go = threading.Event()

    def play(peer: Peer, received: Received) -> None:
        peer.body(received)
        peer.send(SSE_HEAD, event(DELTA))
        opened(go, 20)
        peer.send(event(DONE), b"0\r\n\r\n")

    running = stand.start("[server]\nmax_concurrent = 2\n")
    before = len(stand.upstream.requests)
    with stand.playing(play):
        holders = [stand.client(running) for _ in range(2)]
        for client in holders:
            client.post_json("/v1/chat/completions", STREAM)
            client.head()
        # There is no queue: who comes above the limit is told so at once. Who leaves at once costs nothing either.
        refused = stand.post("/v1/chat/completions", at=running)
        assert (refused.status, refused.code) == (503, "overloaded")
        for _ in range(20):
            client = stand.client(running)
            client.post_json("/v1/chat/completions", STREAM)
            client.reset()
        assert stand.ask("GET", "/healthz", at=running).status == 200
        assert len(stand.upstream.requests) == before + 2
        go.set()
        for client in holders:
            assert client.chunk() == DELTA
            assert client.chunk() == DONE
            assert client.line() == b"0"
            client.close()
        both = [stand.client(running) for _ in range(2)]
        for client in both:
            client.post_json("/v1/chat/completions", STREAM)
            assert client.response().status == 200
            client.close()
    assert len(stand.upstream.requests) == before + 4
    assert running.stop() == 0


@case("CLI-05")
def test_half_close(stand: Stand) -> None:
    # Treated as leaving: see the head of guard.py.
    for sent in (b"", SSE_HEAD + event(DELTA)):
        assert leave(stand, sent, "half", STREAM) == "client_gone"
    # Also when the FIN comes right behind the request: the answer or the end, never a hang.
    for _ in range(10):
        with stand.client() as client:
            client.request("GET", "/openai/v1/files")
            client.half_close()
            client.rest()
    with stand.client() as client:
        client.send(b"GET /openai/v1/files HTTP/1.1\r\nHost: x")
        client.half_close()
        assert client.rest() == b""


def _endless(peer: Peer, received: Received) -> bool:
    """Answer with as many bytes as are taken."""
    peer.body(received)
    peer.send(b"HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\ncontent-length: 209715200\r\n\r\n")
    block = b"x" * 65_536
    for _ in range(3200):
        peer.send(block)
    return False


@case("CLI-06")
def test_slow_readers(stand: Stand) -> None:
    count, seconds = (50, 30.0) if FULL else (20, 2.0)
    running = stand.start()
    with stand.playing(_endless), contextlib.ExitStack() as stack:
        with stand.client(running, receive_buffer=8192) as first:  # warms up
            first.request("GET", "/openai/v1/files/x/content")
            first.head()
        before = rss(running)
        clients = [stack.enter_context(Client(running.port, None, receive_buffer=8192)) for _ in range(count)]
        for client in clients:
            client.request("GET", "/openai/v1/files/x/content")
            assert client.head().status == 200
        end, grown = time.monotonic() + seconds, 0
        while time.monotonic() < end:
            for client in clients:
                client.exactly(1024)
            grown = max(grown, rss(running) - before)
            time.sleep(0.2)
        # Few streams must bear what the process itself takes with the first of them.
        assert grown < count * 256 * 1024 + (0 if FULL else 2 << 20), grown // count
        # The upstream waits: no one of them was sent anything like the whole.
        assert stand.ask("GET", "/healthz", at=running).status == 200
    assert running.stop() == 0


@case("CLI-07")
def test_stopped_reader(stand: Stand) -> None:
    word = stand.nonce()
    cut = threading.Event()

    def play(peer: Peer, received: Received) -> bool:
        try:
            return _endless(peer, received)
        except OSError:
            cut.set()
            raise

    with stand.playing(play), stand.client("brief", receive_buffer=8192) as client:
        client.request("GET", f"/openai/v1/{word}")
        assert client.head().status == 200
        begun = time.monotonic()
        opened(cut, 15)
        assert 0.8 < time.monotonic() - begun < 8.0
        # Not a clean end either: 200 MB were announced.
        assert client.closed(10)
    assert stand.outcome(word, "brief") == "client_gone"


@case("CLI-08")
def test_keep_alive_after_errors(stand: Stand) -> None:
    def bad(peer: Peer, received: Received) -> bool:
        peer.body(received)
        peer.send(b"nonsense\r\n\r\n")
        return False

    def ask_four_times(client: Client) -> Iterator[Response]:
        client.post_json("/no/such/path", CHAT)
        yield client.response()
        client.post_json("/v1/chat/completions", CHAT, {"x-lava-proxy-project": "nobody"})
        yield client.response()
        for play in (bad, answers(429, b"{}")):
            with stand.playing(play):
                client.post_json("/v1/chat/completions", CHAT)
                response = client.response()
            yield response
        client.request("POST", "/openai/v1/files", b"x" * 100_001)
        yield client.response()

    client = stand.client("brief")
    statuses = []
    for response in ask_four_times(client):
        statuses.append(response.status)
        if response.header("connection") == "close":
            assert client.rest() == b""
            client.close()
            break
        client.post_json("/v1/chat/completions", CHAT)
        sound = client.response()
        assert sound.status == 200
        assert sound.json()["length"] == len(json.dumps(CHAT))
    client.close()
    assert statuses == [404, 404, 502, 429, 413]
    # Each error by itself, also where the connection was announced to end.
    for document, path, wanted in ((b"x" * 100_001, "/openai/v1/files", 413), (b"{}", "/no/such/path", 404)):
        with stand.client("brief") as client:
            client.request("POST", path, document)
            response = client.response()
            assert response.status == wanted
            if response.header("connection") == "close":
                assert client.rest() == b""
            else:
                client.post_json("/v1/chat/completions", CHAT)
                assert client.response().status == 200


def paid(stand: Stand) -> int:
    """Requests that cost something: a question to Lava's account is none."""
    return sum(each.method == b"POST" for each in stand.upstream.requests)


@case("CLI-10")
def test_sdk_retries(stand: Stand) -> None:
    import httpx2
    import openai

    def closes(peer: Peer, received: Received) -> bool:
        peer.body(received)
        return False

    client = openai.OpenAI(
        base_url=f"{stand.daemon().url}/v1", api_key="unused", max_retries=2, http_client=httpx2.Client(trust_env=False)
    )
    try:
        for play, kind in (
            (closes, openai.InternalServerError),
            (answers(402, b'{"error":{"message":"wallet","status":402}}'), openai.APIStatusError),
        ):
            before = paid(stand)
            with stand.playing(play):
                with pytest.raises(kind) as raised:
                    client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "x"}])
                assert raised.value.response.headers["x-should-retry"] == "false"
            assert paid(stand) == before + 1, "paid twice"
    finally:
        client.close()


# --- beyond the list -------------------------------------------------------------------------------------------------


def test_leaving_at_odd_moments(stand: Stand) -> None:
    """Resets at every moment of a request, many at once: nothing hangs, nothing is counted twice, slots come back."""
    raw = head(stand.daemon("brief").port, "POST /openai/v1/files HTTP/1.1", "Content-Length: 20000") + b"x" * 20_000

    def one(number: int) -> None:
        with stand.client("brief") as client:
            client.push(raw[: 1 + number * 97 % len(raw)])
            if number % 3:
                client.reset()
            elif number % 2:
                client.half_close()

    Together(8).run([lambda number=number: one(number) for number in range(200)])  # type: ignore[misc]
    until(lambda: settled(stand, stand.daemon("brief")), 10)
    assert stand.post("/v1/chat/completions", at="brief").status == 200


def test_pipelined_and_gone(stand: Stand) -> None:
    """Many pipelined requests and a reset: what was begun is ended, what was not begun never is."""
    slow, times = threading.Event(), list[float]()
    before = len(stand.upstream.requests)
    with stand.playing(_waits(b"", slow, times)):
        client = stand.client()
        one = head(client.port, "GET /openai/v1/files HTTP/1.1")
        client.send(one * 50)
        stand.upstream.wait(lambda: len(stand.upstream.requests) == before + 1)
        client.reset()
        opened(slow)
    assert stand.ask("GET", "/healthz").status == 200
    assert len(stand.upstream.requests) == before + 1
    # A flood of them without reading the answers is answered as far as it is read.
    with stand.playing(echo), stand.client(receive_buffer=4096) as client:
        client.sock.settimeout(1)
        with contextlib.suppress(TimeoutError):
            client.sock.sendall(head(client.port, "GET /healthz HTTP/1.1") * 20_000)
        assert stand.ask("GET", "/healthz").status == 200


def test_stalled_readers_of_every_framing(stand: Stand) -> None:
    """A reader that stops is cut off whatever the framing, and other clients do not notice."""
    for first in (CLOSE_SSE_HEAD, SSE_HEAD):
        cut = threading.Event()

        def play(peer: Peer, received: Received, first: bytes = first, cut: threading.Event = cut) -> bool:
            peer.body(received)
            block = event(DELTA * 1000) if first is SSE_HEAD else DELTA * 1000
            try:
                peer.send(first)
                while True:
                    peer.send(block)
            except OSError:
                cut.set()
                raise

        with stand.playing(play), stand.client("brief", receive_buffer=8192) as client:
            client.post_json("/v1/chat/completions", STREAM)
            assert client.head().status == 200
            opened(cut, 15)
            assert client.closed(10)
    assert stand.post("/v1/chat/completions", at="brief").status == 200


def test_odd_sockets(stand: Stand) -> None:
    """Urgent data, a byte at a time, a thousand connections that come and go: the daemon serves on."""
    with stand.client() as client:
        client.sock.send(b"!", socket.MSG_OOB)
        client.push(head(client.port))
        assert client.response().status == 200
    with stand.client() as client:
        for byte in head(client.port, "GET /openai/v1/files HTTP/1.1", f"X-Key: {made_up('k', 'byte')}"):
            client.send(bytes([byte]))
        assert client.response().status == 200
    for _ in range(500):
        stand.client().reset()
    assert stand.post("/v1/chat/completions").status == 200
